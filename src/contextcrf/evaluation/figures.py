"""Pictures of labels and of results: color maps, overlays, grids of examples, bars of the IoU per class.

Labels are class indices [H, W], as a torch tensor or an array of integers; 255 is void, drawn in a pale color.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from contextcrf.data.classes import IGNORE_INDEX, Classes, Color

Labels = torch.Tensor | npt.NDArray[np.integer]

# As in PASCAL VOC's pictures; black is often a class, there the background.
VOID_COLOR: Color = (224, 224, 192)

# Okabe and Ito's colors, told apart by everybody; black comes last.
SERIES_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

_GAP = 6  # px between the pictures of a grid


def colorize(labels: Labels, palette: Sequence[Color]) -> Image.Image:
    """Labels [H, W] as an RGB image of W x H px, void in `VOID_COLOR`.

    Arguments:
        palette: (red, green, blue) of each class, 0..255.

    Raises:
        ValueError: labels are not integers [H, W] or not in 0..len(palette)-1 and 255.
    """
    return Image.fromarray(_color_table(palette)[_indices(labels, palette)])


def index_png(labels: Labels, palette: Sequence[Color]) -> Image.Image:
    """Labels [H, W] as a palette image (mode P): its values are the labels, viewers show the colors.

    The inverse is `numpy.asarray(image)`. Raises ValueError as `colorize` does.
    """
    image = Image.fromarray(_indices(labels, palette))
    image.putpalette(_color_table(palette).tobytes())
    return image


def overlay(image: Image.Image, labels: Labels, palette: Sequence[Color], opacity: float = 0.5) -> Image.Image:
    """The colors of the labels [H, W] laid over an image of W x H px; void pixels show the image as it is.

    Arguments:
        opacity: 0 shows the image alone, 1 the colors alone.

    Raises:
        ValueError: the sizes differ, the opacity is not in 0..1, or the labels are wrong (see `colorize`).
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"expected an opacity of 0 to 1, got {opacity}")
    indices = _indices(labels, palette)
    if (image.height, image.width) != indices.shape:
        height, width = indices.shape
        raise ValueError(f"expected labels of the image's size {image.width} x {image.height}, got {width} x {height}")
    photo = image.convert("RGB")
    mixed = np.asarray(Image.blend(photo, Image.fromarray(_color_table(palette)[indices]), opacity))
    known = (indices != IGNORE_INDEX)[..., None]
    return Image.fromarray(np.where(known, mixed, np.asarray(photo)))


