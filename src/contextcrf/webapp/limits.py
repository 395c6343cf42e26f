"""Limits on the size of an image and on the time of a computation."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch.overrides import TorchFunctionMode


class Refusal(ValueError):
    """An error for an input or a computation that exceeds a limit. The page shows its message."""


@dataclass(frozen=True)
class Limits:
    """Limits on one image and on its computations.

    Args:
        megabytes: largest size of the file in megabytes (10^6 bytes).
        pixels: largest width times height in the header of the file, which is checked before a pixel is decoded. It is
            at most the limit of Pillow.
        side: longer side in pixels to which larger images are shrunk.
        seconds: time limit of one computation in seconds.

    Raises:
        ValueError: a limit is not positive and finite, or `pixels` exceeds the number that Pillow decodes without a
            warning.
    """

    megabytes: float = 10
    pixels: int = 50_000_000
    side: int = 640
    seconds: float = 60

    def __post_init__(self) -> None:
        for name in ("megabytes", "pixels", "side", "seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"The limit {name} is {value}, but a positive number is expected.")
        largest = Image.MAX_IMAGE_PIXELS
        if largest is not None and self.pixels > largest:
            raise ValueError(
                f"The limit pixels is {self.pixels}, but at most {largest} is possible, since Pillow treats larger "
                "images as an attack."
            )

    @property
    def bytes(self) -> int:
        """Largest size of the file in bytes."""
        return int(self.megabytes * 1_000_000)


class Deadline(TorchFunctionMode):
    """A context that stops the torch operations of its block when the time is over.

    The time is checked before each operation. The error is raised in the thread of the computation, so that no
    computation continues in the background.

    Args:
        seconds: time limit in seconds, which starts when the object is made.

    Raises:
        Refusal: in the block, if the time is over.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise an error if the time is over.

        Raises:
            Refusal: the time is over.
        """
        if time.monotonic() > self._end:
            raise Refusal(
                f"The computation took longer than {self.seconds:g} seconds and was stopped. Try a smaller image or "
                "fewer iterations, or start the page with a larger --seconds."
            )

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.check()
        return func(*args, **(kwargs or {}))
