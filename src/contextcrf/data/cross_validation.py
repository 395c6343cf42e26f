"""Cross-validation: a data set with a training split and a test split for each fold."""

import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from contextcrf.data.classes_file import ClassesFile
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import write_text

logger = logging.getLogger(__name__)


def make_folds(data: str | Path, out: str | Path, folds: int, splits: Sequence[str] = ("train", "val")) -> Path:
    """Divide the images of some splits into folds whose sizes differ by at most one image.

    The images are sorted by name and assigned to the folds in turn, so images with neighboring names are in different
    folds. This suits independent images. It does not suit video, because neighboring frames would be in the training
    split and in the test split.

    The result in `out` is a data set with `classes.yaml`, `images/`, `masks/` and `splits/`. The images and masks are
    symbolic links, or copies if the system does not allow links (as on Windows without the privilege to create them).
    For each fold k, `splits/fold<k>-test.txt` lists the images of the fold, and `splits/fold<k>-train.txt` lists all
    others. `splits/all.txt` lists all images, for the training of a final model.

    Args:
        data: the folder of the data set, in any known layout.
        out: a new or empty folder. If an error occurs, nothing is written.
        folds: the number of folds, at least 2.
        splits: the splits whose images are used. Leave out a split that you keep for a final test.

    Returns:
        The folder `out`.

    Raises:
        ValueError: If there are fewer than 2 folds.
        DataError: If two images have the same name, or if there are fewer images than folds.
        FileExistsError: If `out` is not empty.

    Example:
        >>> from contextcrf.data.synthetic import write_scenes
        >>> scenes = write_scenes("scenes", train=3, val=1, height=64, width=96)
        >>> folder = make_folds(scenes, "folds", folds=2)
        >>> len(open_dataset(folder, "fold0-train")), len(open_dataset(folder, "fold0-test"))
        (2, 2)
    """
    out = Path(out)
    if folds < 2:
        raise ValueError(f"The number of folds is {folds}, but at least 2 are expected.")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"The folder {out} is not empty. Choose a new folder.")
    parts = [open_dataset(data, split) for split in splits]
    pairs = sorted((pair for part in parts for pair in part.pairs), key=lambda pair: pair[0].stem)
    repeated = [stem for stem, times in Counter(image.stem for image, _ in pairs).items() if times > 1]
    if repeated:
        raise DataError(
            f"The image {repeated[0]} occurs more than once in the splits {', '.join(splits)} of {data}, but every "
            "image must occur once."
        )
    if len(pairs) < folds:
        raise DataError(
            f"The number of images in {data} is {len(pairs)}, but {folds} folds need at least {folds} images. "
            "Choose fewer folds."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        complete = Path(partial, out.name)
        _write(complete, pairs, folds, parts[0])
        if out.exists():
            out.rmdir()  # Windows cannot rename a folder to an existing one, even if that is empty.
        complete.rename(out)
    return out


def _write(out: Path, pairs: Sequence[tuple[Path, Path]], folds: int, data: SegmentationDataset) -> None:
    for folder in ("images", "masks", "splits"):
        (out / folder).mkdir(parents=True)
    copied = 0
    for image, mask in pairs:
        copied += _link_or_copy(image.resolve(), out / "images" / image.name)
        copied += _link_or_copy(mask.resolve(), out / "masks" / f"{image.stem}{mask.suffix}")
    if copied:
        logger.warning(
            "Copied %d file%s, because this system does not allow symbolic links.", copied, "s" if copied > 1 else ""
        )
    ClassesFile(data.classes, data.mask_format).write(out / "classes.yaml")
    stems = [image.stem for image, _ in pairs]
    write_text(out / "splits" / "all.txt", "".join(f"{stem}\n" for stem in stems))
    for fold in range(folds):
        test = stems[fold::folds]
        train = [stem for i, stem in enumerate(stems) if i % folds != fold]
        for name, chosen in (("train", train), ("test", test)):
            write_text(out / "splits" / f"fold{fold}-{name}.txt", "".join(f"{stem}\n" for stem in chosen))


def _link_or_copy(source: Path, target: Path) -> bool:
    """Link to a file, or copy it if the system does not allow links. Return whether it was copied."""
    try:
        target.symlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        return True
    return False
