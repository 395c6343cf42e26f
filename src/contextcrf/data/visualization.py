"""Pictures of labels: color maps, label PNGs, overlays and grids of examples.

Labels are class indices [H, W] in a tensor or an array of integers. Pixels with the label 255 (`IGNORE_INDEX`) are
drawn in `IGNORED_COLOR`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from contextcrf.data.classes import IGNORE_INDEX, Classes, Color

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

Labels = torch.Tensor | npt.NDArray[np.integer]

# The color in PASCAL VOC's masks. Black would be confused with a class, since many palettes contain it.
IGNORED_COLOR: Color = (224, 224, 192)

# The palette of Okabe and Ito, with black last. It is suitable for color-blind readers.
SERIES_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

_GAP = 6  # pixels between the pictures of a grid
_DPI = 64  # A power of two, so that sizes in inches are converted exactly to sizes in pixels.


def colorize(labels: Labels, palette: Sequence[Color]) -> Image.Image:
    """Draw labels [H, W] as an RGB image of W x H pixels.

    Args:
        labels: class indices [H, W]. `IGNORE_INDEX` is drawn in `IGNORED_COLOR`.
        palette: the color (red, green, blue) of each class, with values in 0..255.

    Raises:
        ValueError: If the labels are not integers [H, W], or if a label is neither in 0..len(palette)-1 nor 255.

    Example:
        >>> colorize(torch.tensor([[0, 1, 255]]), [(200, 0, 0), (0, 200, 0)]).getpixel((1, 0))
        (0, 200, 0)
    """
    return Image.fromarray(_color_table(palette)[_indices(labels, palette)])


def index_png(labels: Labels, palette: Sequence[Color]) -> Image.Image:
    """Convert labels [H, W] to a palette image (mode P) of W x H pixels.

    The values of the image are the labels, and image viewers show the colors. `numpy.asarray(image)` returns the
    labels.

    Args:
        labels: class indices [H, W]. `IGNORE_INDEX` is shown in `IGNORED_COLOR`.
        palette: the color (red, green, blue) of each class, with values in 0..255.

    Raises:
        ValueError: If the labels are not integers [H, W], or if a label is neither in 0..len(palette)-1 nor 255.

    Example:
        >>> image = index_png(torch.tensor([[0, 1, 255]]), [(200, 0, 0), (0, 200, 0)])
        >>> np.asarray(image).tolist(), image.convert("RGB").getpixel((1, 0))
        ([[0, 1, 255]], (0, 200, 0))
    """
    image = Image.fromarray(_indices(labels, palette))
    image.putpalette(_color_table(palette).tobytes())
    return image


def overlay(image: Image.Image, labels: Labels, palette: Sequence[Color], opacity: float = 0.5) -> Image.Image:
    """Blend an image of W x H pixels with the colors of its labels [H, W]. Ignored pixels are not changed.

    Args:
        image: the image.
        labels: class indices [H, W].
        palette: the color (red, green, blue) of each class, with values in 0..255.
        opacity: the opacity of the colors. 0 shows only the image, 1 only the colors.

    Raises:
        ValueError: If the image and the labels have different sizes, or if the opacity is not in 0..1. Also if the
            labels are not integers [H, W], or if a label is neither in 0..len(palette)-1 nor 255.

    Example:
        >>> gray = Image.new("RGB", (2, 1), (100, 100, 100))
        >>> overlay(gray, torch.tensor([[0, 255]]), [(200, 0, 0)]).getpixel((0, 0))
        (150, 50, 50)
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"The opacity is {opacity}, but a value from 0 to 1 is expected.")
    indices = _indices(labels, palette)
    if (image.height, image.width) != indices.shape:
        height, width = indices.shape
        raise ValueError(
            f"The labels have {width} x {height} pixels, but the image has {image.width} x {image.height} pixels."
        )
    # The blended value of each label, channel and pixel value. Ignored pixels keep their values.
    values = np.arange(256, dtype=np.float32)
    blended = np.rint((1 - opacity) * values + opacity * _color_table(palette)[..., None]).astype(np.uint8)
    blended[IGNORE_INDEX] = values
    pixels = np.asarray(image.convert("RGB"))
    return Image.fromarray(blended[indices[..., None], np.arange(3), pixels])


