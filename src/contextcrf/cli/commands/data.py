"""Commands that prepare and check data sets, and commands for the first steps."""

from collections.abc import Sequence
from pathlib import Path

from contextcrf.data.importers.options import CityscapesIds, Crowd, FormatName, Order, Unlabeled


def init(
    data: Path,
    out: Path = Path("recipe.yaml"),
    ignore_index: int | None = None,
    val: float = 0.2,
    tune: float = 0.0,
    images: str | None = None,
    masks: str | None = None,
    skip_unlabeled: bool = False,
) -> None:
    """Turn a folder of images and masks into a data set and write configs for its training.

    DATA contains the folders images and masks, or has the layout of CamVid or PASCAL VOC. The mask of a.jpg is a.png,
    or its name has an additional ending that is the same for all masks, such as a_mask.png. A mask has one class index
    or one class color per pixel. The command prints how it reads the masks. It writes classes.yaml, splits/train.txt
    and splits/val.txt, unless they exist. Files that an earlier call wrote and that have not been changed since are
    replaced. After the command, you can name the classes in classes.yaml. Look at contact-sheet.png, which shows some
    images with their labels.

    Args:
        data: Folder with the images and the masks.
        out: Config to write for `fit`. The config for `fit-heads` is written beside it, with -heads after the stem, as
            in recipe-heads.yaml. The contact sheet is written to the same folder.
        ignore_index: Value of unlabeled pixels in masks with class indices. If null, it is the value in
            DATA/classes.yaml, or the command finds it if this file does not exist.
        val: Fraction of the images that are assigned to the split val.
        tune: Fraction of the images that are assigned to the split tune, for the command `tune`. The other images are
            the split train.
        images: Name of the folder of the images in DATA. If null, it is images.
        masks: Name of the folder of the masks in DATA. If null, it is masks.
        skip_unlabeled: Leave out images without a mask. Otherwise, they are an error.

    Example:
        contextcrf init data
        contextcrf init data --out configs/streets.yaml --ignore-index 11
        contextcrf init data --images photos --masks labels --tune 0.1
    """
    from contextcrf.cli.project import heads_path, start
    from contextcrf.data.classes import IGNORE_INDEX

    made = start(data, out, ignore_index, val, tune, (images, masks), skip_unlabeled)
    for finding in made.findings:
        print(finding)
    pixels = made.statistics.pixels
    for label, share in made.statistics.shares(IGNORE_INDEX).items():
        code = made.masks.describe_class(label)
        print(f"{100 * share:6.2f} % of the labeled pixels  {made.classes.names[label]} ({code})")
    if absent := [name for label, name in enumerate(made.classes.names) if not pixels[label]]:
        advice = "Before you remove one, give the other classes their `value`, which is their position from 0."
        if not made.masks.is_plain:
            advice = "Remove the classes that do not exist in your data."
        print(f"These classes have no pixels: {', '.join(absent)}. {advice}")
    if unused := pixels[IGNORE_INDEX]:
        values = [str(value) for value in made.masks.ignore_values]
        why = f"({', '.join(values)})" if values else "(no class color)"
        print(f"{100 * unused / pixels.total():6.2f} % of all pixels have no label {why}")
    print(", ".join(f"{count} image{'' if count == 1 else 's'} in {split}" for split, count in made.images.items()))
    if made.images["train"] < len(made.classes):
        print(
            f"warning: {made.images['train']} training images are few for {len(made.classes)} classes. Check that the "
            "values of the masks are classes, and not instances or probabilities."
        )
    for path in made.written:
        print(f"written: {path}")
    others = [split for split in made.images if split != "train"]
    validated = "" if "val" in others else f" --val-split {others[0] if others else 'null'}"
    if data / "classes.yaml" in made.written and any(name.startswith("class ") for name in made.classes.names):
        print(f"first: name your classes in {data / 'classes.yaml'}, since a trained model keeps the names")
    print(f"next: contextcrf fit --config {out} --data {data} --out runs/mine{validated}")
    print("      Add --budget 10m for a first result within 10 minutes. Without it, all epochs are trained.")
    print(f"then: contextcrf fit-heads runs/mine --config {heads_path(out)} --data {data} --out runs/heads")
    if "tune" in others:
        print(f"      contextcrf tune runs/heads --data {data} --split tune --dense")


