"""Comparison of two systems: the difference of their mean IoU on the same images, with a bootstrap interval."""

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
    """The mean IoU of two systems and the 95% bootstrap confidence interval of their difference.

    All values are fractions. `str` shows them in percent.

    Args:
        first: mean IoU of the first system.
        second: mean IoU of the second system.
        low: lower end of the interval of second - first.
        high: upper end of the interval of second - first.

    Example:
        >>> print(Difference(first=0.5, second=0.525, low=-0.001, high=0.051))
        50.00 -> 52.50: +2.50 [-0.10, +5.10]
    """

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
    """Compare two systems on the same images with a paired bootstrap (Efron and Tibshirani 1993).

    The images are drawn with replacement, and both systems are scored on the same draws. The interval ends at the
    percentiles 2.5 and 97.5 of the difference. It covers the choice of the images, not the randomness of training. To
    cover the randomness of training, train with several seeds and compare the two systems for each seed.

    Args:
        first: confusion matrices of the first system, integers [images, K, K]. With several training runs of one
            system, [runs, images, K, K]; their mean IoU is averaged.
        second: confusion matrices of the second system in the same form, with the images in the same order.
        samples: number of bootstrap samples.
        block: number of neighboring images that are drawn together (block bootstrap, Carlstein 1986). Use more than 1
            for video frames: similar frames that are drawn one by one make the interval too narrow.
        classes: classes whose IoU is averaged; None averages all classes. Classes that do not occur in the ground truth
            of the drawn images are left out.

    Returns:
        The mean IoU of both systems and the interval of their difference.

    Raises:
        ValueError: `block` is below 1, the shapes or the ground truth differ, or fewer than two blocks have labeled
            pixels.

    Example:
        >>> first = torch.tensor([[[6, 4], [5, 5]], [[7, 3], [4, 6]], [[8, 2], [3, 7]]])
        >>> second = torch.tensor([[[8, 2], [3, 7]], [[8, 2], [3, 7]], [[9, 1], [2, 8]]])
        >>> found = paired_bootstrap(first, second, samples=1000)
        >>> found.low > 0
        True
    """
    if block < 1:
        raise ValueError(f"block={block} is invalid. Pass the number of images that are drawn together, 1 or more.")
    if {first.ndim, second.ndim} - {3, 4} or first.shape[-3:] != second.shape[-3:]:
        raise ValueError(
            f"The confusion matrices have the shapes {list(first.shape)} and {list(second.shape)}. Expected "
            "[images, K, K] or [runs, images, K, K], with the same images and classes in both."
        )
    trainings = [list(counts) if counts.ndim == 4 else [counts] for counts in (first, second)]
    truth = trainings[0][0].sum(2)
    for counts in trainings[0] + trainings[1]:
        if not torch.equal(counts.sum(2), truth):
            image = int((counts.sum(2) != truth).any(1).nonzero()[0])
            raise ValueError(
                f"The ground truth of image {image} differs between the systems. Evaluate both systems with the same "
                "masks and classes."
            )
    trainings = [[_blocks(counts, block) for counts in part] for part in trainings]
    known = _blocks(truth, block).sum(1) > 0
    scored = list(range(truth.shape[1])) if classes is None else list(classes)
    total = int(known.sum())
    if total < 2:
        unit = ("image" if block == 1 else "block") + ("" if total == 1 else "s")
        size = "" if block == 1 else f" of {block} images"
        raise ValueError(
            f"Only {total} {unit}{size} with labeled pixels: expected 2 or more. Evaluate more images"
            f"{'.' if block == 1 else ', or choose a smaller block.'}"
        )
    drawn = torch.randint(total, (samples, total), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(samples, total, dtype=torch.float64)
    times = torch.zeros_like(ones).scatter_add_(1, drawn, ones)

    def mean_iou(counts: Tensor, times: Tensor) -> Tensor:
        """Return the mean IoU (`metrics.mean_iou`) with the images weighted by `times` [..., images]."""
        counts = counts[known].double()
        hits, labeled = counts.diagonal(dim1=1, dim2=2), counts.sum(2)
        iou = times @ hits / (times @ (counts.sum(1) + labeled - hits))
        return iou.where(times @ labeled > 0, float("nan"))[..., scored].nanmean(-1)

    def averaged(times: Tensor) -> list[Tensor]:
        return [torch.stack([mean_iou(counts, times) for counts in part]).mean(0) for part in trainings]

    before, after = averaged(times)
    low, high = (float((after - before).quantile(share)) for share in (0.025, 0.975))
    first_mean, second_mean = (float(value) for value in averaged(ones[0]))
    return Difference(first_mean, second_mean, low, high)


def _blocks(counts: Tensor, block: int) -> Tensor:
    """Sum counts [images, ...] over each `block` neighboring images."""
    return torch.stack([part.sum(0) for part in counts.split(block)])


def write_counts(path: Path, images: Sequence[str], systems: Mapping[str, Tensor]) -> None:
    """Write the confusion matrices of systems to a file that `read_counts` reads.

    Args:
        path: the .npz file.
        images: names of the images.
        systems: confusion matrices [images, K, K] by the name of the system.
    """
    arrays: dict[str, Any] = {name: counts.numpy() for name, counts in systems.items()}
    with atomic_write(path) as partial:
        np.savez_compressed(partial, **{_NAMES: np.array(images), **arrays})


def read_counts(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """Read the names of the images, and the confusion matrices [images, K, K] by the name of the system.

    Raises:
        DataError: the file does not exist, or `contextcrf evaluate` did not write it.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist. Write it with `contextcrf evaluate`.")
    try:
        with path.open("rb") as opened:
            file = np.load(opened)
            arrays = {name: file[name] for name in file.files} if isinstance(file, NpzFile) else {}
    except (BadZipFile, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}). Write it again with `contextcrf evaluate`.") from error
    if _NAMES not in arrays:
        raise DataError(
            f"{path} contains the arrays {sorted(arrays)}, but no {_NAMES!r}. Pass a folder that `contextcrf evaluate` "
            "has written."
        )
    return arrays.pop(_NAMES).tolist(), {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class Gain:
    """The mIoU gain of the pairwise terms or of the dense CRF, with its confidence interval and a verdict.

    Args:
        first: name of the system without these terms.
        second: name of the system with these terms.
        difference: the mean IoU of both systems and the interval of the gain.
        verdict: a sentence on the gain.

    Example:
        >>> print(Gain("unary", "unary+pairwise", Difference(0.5, 0.525, 0.001, 0.051), "They raise the mean IoU."))
        unary -> unary+pairwise: mIoU 50.00 -> 52.50, gain +2.50, 95% CI [+0.10, +5.10]. They raise the mean IoU.
    """

    first: str
    second: str
    difference: Difference
    verdict: str

    def __str__(self) -> str:
        found = self.difference
        gain, low, high = (f"{100 * value:+.2f}" for value in (found.second - found.first, found.low, found.high))
        return (
            f"{self.first} -> {self.second}: mIoU {100 * found.first:.2f} -> {100 * found.second:.2f}, gain {gain}, "
            f"95% CI [{low}, {high}]. {self.verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the gain and its interval as fractions, and the verdict."""
        found = self.difference
        return {
            "first": self.first,
            "second": self.second,
            "gain": found.second - found.first,
            "low": found.low,
            "high": found.high,
            "verdict": self.verdict,
        }


def gains(systems: Mapping[str, Tensor], tuned: bool = False) -> list[Gain]:
    """Return the mIoU gains of the pairwise terms over the unary, and of the dense CRF over unary+pairwise.

    Args:
        systems: confusion matrices [images, K, K] by the name of the system.
        tuned: whether the relation weights of the model have been tuned. The verdict on pairwise terms that lower the
            mean IoU then does not advise to tune them.

    Returns:
        The gain of the pairwise terms and the gain of the dense CRF. A gain is left out if one of the two systems that
        it compares is not in `systems`. The list is empty for a single image, because the gain then has no interval.

    Example:
        >>> unary = torch.tensor([[[6, 4], [5, 5]], [[7, 3], [4, 6]], [[8, 2], [3, 7]]])
        >>> better = torch.tensor([[[8, 2], [3, 7]], [[8, 2], [3, 7]], [[9, 1], [2, 8]]])
        >>> [gain.verdict for gain in gains({"unary": unary, "unary+pairwise": better})]
        ['The pairwise terms raise the mean IoU.']
    """
    unary, pairwise, full = UNARY_ONLY.name, UNARY_PAIRWISE.name, FULL.name
    found = []
    tune = "on images that the network was not trained on"
    weights = (
        'They were tuned on other images. Tune them on more images, or switch them off with "relation_weights" of 0 in '
        "config.json of the model"
        if tuned
        else f"Choose their weights with `contextcrf tune`, {tune}"
    )
    for first, second, part, verb, advice in (
        (unary, pairwise, "pairwise terms", "", weights),
        (
            pairwise if pairwise in systems else unary,
            full,
            "dense CRF",
            "s",
            f"Choose its parameters with `contextcrf tune --dense`, {tune}",
        ),
    ):
        if first not in systems or second not in systems:
            continue
        try:
            difference = paired_bootstrap(systems[first], systems[second])
        except ValueError:
            continue  # a single image has no interval
        if torch.equal(systems[first], systems[second]):
            verdict = f"Both systems have the same counts for every image, as with weights of 0 of the {part}."
        elif difference.low > 0:
            verdict = f"The {part} raise{verb} the mean IoU."
        elif difference.high < 0:
            verdict = f"The {part} lower{verb} the mean IoU. {advice}."
        else:
            verdict = f"The interval contains 0, so the effect of the {part} may be due to chance."
        found.append(Gain(first, second, difference, verdict))
    return found


def classes_in(counts: Tensor, min_images: int) -> list[int]:
    """Return the classes that occur in at least `min_images` images of the confusion matrices [images, K, K]."""
    return [k for k, images in enumerate((counts.sum(2) > 0).sum(0).tolist()) if images >= min_images]


def compare(
    first: Path | Sequence[Path],
    second: Path | Sequence[Path],
    first_system: str | None = None,
    second_system: str | None = None,
    block: int = 1,
    min_images: int = 0,
) -> Difference:
    """Compare two systems that `contextcrf evaluate` has measured.

    Args:
        first: folder with the results of the first system. Several folders are pooled if they have different images,
            as the folds of a cross-validation, and averaged if they have the same images, as training runs with
            different seeds.
        second: folders with the results of the second system, in the same form. They may be the same folders.
        first_system: name of the system in `first`; None if the folder has only one system.
        second_system: name of the system in `second`; None if the folder has only one system.
        block: number of neighboring images that are drawn together, as in `paired_bootstrap`.
        min_images: average only classes that occur in at least this many images.

    Returns:
        The mean IoU of both systems and the interval of their difference.

    Raises:
        DataError: a system is missing, the images or the number of classes differ, only a part of the images of two
            folders is the same, or no class occurs in `min_images` images.
        ValueError: `paired_bootstrap` cannot compare the systems.

    Example:
        >>> counts = torch.tensor([[[6, 4], [5, 5]], [[7, 3], [4, 6]]])
        >>> better = counts + torch.tensor([[1, -1], [-1, 1]])
        >>> write_counts(Path("results/images.npz"), ["a.png", "b.png"], {"unary": counts, "unary+pairwise": better})
        >>> found = compare(Path("results"), Path("results"), "unary", "unary+pairwise")
        >>> found.second > found.first
        True
    """
    (images, counts), (others, other_counts) = _read_runs(first, first_system), _read_runs(second, second_system)
    if images != others:
        alone = sorted(set(images) ^ set(others))
        difference = f"{alone[0]} is in only one of them" if alone else "their order or number differs"
        raise DataError(
            f"{_listed(first)} and {_listed(second)} do not have the same images: {difference}. Evaluate both systems "
            "on the same split."
        )
    if counts.shape[-1] != other_counts.shape[-1]:
        raise DataError(
            f"{_listed(first)} and {_listed(second)} have {counts.shape[-1]} and {other_counts.shape[-1]} classes. "
            "Evaluate both systems on the same data set."
        )
    scored = classes_in(counts[0], min_images)
    if not scored:
        raise DataError(
            f"{_listed(first)}: no class occurs in {min_images} or more of the {len(images)} images. Choose a smaller "
            "--min-images."
        )
    return paired_bootstrap(counts, other_counts, block=block, classes=scored)


def _listed(folders: Path | Sequence[Path]) -> str:
    """Return the names of one or more folders for a message."""
    return str(folders) if isinstance(folders, Path) else ", ".join(map(str, folders))


def _read_runs(folders: Path | Sequence[Path], system: str | None) -> tuple[list[str], Tensor]:
    """Read the image names and the confusion matrices [runs, images, K, K] of one system from one or more folders.

    Folders with the same images are runs, and the images of the other folders are joined.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    groups: dict[tuple[str, ...], list[Tensor]] = {}
    for folder in folders:
        images, counts = _read_system(folder, system)
        for known in groups:
            if tuple(images) != known and (shared := sorted(set(images) & set(known))):
                raise DataError(
                    f"{_listed(folders)}: {shared[0]} is in two folders whose other images differ. Pass the folders of "
                    "different folds, or of training runs that were evaluated on the same images."
                )
        groups.setdefault(tuple(images), []).append(counts)
    if not groups:
        raise DataError("No folder with results was given. Pass one or more folders of `contextcrf evaluate`.")
    shapes = {(len(runs), counts.shape[-1]) for runs in groups.values() for counts in runs}
    if len(shapes) > 1:
        raise DataError(
            f"{_listed(folders)} have different numbers of classes or of runs for each fold. Pass the same number of "
            "runs for all folds, all evaluated with the same classes."
        )
    joined = torch.cat([torch.stack(runs) for runs in groups.values()], dim=1)
    return [image for known in groups for image in known], joined


def _read_system(folder: Path, system: str | None) -> tuple[list[str], Tensor]:
    """Read the image names and the confusion matrices of one system from the results in a folder."""
    images, systems = read_counts(folder / COUNTS)
    if system is None and len(systems) == 1:
        return images, next(iter(systems.values()))
    if system is None:
        raise DataError(
            f"{folder} contains several systems: {', '.join(systems)}. Choose one with --first-system or "
            "--second-system."
        )
    if system not in systems:
        raise DataError(f"{folder} contains no system {system!r}. Choose one of {', '.join(systems)}.")
    return images, systems[system]
