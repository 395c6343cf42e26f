"""Whether one system beats another: the difference of their mean IoU over the same images, and how sure it is."""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from contextcrf.utils.errors import DataError

COUNTS = "images.npz"
_NAMES = "image names"
# The row of all potentials, the paper's "1unary+2pair".
_TOGETHER = re.compile(r"1unary\+\d+pair")


@dataclass(frozen=True)
class Difference:
    """Mean IoU of two systems and a 95 % bootstrap interval of second - first, all fractions."""

    first: float
    second: float
    low: float
    high: float

    def __str__(self) -> str:
        change, low, high = (f"{100 * value:+.2f}" for value in (self.second - self.first, self.low, self.high))
        return f"{100 * self.first:.2f} -> {100 * self.second:.2f}: {change} [{low}, {high}]"


def paired_bootstrap(
    first: Tensor, second: Tensor, samples: int = 10_000, block: int = 1, classes: Sequence[int] | None = None
) -> Difference:
    """Compare two systems on the same images, drawn again and again with replacement (Efron and Tibshirani 1993).

    The interval is that of the percentiles 2.5 and 97.5. It tells how far another draw of images could change the
    difference, not what another training would: for that, train with several seeds and look at each of them too.

    Args:
        first, second: confusion matrices of every image, integers [images, K, K], in the same order; or
            [trainings, images, K, K] of several trainings of one system, whose mean IoU are averaged.
        samples: draws of all images.
        block: draw this many neighboring images together, since frames of a video repeat each other and would make
            the interval too narrow (the block bootstrap, Carlstein 1986).
        classes: whose IoU are averaged; None is all.

    Raises:
        ValueError: if the shapes or the truths differ, or fewer than two blocks have a known pixel.
    """
    if block < 1:
        raise ValueError(f"block={block}: expected 1 or more images")
    if {first.ndim, second.ndim} - {3, 4} or first.shape[-3:] != second.shape[-3:]:
        raise ValueError(
            f"confusion matrices {list(first.shape)} and {list(second.shape)}: expected [images, K, K] or "
            "[trainings, images, K, K] of the same images and classes"
        )
    trainings = [list(counts) if counts.ndim == 4 else [counts] for counts in (first, second)]
    truth = trainings[0][0].sum(2)
    for counts in trainings[0] + trainings[1]:
        if not torch.equal(counts.sum(2), truth):
            image = int((counts.sum(2) != truth).any(1).nonzero()[0])
            raise ValueError(f"image {image}: the truth is not the same in both: expected the same masks and classes")
    trainings = [[_blocks(counts, block) for counts in part] for part in trainings]
    known = _blocks(truth, block).sum(1) > 0
    scored = list(range(truth.shape[1])) if classes is None else list(classes)
    total = int(known.sum())
    if total < 2:
        what = "images" if block == 1 else f"blocks of {block} images"
        raise ValueError(f"{total} {what} with known pixels: expected two or more to draw from")
    drawn = torch.randint(total, (samples, total), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(samples, total, dtype=torch.float64)
    times = torch.zeros_like(ones).scatter_add_(1, drawn, ones)

    def mean_iou(counts: Tensor, times: Tensor) -> Tensor:
        """Over the classes that occur, of images that count so many times [..., images]."""
        counts = counts[known].double()
        hits = counts.diagonal(dim1=1, dim2=2)
        return (times @ hits / (times @ (counts.sum(1) + counts.sum(2) - hits)))[..., scored].nanmean(-1)

    def averaged(times: Tensor) -> list[Tensor]:
        return [torch.stack([mean_iou(counts, times) for counts in part]).mean(0) for part in trainings]

    before, after = averaged(times)
    low, high = (float((after - before).quantile(share)) for share in (0.025, 0.975))
    first_mean, second_mean = (float(value) for value in averaged(ones[0]))
    return Difference(first_mean, second_mean, low, high)


def _blocks(counts: Tensor, block: int) -> Tensor:
    """Sums over each `block` neighboring images of counts [images, ...]."""
    return torch.stack([part.sum(0) for part in counts.split(block)])


def write_counts(path: Path, images: Sequence[str], rows: Mapping[str, Tensor]) -> None:
    """Write confusion matrices [images, K, K] of systems by name, for `read_counts`."""
    arrays: dict[str, Any] = {name: counts.numpy() for name, counts in rows.items()}
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **{_NAMES: np.array(images), **arrays})
    unfinished.rename(path)


