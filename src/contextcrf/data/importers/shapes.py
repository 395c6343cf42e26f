"""Shapes of annotation tools, and the rasterizer that draws them as labels.

Coordinates are continuous: x is 0 at the left edge of the image and W at its right edge. A pixel belongs to a polygon,
a box or an ellipse if its center is inside. Pillow's polygons would truncate the vertices to integers and add the
pixels of the outline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from contextcrf.utils.errors import DataError

Mask = npt.NDArray[np.bool_]
Ring = Sequence[tuple[float, float]]
Bounds = tuple[float, float, float, float]


class Region(Protocol):
    """A part of an image."""

    def bounds(self) -> Bounds:
        """Return the left, top, right and bottom end, which may be outside the image."""

    def mask(self, width: int, height: int) -> Mask:
        """Return the pixels [H, W] of the region. Parts outside the image are cut off.

        Raises:
            DataError: If the region cannot be decoded or does not fit the image.
        """


@dataclass(frozen=True)
class Shape:
    """A region with its class.

    Args:
        name: the name of the class. None excludes the pixels (ignore_index).
        region: the pixels.
        order: shapes of a higher order are drawn over shapes of a lower order.
    """

    name: str | None
    region: Region
    order: float = 0


@dataclass(frozen=True)
class Polygon:
    """A polygon with holes. At least 3 points are expected in each ring; crossing outlines fill by the even-odd rule.

    Args:
        ring: the outline.
        holes: outlines that are cut out.
    """

    ring: Ring
    holes: tuple[Ring, ...] = ()

    def __post_init__(self) -> None:
        for ring in (self.ring, *self.holes):
            if len(ring) < 3:
                raise DataError(f"The polygon has {len(ring)} points, but at least 3 are expected")
            if not all(math.isfinite(value) for point in ring for value in point):
                raise DataError("The polygon has a coordinate that is not a finite number")

    @classmethod
    def box(cls, left: float, top: float, right: float, bottom: float, rotation: float = 0) -> "Polygon":
        """Return a rectangle. The rotation in degrees is clockwise around the center."""
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return cls(rotated(corners, ((left + right) / 2, (top + bottom) / 2), rotation) if rotation else corners)

    def bounds(self) -> Bounds:
        """Return the ends of the outline."""
        return _bounds(self.ring)

    def mask(self, width: int, height: int) -> Mask:
        """Return the pixels whose centers are inside the outline and outside the holes."""
        mask = _fill(self.ring, width, height)
        for hole in self.holes:
            mask &= ~_fill(hole, width, height)
        return mask


@dataclass(frozen=True)
class PixelPolygon:
    """A polygon whose integer coordinates are indices of pixels. The pixels of its outline belong to it.

    Args:
        ring: the outline.
        holes: outlines that are cut out. The pixels of their outlines stay.
    """

    ring: Sequence[tuple[int, int]]
    holes: tuple[Sequence[tuple[int, int]], ...] = ()

    def __post_init__(self) -> None:
        Polygon(self.ring, self.holes)

    def bounds(self) -> Bounds:
        """Return the ends of the pixels of the outline."""
        left, top, right, bottom = _bounds(self.ring)
        return left, top, right + 1, bottom + 1

    def mask(self, width: int, height: int) -> Mask:
        """Return the pixels."""
        canvas = Image.new("L", (width, height))
        draw = ImageDraw.Draw(canvas)
        draw.polygon([tuple(point) for point in self.ring], fill=1, outline=1)
        for hole in self.holes:
            draw.polygon([tuple(point) for point in hole], fill=0, outline=1)
        return np.asarray(canvas) == 1


@dataclass(frozen=True)
class Ellipse:
    """An ellipse.

    Args:
        center: the center (x, y).
        radii: the horizontal and the vertical radius, before the rotation.
        rotation: the rotation in degrees, clockwise.
    """

    center: tuple[float, float]
    radii: tuple[float, float]
    rotation: float = 0

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.center, *self.radii, self.rotation)):
            raise DataError("The ellipse has a value that is not a finite number")
        if min(self.radii) <= 0:
            raise DataError("The ellipse has a radius of 0")

    def bounds(self) -> Bounds:
        """Return the ends of the ellipse."""
        angle = math.radians(self.rotation)
        x = math.hypot(self.radii[0] * math.cos(angle), self.radii[1] * math.sin(angle))
        y = math.hypot(self.radii[0] * math.sin(angle), self.radii[1] * math.cos(angle))
        return self.center[0] - x, self.center[1] - y, self.center[0] + x, self.center[1] + y

    def mask(self, width: int, height: int) -> Mask:
        """Return the pixels whose centers are inside."""
        y, x = np.ogrid[:height, :width]
        x, y = x + 0.5 - self.center[0], y + 0.5 - self.center[1]
        angle = math.radians(self.rotation)
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        return (along / self.radii[0]) ** 2 + (across / self.radii[1]) ** 2 <= 1


@dataclass(frozen=True)
class Bitmap:
    """A rectangle of pixels.

    Args:
        pixels: the pixels [h, w].
        left: the column of the first pixel.
        top: the row of the first pixel.
    """

    pixels: Mask
    left: int = 0
    top: int = 0

    def bounds(self) -> Bounds:
        """Return the ends of the rectangle."""
        height, width = self.pixels.shape
        return self.left, self.top, self.left + width, self.top + height

    def mask(self, width: int, height: int) -> Mask:
        """Return the pixels at their place in the image."""
        mask = np.zeros((height, width), bool)
        left, top, right, bottom = (int(value) for value in self.bounds())
        rows, columns = slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))
        inside = mask[rows, columns]
        first_row, first_column = max(-top, 0), max(-left, 0)
        inside |= self.pixels[first_row : first_row + inside.shape[0], first_column : first_column + inside.shape[1]]
        return mask


def rotated(ring: Ring, center: tuple[float, float], degrees: float) -> Ring:
    """Rotate points clockwise around a center."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved = [(x - center[0], y - center[1]) for x, y in ring]
    return [(center[0] + x * cosine - y * sine, center[1] + x * sine + y * cosine) for x, y in moved]


def _bounds(ring: Ring) -> Bounds:
    columns, rows = zip(*ring, strict=True)
    return min(columns), min(rows), max(columns), max(rows)


def _fill(ring: Ring, width: int, height: int) -> Mask:
    """Return the pixels whose centers are inside a ring, by the even-odd rule.

    Every edge of the ring toggles, in each row that it crosses, all pixels to the right of the crossing.
    """
    toggles = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if y0 == y1:
            continue
        top, bottom = (min(max(math.ceil(y - 0.5), 0), height) for y in sorted((y0, y1)))
        rows = np.arange(top, bottom)
        crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
        toggles[rows, columns] += 1
    return np.cumsum(toggles[:, :width], axis=1) % 2 == 1