def qualitative_grid(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], classes: Classes | None = None
) -> Image.Image:
    """Examples below each other, one row each, as in Figures 6 and 7 of the paper: image, truth, predictions.

    Arguments:
        rows: the pictures, as many in each row as there are titles. None is resized; each is centered in its cell.
        titles: the column titles.
        classes: drawn as a legend of the colors below the pictures, if given.

    Returns:
        An RGB image with a white background.

    Raises:
        ValueError: there are no rows, or a row has not one picture per title.
    """
    if not rows or not titles:
        raise ValueError(f"expected at least one row and one title, got {len(rows)} rows, {len(titles)} titles")
    for index, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(f"row {index}: expected {len(titles)} pictures, one per title, got {len(row)}")
    widths = [max(row[column].width for row in rows) for column in range(len(titles))]
    heights = [max(picture.height for picture in row) for row in rows]
    lefts = _starts(widths, first=_GAP)
    size = int(np.clip(min(widths) / 11, 10, 24))
    tops = _starts(heights, first=2 * _GAP + math.ceil(1.3 * size))
    width = lefts[-1] + widths[-1] + _GAP
    bottom = tops[-1] + heights[-1] + _GAP
    legend = _legend(classes, width, size) if classes else Image.new("RGB", (width, 0))

    grid = Image.new("RGB", (width, bottom + legend.height), "white")
    draw = ImageDraw.Draw(grid)
    for left, cell, title in zip(lefts, widths, titles, strict=True):
        font = _fitting_font(title, cell, size)
        draw.text((left + cell / 2, tops[0] - _GAP), title, fill="black", font=font, anchor="md")
    for top, high, row in zip(tops, heights, rows, strict=True):
        for left, wide, picture in zip(lefts, widths, row, strict=True):
            place = (left + (wide - picture.width) // 2, top + (high - picture.height) // 2)
            grid.paste(picture.convert("RGB"), place)
    grid.paste(legend, (0, bottom))
    return grid


def iou_bars(names: Sequence[str], series: Mapping[str, Sequence[float]]) -> Figure:
    """Bars of the IoU of each class, side by side for the rows of a table.

    Arguments:
        names: the class names, K of them.
        series: row name -> K values in 0..1; NaN where the class is absent, drawn as a dash. The axis is in percent;
            the legend has the mean over the classes present.

    Raises:
        ValueError: no classes or no rows, a row without K values, or a value outside of 0..1.
    """
    if not names or not series:
        raise ValueError(f"expected at least one class and one row, got {len(names)} classes, {len(series)} rows")
    figure = Figure(figsize=(max(5.0, 1.5 + len(names) * (0.3 + 0.16 * len(series))), 3.6), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(names))
    width = 0.8 / len(series)
    for index, (label, row) in enumerate(series.items()):
        values = np.asarray(row, dtype=float)
        if values.shape != (len(names),):
            raise ValueError(f"row {label!r}: expected {len(names)} values, one per class, got shape {values.shape}")
        present = np.isfinite(values)
        if np.isinf(values).any() or (values[present] < 0).any() or (values[present] > 1).any():
            raise ValueError(f"row {label!r}: expected values of 0 to 1 or NaN, got {values.tolist()}")
        mean = f"mean {100 * values[present].mean():.1f}" if present.any() else "no class present"
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        x = places + (index - (len(series) - 1) / 2) * width
        axes.bar(x[present], 100 * values[present], 0.92 * width, color=color, label=f"{label} ({mean})")
        for absent in x[~present]:
            axes.text(absent, 0.5, "-", ha="center", va="bottom", color=color)
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel("IoU [%]")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    # In as many columns as fit: a character takes about 0.09 inches.
    longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
    columns = max(1, min(len(series), 3, int(figure.get_figwidth() / (0.09 * longest + 0.6))))
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    return figure


def push_picture(
    image: Image.Image, push: torch.Tensor, pixel: tuple[int, int], scale: float | None = None
) -> Image.Image:
    """A map of pushes laid over an image in gray: red pushes to a label, blue away from it; a ring marks the node.

    Arguments:
        push: [h, w], drawn in cells over the whole image.
        pixel: row and column of the node in the image.
        scale: the push that is drawn in full color; its largest absolute value if None.

    Raises:
        ValueError: the map is not [h, w].
    """
    if push.ndim != 2:
        raise ValueError(f"expected a map [h, w], got {list(push.shape)}")
    values = push.detach().cpu().numpy().astype(float)
    strength = np.clip(np.abs(values) / (scale or np.abs(values).max() or 1.0), 0, 1)
    colors = np.where(values[..., None] > 0, (214, 40, 40), (29, 78, 216)).astype(np.uint8)
    alpha = Image.fromarray((200 * strength).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    tint = Image.fromarray(colors).resize(image.size, Image.Resampling.NEAREST)
    picture = Image.composite(tint, image.convert("L").convert("RGB"), alpha)
    row, column = pixel
    radius = max(3, min(image.size) // 40)
    ImageDraw.Draw(picture).ellipse(
        (column - radius, row - radius, column + radius, row + radius), outline=(255, 255, 0), width=max(1, radius // 3)
    )
    return picture


def save_figure(fig: Figure, path: str | Path) -> None:
    """Write a figure in the format of the file's suffix (.png, .svg, .pdf); missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)


def _indices(labels: Labels, palette: Sequence[Color]) -> npt.NDArray[np.uint8]:
    """The labels as uint8 [H, W], checked."""
    array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"expected integer labels [H, W], got {array.dtype} {list(array.shape)}")
    wrong = array[((array < 0) | (array >= len(palette))) & (array != IGNORE_INDEX)]
    if wrong.size:
        raise ValueError(f"expected labels 0..{len(palette) - 1} or {IGNORE_INDEX} (void), got {int(wrong[0])}")
    return array.astype(np.uint8)


def _color_table(palette: Sequence[Color]) -> npt.NDArray[np.uint8]:
    """[256, 3] colors by label; the unused ones and void have that of void."""
    table = np.full((256, 3), VOID_COLOR, np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = VOID_COLOR
    return table


def _starts(lengths: Sequence[int], first: int) -> list[int]:
    """Where each of several lengths begins when they are laid out with gaps between them."""
    return [first + sum(lengths[:index]) + index * _GAP for index in range(len(lengths))]


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships this one, so pictures look the same wherever they are drawn.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _fitting_font(text: str, width: int, size: int) -> ImageFont.FreeTypeFont:
    """The font at `size`, or smaller (down to 6 px) where the text is wider than `width` px."""
    needed = _font(size).getlength(text)
    return _font(size if needed <= width else max(6, int(size * width / needed)))


def _legend(classes: Classes, width: int, size: int) -> Image.Image:
    """Swatches with the class names, in as many centered lines of `width` px as needed."""
    font, swatch, line_height = _font(size), size, math.ceil(1.6 * size)
    lengths = [swatch + _GAP + math.ceil(font.getlength(name)) + 2 * _GAP for name in classes.names]
    lines: list[list[int]] = [[]]
    for index, length in enumerate(lengths):
        if lines[-1] and sum(lengths[other] for other in lines[-1]) + length > width - 2 * _GAP:
            lines.append([])
        lines[-1].append(index)
    legend = Image.new("RGB", (width, line_height * len(lines) + _GAP), "white")
    draw = ImageDraw.Draw(legend)
    for row, line in enumerate(lines):
        left = max(_GAP, (width - sum(lengths[index] for index in line)) // 2)
        middle = line_height * row + line_height // 2
        for index in line:
            top = middle - swatch // 2
            box = (left, top, left + swatch - 1, top + swatch - 1)
            draw.rectangle(box, fill=classes.palette[index], outline=(128, 128, 128))
            draw.text((left + swatch + _GAP, middle), classes.names[index], fill="black", font=font, anchor="lm")
            left += lengths[index]
    return legend
