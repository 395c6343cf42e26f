"""Defaults that depend on the machine: device, precision, batch size and number of data loading processes."""

import logging
import os
from typing import Literal, get_args

import torch

logger = logging.getLogger(__name__)

Precision = Literal["auto", "bf16-mixed", "32-true"]
"""The precision of a network: bfloat16 autocast, single precision, or "auto" for the faster one on this machine."""


def default_device() -> torch.device:
    """Return the accelerator, or the CPU if there is no accelerator.

    Example:
        >>> import torch
        >>> from contextcrf.utils.runtime import default_device
        >>> image = torch.zeros(1, 3, 4, 6).to(default_device())
    """
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def has_bfloat16(device: torch.device | None = None) -> bool:
    """Return whether matrix products are faster in bfloat16 than in single precision.

    Args:
        device: the device. None is `default_device()`.
    """
    device = device or default_device()
    if device.type != "cpu":
        return device.type != "cuda" or torch.cuda.get_device_capability() >= (8, 0)
    # The names differ between processors: avx512_bf16, amx_bf16, ...
    return any(value for name, value in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def check_precision(precision: str) -> None:
    """Raise ValueError if the precision is not one of `Precision`."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}, but must be one of {', '.join(get_args(Precision))}.")


def resolve_precision(precision: str) -> Literal["bf16-mixed", "32-true"]:
    """Replace "auto" by the faster precision on this machine.

    If bfloat16 is slow on this machine, "bf16-mixed" is accepted, but the function logs a warning.

    Args:
        precision: one of `Precision`.

    Returns:
        For "auto", "bf16-mixed" if bfloat16 is faster on this machine, and "32-true" otherwise. Any other precision is
            returned unchanged.

    Raises:
        ValueError: if the value is not in `Precision`.

    Example:
        >>> from contextcrf.utils.runtime import resolve_precision
        >>> resolve_precision("32-true")
        '32-true'
        >>> resolve_precision("auto") in ("bf16-mixed", "32-true")
        True
    """
    check_precision(precision)
    if precision == "32-true":
        return "32-true"
    fast = has_bfloat16()
    if precision == "auto":
        return "bf16-mixed" if fast else "32-true"
    if not fast:
        logger.warning(
            "This machine has no bfloat16 hardware, so the precision bf16-mixed is emulated and about ten times slower "
            "than single precision. Set the precision to auto or 32-true."
        )
    return "bf16-mixed"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context manager in which networks compute with a precision.

    Unlike `resolve_precision`, this function logs no warning, because it is called for every image.

    Args:
        device: the device of the network.
        precision: one of `Precision`.

    Raises:
        ValueError: if the value is not in `Precision`.

    Example:
        >>> import torch
        >>> from contextcrf.utils.runtime import autocast
        >>> with autocast(torch.device("cpu"), "bf16-mixed"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    check_precision(precision)
    enabled = precision == "bf16-mixed" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def default_batch_size() -> int:
    """Return the number of images per training step, which is larger on an accelerator."""
    return 8 if torch.accelerator.is_available() else 4


def default_workers() -> int:
    """Return the number of data loading processes, 0 without an accelerator because the network uses all cores."""
    return min(8, max(1, (os.cpu_count() or 1) // 2)) if torch.accelerator.is_available() else 0
