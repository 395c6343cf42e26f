"""The image sizes that a network takes, and the padding of other images to such a size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class InputSizes:
    """The image sizes that a network takes.

    Attributes:
        unit: height and width must be `offset` plus a multiple of this number of pixels.
        least: the least height and width in pixels.
        offset: 0, or for a network with convolutions without padding the size that leaves no remainder in any of them.
        window: if it is set, the network takes only this height and width. A larger image is then divided into windows
            of this size, which are computed separately.

    Example:
        >>> import torch
        >>> from contextcrf.nets.input_sizes import InputSizes
        >>> InputSizes(unit=32).pad(torch.zeros(1, 3, 75, 50)).shape
        torch.Size([1, 3, 96, 64])
    """

    unit: int = 1
    least: int = 1
    offset: int = 0
    window: tuple[int, int] | None = None

    def pad(self, images: Tensor) -> Tensor:
        """Pad images to a size that the network takes, by replicating the right and the lower border.

        Args:
            images: images, [B, C, H, W].
        """
        below, right = (
            self.offset - (self.offset - max(side, self.least)) // unit * unit - side
            for side, unit in zip(images.shape[-2:], self.window or (self.unit, self.unit), strict=True)
        )
        return F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images


def measure(
    outputs: Callable[[Tensor], list[Tensor]], steps: Sequence[int], any_size: bool, images: Tensor
) -> InputSizes:
    """Measure with black images which image sizes a network takes.

    These sizes are tried in this order: any size, multiples of the coarsest stride, multiples of the size for which the
    network was made, this size plus multiples of the coarsest stride (for convolutions without padding, whose maps are
    smaller), and this size only.

    Args:
        outputs: computes the maps of images, [B, C, h, w] each.
        steps: the stride of each map. A network takes a size if each map has the size of the image, divided by the
            stride and rounded up.
        any_size: try images whose sides are not multiples of the coarsest stride. The maps of a few networks then have
            the right size, but nodes at the wrong places.
        images: an image of the size for which the network was made, [1, C, H, W].

    Example:
        >>> import torch
        >>> from contextcrf.nets.input_sizes import measure
        >>> pool = torch.nn.AvgPool2d(4)  # rounds down
        >>> measure(lambda images: [pool(images)], steps=[4], any_size=True, images=torch.zeros(1, 3, 64, 64))
        InputSizes(unit=4, least=4, offset=0, window=None)
    """

    def shapes(height: int, width: int) -> list[torch.Size]:
        try:
            with torch.no_grad():
                return [map_.shape[-2:] for map_ in outputs(images.new_zeros(1, images.shape[1], height, width))]
        except (RuntimeError, AssertionError, ValueError):
            return []  # PyTorch and timm raise these errors if a size does not fit.

    def takes(height: int, width: int) -> bool:
        return shapes(height, width) == [(-(-height // step), -(-width // step)) for step in steps]

    unit, (height, width) = math.lcm(*steps), images.shape[-2:]
    if any_size and takes(2 * unit + 1, 3 * unit - 1):
        return InputSizes(1, 1 if takes(1, 1) else unit)
    if takes(2 * unit, 3 * unit):
        return InputSizes(unit, unit if takes(unit, unit) else 2 * unit)
    if height == width and takes(height, 2 * height):
        return InputSizes(height, height)
    own = shapes(height, width)
    if not own:
        raise ValueError(
            f"The network takes neither images whose sides are multiples of {unit} pixels nor images of {height} x "
            f"{width} pixels, for which it was made. Choose another backbone."
        )
    if shapes(height, width + unit) == [
        (rows, columns + unit // step) for (rows, columns), step in zip(own, steps, strict=True)
    ]:
        offset = width % unit
        least = next(side for side in range(offset + unit, width + 1, unit) if shapes(side, side))
        return InputSizes(unit, least, offset)
    return InputSizes(window=(height, width))


def in_windows(images: Tensor, window: tuple[int, int]) -> Tensor:
    """Divide images, whose sides are multiples of a window, into windows.

    Args:
        images: images, [B, C, H, W].
        window: the height and the width of a window.

    Returns:
        The windows, [B * rows * columns, C, window height, window width].
    """
    batch, channels, height, width = images.shape
    rows, columns = height // window[0], width // window[1]
    parts = images.view(batch, channels, rows, window[0], columns, window[1])
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, *window)


def join_windows(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Join the maps of windows to the maps of the images.

    Args:
        maps: the maps of the windows, [B * rows * columns, C, h, w].
        rows: the number of windows in a column of windows.
        columns: the number of windows in a row of windows.

    Returns:
        The maps of the images, [B, C, rows * h, columns * w].

    Example:
        >>> import torch
        >>> from contextcrf.nets.input_sizes import in_windows, join_windows
        >>> images = torch.randn(2, 3, 4, 6)
        >>> bool((join_windows(in_windows(images, (2, 2)), 2, 3) == images).all())
        True
    """
    channels, height, width = maps.shape[1:]
    parts = maps.reshape(-1, rows, columns, channels, height, width)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, rows * height, columns * width)
