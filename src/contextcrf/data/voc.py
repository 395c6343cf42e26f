"""PASCAL VOC 2012 as the field trains on it: the development kit, the masks of SBD beside it, the split train_aug.

The Semantic Boundaries Dataset (Hariharan et al., ICCV 2011) has masks for 11,355 of VOC's photographs. train_aug is
all that VOC's train or SBD has a mask for and that is not in VOC's val: 10,582 images. VOC's own mask is taken where
there are two.
"""

from pathlib import Path

from rich.progress import track
from torchvision.datasets import SBDataset, VOCSegmentation

from contextcrf.data.dataset import SBD_MASKS, VOC_SPLITS, check_train_aug, voc_kit
from contextcrf.utils.errors import DataError


def prepare_voc(root: Path, sbd: Path | None = None, download: bool = False, progress: bool = True) -> Path:
    """Fetch what is missing and add the split train_aug to a development kit.

    Args:
        root: folder for, or of, the kit (as torchvision has it: `root`/VOCdevkit/VOC2012).
        sbd: folder for, or of, SBD (`img`, `cls`, `train.txt`, `val.txt`); None leaves the kit as it is.
        download: fetch what is not there, 2 GB and 1.4 GB.
        progress: show a progress bar.

    Returns:
        The kit's folder, which `open_dataset` takes.

    Raises:
        DataError: something is missing and not to be fetched, or the images are not 10,582.
    """
    kit = voc_kit(root)
    if kit is None:
        if not download:
            raise DataError(f"{root}: no {VOC_SPLITS} below it; expected VOC's development kit, or --download true")
        VOCSegmentation(root, image_set="train", download=True)
        kit = root / "VOCdevkit" / "VOC2012"
    if sbd is not None:
        _add_train_aug(kit, sbd, download, progress)
    return kit


def _add_train_aug(kit: Path, sbd: Path, download: bool, progress: bool) -> None:
    missing = [name for name in ("img", "cls", "train.txt", "val.txt") if not (sbd / name).exists()]
    if missing and not download:
        raise DataError(f"{sbd}: {', '.join(missing)} missing; expected SBD (its folder `dataset`), or --download true")
    try:
        # SBD's own two splits and VOC's say which images count; its list "train_noval" lies on one more server.
        first = SBDataset(sbd, image_set="train", mode="segmentation", download=bool(missing))
        parts = [first, SBDataset(sbd, image_set="val", mode="segmentation")]
    except RuntimeError as error:
        raise DataError(f'{sbd}: {error} (pip install "contextcrf[voc]" brings scipy)') from error
    masks = {Path(mask).stem: (part, number) for part in parts for number, mask in enumerate(part.masks)}
    train, val = ((kit / VOC_SPLITS / f"{name}.txt").read_text().split() for name in ("train", "val"))
    wanted = sorted({*train, *masks} - {*val})
    split = kit / VOC_SPLITS / "train_aug.txt"
    check_train_aug(split, wanted)
    (kit / SBD_MASKS).mkdir(exist_ok=True)
    for stem in track(sorted({*wanted} - {*train}), "masks of SBD", disable=not progress):
        path = kit / SBD_MASKS / f"{stem}.png"
        if not path.exists():
            part, number = masks[stem]
            _, mask = part[number]
            unfinished = path.with_suffix(".part")
            mask.save(unfinished, format="PNG")
            unfinished.rename(path)
    split.write_text("".join(f"{stem}\n" for stem in wanted))
