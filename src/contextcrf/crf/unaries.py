"""Logits for a CRF from what people have: probabilities, or labels they believe in to some degree."""

import math

import torch
from torch import Tensor

from contextcrf.crf.potentials import IGNORE_INDEX, check_values


def logits_from_probabilities(probabilities: Tensor, floor: float = 1e-5, scale: float = 1.0) -> Tensor:
    """The logarithm of a network's probabilities, as pydensecrf's `unary_from_softmax` (with the other sign).

    Args:
        probabilities: [B, K, ...], in 0..1, the K of a pixel summing to 1.
        floor: smaller probabilities count as this one: the logarithm of 0 would rule a label out for ever.
        scale: how far to trust them, in (0, 1]: they are mixed with the uniform distribution, which gets 1 - scale.

    Raises:
        ValueError: NaN, values outside 0..1, sums that are not 1, or a floor or scale outside (0, 1].
    """
    for name, value in (("floor", floor), ("scale", scale)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value}: expected a number in (0, 1]")
    if probabilities.ndim < 3 or not probabilities.is_floating_point():
        raise ValueError(
            f"probabilities {probabilities.dtype} {list(probabilities.shape)}: expected floating [B, K, ...]"
        )
    # Written so that NaN fails too.
    if not bool(((probabilities >= 0) & (probabilities <= 1.001)).all()):
        raise ValueError(
            f"probabilities from {probabilities.min():.4g} to {probabilities.max():.4g}: expected 0..1; logits need no "
            "conversion"
        )
    off = (probabilities.sum(1, dtype=torch.float32) - 1).abs().max()
    if off > 0.02:
        raise ValueError(
            f"probabilities whose sums over axis 1 (of length {probabilities.shape[1]}) differ from 1 by up to "
            f"{off:.3g}: expected the classes on axis 1"
        )
    mixed = scale * probabilities + (1 - scale) / probabilities.shape[1]
    return mixed.clamp(floor, 1).log()


def logits_from_labels(
    labels: Tensor, num_classes: int, confidence: float = 0.7, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Logits of labels that are right with some probability, as pydensecrf's `unary_from_labels`.

    Args:
        labels: integers [B, ...], 0..K-1; `ignore_index` where nothing is known, which the CRF fills in.
        num_classes: K.
        confidence: the probability, in (0, 1), that a label is right; the others share the rest.
        ignore_index: the value that means "unknown".

    Returns:
        float32 [B, K, ...]: logarithms of probabilities, uniform where unknown.

    Raises:
        ValueError: labels that are not integers or outside 0..K-1; a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a probability in (0, 1)")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.ndim < 2:
        raise ValueError(f"labels {labels.dtype} {list(labels.shape)}: expected integers [B, ...]")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: expected 1 or more")
    labels = labels.long()
    check_values(labels, num_classes, ignore_index)
    known = labels != ignore_index
    if num_classes == 1:
        return torch.zeros_like(labels[:, None], dtype=torch.float32)
    other = math.log((1 - confidence) / (num_classes - 1))
    shape = (len(labels), num_classes, *labels.shape[1:])
    logits = torch.full(shape, other, device=labels.device)
    logits.scatter_(1, torch.where(known, labels, 0)[:, None], math.log(confidence))
    return torch.where(known[:, None], logits, -math.log(num_classes))


def bounded(logits: Tensor) -> Tensor:
    """Infinite values made as large as sums can bear."""
    bound = torch.finfo(logits.dtype).max ** 0.5
    return logits.clamp(-bound, bound)
