"""Shapes become labels, in the order in which they are drawn."""

from collections.abc import Mapping, Sequence

import numpy as np

from contextcrf.data.importers.options import Order
from contextcrf.data.importers.records import IGNORED, UNLABELED, Findings, Labels
from contextcrf.data.importers.shapes import Bounds, Shape
from contextcrf.utils.errors import DataError

# Tools place points on the edge of the image with rounding errors.
_TOLERANCE = 0.5


def draw(
    shapes: Sequence[Shape],
    size: tuple[int, int],
    classes: Mapping[str, int],
    order: Order,
    name: str,
    findings: Findings,
) -> tuple[Labels, int]:
    """Draw shapes over each other.

    Args:
        shapes: the shapes, in the order of the source.
        size: the width and the height of the image.
        classes: the index of each class by its name. Shapes of other classes are dropped.
        order: "listed" draws later shapes over earlier ones, and shapes with a higher `Shape.order` over others.
            "area" draws smaller shapes over larger ones.
        name: the name of the image, for the findings.
        findings: what is dropped.

    Returns:
        The labels [H, W] and the number of shapes that were drawn.
    """
    labels = np.full(size[::-1], UNLABELED, np.int32)
    drawn = 0
    for shape in _sorted(shapes, size, order):
        if shape.name is not None and shape.name not in classes:
            findings.drop(f"shapes of the class {shape.name!r}, which is not imported", name)
            continue
        try:
            mask = shape.region.mask(*size)
        except DataError as error:
            findings.drop("shapes that cannot be drawn", f"{name}: {error}")
            continue
        if not mask.any():
            bounds = shape.region.bounds()
            reason = "shapes outside the image" if _is_outside(bounds, size) else "shapes that cover no pixel"
            if min(bounds) >= 0 and max(bounds) <= 1:
                reason = "shapes with all coordinates in 0..1, which may be fractions of the size of the image"
            findings.drop(reason, name)
            continue
        if _is_cut(shape.region.bounds(), size):
            findings.note("shapes that are partly outside the image were cut off at its edge", name)
        labels[mask] = IGNORED if shape.name is None else classes[shape.name]
        drawn += 1
    return labels, drawn


def _sorted(shapes: Sequence[Shape], size: tuple[int, int], order: Order) -> list[Shape]:
    """Return the shapes in the order in which they are drawn."""
    if order == "listed":
        return sorted(shapes, key=lambda shape: shape.order)
    # The masks are not kept, since those of a large image with many shapes may not fit the memory.
    return sorted(shapes, key=lambda shape: -_area(shape, size))


def _area(shape: Shape, size: tuple[int, int]) -> int:
    """Return the number of pixels of a shape in the image. Shapes that cannot be drawn have none."""
    try:
        return int(shape.region.mask(*size).sum())
    except DataError:
        return 0


def _is_outside(bounds: Bounds, size: tuple[int, int]) -> bool:
    left, top, right, bottom = bounds
    return right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]


def _is_cut(bounds: Bounds, size: tuple[int, int]) -> bool:
    left, top, right, bottom = bounds
    return min(left, top) < -_TOLERANCE or right > size[0] + _TOLERANCE or bottom > size[1] + _TOLERANCE
