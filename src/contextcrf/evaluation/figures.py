"""Figures of results: bars of the IoU per class, and maps of the messages that a node gets."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from contextcrf.data.visualization import SERIES_COLORS
from contextcrf.utils.files import atomic_write


def iou_bars(names: Sequence[str], series: Mapping[str, Sequence[float]]) -> Figure:
    """Bars of the IoU of each class, side by side for several systems.

    Args:
        names: the class names, K of them.
        series: K values in 0..1 by the name of the system; NaN where the class is absent, drawn as a dash.

    Returns:
        A figure whose axis is in percent; the legend gives the mean over the classes that are present.

    Raises:
        ValueError: no classes or no systems, a system without K values, or a value outside of 0..1.
    """
    if not names or not series:
        raise ValueError(f"expected at least one class and one system, got {len(names)} classes, {len(series)} systems")
    figure = Figure(figsize=(max(5.0, 1.5 + len(names) * (0.3 + 0.16 * len(series))), 3.6), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(names))
    width = 0.8 / len(series)
    for index, (label, row) in enumerate(series.items()):
        values = np.asarray(row, dtype=float)
        if values.shape != (len(names),):
            raise ValueError(f"system {label!r}: expected {len(names)} values, one per class, got shape {values.shape}")
        present = np.isfinite(values)
        if np.isinf(values).any() or (values[present] < 0).any() or (values[present] > 1).any():
            raise ValueError(f"system {label!r}: expected values of 0 to 1 or NaN, got {values.tolist()}")
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


def explanation_picture(
    image: Image.Image, push: torch.Tensor, pixel: tuple[int, int], scale: float | None = None
) -> Image.Image:
    """A map of log-odds laid over a gray image: red for the label, blue against it; a ring marks the node.

    Args:
        push: [h, w], drawn in cells over the whole image.
        pixel: row and column of the node in the image.
        scale: the value that is drawn in full color; the largest absolute one if None.

    Raises:
        ValueError: the map is not [h, w].
    """
    if push.ndim != 2:
        raise ValueError(f"expected a map [h, w], got {list(push.shape)}")
    values = push.detach().cpu().numpy().astype(float)
    opacity = np.clip(np.abs(values) / (scale or np.abs(values).max() or 1.0), 0, 1)
    colors = np.where(values[..., None] > 0, (214, 40, 40), (29, 78, 216)).astype(np.uint8)
    alpha = Image.fromarray((200 * opacity).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    tint = Image.fromarray(colors).resize(image.size, Image.Resampling.NEAREST)
    picture = Image.composite(tint, image.convert("L").convert("RGB"), alpha)
    row, column = pixel
    radius = max(3, min(image.size) // 40)
    ImageDraw.Draw(picture).ellipse(
        (column - radius, row - radius, column + radius, row + radius), outline=(255, 255, 0), width=max(1, radius // 3)
    )
    return picture


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's suffix (.png, .svg, .pdf); missing folders are made."""
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=150)
