"""What is minimized in training: the table of objectives.

To add an objective, write a function of a `Batch` and a `TrainingConfig` and give it a name in `OBJECTIVES` and in
`training.config.ObjectiveName`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf import logits_from_probabilities, mean_field_nll, pseudo_likelihood_nll, unrolled_nll
from contextcrf.crf.meanfield import Pair
from contextcrf.crf.potentials import unary_nll
from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.system import System
from contextcrf.training.config import TrainingConfig
from contextcrf.utils.resizing import downsample, upsample

# Sorting all pixels of a step, once for every class, would cost as much as the networks.
LOVASZ_PIXELS = 65_536


@dataclass(frozen=True)
class Batch:
    """The features of a step's images with their labels.

    Attributes:
        model: whose potentials are trained.
        features: by potential, as `ContextCRF.features` returns them; of the potentials that are trained.
        masks: int64 [B, H, W] at the images' size, 255 where unknown; each objective brings them to its maps.
        images: [B, 3, H, W] in 0..255; None with cached features.
        unary_logits: with cached features those of the frozen unary, [B, K, h, w] on the graph's grid; otherwise None.
        class_weights: [K] for the unary's loss, or None.
    """

    model: ContextCRF
    features: Mapping[str, Tensor]
    masks: Tensor
    images: Tensor | None = None
    unary_logits: Tensor | None = None
    class_weights: Tensor | None = None

    @property
    def relations(self) -> list[str]:
        """The relations among the potentials."""
        return [name for name in self.features if name != UNARY]

    def unary(self) -> Tensor:
        """Logits [B, K, h, w] of the unary."""
        return self.model.unary(self.features[UNARY]) if self.unary_logits is None else self.unary_logits

    def pairs(self) -> list[Pair]:
        """The relations as `mean_field` takes them, on the grid of `unary`."""
        if self.unary_logits is not None:  # it is on the graph's grid
            return [(self.model.pairwise_potential(name), self.features[name]) for name in self.relations]
        return [self.model.pair(name, self.features[name]) for name in self.relations]


Losses = dict[str, Tensor]
Objective = Callable[[Batch, TrainingConfig], Losses]


def piecewise(batch: Batch, config: TrainingConfig) -> Losses:
    """The negative log-likelihood of each potential by itself, eq. (10)-(13), by name.

    The Lovász-Softmax loss of the unary is added as "lovasz" where the configuration has a weight for it.
    """
    losses = {}
    for name, maps in batch.features.items():
        if name != UNARY:
            labels = downsample(batch.masks, maps.shape[-2:])
            losses[name] = batch.model.pairwise_potential(name).nll(maps, labels, max_edges=config.max_edges)
            continue
        logits, labels = batch.unary(), batch.masks
        if config.loss_at == "pixels":
            logits = upsample(logits, labels.shape[-2:])
        else:
            labels = downsample(labels, maps.shape[-2:])
        losses[name] = unary_nll(logits, labels, class_weights=batch.class_weights)
        if config.lovasz:
            losses["lovasz"] = config.lovasz * lovasz_softmax(logits, labels)
    return losses


def pseudo_likelihood(batch: Batch, config: TrainingConfig) -> Losses:
    """The negative log-pseudo-likelihood of all potentials together, eq. (14)-(18)."""
    return _coupled(pseudo_likelihood_nll, batch, config)


def mean_field(batch: Batch, config: TrainingConfig) -> Losses:
    """The negative log-likelihood with mean field's bound in place of log Z, eq. (8)."""
    return _coupled(mean_field_nll, batch, config)


def unrolled(batch: Batch, config: TrainingConfig) -> Losses:
    """The cross-entropy of mean field's marginals."""
    return _coupled(unrolled_nll, batch, config)


def _coupled(loss: Callable[..., Tensor], batch: Batch, config: TrainingConfig) -> Losses:
    if batch.unary_logits is None and UNARY not in batch.features:
        raise ValueError(
            f"objective {config.objective!r} needs the unary among the potentials, got {sorted(batch.features)}"
        )
    unary = batch.unary().float()
    return {config.objective: loss(unary, batch.pairs(), downsample(batch.masks, unary.shape[-2:]))}


def crf_rnn(batch: Batch, config: TrainingConfig) -> Losses:
    """The cross-entropy of the known pixels' marginals after mean field and the learned dense CRF; 0 without any.

    Raises:
        ValueError: the model's dense CRF is not learned, or only features are there.
    """
    model, masks = batch.model, batch.masks
    if model.dense is None:
        raise ValueError('the objective "crf-rnn" trains a learned dense CRF; set model.learned_dense')
    if batch.images is None:
        raise ValueError('the objective "crf-rnn" needs images, not features alone: train it with fit')
    predictor = Predictor(model, replace(model.inference, precision=config.precision))
    system = System(unary=UNARY in batch.features, relations=tuple(batch.relations))
    # With a table, what the iterations share is computed once: four times as fast as without, on the whole batch.
    marginals = predictor.mean_field(batch.features, system, tabulate=None)
    marginals = upsample(marginals.float(), masks.shape[-2:])
    # Prediction raises small probabilities to 1e-5; here that would hide the gradient of confident errors.
    logits = logits_from_probabilities(marginals, floor=torch.finfo(marginals.dtype).tiny)
    log_marginals = model.dense.log_marginals(logits, batch.images)
    known = (masks != IGNORE_INDEX).sum().clamp(min=1)
    loss = F.nll_loss(log_marginals, masks, ignore_index=IGNORE_INDEX, reduction="sum") / known
    return {config.objective: loss}


OBJECTIVES: dict[str, Objective] = {
    "piecewise": piecewise,
    "pseudo-likelihood": pseudo_likelihood,
    "mean-field": mean_field,
    "unrolled": unrolled,
    "crf-rnn": crf_rnn,
}


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """The Lovász-Softmax loss of at most `LOVASZ_PIXELS` known places, drawn at random; a scalar.

    Args:
        logits: [B, K, H, W].
        labels: int64 [B, H, W], 255 where unknown.

    Raises:
        ValueError: segmentation_models_pytorch is not installed.
    """
    try:
        from segmentation_models_pytorch.losses import LovaszLoss
    except ModuleNotFoundError as error:
        raise ValueError(
            'lovasz needs segmentation_models_pytorch: pip install "contextcrf[baselines]", or set it to 0'
        ) from error
    known = (labels != IGNORE_INDEX).flatten().nonzero()[:, 0]
    if len(known) == 0:
        return 0 * logits.sum()  # without known places the library's loss is NaN
    chosen = known[torch.randperm(len(known), device=known.device)[:LOVASZ_PIXELS]]
    logits = logits.float().movedim(1, -1).flatten(0, -2)[chosen]
    loss = LovaszLoss("multiclass", ignore_index=IGNORE_INDEX)
    return loss(logits.T[None, ..., None], labels.flatten()[None, chosen, None])
