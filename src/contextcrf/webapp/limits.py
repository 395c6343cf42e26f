"""Limits on the size of an image and on the time of a computation; the page refuses anything beyond them."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch.overrides import TorchFunctionMode


class Refusal(ValueError):
    """An input or a computation that the page refuses; the message is the sentence that it shows."""


@dataclass(frozen=True)
class Limits:
    """Limits on one image and on its computations.

    Args:
        megabytes: size of the file, in units of 10^6 bytes.
        pixels: width times height in the header of the file, checked before a pixel is decoded; at most Pillow's limit.
        side: images with a longer side, in pixels, are shrunk to it.
        seconds: time of one computation.

    Raises:
        ValueError: a limit that is not positive and finite, or more pixels than Pillow decodes without a warning.
    """

    megabytes: float = 10
    pixels: int = 50_000_000
    side: int = 640
    seconds: float = 60

    def __post_init__(self) -> None:
        for name in ("megabytes", "pixels", "side", "seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: expected a positive number")
        largest = Image.MAX_IMAGE_PIXELS
        if largest is not None and self.pixels > largest:
            raise ValueError(f"pixels={self.pixels}: expected at most {largest}, above which Pillow suspects an attack")

    @property
    def bytes(self) -> int:
        """Size of the largest file, in bytes."""
        return int(self.megabytes * 1_000_000)


class Deadline(TorchFunctionMode):
    """A block whose torch work stops, between two operations, when its time is over.

    The refusal is raised in the thread that does the work, so that nothing goes on in the background.

    Args:
        seconds: the time from now on.

    Raises:
        Refusal: in the block, when the time is over.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise a Refusal if the time is over."""
        if time.monotonic() > self._end:
            raise Refusal(
                f"The computation took longer than {self.seconds:g} seconds and was stopped: try a smaller image or "
                "fewer iterations, or start the page with a larger --seconds."
            )

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.check()
        return func(*args, **(kwargs or {}))
