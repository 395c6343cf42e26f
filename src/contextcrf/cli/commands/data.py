"""Commands that make and check data sets, and try the library."""

from collections.abc import Sequence
from pathlib import Path


def init(data: Path, out: Path = Path("recipe.yaml"), ignore_index: int = 255, val_every: int = 5) -> None:
    """Inspect a folder of images and masks, make it a data set, and write a first recipe for it.

    DATA holds `images/` and `masks/`, files of the same name, the masks with a class index for each pixel. The command
    writes what is missing: classes.yaml (give the classes their names there), splits/train.txt and splits/val.txt.

    Args:
        data: the folder.
        out: the recipe to write, a commented YAML file; that of the second stage, OUT-heads.yaml, beside it.
        ignore_index: the value of the masks that means "no label"; classes.yaml has it where it exists.
        val_every: every n-th image is kept to measure on.
    """
    from contextcrf.cli.project import heads_path, start

    made = start(data, out, ignore_index, val_every)
    for label, share in made.statistics.shares(made.ignore_index).items():
        print(f"{100 * share:6.2f} % of the pixels  {made.classes.names[label]}")
    pixels = made.statistics.pixels
    if absent := [name for label, name in enumerate(made.classes.names) if not pixels[label]]:
        print(f"no pixel at all: {', '.join(absent)}: are these meant to be classes?")
    if unused := pixels[made.ignore_index]:
        print(f"{100 * unused / pixels.total():6.2f} % of all pixels have no label ({made.ignore_index})")
    print(", ".join(f"{count} images in {split}" for split, count in made.images.items()))
    for path in made.written:
        print(f"written: {path}")
    print(f"next: contextcrf fit --config {out} --data {data} --out runs/mine")
    print(f"then: contextcrf fit-heads runs/mine --config {heads_path(out)} --data {data} --out runs/heads")


def make_folds(data: Path, out: Path, folds: int = 3, splits: Sequence[str] = ("train", "val")) -> None:
    """Make folds for cross-validation: OUT is the same data with splits foldK-train and foldK-test.

    Args:
        data: folder of the data set.
        out: new folder; images and masks are links.
        folds: how many.
        splits: whose images take part.
    """
    from contextcrf.data.cross_validation import make_folds as run

    run(data, out, folds, splits)
    images = len(list((out / "images").iterdir()))
    print(f"{folds} folds of {images} images written to {out}")


def prepare_voc(root: Path, sbd: Path | None = None, download: bool = False) -> None:
    """Prepare PASCAL VOC 2012: the development kit, and with SBD the 10,582 images of its split train_aug.

    Args:
        root: folder for, or of, the development kit.
        sbd: folder for, or of, the Semantic Boundaries Dataset; without it there is no train_aug.
        download: fetch missing files, 2 GB for VOC and 1.4 GB for SBD.
    """
    from contextcrf.data.voc import prepare_voc as run

    print(f"PASCAL VOC 2012 is in {run(root, sbd, download)}")


def doctor(data: Path | None = None) -> None:
    """Report on this machine: system, versions, devices, memory, disk, weights, and the splits of a data set.

    The exit status is 1 if the data set, or a file of it, is missing or cannot be read.

    Args:
        data: a data set to check.
    """
    from contextcrf.cli.doctor import examine

    wrong = False
    for finding in examine(data):
        print(f"{finding.name:28} {finding.text}")
        wrong |= finding.wrong
    if wrong:
        raise SystemExit(1)


def quickstart(out: Path = Path("quickstart"), epochs: int = 20, train_images: int = 160, val_images: int = 40) -> None:
    """Run every step on scenes that are drawn here: draw, train, tune, evaluate, pictures. A few minutes.

    Args:
        out: folder for all results; those of an earlier quickstart are replaced.
        epochs: of training.
        train_images: scenes to train on.
        val_images: scenes to evaluate on.
    """
    from contextcrf.cli.quickstart import run

    run(out, epochs, train_images, val_images)
