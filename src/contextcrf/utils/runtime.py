"""What suits this machine: device, precision, batch size, number of loading processes."""

import logging
import os
from typing import Literal, get_args

import torch

logger = logging.getLogger(__name__)

Precision = Literal["auto", "bf16-mixed", "32-true"]


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def has_bfloat16(device: torch.device | None = None) -> bool:
    """Whether products in bfloat16 are faster than in single precision on a device, by default `default_device()`."""
    device = device or default_device()
    if device.type != "cpu":
        return device.type != "cuda" or torch.cuda.get_device_capability() >= (8, 0)
    # Processors list it under several names: avx512_bf16, amx_bf16, ...
    return any(value for name, value in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def check_precision(precision: str) -> None:
    """Raise a ValueError unless the precision is one of `Precision`."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r}: expected one of {', '.join(get_args(Precision))}")


def resolve_precision(precision: str) -> Literal["bf16-mixed", "32-true"]:
    """The precision that "auto" stands for on this machine: "bf16-mixed" where that is faster, else "32-true".

    Asking for "bf16-mixed" where it is slow is logged as a warning.

    Raises:
        ValueError: a value that is not in `Precision`.
    """
    check_precision(precision)
    if precision == "32-true":
        return "32-true"
    fast = has_bfloat16()
    if precision == "auto":
        return "bf16-mixed" if fast else "32-true"
    if not fast:
        logger.warning(
            "Precision bf16-mixed: this machine has no bfloat16 hardware, and emulation is about ten times slower than "
            "single precision; use auto or 32-true."
        )
    return "bf16-mixed"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks compute in a precision. It is entered for every image, and logs no warning.

    Raises:
        ValueError: a value that is not in `Precision`.
    """
    check_precision(precision)
    enabled = precision == "bf16-mixed" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def default_batch_size() -> int:
    """Images per step: an accelerator is faster with more of them at once."""
    return 8 if torch.accelerator.is_available() else 4


def default_workers() -> int:
    """Processes that load data: none on a CPU, whose cores the network uses."""
    return min(8, max(1, (os.cpu_count() or 1) // 2)) if torch.accelerator.is_available() else 0
