"""Making data sets."""

from collections.abc import Sequence
from pathlib import Path


def folds(data: Path, out: Path, folds: int = 3, splits: Sequence[str] = ("train", "val")) -> None:
    """Deal a data set to folds for cross-validation: OUT is the same data with splits foldK-train and foldK-test.

    Args:
        data: folder of the data set.
        out: new folder; images and masks are links.
        folds: how many.
        splits: whose images take part.
    """
    from contextcrf.data.folds import write_folds

    write_folds(data, out, folds, splits)
    images = len(list((out / "images").iterdir()))
    print(f"{folds} folds of {images} images written to {out}")


def voc(root: Path, sbd: Path | None = None, download: bool = False) -> None:
    """Make PASCAL VOC 2012 ready: the development kit, and with SBD the 10,582 images of its split train_aug.

    Args:
        root: folder for, or of, the development kit.
        sbd: folder for, or of, the Semantic Boundaries Dataset; without it there is no train_aug.
        download: fetch what is not there, 2 GB for VOC and 1.4 GB for SBD.
    """
    from contextcrf.data.voc import prepare_voc

    print(f"PASCAL VOC 2012 is in {prepare_voc(root, sbd, download)}")
