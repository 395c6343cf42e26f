"""What the page bears: how large a picture may be and how long it may take; what is more is refused in a sentence."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch.overrides import TorchFunctionMode


class Refusal(ValueError):
    """The page does not do this; the message is the sentence it shows instead."""


@dataclass(frozen=True)
class Limits:
    """Limits of one picture.

    Args:
        megabytes: of the file, in units of 10^6 bytes.
        pixels: width times height that the file declares, checked before a pixel is decoded; at most Pillow's limit.
        side: longer pictures are shrunk to this longer side, px.
        seconds: that one computation may take.

    Raises:
        ValueError: a limit that is not positive and finite, or more pixels than Pillow decodes without complaint.
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
        most = Image.MAX_IMAGE_PIXELS
        if most is not None and self.pixels > most:
            raise ValueError(f"pixels={self.pixels}: expected at most {most}, above which Pillow suspects an attack")

    @property
    def bytes(self) -> int:
        """The largest file."""
        return int(self.megabytes * 1_000_000)


class Deadline(TorchFunctionMode):
    """A block whose torch work is stopped, between two operations, once its time is over.

    Nothing is left running behind: the refusal is raised where the work is done.

    Args:
        seconds: from now on.

    Raises:
        Refusal: in the block, when the time is over.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise if the time is over."""
        if time.monotonic() > self._end:
            raise Refusal(
                f"This took longer than {self.seconds:g} seconds and was stopped: try a smaller picture, fewer "
                "iterations, or start the page with more --seconds."
            )

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.check()
        return func(*args, **(kwargs or {}))
