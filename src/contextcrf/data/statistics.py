"""What lies in a folder of images and masks, before anything is known of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
from PIL import Image
from rich.progress import track

from contextcrf.data.classes import IGNORE_INDEX, Classes, voc_palette
from contextcrf.data.dataset import IMAGE_SUFFIXES
from contextcrf.data.images import DECODING_ERRORS
from contextcrf.utils.errors import DataError

_LISTED = 10


@dataclass(frozen=True)
class Survey:
    """Of some pairs of image and mask.

    Attributes:
        sizes: (height, width) of every mask, pixels.
        pixels: by label, void among them.
    """

    sizes: Sequence[tuple[int, int]]
    pixels: Counter[int]

    @property
    def size(self) -> tuple[int, int]:
        """The middle height and width."""
        return median_low([height for height, _ in self.sizes]), median_low([width for _, width in self.sizes])

    def shares(self, void: int) -> dict[int, float]:
        """The share of every label among the pixels that are not void."""
        known = {label: count for label, count in sorted(self.pixels.items()) if label != void}
        return {label: count / sum(known.values()) for label, count in known.items()}


def pair_up(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Images and masks of the same stem, sorted.

    Raises:
        DataError: a folder is missing or empty, a file has no partner, or two files of one folder have one stem.
    """
    found = []
    for folder, what in ((images, "images"), (masks, "masks")):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected the {what}")
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise DataError(f"{folder}: no {what}; expected files {', '.join(IMAGE_SUFFIXES)}")
        if what == "masks" and (other := [path for path in paths if path.suffix.lower() != ".png"]):
            raise DataError(
                f"{other[0]}: expected masks as PNG; {len(other)} are not (JPEG changes labels when it compresses them)"
            )
        if repeated := [stem for stem, times in Counter(path.stem for path in paths).items() if times > 1]:
            raise DataError(f"{folder}: {', '.join(repeated[:_LISTED])} occurs twice; expected one file of each name")
        found.append({path.stem: path for path in paths})
    pictures, labels = found
    if lonely := sorted({*pictures} ^ {*labels}):
        sides = [f"{stem} ({'no mask' if stem in pictures else 'no image'})" for stem in lonely[:_LISTED]]
        more = f" and {len(lonely) - _LISTED} more" if len(lonely) > _LISTED else ""
        raise DataError(f"{images} and {masks}: without a partner: {', '.join(sides)}{more}")
    return [(pictures[stem], labels[stem]) for stem in sorted(pictures)]


def survey(masks: Sequence[Path], progress: bool = True) -> Survey:
    """Count the labels of masks.

    Raises:
        DataError: a mask cannot be read or has more than one channel.
    """
    sizes, pixels = [], Counter[int]()
    for path in track(masks, "Looking at the masks", transient=True, disable=not progress):
        try:
            with Image.open(path) as file:
                values = np.array(file)
        except DECODING_ERRORS as error:
            raise DataError(f"{path}: could not be read: {error}") from error
        if values.ndim != 2:
            raise DataError(
                f"{path}: the mask has {values.shape[2]} channels; expected one, of class indices. Are the classes "
                "painted as colors? Then write masks whose values are 0, 1, 2, ... first"
            )
        sizes.append(values.shape)
        labels, counts = np.unique(values, return_counts=True)
        pixels.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
    return Survey(sizes, pixels)


def guess_classes(found: Survey, void: int = IGNORE_INDEX) -> Classes:
    """Classes "class 0", "class 1", ... for the labels that occur.

    Raises:
        DataError: fewer than two labels, or labels beyond what masks can hold.
    """
    labels = sorted(found.shares(void))
    if len(labels) < 2 or labels[-1] >= IGNORE_INDEX or labels[0] < 0:
        raise DataError(
            f"the masks have the labels {labels[:_LISTED]} beside void ({void}); expected two or more of "
            f"0..{IGNORE_INDEX - 1}. Is another value the void (--void)?"
        )
    count = labels[-1] + 1
    if count > 2 * len(labels) + 8:
        raise DataError(
            f"the masks have {len(labels)} labels, up to {labels[-1]}: {labels[:_LISTED]}; expected 0, 1, 2, ...: "
            "number them anew, or write a classes.yaml if so many classes are meant"
        )
    return Classes(tuple(f"class {label}" for label in range(count)), voc_palette(count))
