"""Whether one system beats another: the difference of their mean IoU over the same images, and how sure it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from contextcrf.errors import DataError

COUNTS = "images.npz"
_NAMES = "image names"


@dataclass(frozen=True)
class Difference:
    """Mean IoU of two systems and a bootstrap interval of second - first, all fractions."""

    first: float
    second: float
    low: float
    high: float

    def __str__(self) -> str:
        change, low, high = (f"{100 * value:+.2f}" for value in (self.second - self.first, self.low, self.high))
        return f"{100 * self.first:.2f} -> {100 * self.second:.2f}: {change} [{low}, {high}]"


def mean_iou(counts: Tensor) -> Tensor:
    """Mean IoU [...] of confusion matrices [..., K, K], over the classes that occur in truth or prediction."""
    counts = counts.double()
    hits = counts.diagonal(dim1=-2, dim2=-1)
    return (hits / (counts.sum(-1) + counts.sum(-2) - hits)).nanmean(-1)


def paired_bootstrap(
    first: Tensor, second: Tensor, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Compare two systems on the same images, drawn again and again with replacement (Efron and Tibshirani 1993).

    The interval is that of the percentiles. It tells how far another draw of images could change the difference, not
    what another training would: for that, train again with other seeds.

    Args:
        first, second: confusion matrices of every image, integers [images, K, K], in the same order.
        samples: draws of all images.
        level: of the interval.
        seed: of the draws.

    Raises:
        ValueError: if the shapes differ.
    """
    if first.shape != second.shape or first.ndim != 3 or len(first) == 0:
        raise ValueError(f"confusion matrices {list(first.shape)} and {list(second.shape)}: expected [images, K, K]")
    images = len(first)
    drawn = torch.randint(images, (samples, images), generator=torch.Generator().manual_seed(seed))
    ones = torch.ones(samples, images, dtype=torch.float64)
    times = torch.zeros_like(ones).scatter_add_(1, drawn, ones)

    def resampled(counts: Tensor) -> Tensor:
        return mean_iou((times @ counts.double().flatten(1)).unflatten(1, counts.shape[1:]))

    change = resampled(second) - resampled(first)
    low, high = (float(change.quantile(0.5 + side * level / 2)) for side in (-1, 1))
    return Difference(float(mean_iou(first.sum(0))), float(mean_iou(second.sum(0))), low, high)


def write_counts(path: Path, images: Sequence[str], rows: Mapping[str, Tensor]) -> None:
    """Write confusion matrices [images, K, K] of systems by name, for `read_counts`."""
    np.savez_compressed(path, **{_NAMES: np.array(images)}, **{name: counts.numpy() for name, counts in rows.items()})


def read_counts(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """The names of the images and the confusion matrices [images, K, K] by the name of the system.

    Raises:
        DataError: if there is no such file, or it is another one.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected what `contextcrf evaluate` wrote")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (BadZipFile, ValueError) as error:
        raise DataError(f"{path}: {error}; expected what `contextcrf evaluate` wrote") from error
    if _NAMES not in arrays:
        raise DataError(f"{path}: holds {sorted(arrays)}; expected what `contextcrf evaluate` wrote")
    return arrays.pop(_NAMES).tolist(), {name: torch.from_numpy(array) for name, array in arrays.items()}


def compare(first: Path, second: Path, first_row: str | None = None, second_row: str | None = None) -> Difference:
    """Compare rows of two results of `contextcrf evaluate`, which may be one.

    Args:
        first, second: their folders.
        first_row, second_row: names of rows; None where there is but one.

    Raises:
        DataError: if a row is not there, or the images are not the same.
    """
    (images, counts), (others, other_counts) = _row(first, first_row), _row(second, second_row)
    if images != others:
        alone = sorted(set(images) ^ set(others))
        what = f"{alone[0]} is in one only" if alone else "their order differs"
        raise DataError(f"{first} and {second}: expected the same images, but {what}")
    if counts.shape != other_counts.shape:
        raise DataError(
            f"{first} and {second}: {counts.shape[1]} and {other_counts.shape[1]} classes; expected the same"
        )
    return paired_bootstrap(counts, other_counts)


def _row(folder: Path, row: str | None) -> tuple[list[str], Tensor]:
    images, rows = read_counts(folder / COUNTS)
    if row is None and len(rows) == 1:
        return images, next(iter(rows.values()))
    if row not in rows:
        raise DataError(f"{folder}: no row {row!r}; expected one of {', '.join(rows)}")
    return images, rows[row]
