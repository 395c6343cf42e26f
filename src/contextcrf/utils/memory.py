"""Reuse of freed memory, which halves the time of networks on large images, and its release."""

import ctypes
import os
import sys

# Options of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Tensors of at most 96 MiB reuse memory. If all did, an image would take a tenth less time, and a fifth more memory in
# pieces that no other tensor fits into. Older versions of glibc accept 32 MiB at most.
_TRIM, _MMAP = 2**31 - 1, (3 << 25, 1 << 25)
_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
# Whether freed memory of this process is reused. The settings belong to the process and cannot be read back.
_reusing = False


def reuse_freed_memory() -> bool:
    """Let the C library keep freed memory of this process for later allocations of at most 96 MiB.

    By default, glibc returns the memory of each large tensor to the system when the tensor is freed. The system then
    provides and clears new pages for the next tensor, which takes as long as the computation of a network on a large
    image. The peak of the memory grows if tensors have many different sizes, because freed memory is in pieces, and
    the process keeps it until `release_freed_memory` is called. The command line calls this function. A program that
    uses the library may call it once at its start.

    Returns:
        Whether glibc has changed its settings. They are unchanged on other systems, with another C library, and if
            GLIBC_TUNABLES, MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ is in the environment.

    Example:
        >>> from contextcrf.utils.memory import reuse_freed_memory
        >>> reuse_freed_memory() in (True, False)
        True
    """
    global _reusing
    if sys.platform != "linux" or any(name in os.environ for name in _VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False  # musl
    # Memory below the first threshold comes from the heap, whose end is returned to the system above the second one.
    _reusing = any(library.mallopt(_M_MMAP_THRESHOLD, size) for size in _MMAP) and bool(
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM)
    )
    return _reusing


def release_freed_memory() -> bool:
    """Return the freed memory that `reuse_freed_memory` keeps to the system.

    Freed memory is in pieces of the sizes of earlier tensors. If an image has another size than the previous one, its
    tensors do not fit into these pieces, and the memory of the process would grow with every new size.

    Returns:
        Whether memory was released. It is not if `reuse_freed_memory` has not changed the settings, and if no memory
            is free.

    Example:
        >>> from contextcrf.utils.memory import release_freed_memory
        >>> release_freed_memory() in (True, False)
        True
    """
    return _reusing and bool(ctypes.CDLL(None).malloc_trim(0))
