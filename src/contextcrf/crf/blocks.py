"""The blocks in which large results are computed, whose size depends on the device."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

# On a CUDA device, a block has at most this number of elements (512 MiB of float32), for which it computes so long that
# the time to start a kernel does not matter. It has at most this part of the device's memory, in bytes of float32.
CUDA_ELEMENTS, CUDA_PART = 1 << 27, 32
# On other accelerators, which do not all report their memory (128 MiB of float32).
OTHER_ELEMENTS = 1 << 25


def block_elements(device: torch.device, on_cpu: int) -> int:
    """Return the number of elements of a block.

    A CPU computes a small block in its cache. An accelerator takes several microseconds to start each kernel, so many
    small blocks would leave it idle. The number depends on the total memory of a GPU and not on its free memory.
    Therefore, the sums have the same order in every run.

    Args:
        device: the device of the block.
        on_cpu: the number of elements on a CPU.

    Example:
        >>> import torch
        >>> block_elements(torch.device("cpu"), on_cpu=1 << 20)
        1048576
    """
    if device.type == "cpu":
        return on_cpu
    return max(on_cpu, _cuda_elements(device) if device.type == "cuda" else OTHER_ELEMENTS)


def slices(length: int, step: int) -> Iterator[slice]:
    """Yield the slices of at most `step` elements, and of at least one, that cover a dimension of the given length.

    Example:
        >>> list(slices(5, step=2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, step)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def records_gradients(*tensors: Tensor) -> bool:
    """Return whether PyTorch records an operation on these tensors for a backward pass.

    Example:
        >>> import torch
        >>> records_gradients(torch.ones(2)), records_gradients(torch.ones(2, requires_grad=True))
        (False, True)
    """
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


@lru_cache(maxsize=64)
def _cuda_elements(device: torch.device) -> int:
    """Return the number of elements of a block on a CUDA device."""
    return min(CUDA_ELEMENTS, torch.cuda.get_device_properties(device).total_memory // (CUDA_PART * 4))
