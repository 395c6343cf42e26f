"""Validation of data sets before training. Without it, a training could fail hours later at a broken file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from contextcrf.data.classes import Classes
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.images import DECODING_ERRORS, DEEP_IMAGE_MODES, describe_error, is_turned, upright
from contextcrf.utils.errors import DataError
from contextcrf.utils.progress import track

logger = logging.getLogger(__name__)

# The modes with one number per pixel. In other modes (RGB, gray with alpha, ...), a pixel has no class index.
_MASK_MODES = ("1", "L", "P", "I", "I;16")

_LISTED = 50


def check_pairs(pairs: Sequence[tuple[Path, Path]], num_classes: int, ignore_index: int) -> None:
    """Decode all images and masks completely and report all problems at once.

    Args:
        pairs: the path of the image and the path of the mask for each sample.
        num_classes: the number of classes K. The valid labels of a mask are 0..K-1 and `ignore_index`.
        ignore_index: the value of unlabeled pixels in the mask files.

    Raises:
        DataError: If a file is missing, cannot be decoded, or has more than 8 bits per channel. Also if a mask is not
            a single-channel image of class indices, has another size than its image, or contains other labels. The
            message has a line for each of the first 50 problems and the number of further problems. Each line names
            the file, the value found and the expected value.
    """
    problems = [line for lines in find_problems(pairs, num_classes, ignore_index) for line in lines]
    if problems:
        lines = problems[:_LISTED]
        if len(problems) > _LISTED:
            lines.append(f"... and {len(problems) - _LISTED} more")
        count = f"{len(problems)} problems were" if len(problems) > 1 else "1 problem was"
        checked = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
        raise DataError(f"{count} found in {checked} of image and mask:\n" + "\n".join(f"  {line}" for line in lines))


def find_problems(pairs: Sequence[tuple[Path, Path]], num_classes: int, ignore_index: int) -> list[list[str]]:
    """Return a list of problems for each pair, one line per problem. The list of a usable pair is empty.

    Args:
        pairs: as for `check_pairs`.
        num_classes: as for `check_pairs`.
        ignore_index: as for `check_pairs`.
    """

    def check(pair: tuple[Path, Path]) -> list[str]:
        return _pair_problems(*pair, num_classes, ignore_index)

    # Threads are sufficient, since decoding releases the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(track(pool.map(check, pairs), "Checking the data", len(pairs), transient=True))


def check_dataset(dataset: SegmentationDataset) -> None:
    """Check all images and masks of a data set.

    Every file is decoded completely. A mask must be a single-channel image of the size of its image, and its labels
    must be the class indices or the ignore_index.

    Args:
        dataset: the data set.

    Raises:
        DataError: If a file or a mask is not valid. The message has a line for each of the first 50 problems and the
            number of further problems.

    Example:
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> root = write_scenes("scenes", train=1, val=1, height=64, width=96)
        >>> check_dataset(open_dataset(root, "train"))
        >>> (root / "masks" / "train_0000.png").unlink()
        >>> check_dataset(open_dataset(root, "train"))
        Traceback (most recent call last):
        contextcrf.utils.errors.DataError: 1 problem was found in 1 pair of image and mask:
        ...
    """
    check_pairs(dataset.pairs, len(dataset.classes), dataset.ignore_index)


def training_pairs(train: SegmentationDataset, val: SegmentationDataset | None = None) -> SegmentationDataset:
    """Check the data of a training and return the usable part of `train`.

    If images are in both data sets, a warning gives their number. Unusable pairs raise an error. If
    `train.skip_broken` is set, unusable pairs of `train` are logged and left out instead.

    Args:
        train: the training data.
        val: the validation data, with the classes and the ignore_index of `train`; None if there are none.

    Returns:
        `train`, or a data set of its usable pairs.

    Raises:
        DataError: If a pair of either data set has a problem (see `check_pairs`), or if no training pair is usable.
    """
    num_classes, ignore_index = len(train.classes), train.ignore_index
    trained = {image for image, _ in train.pairs}
    others = [] if val is None else [pair for pair in val.pairs if pair[0] not in trained]
    if val is not None and (both := len(val.pairs) - len(others)):
        logger.warning(
            "The training data contain %d of the %d validation images. The validation results on these images will be "
            "too optimistic.",
            both,
            len(val.pairs),
        )
    if not train.skip_broken:
        check_pairs([*train.pairs, *others], num_classes, ignore_index)
        return train
    if others:
        check_pairs(others, num_classes, ignore_index)
    problems = find_problems(train.pairs, num_classes, ignore_index)
    log_skipped([line for lines in problems for line in lines])
    kept = [pair for pair, lines in zip(train.pairs, problems, strict=True) if not lines]
    if not kept:
        raise DataError(
            f"No training pair of image and mask can be used. The number of pairs is {len(problems)}, and the first "
            f"image is {train.pairs[0][0]}. The warning above lists the problems."
        )
    return SegmentationDataset(kept, train.classes, ignore_index, train.transform, skip_broken=True)


def log_skipped(problems: Sequence[str | Path]) -> None:
    """Log a warning that lists skipped files or their problems. Log nothing if the list is empty."""
    if problems:
        plural = "s" if len(problems) > 1 else ""
        lines = "\n".join(f"  {line}" for line in problems)
        logger.warning("Skipped %d unusable file%s:\n%s", len(problems), plural, lines)


def check_same_classes(model_classes: Classes, data_classes: Classes) -> None:
    """Check that a model and a data set have the same class names in the same order.

    Raises:
        ValueError: If the names or their order differ.
    """
    ours, theirs = model_classes.names, data_classes.names
    if ours != theirs:
        raise ValueError(
            f"The model has the classes {', '.join(ours)}, but the data set has the classes {', '.join(theirs)}. Use a "
            "data set with the same classes in the same order."
        )


def _pair_problems(image_path: Path, mask_path: Path, num_classes: int, ignore_index: int) -> list[str]:
    image = _decode(image_path, "image")
    mask = _decode(mask_path, "mask")
    problems = [item for item in (image, mask) if isinstance(item, str)]
    if isinstance(image, Image.Image) and image.mode in DEEP_IMAGE_MODES:
        problems.append(f"{image_path} has mode {image.mode}, but an image with 8 bits per channel is expected.")
    if isinstance(mask, Image.Image):
        if isinstance(image, Image.Image) and image.size != mask.size:
            found, expected = (f"{item.width} x {item.height}" for item in (mask, image))
            turned = image.size == mask.size[::-1] and is_turned(image_path)
            hint = " The EXIF data rotate the image, and the mask must match the upright image." if turned else ""
            problems.append(f"{mask_path} has {found} pixels, but its image {image_path} has {expected} pixels.{hint}")
        problems += _mask_problems(mask, mask_path, num_classes, ignore_index)
    return problems


def _decode(path: Path, kind: str) -> Image.Image | str:
    """Return the decoded image or mask, or the problem with the file."""
    a_kind = "an image" if kind == "image" else "a mask"
    if not path.is_file():
        return f"{path} does not exist or is not a file, but {a_kind} is expected."
    try:
        with Image.open(path) as image:
            image.load()  # `open` reads only the header.
            return image if kind == "mask" else upright(image)
    except DECODING_ERRORS as error:
        return f"{path} cannot be decoded as {a_kind}: {describe_error(error)}. A complete image file is expected."


def _mask_problems(mask: Image.Image, path: Path, num_classes: int, ignore_index: int) -> list[str]:
    if mask.mode not in _MASK_MODES:
        return [
            f"{path} has mode {mask.mode}, but a mask with a single channel of class indices is expected. Save it as "
            "an 8-bit gray or palette PNG."
        ]
    values, counts = np.unique(np.asarray(mask), return_counts=True)
    wrong = ((values < 0) | (values >= num_classes)) & (values != ignore_index)
    if not wrong.any():
        return []
    labels = [str(int(value)) for value in values[wrong]]
    shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    pixels = int(counts[wrong].sum())
    return [
        f"{path} contains the label{'s' if len(labels) > 1 else ''} {shown} at {pixels} "
        f"pixel{'s' if pixels > 1 else ''}, but 0 to {num_classes - 1} or {ignore_index} (ignore_index) is expected. "
        "Add the missing classes, or correct the mask."
    ]
