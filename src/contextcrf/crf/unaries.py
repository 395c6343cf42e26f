"""Functions that compute the unary logits of a CRF from probabilities or from labels."""

import math

import torch
from torch import Tensor

from contextcrf.crf.checks import check_values
from contextcrf.crf.potentials import IGNORE_INDEX


def logits_from_probabilities(probabilities: Tensor, floor: float = 1e-5, scale: float = 1.0) -> Tensor:
    """Convert probabilities to logits by taking their logarithm.

    The result is the output of `unary_from_softmax` of pydensecrf with the opposite sign.

    Args:
        probabilities: the probabilities of the K classes at each pixel, floating [B, K, ...], in 0..1. They must sum to
            1 over the classes.
        floor: the smallest probability, in (0, 1]. Smaller probabilities are raised to it, since no message could
            compensate for the logarithm of 0.
        scale: the weight of the probabilities in a mixture with the uniform distribution, in (0, 1]. The uniform
            distribution has the weight 1 - scale.

    Returns:
        Logits, [B, K, ...].

    Raises:
        ValueError: if a probability is NaN or outside 0..1, the sums are not 1, or `floor` or `scale` is not in (0, 1].

    Example:
        >>> import torch
        >>> from contextcrf.crf import logits_from_probabilities
        >>> probabilities = torch.rand(1, 3, 10, 15).softmax(1)
        >>> torch.allclose(logits_from_probabilities(probabilities).softmax(1), probabilities)
        True
    """
    for name, value in (("floor", floor), ("scale", scale)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be > 0 and <= 1, but is {value}.")
    if probabilities.ndim < 3 or not probabilities.is_floating_point():
        raise ValueError(
            f"probabilities must be a floating-point tensor [B, K, ...], but is {probabilities.dtype} of shape "
            f"{list(probabilities.shape)}."
        )
    # This form of the test also fails for NaN.
    if not bool(((probabilities >= 0) & (probabilities <= 1.001)).all()):
        raise ValueError(
            f"probabilities must be in 0..1, but range from {probabilities.min():.4g} to {probabilities.max():.4g}. If "
            "they are logits, use them without conversion."
        )
    off = (probabilities.sum(1, dtype=torch.float32) - 1).abs().max()
    if off > 0.02:
        raise ValueError(
            f"probabilities must sum to 1 over axis 1 (of length {probabilities.shape[1]}), but the sums differ from 1 "
            f"by up to {off:.3g}. Move the classes to axis 1."
        )
    mixed = scale * probabilities + (1 - scale) / probabilities.shape[1]
    return mixed.clamp(floor, 1).log()


def logits_from_labels(
    labels: Tensor, num_classes: int, confidence: float = 0.7, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Convert labels, each of which is correct with a given probability, to logits.

    The result is the output of `unary_from_labels` of pydensecrf with the opposite sign.

    Args:
        labels: integer labels [B, ...], each in 0..K-1 or `ignore_index`. The CRF determines the label of pixels with
            `ignore_index`.
        num_classes: the number of classes K.
        confidence: the probability that a label is correct, in (0, 1). The other labels share the remaining probability
            equally.
        ignore_index: the value of unknown labels.

    Returns:
        The logarithms of the probabilities, float32 [B, K, ...]. The probabilities are uniform at unknown labels.

    Raises:
        ValueError: if the labels are not integers, a label is not in 0..K-1, `confidence` is not in (0, 1), or K < 1.

    Example:
        >>> import torch
        >>> from contextcrf.crf import logits_from_labels
        >>> logits_from_labels(torch.tensor([[0, 255]]), num_classes=2, confidence=0.8).exp()
        tensor([[[0.8000, 0.5000],
                 [0.2000, 0.5000]]])
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a probability > 0 and < 1, but is {confidence}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.ndim < 2:
        raise ValueError(
            f"labels must be an integer tensor [B, ...], but is {labels.dtype} of shape {list(labels.shape)}."
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be >= 1, but is {num_classes}.")
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
    """Clamp infinite logits to finite values that are small enough to be summed."""
    bound = torch.finfo(logits.dtype).max ** 0.5
    return logits.clamp(-bound, bound)
