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
    from contextcrf.data.cross_validation import write_folds

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


def init(data: Path, out: Path = Path("recipe.yaml"), void: int = 255, val_every: int = 5) -> None:
    """Look at a folder of images and masks, make it a data set, and write a first recipe for it.

    DATA holds `images/` and `masks/`, files of the same name, the masks with a class index for each pixel. What is
    missing is written: classes.yaml (give the classes their names there) and splits/train.txt and val.txt.

    Args:
        data: the folder.
        out: the recipe to write, a commented YAML file; that of the second stage, OUT-heads.yaml, beside it.
        void: the value of the masks that means "no label"; classes.yaml says it where there is one.
        val_every: one image of so many is kept to measure on.
    """
    from contextcrf.cli.project import heads_path, start

    made = start(data, out, void, val_every)
    for label, share in made.found.shares(made.void).items():
        print(f"{100 * share:6.2f} % of the pixels  {made.classes.names[label]}")
    if absent := [name for label, name in enumerate(made.classes.names) if not made.found.pixels[label]]:
        print(f"no pixel at all: {', '.join(absent)}: are these meant to be classes?")
    if unused := made.found.pixels[made.void]:
        print(f"{100 * unused / made.found.pixels.total():6.2f} % of all pixels are void ({made.void})")
    print(", ".join(f"{count} images in {split}" for split, count in made.images.items()))
    for path in made.written:
        print(f"written: {path}")
    print(f"next: contextcrf fit --config {out} --data {data} --out runs/mine")
    print(f"then: contextcrf fit-heads runs/mine/model --config {heads_path(out)} --data {data} --out runs/heads")


def doctor(data: Path | None = None) -> None:
    """Say what this machine has: system, versions, devices, memory, disk, weights, and the splits of a data set.

    The exit status is 1 if the data set, or a file of it, is missing or cannot be read.

    Args:
        data: a data set to look at.
    """
    from contextcrf.cli.doctor import examine

    wrong = False
    for finding in examine(data):
        print(f"{finding.name:28} {finding.text}")
        wrong |= finding.wrong
    if wrong:
        raise SystemExit(1)
