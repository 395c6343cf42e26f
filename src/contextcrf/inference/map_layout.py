"""The axes of map files: which axis of an array has the classes, decided by evidence."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Layout = Literal["khw", "hwk", "hw"]
AXES: dict[str, str] = {"khw": "[K, H, W]", "hwk": "[H, W, K]", "hw": "[H, W]"}

# The largest difference from 1 of a sum of probabilities, for maps of low precision.
_EXCESS = 0.02


@dataclass(frozen=True)
class Arranged:
    """An array with the classes first.

    Args:
        values: the array, [K, h, w]. K is 1 for maps of the foreground.
        layout: the layout of the file.
        axis: the axis of the classes in the file, or None if it has none.
    """

    values: npt.NDArray[Any]
    layout: Layout
    axis: int | None


def arrange(
    content: npt.NDArray[Any],
    size: tuple[int, int],
    count: int | None = None,
    total: float | None = None,
    layout: Layout | None = None,
    resize: bool = False,
) -> Arranged:
    """Find the axis of the classes of an array, and move it to the front.

    An array with four axes must have the length 1 on the first. The size of the image, then the number of classes, and
    then the sums over the classes decide between the layouts.

    Args:
        content: the array: [K, H, W], [H, W, K], [H, W], or one of these after an axis of length 1.
        size: the height and width of the image.
        count: the number of classes, if it is known. Maps of the foreground have two classes.
        total: the sum over the classes, if it is known: 1 for probabilities.
        layout: the layout, if the caller knows it.
        resize: accept maps of another size. Unless the layout is given, the ratio of height and width must be that of
            the image to one pixel.

    Raises:
        ValueError: if no layout fits, or if several fit.

    Example:
        >>> found = arrange(np.zeros((4, 6, 3)), (4, 6))
        >>> found.layout, found.values.shape
        ('hwk', (3, 4, 6))
    """
    shape = list(content.shape)
    offset = content.ndim - 3 if content.ndim == 4 and shape[0] == 1 else 0
    plain = content[0] if offset else content
    views: dict[Layout, npt.NDArray[Any]] = {}
    if plain.ndim == 2:
        views["hw"] = plain[None]
    elif plain.ndim == 3:
        views = {"khw": plain, "hwk": np.moveaxis(plain, 2, 0)}
        single = [view for view in views.values() if len(view) == 1]
        if layout == "hw" and single:
            views["hw"] = single[0]
    if layout is not None:
        views = {name: view for name, view in views.items() if name == layout}
    if not views:
        wanted = AXES[layout] if layout else "[K, H, W], [H, W, K] or [H, W]"
        raise ValueError(f"The map has the shape {shape}, but {wanted} is expected.")
    fitting = _of_size(views, shape, size, layout, resize)
    fitting = _of_count(fitting, shape, count)
    if len(fitting) > 1 and total is not None:
        summing = [name for name in fitting if excess(fitting[name], total) <= _EXCESS * total]
        fitting = {name: fitting[name] for name in summing} if len(summing) == 1 else fitting
    if len(fitting) > 1:
        axes = " or ".join(AXES[name] for name in fitting)
        options = " or ".join(f"--layout {name}" for name in fitting)
        raise ValueError(
            f"The map has the shape {shape} and the image {list(size)}, so it may be {axes}. Give {options}."
        )
    [(name, values)] = fitting.items()
    return Arranged(values, name, {"khw": offset, "hwk": 2 + offset, "hw": None}[name])


def excess(values: npt.NDArray[Any], total: float) -> float:
    """Return the largest difference of the sums over axis 0 from a number. It is NaN if a value is NaN."""
    return float(np.abs(values.sum(0, dtype=np.float64) - total).max())


Views = dict[Layout, npt.NDArray[Any]]


def _of_size(views: Views, shape: list[int], size: tuple[int, int], layout: Layout | None, resize: bool) -> Views:
    """Return the views [K, h, w] that have the size of the image, or that can be resized to it."""
    if exact := {name: view for name, view in views.items() if view.shape[1:] == size}:
        return exact
    height, width = size
    found = f"The map has the shape {shape} and the image {list(size)}"
    if any(view.shape[1:] == (width, height) for view in views.values()):
        raise ValueError(
            f"{found}, but a map [K, H, W] of the image's height and width is expected. Exchange the height and width "
            "of the map."
        )
    scaled = {
        name: view
        for name, view in views.items()
        if abs(view.shape[1] * width - view.shape[2] * height) <= max(size) or layout is not None
    }
    if not scaled:
        raise ValueError(
            f"{found}, but a map [K, H, W] of the image's height and width is expected. If the ratio of height and "
            "width was changed, give --resize and --layout."
        )
    if not resize:
        raise ValueError(
            f"{found}, but a map [K, H, W] of the image's height and width is expected. Give --resize to resize maps."
        )
    return scaled


def _of_count(views: Views, shape: list[int], count: int | None) -> Views:
    """Return the views [K, h, w] that have the number of classes."""
    if count is None:
        return views
    right = {name: view for name, view in views.items() if len(view) == count or (len(view) == 1 and count == 2)}
    if right:
        return right
    axes = " or ".join(AXES[name] for name in views)
    raise ValueError(f"The map has the shape {shape}, but {axes} with {count} classes is expected.")
