"""Unary logits for a CRF from probabilities or from labels."""

import math

import torch
from torch import Tensor

from contextcrf.crf.checks import check_values
from contextcrf.crf.potentials import IGNORE_INDEX


def logits_from_probabilities(probabilities: Tensor, floor: float = 1e-5, scale: float = 1.0) -> Tensor:
    """The logarithm of probabilities, as `unary_from_softmax` of pydensecrf with the opposite sign.

    Args:
        probabilities: [B, K, ...], in 0..1, the K of a pixel summing to 1.
        floor: smaller probabilities are raised to this one, since no message could make up for the logarithm of 0.
        scale: weight of the probabilities, in (0, 1], in a mixture with the uniform distribution, whose weight is
            1 - scale.

    Returns:
        Logits [B, K, ...].

    Raises:
        ValueError: NaN, values outside 0..1, sums that are not 1, or a floor or scale outside (0, 1].

    Example:
        >>> import torch
        >>> from contextcrf.crf import logits_from_probabilities
        >>> probabilities = torch.rand(1, 3, 10, 15).softmax(1)
        >>> torch.allclose(logits_from_probabilities(probabilities).softmax(1), probabilities)
        True
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
    """Logits of labels that are right with a given probability, as `unary_from_labels` of pydensecrf.

    Args:
        labels: integers [B, ...], 0..K-1, or `ignore_index` where the label is unknown and left to the CRF.
        num_classes: K.
        confidence: the probability, in (0, 1), that a label is right; the other labels share the rest equally.
        ignore_index: the value of unknown labels.

    Returns:
        float32 [B, K, ...]: logarithms of probabilities, uniform where the label is unknown.

    Raises:
        ValueError: labels that are not integers or lie outside 0..K-1; a confidence outside (0, 1); K < 1.

    Example:
        >>> import torch
        >>> from contextcrf.crf import logits_from_labels
        >>> logits_from_labels(torch.tensor([[0, 255]]), num_classes=2, confidence=0.8).exp()
        tensor([[[0.8000, 0.5000],
                 [0.2000, 0.5000]]])
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
    """Clamp infinite logits to finite values that are small enough to be added up."""
    bound = torch.finfo(logits.dtype).max ** 0.5
    return logits.clamp(-bound, bound)
