"""Pictures of labels: color maps, label PNGs, overlays and grids of examples.

Labels are class indices [H, W] in a tensor or in an array of integers. Pixels of the label 255 (`IGNORE_INDEX`) are
drawn in `IGNORED_COLOR`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.utils import draw_segmentation_masks

from contextcrf.data.classes import IGNORE_INDEX, Classes, Color

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

Labels = torch.Tensor | npt.NDArray[np.integer]

# As in PASCAL VOC's pictures. Black is the color of a class in many palettes.
IGNORED_COLOR: Color = (224, 224, 192)

# The palette of Okabe and Ito, which is suitable for color-blind readers, with black last.
SERIES_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

_GAP = 6  # px between the pictures of a grid
_DPI = 64  # A power of two, so that sizes in inches times this are exactly sizes in pixels.


def colorize(labels: Labels, palette: Sequence[Color]) -> Image.Image:
    """Draw labels [H, W] as an RGB image of W x H px.

    Args:
        labels: class indices; `IGNORE_INDEX` is drawn in `IGNORED_COLOR`.
        palette: (red, green, blue) of each class, 0..255.

    Raises:
        ValueError: the labels are not integers [H, W], or not 0..len(palette)-1 or 255.

    Example:
        >>> colorize(torch.tensor([[0, 1, 255]]), [(200, 0, 0), (0, 200, 0)]).getpixel((1, 0))
        (0, 200, 0)
    """
    return Image.fromarray(_color_table(palette)[_indices(labels, palette)])


def index_png(labels: Labels, palette: Sequence[Color]) -> Image.Image:
    """Convert labels [H, W] to a palette image (mode P): its values are the labels, and viewers show the colors.

    The inverse is `numpy.asarray(image)`.

    Args:
        labels: as for `colorize`.
        palette: as for `colorize`.

    Raises:
        ValueError: as for `colorize`.
    """
    image = Image.fromarray(_indices(labels, palette))
    image.putpalette(_color_table(palette).tobytes())
    return image


def overlay(image: Image.Image, labels: Labels, palette: Sequence[Color], opacity: float = 0.5) -> Image.Image:
    """Blend an image of W x H px with the colors of its labels [H, W]. Ignored pixels keep the colors of the image.

    Args:
        image: the image.
        labels: as for `colorize`.
        palette: as for `colorize`.
        opacity: 0 shows the image only, 1 the colors only.

    Raises:
        ValueError: the sizes differ, the opacity is not in 0..1, or as for `colorize`.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"expected an opacity of 0 to 1, got {opacity}")
    indices = torch.from_numpy(_indices(labels, palette))
    if (image.height, image.width) != indices.shape:
        height, width = indices.shape
        raise ValueError(f"expected labels of the image's size {image.width} x {image.height}, got {width} x {height}")
    present = [label for label in indices.unique().tolist() if label != IGNORE_INDEX]
    if not present:
        return image.convert("RGB")
    masks = indices == torch.tensor(present, dtype=torch.uint8)[:, None, None]
    # In floating point, since the function truncates the colors of uint8 images instead of rounding them.
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    blended = draw_segmentation_masks(pixels, masks, opacity, [tuple(palette[label]) for label in present])
    return Image.fromarray((255 * blended).round().byte().permute(1, 2, 0).numpy())