def import_dataset(
    format: FormatName,
    source: Path,
    out: Path,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
    unlabeled: Unlabeled | None = None,
    order: Order | None = None,
    crowd: Crowd | None = None,
    label_map: Path | None = None,
    ids: CityscapesIds | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    ignore_index: int | None = None,
    link: bool = False,
) -> None:
    """Turn the data set of an annotation tool into a folder of images, masks, classes and splits.

    The command prints what was imported, what was dropped and why, and writes it to OUT/import.json. The source is not
    changed. `contextcrf init OUT` then writes configs for a training run.

    Args:
        format: Format of the source: coco, labelme, cvat, voc, label-studio, supervisely, roboflow, cityscapes, ade20k,
            camvid32, class-masks (a binary mask for each class or instance) or huggingface.
        source: File or folder of the annotations. For huggingface, also the name of a data set on the Hub.
        out: New folder for the data set.
        images: Folder of the images. If null, the usual folder of the format is used.
        classes: Classes to import, in the order of their indices. Shapes of other classes are dropped. If null, all
            classes are imported. For huggingface, the names of all labels in the order of their values.
        unlabeled: Whether pixels without a class belong to the class background ("background") or get the ignore_index
            ("ignore"). If null, "ignore" is used for voc, cityscapes, ade20k and camvid32, and "background" otherwise.
        order: "listed" draws later shapes over earlier ones (in CVAT, shapes with a higher z_order over shapes with a
            lower one), and "area" draws smaller shapes over larger ones. If null, "listed" is used.
        crowd: For coco, whether crowd regions get the ignore_index ("ignore") or their class ("class"). If null,
            "ignore" is used.
        label_map: For voc and camvid32, the file with the classes and their colors.
        ids: For cityscapes, the masks to read: "labelIds" for the files `*_labelIds`, or "trainIds" for the files
            `*_labelTrainIds`. If null, "labelIds" is used.
        image_column: For huggingface, the column of the images.
        label_column: For huggingface, the column of the masks.
        ignore_index: For voc and huggingface, the value in the masks that marks pixels to ignore. If null, it is 255.
        link: Make hard links of the images instead of copies.

    Example:
        contextcrf import coco annotations/instances_train.json data --images images
        contextcrf import labelme labelme data --unlabeled ignore --order area
        contextcrf import class-masks tool data --classes '[cell, wall]'
    """
    from contextcrf.data.importers.importing import import_dataset as run

    report = run(
        format,
        source,
        out,
        images=images,
        classes=classes,
        unlabeled=unlabeled,
        order=order,
        crowd=crowd,
        label_map=label_map,
        ids=ids,
        image_column=image_column,
        label_column=label_column,
        ignore_index=ignore_index,
        link=link,
    )
    print(report.text())
    print(f"written: {out}")
    print(f"next: contextcrf init {out}")


def make_folds(data: Path, out: Path, folds: int = 3, splits: Sequence[str] = ("train", "val")) -> None:
    """Divide a data set into folds for cross-validation.

    OUT becomes a data set with the same images. For each fold K, the split foldK-test has the images of the fold, and
    the split foldK-train has all others. The split all has all images.

    Args:
        data: Folder of the data set.
        out: New folder for the folds. Its images and masks are links, or copies where links are not possible.
        folds: Number of folds, at least 2.
        splits: Splits whose images are divided into the folds.

    Example:
        contextcrf make-folds data --out folds
        contextcrf make-folds data --out folds --folds 5 --splits '[train]'
    """
    from contextcrf.data.cross_validation import make_folds as run

    run(data, out, folds, splits)
    images = len(list((out / "images").iterdir()))
    print(f"{folds} folds of {images} images written to {out}")


def prepare_voc(root: Path, sbd: Path | None = None, download: bool = False) -> None:
    """Prepare PASCAL VOC 2012 for training.

    With SBD, the command adds the masks of SBD and the split train_aug, which has 10,582 images.

    Args:
        root: Folder that contains the development kit, or that the kit is downloaded to.
        sbd: Folder that contains the Semantic Boundaries Dataset (SBD), or that it is downloaded to. If null, the split
            train_aug is not made.
        download: Download the files that are missing: 2 GB for VOC and 1.4 GB for SBD.

    Example:
        contextcrf prepare-voc VOC
        contextcrf prepare-voc VOC --sbd SBD --download
    """
    from contextcrf.data.voc import prepare_voc as run

    print(f"PASCAL VOC 2012 is in {run(root, sbd, download)}")


def doctor(data: Path | None = None) -> None:
    """Report the system, versions, devices, memory, disk space and weights, and check a data set.

    All images and masks of the data set are read, as before a training run. The exit status is 1 if a file is missing,
    a mask has another size than its image or labels that are not classes, or a training split has images of val, tune
    or test.

    Args:
        data: Folder of a data set whose splits are checked. If null, no data set is checked.

    Example:
        contextcrf doctor
        contextcrf doctor --data data
    """
    from contextcrf.cli.doctor import examine

    wrong = False
    for finding in examine(data):
        print(f"{finding.name:28} {finding.text}")
        wrong |= finding.wrong
    if wrong:
        raise SystemExit(1)


def quickstart(out: Path = Path("quickstart"), epochs: int = 20, train_images: int = 160, val_images: int = 40) -> None:
    """Run all steps, from training to figures, on synthetic scenes in a few minutes.

    The command draws the scenes, trains a model, tunes the relation weights, and evaluates the systems. It needs no
    download.

    Args:
        out: Folder for all results. The results of an earlier quickstart in it are replaced.
        epochs: Number of epochs of the training.
        train_images: Number of scenes in the training split.
        val_images: Number of scenes in the validation split.

    Example:
        contextcrf quickstart
        contextcrf quickstart --out demo --epochs 30
    """
    from contextcrf.cli.quickstart import run

    run(out, epochs, train_images, val_images)
