"""Tuning of relation weights and of the parameters of the dense CRF by the mean IoU on held-out images.

A plain sum of the messages of a hundred edges counts the same evidence many times, since every P(y_p, y_q | x) depends
on the features of p. The paper uses the plain sum. Here each relation has a weight relative to the unary.
"""

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contextcrf.crf import DenseCRF
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation.comparison import Difference, paired_bootstrap
from contextcrf.evaluation.metrics import ConfusionMatrix, confusion
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.config import InferenceConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.network import ContextNetwork
from contextcrf.modeling.serialization import fingerprint
from contextcrf.modeling.system import UNARY_PAIRWISE, System
from contextcrf.utils.labels import most_probable
from contextcrf.utils.progress import Task, task, track
from contextcrf.utils.resizing import upsample

logger = logging.getLogger(__name__)

RELATION_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# The metadata keys of tuned relation weights, and of the tuned parameters of the dense CRF.
TUNED, TUNED_DENSE = "tune", "tune-dense"
# The label of the trial with the initial settings.
CURRENT = "current settings"
FACTORS = (0.0, 0.5, 2.0)
# The search starts with the first value of each parameter, a weak dense CRF.
DENSE: Mapping[str, Sequence[float]] = {
    "spatial_compat": (1, 0, 3),
    "bilateral_sxy": (20, 10, 40, 80),
    "bilateral_srgb": (5, 3, 9, 13),
    "bilateral_compat": (2, 1, 4, 8),
}


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, with their mean IoU.

    Args:
        label: short description of the settings.
        settings: the varied settings by name.
        inference: all inference settings of the trial.
        mean_iou: mean IoU on the tuning images, a fraction.
        counts: confusion matrix of each image, [images, K, K].
        off: whether the tuned terms are switched off, by relation weights or compatibilities of 0.

    Example:
        >>> weights = {"surrounding": 0.5}
        >>> Trial("weight 0.5", weights, InferenceConfig(relation_weights=weights), mean_iou=0.67).settings
        {'surrounding': 0.5}
    """

    label: str
    settings: Mapping[str, Any]
    inference: InferenceConfig
    mean_iou: float
    counts: Tensor | None = field(default=None, compare=False, repr=False)
    off: bool = False


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the highest mean IoU. If several trials are equal, the first of them is returned.

    Args:
        trials: trials, at least one.

    Example:
        >>> scores = {"weight 0": 0.61, "weight 0.5": 0.63, "weight 1": 0.63}
        >>> best_of([Trial(label, {}, InferenceConfig(), score) for label, score in scores.items()]).label
        'weight 0.5'
    """
    return max(trials, key=lambda trial: trial.mean_iou)


def trial_without(trials: Sequence[Trial]) -> Trial:
    """Return the trial without the tuned terms.

    Args:
        trials: trials of `tune_relation_weights`, whose grid has the weight 0, or of `tune_dense`.

    Raises:
        ValueError: no trial is without the tuned terms.

    Example:
        >>> trials = [Trial("weight 1", {"above": 1.0}, InferenceConfig(), 0.5)]
        >>> trials.append(Trial("weight 0", {"above": 0.0}, InferenceConfig(), 0.6, off=True))
        >>> trial_without(trials).label
        'weight 0'
    """
    found = next((trial for trial in trials if trial.off), None)
    if found is None:
        raise ValueError("No trial has the weight 0 for all relations. Add 0 to the grid.")
    return found


def gain_of(trial: Trial, without: Trial) -> Difference:
    """Return the gain of a trial over the trial without the tuned terms, with its 95% confidence interval.

    Raises:
        ValueError: fewer than two images have labeled pixels, or the trials have no `counts`.

    Example:
        >>> wrong, right = torch.tensor([[[2, 2], [2, 2]]] * 9), torch.tensor([[[4, 0], [0, 4]]] * 9)
        >>> zero = Trial("weight 0", {"above": 0.0}, InferenceConfig(), 0.33, wrong, off=True)
        >>> one = Trial("weight 1", {"above": 1.0}, InferenceConfig(), 1.0, right)
        >>> print(gain_of(one, zero))
        33.33 -> 100.00: +66.67 [+66.67, +66.67]
    """
    if trial.counts is None or without.counts is None:
        raise ValueError("The trials have no confusion matrices of the images. Pass those of a search.")
    return paired_bootstrap(without.counts, trial.counts, samples=1 if trial is without else 10_000)


