"""Functions that compute the unary logits of a CRF from probabilities or from labels."""

import math

import torch
from torch import Tensor

from contextcrf.crf.checks import Values, as_tensor, check_values, returned
from contextcrf.crf.potentials import IGNORE_INDEX

# The largest difference from 1 of a sum of probabilities, for maps of low precision.
_EXCESS = 0.02


def logits_from_probabilities(probabilities: Values, floor: float = 1e-5, scale: float = 1.0) -> Values:
    """Convert probabilities to logits by taking their logarithm.

    The result is the output of `unary_from_softmax` of pydensecrf with the opposite sign.

    Args:
        probabilities: a floating-point tensor or NumPy array with values in 0..1, of one of these shapes:

            - [B, K, ...]: the probabilities of K >= 2 classes at each pixel. They must sum to 1 over the classes.
            - [K, H, W]: the same for one image. An input with three axes has this shape if it sums to 1 over axis 0,
              but not over axis 1.
            - [B, 1, ...], [1, H, W] or [H, W]: the probability p of the foreground, such as the output of a sigmoid.
              The result has two classes: the background (1 - p) is class 0, and the foreground (p) is class 1.

        floor: the smallest probability, in (0, 1]. Smaller probabilities are replaced by it, since no message could
            compensate for the logarithm of 0.
        scale: the weight of the probabilities in a mixture with the uniform distribution, in (0, 1]. The uniform
            distribution has the weight 1 - scale.

    Returns:
        Logits, [B, K, ...] for a batch and [K, H, W] for one image. They are a NumPy array if the probabilities are.

    Raises:
        ValueError: if a probability is NaN or outside 0..1, the sums are not 1, or `floor` or `scale` is not in (0, 1].

    Example:
        >>> import torch
        >>> from contextcrf.crf import logits_from_probabilities
        >>> probabilities = torch.rand(1, 3, 10, 15).softmax(1)
        >>> torch.allclose(logits_from_probabilities(probabilities).softmax(1), probabilities)
        True
        >>> logits_from_probabilities(torch.rand(1, 1, 10, 15)).shape
        torch.Size([1, 2, 10, 15])
    """
    for name, value in (("floor", floor), ("scale", scale)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be > 0 and <= 1, but is {value}.")
    given = as_tensor("probabilities", probabilities)
    if given.ndim < 2 or given.numel() == 0 or not given.is_floating_point():
        raise ValueError(
            "probabilities must be a floating-point tensor [B, K, ...] that is not empty, or [K, H, W] or [H, W] for "
            f"one image, but is {given.dtype} of shape {list(given.shape)}."
        )
    # This form of the test also fails for NaN.
    if not bool(((given >= 0) & (given <= 1.001)).all()):
        raise ValueError(
            f"probabilities must be in 0..1, but range from {given.min():.4g} to {given.max():.4g}. If "
            "they are logits, use them without conversion."
        )
    batch, batched = _classes_second(given)
    # In place, because the probabilities of a large image take half a gigabyte.
    logits = (scale * batch).add_((1 - scale) / batch.shape[1]).clamp_(floor, 1).log_()
    return returned(logits if batched else logits[0], probabilities)


def _classes_second(given: Tensor) -> tuple[Tensor, bool]:
    """Return probabilities as [B, K, ...] with K >= 2, and whether they are a batch. Raise ValueError if unclear."""
    if given.ndim == 2 or (given.ndim == 3 and given.shape[0] == 1 and _excess(given, 1) > _EXCESS):
        return _both(given.view(1, 1, *given.shape[-2:])), False
    if given.shape[1] == 1:
        return _both(given), True
    off = _excess(given, 1)
    if off <= _EXCESS:
        return given, True
    if given.ndim == 3 and _excess(given, 0) <= _EXCESS:
        return given[None], False
    way = (
        "Move the classes to axis 1. If these are foreground probabilities of a batch, insert an axis for the classes: "
        "[B, 1, H, W]."
        if given.ndim == 3
        else "Move the classes to axis 1."
    )
    raise ValueError(
        f"probabilities must sum to 1 over axis 1 (of length {given.shape[1]}), but the sums differ from 1 by up to "
        f"{off:.3g}. {way}"
    )


def _excess(probabilities: Tensor, axis: int) -> float:
    """Return the largest difference from 1 of the sums over an axis."""
    return float((probabilities.detach().sum(axis, dtype=torch.float32) - 1).abs().max())


def _both(foreground: Tensor) -> Tensor:
    """Return the probabilities [B, 2, ...] of background and foreground for those of the foreground, [B, 1, ...]."""
    foreground = foreground.clamp(max=1)
    return torch.cat([1 - foreground, foreground], 1)


def logits_from_labels(
    labels: Values, num_classes: int, confidence: float = 0.7, ignore_index: int | None = None
) -> Values:
    """Convert labels, each of which is correct with a given probability, to logits.

    The result is the output of `unary_from_labels` of pydensecrf with the opposite sign.

    Args:
        labels: integer labels [B, ...], each in 0..K-1 or `ignore_index`, a tensor or a NumPy array. The CRF determines
            the label of pixels with `ignore_index`.
        num_classes: the number of classes K.
        confidence: the probability that a label is correct, in (0, 1). The other labels share the remaining probability
            equally.
        ignore_index: the value of unknown labels. None is 255.

    Returns:
        The logarithms of the probabilities, float32 [B, K, ...], a tensor or an array like the labels. The
        probabilities are uniform at unknown labels.

    Raises:
        ValueError: if the labels are not integers, a label is not in 0..K-1, `confidence` is not in (0, 1), or K < 1.
            Also if there are two classes and the labels are 0 and 255 without 1, unless `ignore_index` is given.

    Example:
        >>> import torch
        >>> from contextcrf.crf import logits_from_labels
        >>> logits_from_labels(torch.tensor([[0, 1, 255]]), num_classes=2, confidence=0.8).exp()
        tensor([[[0.8000, 0.2000, 0.5000],
                 [0.2000, 0.8000, 0.5000]]])
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a probability > 0 and < 1, but is {confidence}.")
    given = as_tensor("labels", labels)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool or given.ndim < 2:
        raise ValueError(
            f"labels must be an integer tensor [B, ...], but is {given.dtype} of shape {list(given.shape)}."
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be >= 1, but is {num_classes}.")
    if ignore_index is None and num_classes == 2 and (given == 255).any() and not (given == 1).any():
        raise ValueError(
            "There are two classes and labels with the value 255, but no label is 1. If 255 is the class 1, pass "
            "(labels == 255).astype(int). If it marks unknown labels, pass ignore_index=255."
        )
    ignored = IGNORE_INDEX if ignore_index is None else ignore_index
    return returned(_label_logits(given.long(), num_classes, confidence, ignored), labels)


def _label_logits(labels: Tensor, num_classes: int, confidence: float, ignore_index: int) -> Tensor:
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
