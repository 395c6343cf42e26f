"""The strength of the pairwise terms and the parameters of the dense CRF, chosen on data.

A plain sum over a hundred edges overcounts: the edges share their evidence, since every joint P(y_p, y_q | x)
contains what the features say of p alone. The paper is silent on weights. Here each relation has one strength, the
number of unary votes a node's neighbours have together, and it is chosen by the mean IoU on images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation import ConfusionMatrix
from contextcrf.maps import upsample
from contextcrf.model import ContextCRF
from contextcrf.model_config import UNARY

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
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
    trials: list[Trial] = []

    def attempt(strengths: Mapping[str, float | None], label: str) -> None:
        if any(trial.settings == strengths for trial in trials):
            return
        matrix = ConfusionMatrix(model.num_classes)
        for item in track(cache, label, disable=not progress):
            matrix.update(item.labels(model, strengths), item.mask[None])
        trials.append(Trial(strengths, matrix.mean_iou()))

    attempt(model.config.strengths, "as it is")
    attempt(dict.fromkeys(relations), "plain sum")
    for strength in grid:
        attempt(dict.fromkeys(relations, strength), f"strength {strength:g}")
    for relation in relations if len(relations) > 1 else []:
        found = best_of(trials).settings
        # A plain sum is no number that could be moved by a factor.
        best = {name: 1.0 if found.get(name) is None else found[name] for name in relations}
        for factor in (0.0, 0.5, 2.0):
            attempt({**best, relation: best[relation] * factor}, f"{relation} x {factor:g}")
    return trials


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
        All trials, the first of them without a dense CRF.
    """
    model.eval()
    samples = track(data.without_transform(), "marginals", total=len(data), disable=not progress)
    # On the unary's grid: a hundred images at full size would fill the memory.
    cache = [(image, mask, _marginals(model, image, precision)) for image, mask in samples]
    trials: list[Trial] = []

    def attempt(settings: dict[str, float]) -> None:
        if any(trial.settings == settings for trial in trials):
            return
        matrix = ConfusionMatrix(model.num_classes)
        shown = " ".join(f"{value:g}" for value in settings.values())
        for image, mask, maps in track(cache, f"{len(trials)}: {shown}", disable=not progress):
            marginals = upsample(maps, mask.shape)
            matrix.update(model.refine(marginals, image[None].to(maps.device), settings).argmax(1).cpu(), mask[None])
        trials.append(Trial(settings, matrix.mean_iou()))

    current = {name: values[0] for name, values in grid.items()}
    attempt({**current, "spatial_compat": 0, "bilateral_compat": 0})
    attempt(current)
    for _ in range(rounds):
        for name, values in grid.items():
            best = best_of(trials[1:]).settings
            for value in values:
                attempt({**best, name: value})
    return trials


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
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        return model.features(image[None].to(device).float())


def _marginals(model: ContextCRF, image: Tensor, precision: str) -> Tensor:
    return model.infer({name: maps.float() for name, maps in _features(model, image, precision).items()})