def qualitative_grid(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], classes: Classes | None = None
) -> Image.Image:
    """Arrange examples in rows, as in Figures 6 and 7 of the paper: image, ground truth, predictions.

    Args:
        rows: the pictures, one per title in each row. They are not resized, but centered in their cells.
        titles: the column titles; long ones are set in a smaller font.
        classes: if given, a legend of their colors is added below the pictures.

    Returns:
        An RGB image with a white background.

    Raises:
        ValueError: there are no rows, or the number of pictures in a row differs from that of the titles.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows or not titles:
        raise ValueError(f"expected at least one row and one title, got {len(rows)} rows, {len(titles)} titles")
    for index, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(f"row {index}: expected {len(titles)} pictures, one per title, got {len(row)}")
    widths = [max(row[column].width for row in rows) for column in range(len(titles))]
    heights = [max(picture.height for picture in row) for row in rows]
    font = int(np.clip(min(widths) / 11, 10, 24))
    head = 2 * _GAP + math.ceil(1.3 * font)
    width, height = sum(widths) + _GAP * (len(widths) + 1), head + sum(heights) + _GAP * len(heights)

    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    if classes is not None:
        height += _add_legend(figure, classes, font)
        figure.set_size_inches(width / _DPI, height / _DPI)
    left = _GAP
    for cell, title in zip(widths, titles, strict=True):
        _add_title(figure, title, (left + cell / 2, height - head + _GAP), cell, font)
        left += cell + _GAP
    top = head
    for high, row in zip(heights, rows, strict=True):
        left = _GAP
        for cell, picture in zip(widths, row, strict=True):
            x, y = left + (cell - picture.width) // 2, top + (high - picture.height) // 2
            # Offsets of `figimage` are those of the lower left corner.
            figure.figimage(np.asarray(picture.convert("RGB")), x, height - y - picture.height, origin="upper")
            left += cell + _GAP
        top += high + _GAP
    canvas.draw()
    return Image.fromarray(np.array(canvas.buffer_rgba())[..., :3])


def _add_title(figure: Figure, title: str, place: tuple[float, float], width: int, font: int) -> None:
    """Center a column title above `place`, (x, y) in px, in the largest font of 6 to `font` px in which it fits."""
    x, y = np.divide(place, figure.bbox.size)
    text = figure.text(x, y, title, size=_points(font), color="black", ha="center", va="bottom", parse_math=False)
    while text.get_window_extent().width > width and font > 6:
        font -= 1
        text.set_fontsize(_points(font))


def _add_legend(figure: Figure, classes: Classes, font: int) -> int:
    """Add patches with the class names at the lower border, in as many columns as fit, and return the height in px."""
    from matplotlib.patches import Patch

    handles = [Patch(fc=(r / 255, g / 255, b / 255), ec="gray", linewidth=1) for r, g, b in classes.palette]
    # As much space between columns as at both sides of one, so that n columns have at most n times the width of one.
    style: dict[str, Any] = {"handlelength": 1, "handleheight": 1, "borderpad": 0.4, "columnspacing": 0.8}
    style |= {"frameon": False, "fontsize": _points(font), "labelcolor": "black", "borderaxespad": 0}

    def legend(columns: int, loc: Any) -> Legend:
        made = figure.legend(handles, classes.names, loc=loc, ncols=columns, **style)
        for text, name in zip(made.get_texts(), classes.names, strict=True):
            text.set(text=name, parse_math=False)
        return made

    single = legend(1, "lower left")
    available, needed = figure.bbox.width, single.get_window_extent().width
    single.remove()
    # The end of a name that is longer than the figure is wide is cut off.
    final = legend(max(1, int(available // needed)), "lower center" if needed <= available else "lower left")
    return math.ceil(final.get_window_extent().height)


def _points(pixels: int) -> float:
    """A font size in px as matplotlib's points, 1/72 inch."""
    return pixels * 72 / _DPI


def _indices(labels: Labels, palette: Sequence[Color]) -> npt.NDArray[np.uint8]:
    """The labels as uint8 [H, W], checked."""
    array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"expected integer labels [H, W], got {array.dtype} {list(array.shape)}")
    wrong = array[((array < 0) | (array >= len(palette))) & (array != IGNORE_INDEX)]
    if wrong.size:
        raise ValueError(f"expected labels 0..{len(palette) - 1} or {IGNORE_INDEX} (ignore_index), got {int(wrong[0])}")
    return array.astype(np.uint8)


def _color_table(palette: Sequence[Color]) -> npt.NDArray[np.uint8]:
    """[256, 3] colors by label; `IGNORED_COLOR` for `IGNORE_INDEX` and for labels without a class."""
    table = np.full((256, 3), IGNORED_COLOR, np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = IGNORED_COLOR
    return table
