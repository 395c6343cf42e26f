"""Checks of arguments that several modules of the CRF share."""

import operator

import torch
from torch import Tensor


def whole_number(name: str, value: object, least: int) -> int:
    """A count as a Python integer, from any integral type (`int`, `numpy.int64`, ...).

    Args:
        name: what the error calls the value.
        value: the count; `bool` is not one.
        least: the smallest value that is allowed.

    Raises:
        ValueError: `value` is of another type, or less than `least`.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # anything else is a TypeError
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name}={value}: expected a whole number >= {least}")
    return number


def check_labels(labels: Tensor, features: Tensor, num_classes: int, ignore_index: int) -> None:
    """Check that labels are int64 [B, H, W] of the size of a feature map and lie in 0..K-1 or are `ignore_index`.

    Args:
        labels: the labels.
        features: [B, C, H, W].
        num_classes: K.
        ignore_index: the label of ignored nodes.

    Raises:
        ValueError: naming what is wrong with the shape, the dtype or a value of the labels.
    """
    if labels.shape != (features.shape[0], *features.shape[-2:]):
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit features {tuple(features.shape)}; expected [B, H, W] of the same "
            "B, H, W (down-sample the masks to the feature map)"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"labels of {labels.dtype}: expected int64 (call .long())")
    check_values(labels, num_classes, ignore_index)


def check_values(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Check that labels lie in 0..K-1 or are `ignore_index`.

    Raises:
        ValueError: naming the first label that does not.
    """
    strange = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
    if strange.any():
        raise ValueError(
            f"label {int(labels[strange][0])}: expected 0..{num_classes - 1}, or {ignore_index} (ignore_index)"
        )