def qualitative_grid(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    classes: Classes | None = None,
    labels: Iterable[Labels] | None = None,
    caption: str = "",
) -> Image.Image:
    """Arrange examples in a grid with one row for each example, as in Figures 6 and 7 of the paper.

    The columns of these figures are the image, the ground truth and the predictions.

    Args:
        rows: the pictures of each row, one for each title. They are centered in their cells and not resized.
        titles: the column titles. Long titles have a smaller font.
        classes: the names and colors of a legend below the pictures. None adds no legend.
        labels: the class indices [H, W] of all pictures. The legend has the classes that occur in them, and an entry
            for unlabeled pixels if there are any. None means a legend with all classes.
        caption: a text below the legend.

    Returns:
        An RGB image with a white background.

    Raises:
        ValueError: If there are no rows or no titles, or if the number of pictures in a row is not the number of
            titles.

    Example:
        >>> image, labels = Image.new("RGB", (96, 64)), torch.zeros(64, 96, dtype=torch.int64)
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> rows = [[image, colorize(labels, classes.palette)]]
        >>> grid = qualitative_grid(rows, ["image", "labels"], classes, [labels])
        >>> grid.width, grid.mode
        (210, 'RGB')
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows or not titles:
        raise ValueError(
            f"The number of rows is {len(rows)} and the number of titles is {len(titles)}, but at least one row and "
            "one title are expected."
        )
    for index, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(
                f"The number of pictures in row {index} is {len(row)}, but the number of titles is {len(titles)}. Give "
                "one picture for each title."
            )
    widths = [max(row[column].width for row in rows) for column in range(len(titles))]
    heights = [max(picture.height for picture in row) for row in rows]
    font = int(np.clip(min(widths) / 11, 10, 24))
    head = 2 * _GAP + math.ceil(1.3 * font)
    width, height = sum(widths) + _GAP * (len(widths) + 1), head + sum(heights) + _GAP * len(heights)

    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    lower = _add_caption(figure, caption, font) if caption else 0
    if classes is not None:
        lower += _add_legend(figure, _entries(classes, labels), font, lower)
    height += lower
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
            # The offsets of `figimage` are measured from the lower left corner.
            figure.figimage(np.asarray(picture.convert("RGB")), x, height - y - picture.height, origin="upper")
            left += cell + _GAP
        top += high + _GAP
    canvas.draw()
    return Image.fromarray(np.array(canvas.buffer_rgba())[..., :3])


def legend_strip(width: int, classes: Classes, labels: Labels) -> Image.Image:
    """Draw the legend of the classes that occur in labels, for example to put it below an overlay.

    Args:
        width: the width of the strip in pixels, at least 1.
        classes: the names and colors of the classes.
        labels: class indices [H, W].

    Returns:
        An RGB image of the given width with a white background.

    Example:
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> legend_strip(320, classes, torch.tensor([[0, 1, 255]])).width
        320
    """
    entries = _entries(classes, [labels])
    # Pillow draws it in a millisecond, and matplotlib in 25.
    side = int(np.clip(width / 40, 10, 48))
    font, gap, line = _font(side), side // 2, side + side // 2
    cell = side + gap + math.ceil(max((font.getlength(name) for name, _ in entries), default=0)) + side
    columns = max(1, (width - gap) // cell)
    strip = Image.new("RGB", (width, max(1, -(-len(entries) // columns) * line)), "white")
    draw = ImageDraw.Draw(strip)
    for index, (name, color) in enumerate(entries):
        x, y = gap + index % columns * cell, gap // 2 + index // columns * line
        draw.rectangle((x, y, x + side - 1, y + side - 1), color, "gray")
        draw.text((x + side + gap, y + side // 2), name, "black", font, "lm")
    return strip


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font of a size in pixels, since Pillow's own font has only Latin letters."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _add_title(figure: Figure, title: str, place: tuple[float, float], width: int, font: int) -> None:
    """Center a column title above `place`, (x, y) in pixels, in the largest font of 6 to `font` pixels that fits."""
    x, y = np.divide(place, figure.bbox.size)
    text = figure.text(x, y, title, size=_points(font), color="black", ha="center", va="bottom", parse_math=False)
    while text.get_window_extent().width > width and font > 6:
        font -= 1
        text.set_fontsize(_points(font))


def _add_caption(figure: Figure, caption: str, font: int) -> int:
    """Add a text at the lower border, in as many lines as needed, and return its height in pixels."""
    text = figure.text(0, 0, "", size=_points(font), color="black", ha="left", va="bottom", parse_math=False)
    text.set_position((_GAP / figure.bbox.width, 0))
    lines: list[str] = []
    for word in caption.split():
        text.set_text(" ".join([*lines[-1:], word]))
        fits = lines and text.get_window_extent().width <= figure.bbox.width - 2 * _GAP
        lines = [*lines[:-1], f"{lines[-1]} {word}"] if fits else [*lines, word]
    text.set_text("\n".join(lines))
    return math.ceil(text.get_window_extent().height) + _GAP


def _entries(classes: Classes, labels: Iterable[Labels] | None) -> list[tuple[str, Color]]:
    """Return the names and colors of a legend of all classes, or of the classes that occur in `labels`."""
    if labels is None:
        return list(zip(classes.names, classes.palette, strict=True))
    occurs = np.zeros(IGNORE_INDEX + 1, bool)
    for found in labels:
        occurs |= np.bincount(_indices(found, classes.palette).ravel(), minlength=len(occurs)) > 0
    entries = [(classes.names[label], classes.palette[label]) for label in np.flatnonzero(occurs[: len(classes)])]
    return [*entries, ("unlabeled", IGNORED_COLOR)] if occurs[IGNORE_INDEX] else entries


def _add_legend(figure: Figure, entries: Sequence[tuple[str, Color]], font: int, lower: int = 0) -> int:
    """Add a legend above the lowest `lower` pixels, in as many columns as fit, and return its height in pixels."""
    from matplotlib.patches import Patch
    from matplotlib.transforms import IdentityTransform

    names = [name for name, _ in entries]
    handles = [Patch(fc=(r / 255, g / 255, b / 255), ec="gray", linewidth=1) for _, (r, g, b) in entries]
    # The space between columns equals the space at both sides, so n columns have at most n times the width of one.
    style: dict[str, Any] = {"handlelength": 1, "handleheight": 1, "borderpad": 0.4, "columnspacing": 0.8}
    style |= {"frameon": False, "fontsize": _points(font), "labelcolor": "black", "borderaxespad": 0}

    def legend(columns: int, loc: Any) -> Legend:
        made = figure.legend(handles, names, loc=loc, ncols=columns, **style)
        for text, name in zip(made.get_texts(), names, strict=True):
            text.set(text=name, parse_math=False)
        # The place is in pixels, since the height of the figure will change.
        made.set_bbox_to_anchor((0, lower, figure.bbox.width, 0), IdentityTransform())
        return made

    single = legend(1, "lower left")
    available, needed = figure.bbox.width, single.get_window_extent().width
    single.remove()
    # If a name is wider than the figure, its end is cut off.
    final = legend(max(1, int(available // needed)), "lower center" if needed <= available else "lower left")
    return math.ceil(final.get_window_extent().height)


def _points(pixels: int) -> float:
    """Convert a font size in pixels to matplotlib's points (1/72 inch)."""
    return pixels * 72 / _DPI


def _indices(labels: Labels, palette: Sequence[Color]) -> npt.NDArray[np.uint8]:
    """Check the labels and return them as uint8 [H, W]."""
    array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"The labels have dtype {array.dtype} and shape {list(array.shape)}, but integer labels [H, W] are "
            "expected."
        )
    wrong = array[((array < 0) | (array >= len(palette))) & (array != IGNORE_INDEX)]
    if wrong.size:
        raise ValueError(
            f"The labels contain the value {int(wrong[0])}, but 0 to {len(palette) - 1} or {IGNORE_INDEX} "
            "(ignore_index) is expected."
        )
    return array.astype(np.uint8)


def _color_table(palette: Sequence[Color]) -> npt.NDArray[np.uint8]:
    """Return the color of each label, [256, 3]. Labels without a class have `IGNORED_COLOR`."""
    table = np.full((256, 3), IGNORED_COLOR, np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = IGNORED_COLOR
    return table
