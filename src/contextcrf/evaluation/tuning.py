"""The strength of the pairwise terms and the parameters of the dense CRF, chosen on data.

A plain sum over a hundred edges overcounts: the edges share their evidence, since every joint P(y_p, y_q | x)
contains what the features say of p alone. The paper is silent on weights. Here each relation has one strength, the
number of unary votes a node's neighbors have together, and it is chosen by the mean IoU on images.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress, track
from torch import Tensor

from contextcrf.crf import DenseCRF
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation.evaluate import ConfusionMatrix
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.utils.resizing import upsample
from contextcrf.utils.runtime import autocast

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
FACTORS = (0.0, 0.5, 2.0)
# The first value of each is where the search begins: a mild refinement.
DENSE: Mapping[str, Sequence[float]] = {
    "spatial_compat": (1, 0, 3),
    "bilateral_sxy": (20, 10, 40, 80),
    "bilateral_srgb": (5, 3, 9, 13),
    "bilateral_compat": (2, 1, 4, 8),
}


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and the mean IoU they gave."""

    settings: Mapping[str, Any]
    mean_iou: float


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest mean IoU, the earliest of equals."""
    return max(trials, key=lambda trial: trial.mean_iou)


def adopt(model: ContextCRF, trial: Trial, dense: bool = False) -> None:
    """Give the model a trial's strengths, or its dense CRF."""
    if dense:
        model.config.dense.update(trial.settings)
    else:
        model.config.strengths = dict(trial.settings)


@torch.inference_mode()
def tune_strengths(
    model: ContextCRF,
    data: SegmentationDataset,
    grid: Sequence[float] = STRENGTHS,
    precision: str = "32-true",
    progress: bool = True,
) -> list[Trial]:
    """Try one strength for all relations, then move each by itself around the best.

    The model is not changed; the best trial is the one with the highest mean IoU.

    Args:
        data: images to choose on. The result is not a measurement of them.
        grid: strengths to try; 0 is the unary alone.

    Returns:
        All trials, the first of them the model as it is.
    """
    model.eval()
    samples = track(data.without_transform(), "features", total=len(data), disable=not progress)
    cache = [_Cached(model, image, mask, precision) for image, mask in samples]
    relations = list(model.pairwise)
    moved = relations if len(relations) > 1 else []
    with Progress(disable=not progress) as bar:
        search = _Search(bar, model.num_classes, len(cache), 2 + len(grid) + len(FACTORS) * len(moved))

        def attempt(strengths: Mapping[str, float | None], label: str) -> None:
            search.attempt(strengths, label, ((item.labels(model, strengths), item.mask) for item in cache))

        attempt(dict(model.config.strengths), "as it is")
        attempt(dict.fromkeys(relations), "plain sum")
        for strength in grid:
            attempt(dict.fromkeys(relations, strength), f"strength {strength:g}")
        for relation in moved:
            found = best_of(search.trials).settings
            # What is not named has its share of one vote; a plain sum is no number that a factor could move.
            named = {name: found.get(name, 1 / len(relations)) for name in relations}
            best = {name: 1.0 if strength is None else strength for name, strength in named.items()}
            for factor in FACTORS:
                attempt({**best, relation: best[relation] * factor}, f"{relation} x {factor:g}")
    return search.trials