def reliable_trial(trials: Sequence[Trial]) -> tuple[Trial, Difference]:
    """Return the best trial that raises the mean IoU reliably, or the trial without the tuned terms.

    A gain over the trial without the tuned terms is reliable if the lower end of its 95% bootstrap confidence interval
    over the images is above 0.

    Args:
        trials: trials of `tune_relation_weights`, whose grid has the weight 0, or of `tune_dense`.

    Returns:
        The trial, and its gain.

    Raises:
        ValueError: no trial is without the tuned terms, or fewer than two images have labeled pixels.

    Example:
        >>> wrong, right = torch.tensor([[[2, 2], [2, 2]]] * 9), torch.tensor([[[4, 0], [0, 4]]] * 9)
        >>> zero = Trial("weight 0", {"above": 0.0}, InferenceConfig(), 0.33, wrong, off=True)
        >>> one = Trial("weight 1", {"above": 1.0}, InferenceConfig(), 1.0, right)
        >>> reliable_trial([zero, one])[0].label
        'weight 1'
    """
    best = without = trial_without(trials)
    reliable = gain_of(without, without)
    for trial in trials:
        if trial.mean_iou > best.mean_iou:
            found = gain_of(trial, without)
            if found.low > 0:
                best, reliable = trial, found
    return best, reliable


@torch.inference_mode()
def tune_relation_weights(
    model: ContextCRF,
    data: SegmentationDataset,
    grid: Sequence[float] = RELATION_WEIGHTS,
    inference: InferenceConfig | None = None,
) -> list[Trial]:
    """Try relation weights on labeled images.

    First, the same weight is tried for all relations. Then the weight of one relation at a time is varied around the
    best trial.

    Args:
        model: the model; it is set to evaluation mode.
        data: tuning images. Their scores are biased by the tuning, so evaluate the tuned model on other images.
        grid: weights that are tried for all relations together; 0 is the unary alone.
        inference: initial inference settings; None uses the settings of the model.

    Returns:
        All trials. The first trial has the initial settings. `best_of` returns the trial with the highest mean IoU.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> data = open_dataset(write_scenes("scenes", train=1, val=1, height=64, width=96), "val")
        >>> config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> model = ContextCRF(config, data.classes, pretrained=False, inference=InferenceConfig(precision="32-true"))
        >>> trials = tune_relation_weights(model, data, grid=(0.0, 0.25))
        >>> [trial.label for trial in trials[:4]]
        ['current settings', 'plain sum', 'weight 0', 'weight 0.25']
    """
    model.eval()
    inference = inference or model.inference
    predictor, relations = Predictor(model, inference), list(model.pairwise)
    samples = track(data.without_transform(), "Computing features", total=len(data))
    cache = [_CachedFeatures(predictor, image, mask) for image, mask in samples]
    varied = relations if len(relations) > 1 else []
    with _search(model.num_classes, len(cache), 2 + len(grid) + len(FACTORS) * len(varied)) as search:

        def attempt(weights: Mapping[str, float | None], label: str) -> None:
            chosen = replace(inference, relation_weights=weights)
            current = _exact(Predictor(model, chosen))
            off = all(weight == 0 for weight in chosen.weights(relations).values())
            search.attempt(label, weights, chosen, lambda: ((item.labels(current), item.mask) for item in cache), off)

        attempt(dict(inference.relation_weights), CURRENT)
        attempt(dict.fromkeys(relations), "plain sum")
        for weight in grid:
            attempt(dict.fromkeys(relations, weight), f"weight {weight:g}")
        for relation in varied:
            # A plain sum has no weight that can be multiplied: start from 1.
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
    """Try parameters of the dense CRF: vary one parameter at a time around the best trial so far.

    Args:
        model: the model; it is set to evaluation mode.
        data: tuning images. Do not use training images, since a network is overconfident on them.
        grid: for each parameter name, the values to try.
        rounds: number of passes over all parameters.
        inference: initial inference settings; None uses the settings of the model.

    Returns:
        All trials. The first trial has the initial settings. One trial has no dense CRF, that is, compatibilities of 0.
        It is the first trial if `dense` is empty in the initial settings. It is the best trial if none of the tried
        dense CRFs raises the mean IoU.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> data = open_dataset(write_scenes("scenes", train=1, val=1, height=64, width=96), "val")
        >>> config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> model = ContextCRF(config, data.classes, pretrained=False, inference=InferenceConfig(precision="32-true"))
        >>> trials = tune_dense(model, data, {"spatial_compat": (1,), "bilateral_compat": (2, 4)}, rounds=1)
        >>> [trial.label for trial in trials]
        ['no dense CRF', '1 2', '1 4']
    """
    model.eval()
    inference = inference or model.inference
    predictor = Predictor(model, inference)
    samples = track(data.without_transform(), "Computing marginals", total=len(data))
    # Marginals are kept at the resolution of the unary: a hundred images at full size would fill the memory.
    cache = [(image, mask, _marginals(predictor, image)) for image, mask in samples]

    def refined(settings: InferenceConfig) -> Iterator[tuple[Tensor, Tensor]]:
        current = Predictor(model, settings)
        for image, mask, maps in cache:
            marginals = current.refine(upsample(maps, mask.shape), image[None].to(maps.device))
            yield most_probable(marginals, 1).cpu(), mask

    return search_dense(refined, model.num_classes, len(cache), inference, grid, rounds)


