"""Cross-validation: a data set of links to the files of another one, with a training and a test split for each fold."""

import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import write_text

logger = logging.getLogger(__name__)


def make_folds(data: str | Path, out: str | Path, folds: int, splits: Sequence[str] = ("train", "val")) -> Path:
    """Divide the images of some splits into folds of equal size.

    The images are sorted by name and assigned to the folds in turn, so that series of similar images are spread over
    all folds. This suits independent photographs. It does not suit video: neighboring frames would be in training and
    in test.

    The result in `out` is a folder data set: `classes.yaml`; `images/` and `masks/` with symbolic links to the files,
    or with copies where links cannot be made (Windows without that privilege); in `splits/`, for each fold k,
    `fold<k>-test.txt` (its images) and `fold<k>-train.txt` (all others).

    Args:
        data: the folder of the data set, in any known layout.
        out: a new or empty folder; it is written completely or not at all.
        folds: the number of folds, 2 or more.
        splits: the splits whose images take part. Images to be kept for a final test belong to none of them.

    Returns:
        `out`.

    Raises:
        ValueError: fewer than two folds.
        DataError: two images have one name, or there are fewer images than folds.
        FileExistsError: `out` is not empty.
    """
    out = Path(out)
    if folds < 2:
        raise ValueError(f"{folds} folds: expected two or more")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: choose a new folder")
    parts = [open_dataset(data, split) for split in splits]
    pairs = sorted((pair for part in parts for pair in part.pairs), key=lambda pair: pair[0].stem)
    repeated = [stem for stem, times in Counter(image.stem for image, _ in pairs).items() if times > 1]
    if repeated:
        raise DataError(f"{data}: {repeated[0]} occurs twice in {', '.join(splits)}; expected every image once")
    if len(pairs) < folds:
        raise DataError(f"{data}: {len(pairs)} images for {folds} folds; expected at least one image per fold")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        complete = Path(partial, out.name)
        _write(complete, pairs, folds, parts[0])
        if out.exists():
            out.rmdir()  # Windows does not rename to an existing folder, not even to an empty one.
        complete.rename(out)
    return out


def _write(out: Path, pairs: Sequence[tuple[Path, Path]], folds: int, data: SegmentationDataset) -> None:
    for folder in ("images", "masks", "splits"):
        (out / folder).mkdir(parents=True)
    copied = 0
    for image, mask in pairs:
        copied += _link_or_copy(image.resolve(), out / "images" / image.name)
        copied += _link_or_copy(mask.resolve(), out / "masks" / f"{image.stem}.png")
    if copied:
        logger.warning("%d files were copied, since this system does not allow symbolic links to them.", copied)
    data.classes.to_yaml(out / "classes.yaml", data.ignore_index)
    stems = [image.stem for image, _ in pairs]
    for fold in range(folds):
        test = stems[fold::folds]
        train = [stem for i, stem in enumerate(stems) if i % folds != fold]
        for name, chosen in (("train", train), ("test", test)):
            write_text(out / "splits" / f"fold{fold}-{name}.txt", "".join(f"{stem}\n" for stem in chosen))


def _link_or_copy(source: Path, target: Path) -> bool:
    """Link to a file, or copy it where links cannot be made; whether it was copied."""
    try:
        target.symlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        return True
    return False
