"""The objectives of training.

To add an objective, write a function of a `Batch` and a `TrainingConfig`. Then add its name to `OBJECTIVES` and to
`training.config.ObjectiveName`.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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

# The loss sorts the pixels once per class: with all pixels of a step this would cost as much as the networks.
LOVASZ_PIXELS = 65_536


@dataclass(frozen=True)
class Batch:
    """The features and masks of the images of a step.

    Args:
        model: model whose potentials are trained.
        features: features of each trained potential, as `ContextCRF.features` returns them.
        masks: labels int64 [B, H, W] at the size of the images, or at the graph nodes if only pairwise heads are
            trained on cached features; 255 for pixels without a label. Each objective resizes them to its maps.
        images: images [B, C, H, W] with values 0..255; None with cached features.
        unary_logits: the logits [B, K, h, w] of the frozen unary at the graph nodes if only pairwise heads are trained
            on cached features; otherwise None.
        class_weights: class weights [K] of the piecewise losses, or of the objective "end-to-end"; None weights all
            classes equally.
        seed: seed of the step, with which the edges of each relation are drawn independently of the other relations;
            None draws them with the global generator.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(config, classes, pretrained=False)
        >>> images, masks = 255 * torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64)
        >>> batch = Batch(model, model.features(images, ["unary", "above"]), masks, images)
        >>> batch.relations
        ['above']
    """

    model: ContextCRF
    features: Mapping[str, Tensor]
    masks: Tensor
    images: Tensor | None = None
    unary_logits: Tensor | None = None
    class_weights: Tensor | None = None
    seed: int | None = None

    @property
    def relations(self) -> list[str]:
        """The names of the relations whose features are given."""
        return [name for name in self.features if name != UNARY]

    def unary(self) -> Tensor:
        """Return the unary logits [B, K, h, w]."""
        return self.model.unary(self.features[UNARY]) if self.unary_logits is None else self.unary_logits

    def pairs(self) -> list[Pair]:
        """Return the relations in the form that `mean_field` takes, at the resolution of `unary`."""
        if self.unary_logits is not None:  # the cached logits are at the graph nodes
            return [(self.model.pairwise_potential(name), self.features[name]) for name in self.relations]
        return [self.model.pair(name, self.features[name]) for name in self.relations]


Losses = dict[str, Tensor]
Objective = Callable[[Batch, TrainingConfig], Losses]


def piecewise(batch: Batch, config: TrainingConfig) -> Losses:
    """Compute the negative log-likelihood of each potential separately, eq. (10)-(13).

    Args:
        batch: features and masks of a step.
        config: config of the training; `max_edges`, `loss_at` and `lovasz` are used.

    Returns:
        One scalar for each potential by its name. If `config.lovasz` is not 0, "lovasz" is the weighted Lovász-Softmax
        loss of the unary.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> small = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(small, classes, pretrained=False)
        >>> images, masks = 255 * torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64)
        >>> batch = Batch(model, model.features(images, ["unary", "above"]), masks, images)
        >>> sorted(piecewise(batch, TrainingConfig(max_edges=64)))
        ['above', 'unary']
    """
    losses = {}
    for name, maps in batch.features.items():
        if name != UNARY:
            labels = downsample(batch.masks, maps.shape[-2:])
            potential = batch.model.pairwise_potential(name)
            generator = None
            if batch.seed is not None:
                generator = torch.Generator(maps.device).manual_seed(seed_of(batch.seed, name))
            losses[name] = potential.nll(
                maps,
                labels,
                max_edges=config.max_edges,
                class_weights=batch.class_weights,
                generator=generator,
            )
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


def seed_of(seed: int, name: str) -> int:
    """Return a seed for a potential, which depends on its name and a common seed only.

    Example:
        >>> seed_of(0, "above") == seed_of(0, "above"), seed_of(0, "above") == seed_of(0, "surrounding")
        (True, False)
    """
    return (seed ^ zlib.crc32(name.encode())) % 2**63


def pseudo_likelihood(batch: Batch, config: TrainingConfig) -> Losses:
    """Compute the negative log-pseudo-likelihood of all potentials together, eq. (14)-(18)."""
    return _coupled(pseudo_likelihood_nll, batch, config)


def mean_field(batch: Batch, config: TrainingConfig) -> Losses:
    """Compute the negative log-likelihood of eq. (8) with the mean-field bound in place of log Z."""
    return _coupled(mean_field_nll, batch, config)


def unrolled(batch: Batch, config: TrainingConfig) -> Losses:
    """Compute the cross-entropy of the mean-field marginals."""
    return _coupled(unrolled_nll, batch, config)


def _coupled(loss: Callable[..., Tensor], batch: Batch, config: TrainingConfig) -> Losses:
    """Compute a loss that couples the unary and the relations."""
    if batch.unary_logits is None and UNARY not in batch.features:
        raise ValueError(
            f"The objective {config.objective!r} needs the unary among the potentials, but only "
            f"{sorted(batch.features)} are trained. Add unary to training.potentials."
        )
    unary = batch.unary().float()
    return {config.objective: loss(unary, batch.pairs(), downsample(batch.masks, unary.shape[-2:]))}


def crf_rnn(batch: Batch, config: TrainingConfig) -> Losses:
    """Compute the cross-entropy of the marginals after mean field and the learned dense CRF.

    Args:
        batch: features, masks and images of a step.
        config: config of the training; its precision is used.

    Returns:
        A dictionary whose entry "crf-rnn" is the mean over the labeled pixels; 0 without labeled pixels.

    Raises:
        ValueError: the model has no learned dense CRF, or the batch has no images.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> small = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,), learned_dense=True)
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(small, classes, pretrained=False)
        >>> images, masks = 255 * torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64)
        >>> batch = Batch(model, model.features(images, ["unary"]), masks, images)
        >>> crf_rnn(batch, TrainingConfig(objective="crf-rnn", precision="32-true"))["crf-rnn"].isfinite()
        tensor(True)
    """
    if batch.model.dense is None:
        raise ValueError(
            "The objective 'crf-rnn' needs a model with a learned dense CRF. Set model.learned_dense to true."
        )
    if batch.images is None:
        raise ValueError(
            "The objective 'crf-rnn' needs images, but the batch contains cached features. Train the model with fit."
        )
    return _system_loss(batch, config)


def end_to_end(batch: Batch, config: TrainingConfig) -> Losses:
    """Compute the cross-entropy at the pixels of the marginals of the whole system.

    The system consists of unrolled mean field with the relation weights and, if the model has one, the learned dense
    CRF.

    Args:
        batch: features, masks and images of a step.
        config: config of the training; its precision is used.

    Returns:
        A dictionary whose entry "end-to-end" is the mean over the labeled pixels; 0 without labeled pixels. If
        `config.lovasz` is not 0, "lovasz" is the weighted Lovász-Softmax loss of the marginals.

    Raises:
        ValueError: the unary is not trained, or the batch has cached features.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> small = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,), learned_weights=True)
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(small, classes, pretrained=False)
        >>> images, masks = 255 * torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64)
        >>> batch = Batch(model, model.features(images), masks, images)
        >>> end_to_end(batch, TrainingConfig(objective="end-to-end", precision="32-true"))["end-to-end"].isfinite()
        tensor(True)
    """
    if UNARY not in batch.features or batch.images is None:
        raise ValueError(
            "The objective 'end-to-end' needs images and the unary among the potentials. Train the model with fit, and "
            "add unary to training.potentials."
        )
    return _system_loss(batch, config)


def _system_loss(batch: Batch, config: TrainingConfig) -> Losses:
    """Compute the cross-entropy at the pixels of the marginals after mean field and the learned dense CRF."""
    model, masks = batch.model, batch.masks
    predictor = Predictor(model, replace(model.inference, precision=config.precision))
    system = System(unary=UNARY in batch.features, relations=tuple(batch.relations))
    # All iterations share the tables of the pair logits, which were four times as fast for the bundled models.
    marginals = predictor.mean_field(batch.features, system, tabulate=None)
    marginals = upsample(marginals.float(), masks.shape[-2:])
    # Prediction raises small probabilities to 1e-5. In training this would remove the gradient of confident errors.
    logits = logits_from_probabilities(marginals, floor=torch.finfo(marginals.dtype).tiny)
    if model.dense is not None and batch.images is not None:
        # The images of a data set are in 0..255, and an almost black one must not end the training.
        logits = model.dense.log_marginals(logits, batch.images, image_range=(0, 255))
    losses: Losses = {config.objective: unary_nll(logits, masks, class_weights=batch.class_weights)}
    if config.lovasz:
        losses["lovasz"] = config.lovasz * lovasz_softmax(logits, masks)
    return losses


OBJECTIVES: dict[str, Objective] = {
    "piecewise": piecewise,
    "pseudo-likelihood": pseudo_likelihood,
    "mean-field": mean_field,
    "unrolled": unrolled,
    "crf-rnn": crf_rnn,
    "end-to-end": end_to_end,
}


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the Lovász-Softmax loss (Berman, Triki, Blaschko, CVPR 2018) on a random sample of labeled pixels.

    Args:
        logits: logits [B, K, H, W].
        labels: labels int64 [B, H, W]; 255 for pixels without a label.

    Returns:
        A scalar, computed from at most `LOVASZ_PIXELS` labeled pixels; 0 without labeled pixels.

    Raises:
        ValueError: the package segmentation_models_pytorch is not installed.

    Example:
        >>> logits = torch.tensor([[[[20.0, -20.0]], [[-20.0, 20.0]]]])
        >>> round(lovasz_softmax(logits, torch.tensor([[[0, 1]]])).item(), 4)
        0.0
    """
    try:
        from segmentation_models_pytorch.losses import LovaszLoss
    except ModuleNotFoundError as error:
        raise ValueError(
            "lovasz is not 0, but the package segmentation_models_pytorch is not installed. Install it with "
            '`pip install "contextcrf[baselines]"`, or set lovasz to 0.'
        ) from error
    known = (labels != IGNORE_INDEX).flatten().nonzero()[:, 0]
    if len(known) == 0:
        return 0 * logits.sum()  # the loss of the package is NaN without labeled pixels
    chosen = known[torch.randperm(len(known), device=known.device)[:LOVASZ_PIXELS]]
    logits = logits.float().movedim(1, -1).flatten(0, -2)[chosen]
    loss = LovaszLoss("multiclass", ignore_index=IGNORE_INDEX)
    return loss(logits.T[None, ..., None], labels.flatten()[None, chosen, None])