def read_counts(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """The names of the images and the confusion matrices [images, K, K] by the name of the system.

    Raises:
        DataError: if there is no such file, or it is another one.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected what `contextcrf evaluate` wrote")
    try:
        with path.open("rb") as opened:
            file = np.load(opened)
            arrays = {name: file[name] for name in file.files} if isinstance(file, NpzFile) else {}
    except (BadZipFile, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {error}; expected what `contextcrf evaluate` wrote") from error
    if _NAMES not in arrays:
        raise DataError(f"{path}: holds {sorted(arrays)}; expected what `contextcrf evaluate` wrote")
    return arrays.pop(_NAMES).tolist(), {name: torch.from_numpy(array) for name, array in arrays.items()}


def gains(rows: Mapping[str, Tensor], unary: str) -> list[str]:
    """Lines about what the pairwise terms gain over the unary, and the dense CRF over both, where those rows are there.

    Args:
        rows: confusion matrices [images, K, K] by the name of the row, as `contextcrf evaluate` has them.
        unary: the name of the unary's row.
    """
    together = next((name for name in rows if _TOGETHER.fullmatch(name)), None)
    lines = []
    for first, second, what, advice in (
        (unary, together, "the pairwise terms", "choose their strength: contextcrf tune"),
        (together or unary, "full", "the dense CRF", "choose its parameters: contextcrf tune --dense true"),
    ):
        if first not in rows or second is None or second not in rows:
            continue
        try:
            found = paired_bootstrap(rows[first], rows[second])
        except ValueError:
            continue  # a single image: there is nothing to draw from
        verdict = ""
        if found.high < 0:
            verdict = f": {what} cost here; {advice}, on images that the network was not trained on"
        elif found.low <= 0:
            verdict = f": what {what} change here cannot be told from chance"
        lines.append(f"{first} -> {second}: {found}{verdict}")
    return lines


def classes_in(counts: Tensor, least: int) -> list[int]:
    """The classes that at least so many images show, of confusion matrices [images, K, K]."""
    return [k for k, images in enumerate((counts.sum(2) > 0).sum(0).tolist()) if images >= least]


def compare(
    first: Path,
    second: Path,
    first_row: str | None = None,
    second_row: str | None = None,
    block: int = 1,
    least: int = 0,
) -> Difference:
    """Compare rows of two results of `contextcrf evaluate`, which may be one.

    Args:
        first: folder of the one.
        second: folder of the other.
        first_row: name of a row in `first`; None where there is but one.
        second_row: name of a row in `second`, likewise.
        block: as for `paired_bootstrap`.
        least: only classes that so many images show are averaged.

    Raises:
        DataError: if a row is not there, the images are not the same, or no class is shown by so many of them.
    """
    (images, counts), (others, other_counts) = _row(first, first_row), _row(second, second_row)
    if images != others:
        alone = sorted(set(images) ^ set(others))
        what = f"{alone[0]} is in one only" if alone else "their order or number differs"
        raise DataError(f"{first} and {second}: expected the same images, but {what}")
    if counts.shape != other_counts.shape:
        raise DataError(
            f"{first} and {second}: {counts.shape[1]} and {other_counts.shape[1]} classes; expected the same"
        )
    scored = classes_in(counts, least)
    if not scored:
        raise DataError(f"{first}: no class is shown by {least} or more of its {len(images)} images")
    return paired_bootstrap(counts, other_counts, block=block, classes=scored)


def _row(folder: Path, row: str | None) -> tuple[list[str], Tensor]:
    images, rows = read_counts(folder / COUNTS)
    if row is None and len(rows) == 1:
        return images, next(iter(rows.values()))
    if row is None:
        raise DataError(f"{folder}: several rows; name one of {', '.join(rows)}")
    if row == "crf":
        # As `evaluate` is asked for it; its table has the paper's name, "1unary+2pair".
        row = next((name for name in rows if _TOGETHER.fullmatch(name)), row)
    if row not in rows:
        raise DataError(f"{folder}: no row {row!r}; expected one of {', '.join(rows)}")
    return images, rows[row]
