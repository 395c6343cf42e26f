"""A cache for indices of nodes and edges, which calls in inference mode and calls with gradients share."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R", bound=Tensor | tuple[Tensor, ...])


def cached_indices(maxsize: int) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Return a decorator that caches the tensors which a function returns, so that all later calls can use them.

    The first call may run in inference mode, but later uses of the tensors may need gradients. Therefore, the function
    runs outside of inference mode.

    Args:
        maxsize: the largest number of results that are kept.

    Raises:
        RuntimeError: when the function is called, if its tensors are the placeholders of a traced graph, which would
            remain in the cache after the tracing.

    Example:
        >>> import torch
        >>> first = cached_indices(maxsize=8)(torch.arange)
        >>> with torch.inference_mode():
        ...     _ = first(3)
        >>> first(3).is_inference()
        False
    """

    def decorate(compute: Callable[..., R]) -> Callable[..., R]:
        @wraps(compute)
        def checked(*args: Any) -> R:
            with torch.inference_mode(False):
                found = compute(*args)
            for indices in (found,) if isinstance(found, Tensor) else found:
                if type(indices) is not Tensor:
                    raise RuntimeError(
                        "The edges of a relation cannot be computed while a graph is traced. Before the tracing, run "
                        "the same computation once with a feature map of the same size, and with gradients enabled."
                    )
            return found

        return lru_cache(maxsize=maxsize)(checked)

    return decorate
