"""Reuse of freed memory, which halves the time of networks on large images."""

import ctypes
import os
import sys

# Options of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest thresholds that glibc accepts: for the second one, older versions accept 32 MiB at most.
_TRIM, _MMAP = 2**31 - 1, (1 << 30, 1 << 25)
_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def reuse_freed_memory() -> bool:
    """Let the C library keep freed memory of this process for later allocations.

    By default, glibc returns the memory of each large tensor to the system when the tensor is freed. The system then
    provides and clears new pages for the next tensor, which takes as long as the computation of a network on a large
    image. The peak of the memory grows if tensors have many different sizes, because freed memory is in pieces, and
    the process keeps it until it ends. The command line calls this function. A program that uses the library may call
    it once at its start.

    Returns:
        Whether glibc has changed its settings. They are unchanged on other systems, with another C library, and if
            GLIBC_TUNABLES, MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ is in the environment.

    Example:
        >>> from contextcrf.utils.memory import reuse_freed_memory
        >>> reuse_freed_memory() in (True, False)
        True
    """
    if sys.platform != "linux" or any(name in os.environ for name in _VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False  # musl
    # Memory below the first threshold comes from the heap, whose end is returned to the system above the second one.
    return any(library.mallopt(_M_MMAP_THRESHOLD, size) for size in _MMAP) and bool(
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM)
    )
