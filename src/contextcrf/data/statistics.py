"""Statistics of masks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from contextcrf.data.masks import MaskFormat, index_values
from contextcrf.data.stored_mask import decode_mask, find_runs
from contextcrf.utils.progress import track


@dataclass(frozen=True)
class MaskStatistics:
    """The sizes and label counts of a set of masks.

    Attributes:
        sizes: (height, width) of every mask, in pixels.
        pixels: the number of pixels of each label, including the ignore_index.

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
            ignore_index: the label of unlabeled pixels in `pixels`: 255 if the masks were read with a `mask_format`,
                and otherwise the value in the mask files.
        """
        labeled = {label: count for label, count in sorted(self.pixels.items()) if label != ignore_index}
        return {label: count / sum(labeled.values()) for label, count in labeled.items()}


def mask_statistics(masks: Sequence[Path], mask_format: MaskFormat | None = None) -> MaskStatistics:
    """Count the pixels of each label in a set of masks.

    Args:
        masks: the paths of the masks.
        mask_format: how the masks are read. The labels are then class indices and `IGNORE_INDEX`. None counts the
            values as stored in index masks.

    Raises:
        DataError: If a mask cannot be read, if `mask_format` is None and a mask has more than one channel, or if a mask
            does not have the given format.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> Image.fromarray(np.array([[0, 0], [1, 255]], np.uint8)).save("mask.png")
        >>> found = mask_statistics([Path("mask.png")])
        >>> found.sizes, dict(found.pixels)
        ([(2, 2)], {0: 2, 1: 1, 255: 1})
    """
    sizes, pixels = [], Counter[int]()
    for path in track(masks, "Counting labels", transient=True):
        mask = decode_mask(path)
        values = index_values(mask) if mask_format is None else mask_format.positions(mask)[0]
        sizes.append(mask.shape)
        runs = find_runs(values)
        pixels.update(dict(zip(runs.codes.tolist(), runs.counts.tolist(), strict=True)))
    return MaskStatistics(sizes, pixels)


def classes_only_in(
    measured: MaskStatistics, trained: MaskStatistics, classes: Sequence[str], names: tuple[str, str]
) -> list[str]:
    """Return a sentence if a class has pixels in one split, but none in the split of the training.

    Args:
        measured: the statistics of a split that is evaluated.
        trained: the statistics of the split that a model is trained on.
        classes: the names of the classes.
        names: the names of both splits.

    Example:
        >>> both, one = MaskStatistics([(1, 2)], Counter({0: 1, 1: 1})), MaskStatistics([(1, 2)], Counter({0: 2}))
        >>> [text] = classes_only_in(both, one, ["sky", "sea"], ("val", "train"))
        >>> text.partition(",")[0]
        'Warning: the class sea has pixels in val'
    """
    missing = [name for label, name in enumerate(classes) if measured.pixels[label] and not trained.pixels[label]]
    if not missing:
        return []
    found = f"the class {missing[0]} has" if len(missing) == 1 else f"the classes {', '.join(missing)} have"
    return [
        f"Warning: {found} pixels in {names[0]}, but none in {names[1]}, so a model cannot be trained to label them. "
        f"Move an image with them to {names[1]}."
    ]
