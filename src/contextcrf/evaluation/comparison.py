"""Two systems compared: the difference of their mean IoU over the same images, with a bootstrap interval."""

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

from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import atomic_write

COUNTS = "images.npz"
_NAMES = "image names"


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

    The interval ends at the percentiles 2.5 and 97.5. It covers the draw of the images, not the randomness of training:
    for that, train with several seeds and compare each of them too.

    Args:
        first: confusion matrices of every image, integers [images, K, K]; or [trainings, images, K, K] of several
            trainings of one system, whose mean IoU are averaged.
        second: those of the other system, likewise, with the images in the same order.
        samples: draws of all images.
        block: draw this many neighboring images together (the block bootstrap, Carlstein 1986), since frames of a
            video resemble each other, which would make the interval too narrow.
        classes: whose IoU are averaged; None is all.

    Raises:
        ValueError: the shapes or the truths differ, or fewer than two blocks have a known pixel.
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
        """Over the classes that occur, of images with weights `times` [..., images]."""
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


def write_counts(path: Path, images: Sequence[str], systems: Mapping[str, Tensor]) -> None:
    """Write confusion matrices [images, K, K] of systems by name, for `read_counts`."""
    arrays: dict[str, Any] = {name: counts.numpy() for name, counts in systems.items()}
    with atomic_write(path) as partial:
        np.savez_compressed(partial, **{_NAMES: np.array(images), **arrays})


def read_counts(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """The names of the images and the confusion matrices [images, K, K] by the name of the system.

    Raises:
        DataError: there is no such file, or it is of another kind.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a file of `contextcrf evaluate`")
    try:
        with path.open("rb") as opened:
            file = np.load(opened)
            arrays = {name: file[name] for name in file.files} if isinstance(file, NpzFile) else {}
    except (BadZipFile, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {error}; expected a file of `contextcrf evaluate`") from error
    if _NAMES not in arrays:
        raise DataError(f"{path}: holds {sorted(arrays)}; expected a file of `contextcrf evaluate`")
    return arrays.pop(_NAMES).tolist(), {name: torch.from_numpy(array) for name, array in arrays.items()}


def gains(systems: Mapping[str, Tensor]) -> list[str]:
    """Sentences on the gain of the pairwise terms over the unary, and of the dense CRF over both, with intervals.

    Args:
        systems: confusion matrices [images, K, K] by the name of the system; a gain is left out where a system is.
    """
    unary, pairwise, full = UNARY_ONLY.name, UNARY_PAIRWISE.name, FULL.name
    lines = []
    for first, second, part, advice in (
        (unary, pairwise, "the pairwise terms", "choose their weights with contextcrf tune"),
        (pairwise if pairwise in systems else unary, full, "the dense CRF", "choose it with contextcrf tune --dense"),
    ):
        if first not in systems or second not in systems:
            continue
        try:
            found = paired_bootstrap(systems[first], systems[second])
        except ValueError:
            continue  # of a single image no interval can be drawn
        verdict = ""
        if found.high < 0:
            verdict = f": the mean IoU is lower with {part}; {advice}, on images that the network was not trained on"
        elif found.low <= 0:
            verdict = f": the effect of {part} is within chance here"
        lines.append(f"{first} -> {second}: {found}{verdict}")
    return lines


def classes_in(counts: Tensor, min_images: int) -> list[int]:
    """The classes that occur in at least `min_images` images, of confusion matrices [images, K, K]."""
    return [k for k, images in enumerate((counts.sum(2) > 0).sum(0).tolist()) if images >= min_images]


def compare(
    first: Path,
    second: Path,
    first_system: str | None = None,
    second_system: str | None = None,
    block: int = 1,
    min_images: int = 0,
) -> Difference:
    """Compare two systems that `contextcrf evaluate` has measured.

    Args:
        first: folder of the results with the one.
        second: folder of the results with the other; it may be the same.
        first_system: name of a system in `first`; None where there is only one.
        second_system: name of a system in `second`, likewise.
        block: as for `paired_bootstrap`.
        min_images: only classes that occur in at least this many images are averaged.

    Raises:
        DataError: a system is missing, the images are not the same, or no class occurs in that many of them.
    """
    (images, counts), (others, other_counts) = _read_system(first, first_system), _read_system(second, second_system)
    if images != others:
        alone = sorted(set(images) ^ set(others))
        difference = f"{alone[0]} is in one only" if alone else "their order or number differs"
        raise DataError(f"{first} and {second}: expected the same images, but {difference}")
    if counts.shape != other_counts.shape:
        raise DataError(
            f"{first} and {second}: {counts.shape[1]} and {other_counts.shape[1]} classes; expected the same"
        )
    scored = classes_in(counts, min_images)
    if not scored:
        raise DataError(f"{first}: no class occurs in {min_images} or more of its {len(images)} images")
    return paired_bootstrap(counts, other_counts, block=block, classes=scored)


def _read_system(folder: Path, system: str | None) -> tuple[list[str], Tensor]:
    images, systems = read_counts(folder / COUNTS)
    if system is None and len(systems) == 1:
        return images, next(iter(systems.values()))
    if system is None:
        raise DataError(f"{folder}: several systems; name one of {', '.join(systems)}")
    if system not in systems:
        raise DataError(f"{folder}: no system {system!r}; expected one of {', '.join(systems)}")
    return images, systems[system]
