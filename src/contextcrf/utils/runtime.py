"""What suits the machine at hand: the defaults of a recipe that depend on it, and precisions."""

import os
from typing import Literal, get_args

import torch

Precision = Literal["bf16-mixed", "32-true"]


def has_bfloat16() -> bool:
    """Whether products in bfloat16 are faster here than in single precision."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        return device.type != "cuda" or torch.cuda.get_device_capability() >= (8, 0)
    # Under whatever name the processor has it: avx512_bf16, amx_bf16, ...
    return any(value for name, value in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def fast_precision() -> Precision:
    """Of training: with bfloat16 where that is faster."""
    return "bf16-mixed" if has_bfloat16() else "32-true"


def usual_batch() -> int:
    """Images a step: an accelerator wants more of them at once."""
    return 8 if torch.accelerator.is_available() else 4


def loading_workers() -> int:
    """Processes that load data: none on a CPU, whose cores are busy with the network."""
    return min(8, max(1, (os.cpu_count() or 1) // 2)) if torch.accelerator.is_available() else 0


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks compute in a precision: "32-true" or "bf16-mixed".

    Raises:
        ValueError: another precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r}: expected {' or '.join(get_args(Precision))}")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
