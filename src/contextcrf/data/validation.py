"""Validation of data sets before training. Without it, a training run could fail hours later at a broken file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from contextcrf.data.classes import Classes
from contextcrf.data.conversion import has_packed_depth, to_rgb8
from contextcrf.data.dataset import Pair, SegmentationDataset
from contextcrf.data.decoding import open_image
from contextcrf.data.image_format import RGB, ImageFormat
from contextcrf.data.images import (
    DECODING_ERRORS,
    DEEP_IMAGE_MODES,
    describe_error,
    is_plain,
    may_have_bands,
    orientation,
    read_image,
    upright,
)
from contextcrf.data.masks import MaskFormat, StrayColors, check_palettes
from contextcrf.data.stored_mask import StoredMask, decode_mask
from contextcrf.utils.errors import DataError
from contextcrf.utils.progress import track

logger = logging.getLogger(__name__)

_LISTED = 50


def check_pairs(
    pairs: Sequence[Pair],
    num_classes: int,
    ignore_index: int | None,
    mask_format: MaskFormat | None = None,
    image_format: ImageFormat = RGB,
) -> None:
    """Decode all images and masks completely and report all problems at once.

    Args:
        pairs: the path of the image and the path of the mask for each sample.
        num_classes: the number of classes K. The valid labels of a mask are 0..K-1 and `ignore_index`.
        ignore_index: the value of unlabeled pixels in the mask files; None if there is none.
        mask_format: how the masks are read. It replaces `num_classes` and `ignore_index`.
        image_format: how the images are read.

    Raises:
        DataError: If a file is missing, cannot be decoded, or has values with an unclear range. Also if a mask has
            another size than its image, contains other labels or colors, or does not agree with the palettes of the
            other masks. The message has a line for each of the first 50 problems and the number of further problems.
            Each line names the file, the value found and the expected value.
    """
    expected = mask_format or MaskFormat.indices(num_classes, ignore_index)
    found = find_problems(pairs, num_classes, ignore_index, expected, image_format)
    problems = [line for lines in found for line in lines]
    try:
        check_palettes([mask for _, mask in pairs], expected)
    except DataError as error:
        problems.insert(0, str(error))
    if problems:
        lines = problems[:_LISTED]
        if len(problems) > _LISTED:
            lines.append(f"... and {len(problems) - _LISTED} more")
        count = f"{len(problems)} problems were" if len(problems) > 1 else "1 problem was"
        checked = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
        raise DataError(f"{count} found in {checked} of image and mask:\n" + "\n".join(f"  {line}" for line in lines))


def find_problems(
    pairs: Sequence[Pair],
    num_classes: int,
    ignore_index: int | None,
    mask_format: MaskFormat | None = None,
    image_format: ImageFormat = RGB,
) -> list[list[str]]:
    """Return a list of problems for each pair, one line per problem. The list of a usable pair is empty.

    If pixels of color masks have no class color, a warning gives their number.

    Args:
        pairs: as for `check_pairs`.
        num_classes: as for `check_pairs`.
        ignore_index: as for `check_pairs`.
        mask_format: as for `check_pairs`.
        image_format: as for `check_pairs`.
    """
    expected = mask_format or MaskFormat.indices(num_classes, ignore_index)

    def check(pair: Pair) -> tuple[list[str], StrayColors]:
        return _pair_problems(*pair, expected, image_format)

    # Threads are sufficient, since decoding releases the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = list(track(pool.map(check, pairs), "Checking the data", len(pairs), transient=True))
    strays = sum((stray for _, stray in found), StrayColors())
    if strays.example is not None:
        logger.warning(
            "%d pixels of the masks (%.2g %%) have no class color and are unlabeled. The most frequent of these colors "
            "in one mask is %s. If it is a class, add it to classes.yaml.",
            strays.far,
            100 * strays.share,
            list(strays.example[0]),
        )
    return [lines for lines, _ in found]


def check_dataset(dataset: SegmentationDataset) -> None:
    """Check all images and masks of a data set.

    Every file is decoded completely. A mask must have the size of its image and the format of the data set's masks.

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
    count = len(dataset.classes)
    check_pairs(dataset.pairs, count, dataset.ignore_index, dataset.mask_format, dataset.image_format)


