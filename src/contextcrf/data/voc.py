"""PASCAL VOC 2012 with the masks of SBD and the split train_aug, the standard training set in the literature.

The Semantic Boundaries Dataset (SBD; Hariharan et al., ICCV 2011) has masks for 11,355 images of VOC. The split
train_aug contains all images that have a mask in VOC's train or in SBD and are not in VOC's val. These are 10,582
images. If an image has a mask in both data sets, the split uses the mask of VOC.
"""

from pathlib import Path

from torchvision.datasets import SBDataset, VOCSegmentation

from contextcrf.data.layouts import SBD_MASKS, VOC_SPLITS, check_train_aug, voc_kit
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import atomic_write, write_text
from contextcrf.utils.progress import track


def prepare_voc(root: Path, sbd: Path | None = None, download: bool = False) -> Path:
    """Download missing data and add the split train_aug to VOC's development kit.

    Args:
        root: the folder of the kit, or the folder in which torchvision places it (`root`/VOCdevkit/VOC2012).
        sbd: the folder of SBD (`img`, `cls`, `train.txt`, `val.txt`), or the folder for its download. None does not
            add train_aug.
        download: download missing data (VOC: 2 GB, SBD: 1.4 GB).

    Returns:
        The folder of the kit, for `open_dataset`.

    Raises:
        DataError: If data are missing and `download` is not set, if SciPy is not installed, or if the split does not
            have 10,582 images.
    """
    kit = voc_kit(root)
    if kit is None:
        if not download:
            raise DataError(
                f"{root} does not contain VOC's development kit, because there is no {VOC_SPLITS.as_posix()} below it. "
                "Check the path, or download the kit with --download."
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
            f"{sbd} does not contain all of SBD. Missing: {', '.join(missing)}. Give SBD's folder `dataset`, or "
            "download the data with --download."
        )
    try:
        # The splits of SBD and VOC define the images. The list "train_noval" would need a download from another server.
        first = SBDataset(sbd, image_set="train", mode="segmentation", download=bool(missing))
        parts = [first, SBDataset(sbd, image_set="val", mode="segmentation")]
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise DataError(
            f'The masks of SBD in {sbd} cannot be read: {reason}. `pip install "contextcrf[voc]"` installs SciPy.'
        ) from error
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