def search_dense(
    refined: Callable[[InferenceConfig], Iterable[tuple[Tensor, Tensor]]],
    num_classes: int,
    images: int,
    inference: InferenceConfig,
    grid: Mapping[str, Sequence[float]] = DENSE,
    rounds: int = 2,
) -> list[Trial]:
    """Vary one parameter of the dense CRF at a time around the best trial so far.

    Args:
        refined: returns, for settings of the dense CRF, the refined labels [1, H, W] and the ground truth [H, W] of
            each image.
        num_classes: number of classes K.
        images: number of images, for the progress bar.
        inference: initial inference settings.
        grid: as for `tune_dense`.
        rounds: as for `tune_dense`.

    Returns:
        All trials, as for `tune_dense`.

    Example:
        >>> mask = torch.tensor([[0, 1]])
        >>> trials = search_dense(lambda settings: [(mask[None], mask)], 2, 1, InferenceConfig(), rounds=0)
        >>> [trial.label for trial in trials]
        ['no dense CRF', '1 20 5 2']
    """
    first = {name: values[0] for name, values in grid.items()}
    without = {**first, "spatial_compat": 0, "bilateral_compat": 0}
    most = 2 + bool(inference.dense) + rounds * sum(len(values) for values in grid.values())
    with _search(num_classes, images, most) as search:

        def attempt(settings: Mapping[str, Any], label: str) -> None:
            chosen = replace(inference, dense={**inference.dense, **settings})
            search.attempt(label, settings, chosen, lambda: refined(chosen), chosen.dense_is_off)

        if inference.dense:
            attempt(_current_dense(inference, list(grid)), CURRENT)
        attempt(without, "no dense CRF")
        attempt(first, _shown(first))
        for _ in range(rounds):
            for name, values in grid.items():
                best = best_of([trial for trial in search.trials if trial.settings != without]).settings
                for value in values:
                    attempt({**best, name: value}, _shown({**best, name: value}))
    return search.trials


def warn_about_split(model: ContextNetwork, data: str, split: str, folder: Path | None = None) -> bool:
    """Warn if the tuning split is a training split of the model, or a split that the model was evaluated on.

    The metadata of the model names its training splits. A published model also names the splits of its results. Results
    that `contextcrf evaluate` has written beside the model are found by the fingerprint of the model.

    Args:
        model: the model.
        data: name of the folder of the data set.
        split: the tuning split.
        folder: folder of the model, beside which results are looked for; None looks for none.

    Returns:
        Whether the tuning split is a training split.
    """
    trained = any(entry.get("split") == split for entry in _entries(model.metadata, ("fit", "fit-heads", "end-to-end")))
    if trained:
        logger.warning(
            "The model was trained on the split %s, and is overconfident on its training images. The tuned parameters "
            "of the CRF will be too small. Choose another split with --split.",
            split,
        )
    measured = [table.get("data", "") for table in model.metadata.get("measured", ())]
    measured += [] if folder is None else _evaluated_beside(folder, fingerprint(model))
    if any(name.startswith(f"{data} {split}, ") for name in measured):
        logger.warning(
            "The model was evaluated on the split %s of %s. Results of the tuned model on this split will be biased. "
            "Choose another split with --split, or report results on other images.",
            split,
            data,
        )
    return trained


