"""PASCAL VOC 2012 with the masks of SBD and the split train_aug, the usual training set in the literature.

The Semantic Boundaries Dataset (SBD; Hariharan et al., ICCV 2011) has masks for 11,355 of VOC's photographs. The split
train_aug consists of all images with a mask in VOC's train or in SBD that are not in VOC's val: 10,582 images. Where an
image has two masks, the split uses that of VOC.
"""

from pathlib import Path

from torchvision.datasets import SBDataset, VOCSegmentation

from contextcrf.data.layouts import SBD_MASKS, VOC_SPLITS, check_train_aug, voc_kit
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import atomic_write, write_text
from contextcrf.utils.progress import track


def prepare_voc(root: Path, sbd: Path | None = None, download: bool = False) -> Path:
    """Download missing data and add the split train_aug to a development kit.

    Args:
        root: the folder of the kit, or the folder in which torchvision places it (`root`/VOCdevkit/VOC2012).
        sbd: the folder of SBD (`img`, `cls`, `train.txt`, `val.txt`), or the one in which it is placed; None leaves the
            kit unchanged.
        download: download missing data (VOC: 2 GB, SBD: 1.4 GB).

    Returns:
        The folder of the kit, for `open_dataset`.

    Raises:
        DataError: data are missing and `download` is not set, SciPy is not installed, or the split does not have
            10,582 images.
    """
    kit = voc_kit(root)
    if kit is None:
        if not download:
            raise DataError(
                f"{root}: no {VOC_SPLITS.as_posix()} below it; expected VOC's development kit; --download fetches it"
            )
        VOCSegmentation(root, image_set="train", download=True)
        kit = root / "VOCdevkit" / "VOC2012"
    if sbd is not None:
        _add_train_aug(kit, sbd, download)
    return kit


def _add_train_aug(kit: Path, sbd: Path, download: bool) -> None:
    missing = [name for name in ("img", "cls", "train.txt", "val.txt") if not (sbd / name).exists()]
    if missing and not download:
        raise DataError(
            f"{sbd}: {', '.join(missing)} missing; expected SBD (its folder `dataset`); --download fetches it"
        )
    try:
        # SBD's two splits and those of VOC define the images; the list "train_noval" would need one more server.
        first = SBDataset(sbd, image_set="train", mode="segmentation", download=bool(missing))
        parts = [first, SBDataset(sbd, image_set="val", mode="segmentation")]
    except RuntimeError as error:
        raise DataError(f'{sbd}: {error} (pip install "contextcrf[voc]" installs SciPy)') from error
    masks = {Path(mask).stem: (part, number) for part in parts for number, mask in enumerate(part.masks)}
    train, val = ((kit / VOC_SPLITS / f"{name}.txt").read_text(encoding="utf-8").split() for name in ("train", "val"))
    stems = sorted({*train, *masks} - {*val})
    split = kit / VOC_SPLITS / "train_aug.txt"
    check_train_aug(split, stems)
    for stem in track(sorted({*stems} - {*train}), "Converting the masks of SBD"):
        path = kit / SBD_MASKS / f"{stem}.png"
        if not path.exists():
            part, number = masks[stem]
            _, mask = part[number]
            with atomic_write(path) as partial:
                mask.save(partial)
    write_text(split, "".join(f"{stem}\n" for stem in stems))
