"""Statistics of masks, and classes that are derived from them for folders without a `classes.yaml`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
from PIL import Image

from contextcrf.data.classes import IGNORE_INDEX, Classes, voc_palette
from contextcrf.data.images import DECODING_ERRORS, describe_error
from contextcrf.data.layouts import IMAGE_SUFFIXES, list_images
from contextcrf.utils.errors import DataError
from contextcrf.utils.progress import track

_LISTED = 10


@dataclass(frozen=True)
class MaskStatistics:
    """The sizes and label counts of a set of masks.

    Attributes:
        sizes: (height, width) of every mask, in pixels.
        pixels: the number of pixels of each label as stored in the files, including the ignore_index.

    Example:
        >>> found = MaskStatistics([(2, 4), (2, 4)], Counter({0: 9, 1: 3, 255: 4}))
        >>> found.size, found.shares(ignore_index=255)
        ((2, 4), {0: 0.75, 1: 0.25})
    """

    sizes: Sequence[tuple[int, int]]
    pixels: Counter[int]

    @property
    def size(self) -> tuple[int, int]:
        """The median height and the median width."""
        return median_low([height for height, _ in self.sizes]), median_low([width for _, width in self.sizes])

    def shares(self, ignore_index: int) -> dict[int, float]:
        """Return the share of each label among the labeled pixels, from 0 to 1.

        Args:
            ignore_index: the value of unlabeled pixels in the mask files.
        """
        labeled = {label: count for label, count in sorted(self.pixels.items()) if label != ignore_index}
        return {label: count / sum(labeled.values()) for label, count in labeled.items()}


def pair_files(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Pair the images and masks of two folders by their stems.

    Args:
        images: the folder of the images.
        masks: the folder of the masks, which must be PNG files.

    Returns:
        The paths of the image and of the mask for each stem, sorted by stem.

    Raises:
        DataError: If a folder does not exist or is empty, if a mask is not a PNG file, if a file has no partner, or
            if two files of a folder have the same stem.
    """
    found = []
    for folder, what in ((images, "images"), (masks, "masks")):
        if not folder.is_dir():
            raise DataError(f"The folder {folder} does not exist, but it is expected to contain the {what}.")
        paths = list_images(folder)
        if not paths:
            raise DataError(
                f"{folder} contains no {what}. Expected files with the suffixes {', '.join(IMAGE_SUFFIXES)}."
            )
        if what == "masks" and (other := [path for path in paths if path.suffix.lower() != ".png"]):
            raise DataError(
                f"{other[0]} is not a PNG file, but masks must be PNG files, because JPEG compression changes labels. "
                f"Convert all masks to PNG. The number of masks in other formats is {len(other)}."
            )
        if repeated := [stem for stem, times in Counter(path.stem for path in paths).items() if times > 1]:
            raise DataError(
                f"{folder} contains more than one file with the same stem: {', '.join(repeated[:_LISTED])}. "
                "Keep one file for each stem."
            )
        found.append({path.stem: path for path in paths})
    image_of, mask_of = found
    if single := sorted({*image_of} ^ {*mask_of}):
        sides = [f"{stem} ({'no mask' if stem in image_of else 'no image'})" for stem in single[:_LISTED]]
        more = f" and {len(single) - _LISTED} more" if len(single) > _LISTED else ""
        raise DataError(
            f"Some files in {images} and {masks} have no partner: {', '.join(sides)}{more}. Every image needs a mask "
            "with the same stem."
        )
    return [(image_of[stem], mask_of[stem]) for stem in sorted(image_of)]


def mask_statistics(masks: Sequence[Path]) -> MaskStatistics:
    """Count the pixels of each label in a set of masks.

    Args:
        masks: the paths of the masks.

    Raises:
        DataError: If a mask cannot be read, or if it has more than one channel.

    Example:
        >>> Image.fromarray(np.array([[0, 0], [1, 255]], np.uint8)).save("mask.png")
        >>> found = mask_statistics([Path("mask.png")])
        >>> found.sizes, dict(found.pixels)
        ([(2, 2)], {0: 2, 1: 1, 255: 1})
    """
    sizes, pixels = [], Counter[int]()
    for path in track(masks, "Counting labels", transient=True):
        try:
            with Image.open(path) as file:
                values = np.array(file)
        except DECODING_ERRORS as error:
            raise DataError(f"{path} cannot be read as a mask: {describe_error(error)}.") from error
        if values.ndim != 2:
            raise DataError(
                f"{path} has {values.shape[2]} channels, but a mask with one channel of class indices is expected. If "
                "the mask shows the classes as colors, convert the colors to the values 0, 1, 2, ... first."
            )
        sizes.append(values.shape)
        labels, counts = np.unique(values, return_counts=True)
        pixels.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
    return MaskStatistics(sizes, pixels)


def guess_classes(found: MaskStatistics, ignore_index: int = IGNORE_INDEX) -> Classes:
    """Return the classes "class 0", "class 1", ... up to the largest label in the masks.

    Args:
        found: the statistics of the masks.
        ignore_index: the value of unlabeled pixels in the mask files.

    Raises:
        DataError: If there are fewer than two labels, labels outside 0..254, or large gaps between the labels.
    """
    labels = sorted(found.shares(ignore_index))
    if len(labels) < 2 or labels[-1] >= IGNORE_INDEX or labels[0] < 0:
        raise DataError(
            f"Without the ignore_index {ignore_index}, the masks contain the labels {labels[:_LISTED]}, but two or "
            f"more labels from 0 to {IGNORE_INDEX - 1} are expected. If unlabeled pixels have another value, set it "
            "with --ignore-index."
        )
    count = labels[-1] + 1
    if count > 2 * len(labels) + 8:
        raise DataError(
            f"The masks contain {len(labels)} labels, and the largest label is {labels[-1]}, but consecutive "
            f"labels from 0 are expected. The smallest labels are {labels[:_LISTED]}. Renumber the labels, or write a "
            f"classes.yaml with {count} classes."
        )
    return Classes(tuple(f"class {label}" for label in range(count)), voc_palette(count))
