"""Checks of arguments that are shared by the modules of `contextcrf.crf`."""

import operator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = Tensor | npt.NDArray[Any]
else:
    Array = Any  # The evaluation of annotations must not need NumPy, which this package does not import.
# The type of a result: an array if the main argument is an array, and a tensor otherwise.
Values = TypeVar("Values", Tensor, "npt.NDArray[Any]")


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


def as_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor as it is, and convert a NumPy array to a tensor. NumPy itself is not imported.

    Args:
        name: the name of the argument, for the error message.
        value: the tensor or the array. An array is copied, because it can be read-only, have negative strides or have
            another byte order.

    Raises:
        ValueError: if `value` has another type, or if torch has no such dtype.

    Example:
        >>> import numpy as np
        >>> as_tensor("logits", np.array([1, 2], ">f4"))
        tensor([1., 2.])
    """
    if isinstance(value, Tensor):
        return value
    if not (hasattr(value, "__array__") and hasattr(value, "astype")):
        raise ValueError(f"{name} must be a tensor or a NumPy array, but is of the type {type(value).__name__}.")
    try:
        return torch.as_tensor(value.astype(value.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise ValueError(f"{name} must have a numeric dtype of torch, but has the dtype {value.dtype}.") from error


def returned(result: Tensor, given: Values) -> Any:
    """Return a result as a tensor if the argument `given` is a tensor, and as a NumPy array otherwise.

    Example:
        >>> returned(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    return result if isinstance(given, Tensor) else result.detach().cpu().numpy()


def check_labels(labels: Tensor, features: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Check that labels fit a feature map.

    Labels must be int64 [B, H, W] with the size of the feature map. Each label must be `ignore_index` or lie in 0..K-1.

    Args:
        labels: the labels.
        features: the feature map, [B, C, H, W].
        num_classes: the number of classes K.
        ignore_index: the label of ignored nodes. None if every node must have a class.

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


def check_values(labels: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Check that each label is `ignore_index` or lies in 0..K-1.

    Args:
        labels: integer labels of any shape.
        num_classes: the number of classes K.
        ignore_index: the label of ignored nodes. None if every node must have a class.

    Raises:
        ValueError: if a label is out of range. The message names the first one.

    Example:
        >>> import torch
        >>> from contextcrf.crf.checks import check_values
        >>> check_values(torch.tensor([0, 2, 255]), num_classes=3, ignore_index=255)
    """
    strange = (labels < 0) | (labels >= num_classes)
    other = way_out = ""
    if ignore_index is not None:
        strange &= labels != ignore_index
        other, way_out = f" and not ignore_index ({ignore_index})", " or to ignore_index"
    if strange.any():
        raise ValueError(
            f"The labels contain {int(labels[strange][0])}, which is not one of the {num_classes} classes "
            f"(0 to {num_classes - 1}){other}. Map it to a class{way_out}."
        )
