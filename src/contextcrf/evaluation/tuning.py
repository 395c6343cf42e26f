"""Relation weights and the parameters of the dense CRF, chosen by the mean IoU on held-out images.

A plain sum over a hundred edges overcounts: the edges share their evidence, since every joint P(y_p, y_q | x) contains
the information of the features on p alone. The paper gives no weights. Here each relation has one, relative to the
unary.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from contextcrf.crf import DenseCRF
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation.metrics import ConfusionMatrix
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.config import InferenceConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.system import UNARY_PAIRWISE, System
from contextcrf.utils.progress import Task, task, track
from contextcrf.utils.resizing import upsample

RELATION_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
FACTORS = (0.0, 0.5, 2.0)
# The search begins with the first value of each: a mild refinement.
DENSE: Mapping[str, Sequence[float]] = {
    "spatial_compat": (1, 0, 3),
    "bilateral_sxy": (20, 10, 40, 80),
    "bilateral_srgb": (5, 3, 9, 13),
    "bilateral_compat": (2, 1, 4, 8),
}


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and the mean IoU they gave.

    Attributes:
        label: the settings in words.
        settings: those that were varied, by name.
        inference: all of them.
        mean_iou: a fraction.
    """

    label: str
    settings: Mapping[str, Any]
    inference: InferenceConfig
    mean_iou: float


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest mean IoU, the earliest of equals."""
    return max(trials, key=lambda trial: trial.mean_iou)


@torch.inference_mode()
def tune_relation_weights(
    model: ContextCRF,
    data: SegmentationDataset,
    grid: Sequence[float] = RELATION_WEIGHTS,
    inference: InferenceConfig | None = None,
) -> list[Trial]:
    """Try one weight for all relations, then vary each by itself around the best.

    Args:
        model: put into evaluation mode.
        data: images to choose on. The result is no measurement on them.
        grid: weights to try; 0 is the unary alone.
        inference: the settings to begin with; None takes the model's.

    Returns:
        All trials, the first of them with the settings as they are. The best is that of the highest mean IoU.
    """
    model.eval()
    inference = inference or model.inference
    predictor, relations = Predictor(model, inference), list(model.pairwise)
    samples = track(data.without_transform(), "features", total=len(data))
    cache = [_CachedFeatures(predictor, image, mask) for image, mask in samples]
    varied = relations if len(relations) > 1 else []
    with _search(model.num_classes, len(cache), 2 + len(grid) + len(FACTORS) * len(varied)) as search:

        def attempt(weights: Mapping[str, float | None], label: str) -> None:
            chosen = replace(inference, relation_weights=weights)
            current = _exact(Predictor(model, chosen))
            search.attempt(label, weights, chosen, lambda: ((item.labels(current), item.mask) for item in cache))

        attempt(dict(inference.relation_weights), "as it is")
        attempt(dict.fromkeys(relations), "plain sum")
        for weight in grid:
            attempt(dict.fromkeys(relations, weight), f"weight {weight:g}")
        for relation in varied:
            # A plain sum is no number that a factor could change.
            found = best_of(search.trials).inference.weights(relations)
            best = {name: 1.0 if weight is None else weight for name, weight in found.items()}
            for factor in FACTORS:
                attempt({**best, relation: best[relation] * factor}, f"{relation} x {factor:g}")
    return search.trials


@torch.inference_mode()
def tune_dense(
    model: ContextCRF,
    data: SegmentationDataset,
    grid: Mapping[str, Sequence[float]] = DENSE,
    rounds: int = 2,
    inference: InferenceConfig | None = None,
) -> list[Trial]:
    """Try parameters of the dense CRF, one after the other around the best so far.

    Args:
        model: put into evaluation mode.
        data: images to choose on; a network is overconfident on its training images.
        grid: values by the name of the parameter.
        rounds: how often all parameters are gone through.
        inference: the settings to begin with; None takes the model's.

    Returns:
        All trials, the first of them with the settings as they are: with the model's own dense CRF, or without one.
        Where the dense CRF does not help, the best trial has compatibilities of 0.
    """
    model.eval()
    inference = inference or model.inference
    predictor = Predictor(model, inference)
    samples = track(data.without_transform(), "marginals", total=len(data))
    # On the unary's grid: a hundred images at full size would fill the memory.
    cache = [(image, mask, _marginals(predictor, image)) for image, mask in samples]
    first = {name: values[0] for name, values in grid.items()}
    without = {**first, "spatial_compat": 0, "bilateral_compat": 0}
    most = 2 + bool(inference.dense) + rounds * sum(len(values) for values in grid.values())
    with _search(model.num_classes, len(cache), most) as search:

        def refined(current: Predictor) -> Iterator[tuple[Tensor, Tensor]]:
            for image, mask, maps in cache:
                marginals = current.refine(upsample(maps, mask.shape), image[None].to(maps.device))
                yield marginals.argmax(1).cpu(), mask

        def attempt(settings: Mapping[str, Any], label: str) -> None:
            chosen = replace(inference, dense={**inference.dense, **settings})
            search.attempt(label, settings, chosen, lambda: refined(Predictor(model, chosen)))

        if inference.dense:
            attempt(_current_dense(inference, list(grid)), "as it is")
        attempt(without, "without")
        attempt(first, _shown(first))
        for _ in range(rounds):
            for name, values in grid.items():
                best = best_of([trial for trial in search.trials if trial.settings != without]).settings
                for value in values:
                    attempt({**best, name: value}, _shown({**best, name: value}))
    return search.trials


class _Search:
    """Trials, none of them twice, reported as one step."""

    def __init__(self, num_classes: int, images: int, most: int, running: Task) -> None:
        self.trials: list[Trial] = []
        self.num_classes, self.images, self.most, self.running = num_classes, images, most, running

    def attempt(
        self,
        label: str,
        settings: Mapping[str, Any],
        inference: InferenceConfig,
        predictions: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    ) -> None:
        """Measure settings by the labels [1, H, W] and the truth [H, W] of every image, unless they were tried."""
        if any(trial.settings == settings for trial in self.trials):
            self.most -= 1
            self.running.describe(total=self.images * self.most)
            return
        self.running.describe(f"trial {len(self.trials) + 1} of at most {self.most}: {label}")
        matrix = ConfusionMatrix(self.num_classes)
        for labels, truth in predictions():
            matrix.update(labels, truth[None])
            self.running.advance()
        self.trials.append(Trial(label, dict(settings), inference, matrix.mean_iou()))


@contextmanager
def _search(num_classes: int, images: int, most: int) -> Iterator[_Search]:
    with task("trials", images * most) as running:
        yield _Search(num_classes, images, most, running)


def _current_dense(inference: InferenceConfig, names: Sequence[str]) -> dict[str, Any]:
    """The values that some parameters of the dense CRF have now."""
    parameters = inspect.signature(DenseCRF).parameters
    return {name: inference.dense.get(name, parameters[name].default) for name in names}


def _shown(settings: Mapping[str, float]) -> str:
    return " ".join(f"{value:g}" for value in settings.values())


class _CachedFeatures:
    """The features of one image, which do not depend on the weights, in half precision."""

    def __init__(self, predictor: Predictor, image: Tensor, mask: Tensor) -> None:
        features = _features(predictor, image)
        # Potentials that share a map share its copy.
        halves = {id(maps): maps.half() for maps in features.values()}
        self.features = {name: halves[id(maps)] for name, maps in features.items()}
        self.mask = mask

    def labels(self, predictor: Predictor) -> Tensor:
        """Labels [1, H, W] under the predictor's weights."""
        active = tuple(name for name, weight in predictor.weights.items() if weight != 0)
        system = System(relations=active)
        features = {name: self.features[name].float() for name in system.potentials(predictor.model.pairwise)}
        return upsample(predictor.mean_field(features, system), self.mask.shape).argmax(1).cpu()


def _features(predictor: Predictor, image: Tensor) -> dict[str, Tensor]:
    return predictor.extract_features(image[None].to(predictor.model.device).float())


def _marginals(predictor: Predictor, image: Tensor) -> Tensor:
    features = {name: maps.float() for name, maps in _features(predictor, image).items()}
    return _exact(predictor).mean_field(features, UNARY_PAIRWISE)


def _exact(predictor: Predictor) -> Predictor:
    """The predictor in single precision, for mean field: trials differ by hundredths of a percent."""
    return Predictor(predictor.model, replace(predictor.inference, precision="32-true"))
