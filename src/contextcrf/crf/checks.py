"""Checks of arguments that are shared by the modules of `contextcrf.crf`."""

import operator

import torch
from torch import Tensor


def whole_number(name: str, value: object, least: int) -> int:
    """Convert a count of any integral type (`int`, `numpy.int64`, ...) to a Python integer.

    Args:
        name: the name of the argument, for the error message.
        value: the count. A `bool` is not accepted.
        least: the smallest allowed count.

    Returns:
        The count.

    Raises:
        ValueError: if `value` has another type or is less than `least`.

    Example:
        >>> from contextcrf.crf.checks import whole_number
        >>> whole_number("iterations", 5, least=0)
        5
        >>> whole_number("iterations", 2.5, least=0)
        Traceback (most recent call last):
            ...
        ValueError: iterations must be a whole number >= 0, but is 2.5.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # anything else is a TypeError
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be a whole number >= {least}, but is {value!r}.")
    return number


def check_labels(labels: Tensor, features: Tensor, num_classes: int, ignore_index: int) -> None:
    """Check that labels fit a feature map.

    Labels must be int64 [B, H, W] with the size of the feature map. Each label must be `ignore_index` or lie in 0..K-1.

    Args:
        labels: the labels.
        features: the feature map, [B, C, H, W].
        num_classes: the number of classes K.
        ignore_index: the label of ignored nodes.

    Raises:
        ValueError: if the shape, the dtype or a value of the labels is wrong. The message names it.

    Example:
        >>> import torch
        >>> from contextcrf.crf.checks import check_labels
        >>> check_labels(torch.zeros(1, 4, 6).long(), torch.zeros(1, 8, 4, 6), num_classes=3, ignore_index=255)
    """
    if labels.shape != (features.shape[0], *features.shape[-2:]):
        raise ValueError(
            f"The labels have the shape {tuple(labels.shape)}, which does not fit features of shape "
            f"{tuple(features.shape)}. Expected [B, H, W] with the same B, H and W. Downsample the masks to the size "
            "of the feature map."
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"The labels have the dtype {labels.dtype}, but must be int64. Convert them with .long().")
    check_values(labels, num_classes, ignore_index)


def check_values(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Check that each label is `ignore_index` or lies in 0..K-1.

    Args:
        labels: integer labels of any shape.
        num_classes: the number of classes K.
        ignore_index: the label of ignored nodes.

    Raises:
        ValueError: if a label is out of range. The message names the first one.

    Example:
        >>> import torch
        >>> from contextcrf.crf.checks import check_values
        >>> check_values(torch.tensor([0, 2, 255]), num_classes=3, ignore_index=255)
    """
    strange = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
    if strange.any():
        raise ValueError(
            f"The labels contain {int(labels[strange][0])}, which is not one of the {num_classes} classes "
            f"(0 to {num_classes - 1}) and not ignore_index ({ignore_index}). Map it to a class or to ignore_index."
        )
