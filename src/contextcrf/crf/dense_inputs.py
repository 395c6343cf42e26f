"""The inputs of the dense CRF: arrays or tensors, one image or a batch, and their checks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from contextcrf.crf.checks import Array, as_tensor
from contextcrf.crf.colors import Range, to_colors


@dataclass(frozen=True)
class DenseInputs:
    """The checked inputs of a dense CRF.

    Args:
        logits: the logits, [B, K, ...].
        images: the colors, [B, C, ...], in 0..255.
        extra: the additional features, [B, E, ...], or None.
        batched: whether the caller gave a batch.
    """

    logits: Tensor
    images: Tensor
    extra: Tensor | None
    batched: bool


def dense_inputs(
    logits: Array, images: Array, extra: Array | None, image_range: Range | None, device: torch.device
) -> DenseInputs:
    """Check and convert the arguments of `DenseCRF.forward`.

    Args:
        logits: as for `DenseCRF.forward`.
        images: as for `DenseCRF.forward`.
        extra: as for `DenseCRF.forward`.
        image_range: as for `DenseCRF.forward`.
        device: the device for arrays, if no argument is a tensor.

    Raises:
        ValueError: in the same cases as `DenseCRF.forward`.

    Example:
        >>> found = dense_inputs(torch.zeros(3, 4, 6), torch.zeros(3, 4, 6), None, None, torch.device("cpu"))
        >>> found.logits.shape, found.batched
        (torch.Size([1, 3, 4, 6]), False)
    """
    device = next((value.device for value in (logits, images, extra) if isinstance(value, Tensor)), device)
    logits, images = _on("logits", logits, device), _on("images", images, device)
    extra = None if extra is None else _on("extra", extra, device)
    batched = not logits.ndim == images.ndim == 3
    if not batched:
        logits, images = logits[None], images[None]
        extra = extra[None] if extra is not None and extra.ndim == 3 else extra
    images = _channels_first(images, logits.shape[2:])
    _check(logits, images, batched)
    if extra is not None:
        _check_extra(extra, logits)
    return DenseInputs(logits, to_colors(images, image_range), extra, batched)


def _on(name: str, value: Array, device: torch.device) -> Tensor:
    """Convert an array to a tensor on a device. Tensors stay where they are."""
    return value if isinstance(value, Tensor) else as_tensor(name, value).to(device)


def _channels_first(images: Tensor, size: torch.Size) -> Tensor:
    """Move the channels of images [B, H, W, 3] of 8 or 16 bits to the front, unless they may be [B, C, H, W]."""
    last = images.ndim == 4 and images.shape[3] == 3 and images.shape[1:3] == size and images.shape[2:] != size
    return images.movedim(3, 1) if last and images.dtype in (torch.uint8, torch.uint16) else images


def _check(logits: Tensor, images: Tensor, batched: bool) -> None:
    """Raise ValueError if the logits do not fit the images, or if a dtype, a device or the logits are wrong."""
    shown = [list(tensor.shape if batched else tensor.shape[1:]) for tensor in (logits, images)]
    shapes = f"logits {shown[0]}, images {shown[1]}"
    if logits.ndim not in (4, 5) or images.ndim != logits.ndim:
        raise ValueError(
            "logits must have the shape [B, K, H, W] and images [B, C, H, W], or [K, H, W] and [C, H, W] for one "
            f"image. Found {shapes}."
        )
    if logits.shape[0] != images.shape[0] or logits.shape[2:] != images.shape[2:]:
        last = " Move the channels of images before the height." if images.shape[1:-1] == logits.shape[2:] else ""
        if images.ndim == 4 and (logits.shape[1], logits.shape[3]) == tuple(images.shape[2:]):
            last = " If logits_from_labels computed the logits of one image, give it labels[None]."
        raise ValueError(f"logits and images must have the same batch size, height and width. Found {shapes}.{last}")
    if logits.numel() == 0 or images.numel() == 0:
        raise ValueError(f"logits and images must not be empty. Found {shapes}.")
    if logits.device != images.device:
        raise ValueError(
            f"logits and images must be on the same device, but logits are on {logits.device} and images on "
            f"{images.device}."
        )
    if not logits.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise ValueError(
            "logits must have a floating-point dtype and images an integer or floating-point dtype. Found logits of "
            f"{logits.dtype} and images of {images.dtype}."
        )
    if logits.isnan().any():
        raise ValueError("logits must not contain NaN. Check the network that computed them.")
    if images.is_floating_point() and not images.isfinite().all():
        raise ValueError("images must not contain NaN or infinite values. Replace them, for example by 0.")


def _check_extra(extra: Tensor, logits: Tensor) -> None:
    """Raise ValueError if additional features are invalid."""
    if extra.device != logits.device:
        raise ValueError(
            f"logits and extra must be on the same device, but logits are on {logits.device} and extra on "
            f"{extra.device}."
        )
    if extra.ndim != logits.ndim or extra.shape[0] != logits.shape[0] or extra.shape[2:] != logits.shape[2:]:
        raise ValueError(
            "extra must have the shape [B, E, H, W] with the B, H and W of the logits. Found "
            f"logits {list(logits.shape)}, extra {list(extra.shape)}."
        )
    if not extra.is_floating_point() or not extra.isfinite().all():
        raise ValueError(
            "extra must have a floating-point dtype and finite values, which are in units of standard deviations. "
            f"Found {extra.dtype}" + (" with values that are not finite." if extra.is_floating_point() else ".")
        )