def shared_images(first: SegmentationDataset, second: SegmentationDataset) -> list[Path]:
    """Return the images that are in both data sets, sorted by path."""
    return sorted({image for image, _ in first.pairs} & {image for image, _ in second.pairs})


def training_pairs(train: SegmentationDataset, val: SegmentationDataset | None = None) -> SegmentationDataset:
    """Check the data of a training run and return the usable part of `train`.

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
    num_classes, ignore_index, expected = len(train.classes), train.ignore_index, train.mask_format
    both = [] if val is None else shared_images(train, val)
    others = [] if val is None else [pair for pair in val.pairs if pair[0] not in {*both}]
    if val is not None and both:
        logger.warning(
            "The training data contain %d of the %d validation images. The validation results on these images will be "
            "too optimistic.",
            len(both),
            len(val.pairs),
        )
    if not train.skip_broken:
        check_pairs([*train.pairs, *others], num_classes, ignore_index, expected, train.image_format)
        return train
    if others:
        check_pairs(others, num_classes, ignore_index, expected, train.image_format)
    # A part of such masks would be wrong, and nothing shows which part.
    check_palettes([mask for _, mask in [*train.pairs, *others]], expected)
    problems = find_problems(train.pairs, num_classes, ignore_index, expected, train.image_format)
    log_skipped([line for lines in problems for line in lines])
    kept = [pair for pair, lines in zip(train.pairs, problems, strict=True) if not lines]
    if not kept:
        raise DataError(
            f"No training pair of image and mask can be used. The number of pairs is {len(problems)}, and the first "
            f"image is {train.pairs[0][0]}. The warning above lists the problems."
        )
    return train.with_pairs(kept, skip_broken=True)


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


def _pair_problems(
    image_path: Path, mask_path: Path, expected: MaskFormat, image_format: ImageFormat
) -> tuple[list[str], StrayColors]:
    image = _image_size(image_path, image_format)
    mask = _decode_mask(mask_path)
    problems = [item for item in (image, mask) if isinstance(item, str)]
    if isinstance(mask, str):
        return problems, StrayColors()
    if not isinstance(image, str) and image != mask.shape:
        found, wanted = (f"{width} x {height}" for height, width in (mask.shape, image))
        turned = image == mask.shape[::-1] and orientation(image_path) != 1
        hint = " The EXIF data rotate the image, and the mask must match the upright image." if turned else ""
        problems.append(f"{mask_path} has {found} pixels, but its image {image_path} has {wanted} pixels.{hint}")
    try:
        _, strays = expected.positions(mask)
    except DataError as error:
        return [*problems, str(error)], StrayColors()
    return problems, strays


def _image_size(path: Path, image_format: ImageFormat) -> tuple[int, int] | str:
    """Return the height and width of an upright image, or the problem with the file."""
    if not path.is_file():
        return f"{path} does not exist or is not a file, but an image is expected."
    try:
        if not image_format.is_rgb or (may_have_bands(path) and not is_plain(path)):
            height, width = read_image(path, image_format).shape[1:]
            return height, width
        with open_image(path) as image:
            packed = has_packed_depth(image)
            image.load()  # `open` reads only the header.
            if packed or image.mode in DEEP_IMAGE_MODES:
                unclear = _unclear_range(image, packed)
                if unclear is not None:
                    return f"{path} cannot be read as an image: {unclear}."
            size = upright(image).size
            return size[1], size[0]
    except DataError as error:
        return str(error)
    except DECODING_ERRORS as error:
        way_out = (
            " If other programs open the file, save it as RGB." if path.suffix.lower() in (".tif", ".tiff") else ""
        )
        reason = describe_error(error)
        return f"{path} cannot be decoded as an image: {reason}.{way_out} A complete image file is expected."


def _unclear_range(image: Image.Image, packed: bool) -> str | None:
    try:
        to_rgb8(image, packed)
    except ValueError as error:
        return describe_error(error)
    return None


def _decode_mask(path: Path) -> StoredMask | str:
    """Return the decoded mask, or the problem with the file."""
    if not path.is_file():
        return f"{path} does not exist or is not a file, but a mask is expected."
    try:
        return decode_mask(path)
    except DataError as error:
        if isinstance(error.__cause__, DECODING_ERRORS):
            reason = describe_error(error.__cause__)
            return f"{path} cannot be decoded as a mask: {reason}. A complete image file is expected."
        return str(error)