def earlier_use(model: ContextNetwork, data: str, split: str) -> str | None:
    """Return a sentence if a model was trained or tuned on the images that measure it, so that results are too good.

    The metadata of the model names the splits of its training and its tuning.

    Args:
        model: the model.
        data: name of the folder of the data set.
        split: the split that is evaluated.
    """
    for names, done in ((("fit", "fit-heads", "end-to-end"), "trained"), ((TUNED, TUNED_DENSE), "tuned")):
        if any(entry.get("split") == split and entry.get("data") == data for entry in _entries(model.metadata, names)):
            return f"The model was {done} on the split {split} of {data}, so these results are too good."
    return None


def _entries(metadata: Mapping[str, Any], names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of some stages in the metadata of a model and of the models that it was merged from."""
    for name, entry in metadata.items():
        if isinstance(entry, Mapping):
            if name.partition(" ")[0] in names:  # "fit 2" is a further run
                yield entry
            else:
                yield from _entries(entry, names)


def _evaluated_beside(folder: Path, model: str) -> list[str]:
    """Return the data of the results beside a model's folder that have the fingerprint of the model."""
    found = []
    for path in sorted(folder.resolve().parent.glob("*/results.json")):
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
            if metadata.get("model") == model:
                found.append(str(metadata["data"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not the results of an evaluation
    return found


class _Search:
    """A search that tries each setting once and reports all trials as one progress step."""

    def __init__(self, num_classes: int, images: int, most: int, running: Task) -> None:
        self.trials: list[Trial] = []
        self.num_classes, self.images, self.most, self.running = num_classes, images, most, running

    def attempt(
        self,
        label: str,
        settings: Mapping[str, Any],
        inference: InferenceConfig,
        predictions: Callable[[], Iterable[tuple[Tensor, Tensor]]],
        off: bool,
    ) -> None:
        """Evaluate settings, unless they have been tried before.

        Args:
            label: short description of the settings.
            settings: the varied settings by name.
            inference: all inference settings.
            predictions: returns the predicted labels [1, H, W] and the ground truth [H, W] of each image.
            off: whether the tuned terms are switched off.
        """
        if any(trial.settings == settings for trial in self.trials):
            self.most -= 1
            self.running.describe(total=self.images * self.most)
            return
        self.running.describe(f"Trial {len(self.trials) + 1} of at most {self.most}: {label}")
        counts = []
        for labels, truth in predictions():
            counts.append(confusion(labels, truth[None], self.num_classes))
            self.running.advance()
        stacked = torch.stack(counts)
        score = ConfusionMatrix.of(stacked.sum(0)).mean_iou()
        self.trials.append(Trial(label, dict(settings), inference, score, stacked, off))


@contextmanager
def _search(num_classes: int, images: int, most: int) -> Iterator[_Search]:
    with task("Trials", images * most) as running:
        yield _Search(num_classes, images, most, running)


def _current_dense(inference: InferenceConfig, names: Sequence[str]) -> dict[str, Any]:
    """Return the current values of some parameters of the dense CRF."""
    parameters = inspect.signature(DenseCRF).parameters
    return {name: inference.dense.get(name, parameters[name].default) for name in names}


def _shown(settings: Mapping[str, float]) -> str:
    return " ".join(f"{value:g}" for value in settings.values())


class _CachedFeatures:
    """The features and the mask of one image. The features are kept in half precision."""

    def __init__(self, predictor: Predictor, image: Tensor, mask: Tensor) -> None:
        features = _features(predictor, image)
        # Potentials that share a feature map share its copy.
        halves = {id(maps): maps.half() for maps in features.values()}
        self.features = {name: halves[id(maps)] for name, maps in features.items()}
        self.mask = mask

    def labels(self, predictor: Predictor) -> Tensor:
        """Return the predicted labels [1, H, W] under the relation weights of the predictor."""
        active = tuple(name for name in predictor.weights if predictor.takes_part(name))
        system = System(relations=active)
        features = {name: self.features[name].float() for name in system.potentials(predictor.model.pairwise)}
        return most_probable(upsample(predictor.mean_field(features, system), self.mask.shape), 1).cpu()


def _features(predictor: Predictor, image: Tensor) -> dict[str, Tensor]:
    return predictor.extract_features(image[None].to(predictor.model.device).float())


def _marginals(predictor: Predictor, image: Tensor) -> Tensor:
    features = {name: maps.float() for name, maps in _features(predictor, image).items()}
    return _exact(predictor).mean_field(features, UNARY_PAIRWISE)


def _exact(predictor: Predictor) -> Predictor:
    """Return the predictor in single precision, since the mean IoU of trials differs by hundredths of a percent."""
    return Predictor(predictor.model, replace(predictor.inference, precision="32-true"))