@torch.inference_mode()
def tune_dense(
    model: ContextCRF,
    data: SegmentationDataset,
    grid: Mapping[str, Sequence[float]] = DENSE,
    rounds: int = 2,
    precision: str = "32-true",
    progress: bool = True,
) -> list[Trial]:
    """Try parameters of the dense CRF behind the model, one after the other around the best so far.

    The model is not changed. Where the dense CRF does not help, the best trial has compatibilities of 0.

    Args:
        data: images to choose on; a network is surer of its training images than of others.
        grid: values by the name of the parameter.
        rounds: how often all parameters are gone through.

    Returns:
        All trials, the first of them the model as it is: with its own dense CRF, or without where it has none.
    """
    model.eval()
    samples = track(data.without_transform(), "marginals", total=len(data), disable=not progress)
    # On the unary's grid: a hundred images at full size would fill the memory.
    cache = [(image, mask, _marginals(model, image, precision)) for image, mask in samples]
    first = {name: values[0] for name, values in grid.items()}
    without = {**first, "spatial_compat": 0, "bilateral_compat": 0}
    most = 2 + bool(model.config.dense) + rounds * sum(len(values) for values in grid.values())
    with Progress(disable=not progress) as bar:
        search = _Search(bar, model.num_classes, len(cache), most)

        def refined(settings: Mapping[str, Any]) -> Iterable[tuple[Tensor, Tensor]]:
            for image, mask, maps in cache:
                marginals = upsample(maps, mask.shape)
                labels = model.refine(marginals, image[None].to(maps.device), dict(settings)).argmax(1)
                yield labels.cpu(), mask

        def attempt(settings: Mapping[str, Any], label: str) -> None:
            search.attempt(settings, label, refined(settings))

        if model.config.dense:
            attempt(_own_dense(model, list(grid)), "as it is")
        attempt(without, "without")
        attempt(first, _shown(first))
        for _ in range(rounds):
            for name, values in grid.items():
                best = best_of([trial for trial in search.trials if trial.settings != without]).settings
                for value in values:
                    attempt({**best, name: value}, _shown({**best, name: value}))
    return search.trials


class _Search:
    """Trials, none of them twice, under one bar that counts them against the most that there can be."""

    def __init__(self, bar: Progress, num_classes: int, images: int, most: int) -> None:
        self.trials: list[Trial] = []
        self.bar, self.num_classes, self.images, self.most = bar, num_classes, images, most
        self.task = bar.add_task("trials", total=images * most)

    def attempt(self, settings: Mapping[str, Any], label: str, found: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure settings by the labels [1, H, W] and the truth [H, W] of every image, unless they were tried."""
        if any(trial.settings == settings for trial in self.trials):
            self.most -= 1
            self.bar.update(self.task, total=self.images * self.most)
            return
        number = f"trial {len(self.trials) + 1} of at most {self.most}"
        self.bar.update(self.task, description=f"{number}: {label}", refresh=True)
        matrix = ConfusionMatrix(self.num_classes)
        for labels, truth in found:
            matrix.update(labels, truth[None])
            self.bar.advance(self.task)
        self.trials.append(Trial(settings, matrix.mean_iou()))


def _own_dense(model: ContextCRF, names: Sequence[str]) -> dict[str, Any]:
    """What a model's own dense CRF has for some parameters."""
    parameters = inspect.signature(DenseCRF).parameters
    return {name: model.config.dense.get(name, parameters[name].default) for name in names}


def _shown(settings: Mapping[str, float]) -> str:
    return " ".join(f"{value:g}" for value in settings.values())


class _Cached:
    """One image on the way to inference: what does not depend on the strengths, in half precision."""

    def __init__(self, model: ContextCRF, image: Tensor, mask: Tensor, precision: str) -> None:
        features = _features(model, image, precision)
        # The copies share one map where the maps do.
        halves = {id(maps): maps.half() for maps in features.values()}
        self.features = {name: halves[id(maps)] for name, maps in features.items()}
        self.mask = mask

    def labels(self, model: ContextCRF, strengths: Mapping[str, float | None]) -> Tensor:
        active = [name for name in model.pairwise if strengths.get(name, 1.0) != 0]
        features = {name: self.features[name].float() for name in (UNARY, *active)}
        marginals = model.infer(features, (UNARY, *active), strengths=strengths)
        return upsample(marginals, self.mask.shape).argmax(1).cpu()


def _features(model: ContextCRF, image: Tensor, precision: str) -> dict[str, Tensor]:
    """Of one image [3, H, W]; potentials of one trunk and grid share one map."""
    device = model.mean.device
    with autocast(device, precision):
        return model.features(image[None].to(device).float())


def _marginals(model: ContextCRF, image: Tensor, precision: str) -> Tensor:
    return model.infer({name: maps.float() for name, maps in _features(model, image, precision).items()})
