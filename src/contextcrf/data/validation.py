"""Validation of data sets before training, which would otherwise fail hours later at the first broken file."""

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

# The modes with one number per pixel. In all others (RGB, gray with alpha, ...) a value is not a class index.
_MASK_MODES = ("1", "L", "P", "I", "I;16")

_LISTED = 50


def check_pairs(pairs: Sequence[tuple[Path, Path]], num_classes: int, ignore_index: int) -> None:
    """Decode all images and masks completely and report all problems at once.

    Args:
        pairs: paths of an image and of its mask.
        num_classes: K; the labels of a mask are 0..K-1 and `ignore_index`.
        ignore_index: the value of unlabeled pixels in the mask files.

    Raises:
        DataError: a file is missing, cannot be decoded or has more than 8 bits per channel; a mask is not a
            single-channel image of class indices, differs from its image in size, or has other labels. The message
            has one line per problem (the first 50 and the number of the others) with the file, what was found and
            what was expected.
    """
    problems = [line for lines in find_problems(pairs, num_classes, ignore_index) for line in lines]
    if problems:
        lines = problems[:_LISTED]
        if len(problems) > _LISTED:
            lines.append(f"... and {len(problems) - _LISTED} more")
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise DataError(
            f"{count} in {len(pairs)} pairs of image and mask:\n" + "\n".join(f"  {line}" for line in lines)
        )


def find_problems(pairs: Sequence[tuple[Path, Path]], num_classes: int, ignore_index: int) -> list[list[str]]:
    """The problems of each pair, one line each; an empty list for a usable pair. Arguments as for `check_pairs`."""

    def check(pair: tuple[Path, Path]) -> list[str]:
        return _pair_problems(*pair, num_classes, ignore_index)

    # Threads suffice, since decoding releases the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(track(pool.map(check, pairs), "Checking the data", len(pairs), transient=True))


def check_dataset(dataset: SegmentationDataset) -> None:
    """Check all images and masks of a data set.

    Raises:
        DataError: as for `check_pairs`.
    """
    check_pairs(dataset.pairs, len(dataset.classes), dataset.ignore_index)


def training_pairs(train: SegmentationDataset, val: SegmentationDataset | None = None) -> SegmentationDataset:
    """Check the data of a training and return the part of `train` that can be used.

    Images that are in both data sets are counted in a warning. If `train.skip_broken` is set, its unusable pairs are
    logged and left out; otherwise, and in `val` always, they are errors.

    Args:
        train: to train on.
        val: to validate on, if anything; with the classes and the ignore_index of `train`.

    Returns:
        `train`, or a data set of its usable pairs.

    Raises:
        DataError: as for `check_pairs`, of both data sets together; or no pair is usable.
    """
    num_classes, ignore_index = len(train.classes), train.ignore_index
    trained = {image for image, _ in train.pairs}
    others = [] if val is None else [pair for pair in val.pairs if pair[0] not in trained]
    if val is not None and (both := len(val.pairs) - len(others)):
        logger.warning(
            "%d of the %d validation images are also training images; results on them are too optimistic.",
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
        raise DataError(f"{train.pairs[0][0]} and all others: none of {len(problems)} pairs can be used")
    return SegmentationDataset(kept, train.classes, ignore_index, train.transform, skip_broken=True)


def log_skipped(problems: Sequence[str | Path]) -> None:
    """Log a warning that lists skipped files or their problems, if there are any."""
    if problems:
        logger.warning("Skipped %d unusable files:\n%s", len(problems), "\n".join(f"  {line}" for line in problems))


def check_same_classes(model_classes: Classes, data_classes: Classes) -> None:
    """Check that a model and a data set have the same class names in the same order.

    Raises:
        ValueError: they differ.
    """
    ours, theirs = model_classes.names, data_classes.names
    if ours != theirs:
        raise ValueError(f"the model's classes are {', '.join(ours)}; those of the data set are {', '.join(theirs)}")


def _pair_problems(image_path: Path, mask_path: Path, num_classes: int, ignore_index: int) -> list[str]:
    image = _decode(image_path, "image")
    mask = _decode(mask_path, "mask")
    problems = [item for item in (image, mask) if isinstance(item, str)]
    if isinstance(image, Image.Image) and image.mode in DEEP_IMAGE_MODES:
        problems.append(f"{image_path}: the image has mode {image.mode}; expected 8 bits per channel")
    if isinstance(mask, Image.Image):
        if isinstance(image, Image.Image) and image.size != mask.size:
            found, expected = (f"{item.width} x {item.height}" for item in (mask, image))
            turned = image.size == mask.size[::-1] and is_turned(image_path)
            hint = "; the EXIF data of the image rotate it, and the mask must match the upright image" if turned else ""
            problems.append(
                f"{mask_path}: the mask is {found} px; expected {expected} px as its image {image_path}{hint}"
            )
        problems += _mask_problems(mask, mask_path, num_classes, ignore_index)
    return problems


def _decode(path: Path, kind: str) -> Image.Image | str:
    """The decoded image, or the problem with the file."""
    if not path.is_file():
        return f"{path}: the {kind} is missing; expected a file"
    try:
        with Image.open(path) as image:
            image.load()  # `open` reads the header only.
            return image if kind == "mask" else upright(image)
    except DECODING_ERRORS as error:
        return f"{path}: the {kind} cannot be decoded ({describe_error(error)}); expected a complete image file"


def _mask_problems(mask: Image.Image, path: Path, num_classes: int, ignore_index: int) -> list[str]:
    if mask.mode not in _MASK_MODES:
        return [
            f"{path}: the mask has mode {mask.mode}; expected a single channel of class indices "
            "(an 8-bit gray or palette PNG)"
        ]
    values, counts = np.unique(np.asarray(mask), return_counts=True)
    wrong = ((values < 0) | (values >= num_classes)) & (values != ignore_index)
    if not wrong.any():
        return []
    labels = [str(int(value)) for value in values[wrong]]
    shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    return [
        f"{path}: the mask has label{'s' if len(labels) > 1 else ''} {shown} at {counts[wrong].sum()} pixels; "
        f"expected 0..{num_classes - 1} or {ignore_index} (ignore_index)"
    ]
