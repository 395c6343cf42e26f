"""Statistics of masks, and classes guessed from them, for folders without a `classes.yaml`."""

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
    """Sizes and label counts of a set of masks.

    Attributes:
        sizes: (height, width) of every mask, in pixels.
        pixels: number of pixels by label as stored, the ignore_index included.

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
        """The share of each label among the labeled pixels."""
        labeled = {label: count for label, count in sorted(self.pixels.items()) if label != ignore_index}
        return {label: count / sum(labeled.values()) for label, count in labeled.items()}


def pair_files(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Pair the images and masks of two folders by their stems, sorted.

    Raises:
        DataError: a folder is missing or empty, a mask is no PNG, a file has no partner, or two files of one folder
            have one stem.
    """
    found = []
    for folder, what in ((images, "images"), (masks, "masks")):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected the {what}")
        paths = list_images(folder)
        if not paths:
            raise DataError(f"{folder}: no {what}; expected files {', '.join(IMAGE_SUFFIXES)}")
        if what == "masks" and (other := [path for path in paths if path.suffix.lower() != ".png"]):
            raise DataError(
                f"{other[0]}: expected masks as PNG; {len(other)} are not (JPEG compression changes labels)"
            )
        if repeated := [stem for stem, times in Counter(path.stem for path in paths).items() if times > 1]:
            raise DataError(f"{folder}: {', '.join(repeated[:_LISTED])} occurs twice; expected one file of each name")
        found.append({path.stem: path for path in paths})
    image_of, mask_of = found
    if single := sorted({*image_of} ^ {*mask_of}):
        sides = [f"{stem} ({'no mask' if stem in image_of else 'no image'})" for stem in single[:_LISTED]]
        more = f" and {len(single) - _LISTED} more" if len(single) > _LISTED else ""
        raise DataError(f"{images} and {masks}: without a partner: {', '.join(sides)}{more}")
    return [(image_of[stem], mask_of[stem]) for stem in sorted(image_of)]


def mask_statistics(masks: Sequence[Path]) -> MaskStatistics:
    """Count the labels of masks.

    Raises:
        DataError: a mask cannot be read or has more than one channel.
    """
    sizes, pixels = [], Counter[int]()
    for path in track(masks, "Counting labels", transient=True):
        try:
            with Image.open(path) as file:
                values = np.array(file)
        except DECODING_ERRORS as error:
            raise DataError(f"{path}: the mask cannot be read: {describe_error(error)}") from error
        if values.ndim != 2:
            raise DataError(
                f"{path}: the mask has {values.shape[2]} channels; expected one, of class indices. If the classes are "
                "painted as colors, convert the masks to the values 0, 1, 2, ... first"
            )
        sizes.append(values.shape)
        labels, counts = np.unique(values, return_counts=True)
        pixels.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
    return MaskStatistics(sizes, pixels)


def guess_classes(found: MaskStatistics, ignore_index: int = IGNORE_INDEX) -> Classes:
    """Classes "class 0", "class 1", ... for the labels that occur.

    Args:
        found: statistics of the masks.
        ignore_index: the value of unlabeled pixels in the mask files.

    Raises:
        DataError: there are fewer than two labels, labels outside of 0..254, or large gaps between the labels.
    """
    labels = sorted(found.shares(ignore_index))
    if len(labels) < 2 or labels[-1] >= IGNORE_INDEX or labels[0] < 0:
        raise DataError(
            f"the masks have the labels {labels[:_LISTED]} besides the ignore_index {ignore_index}; expected two or "
            f"more of 0..{IGNORE_INDEX - 1}. If unlabeled pixels have another value, set it as the ignore_index"
        )
    count = labels[-1] + 1
    if count > 2 * len(labels) + 8:
        raise DataError(
            f"the masks have {len(labels)} labels, up to {labels[-1]}: {labels[:_LISTED]}; expected 0, 1, 2, ...: "
            "renumber them, or write a classes.yaml if so many classes are intended"
        )
    return Classes(tuple(f"class {label}" for label in range(count)), voc_palette(count))
