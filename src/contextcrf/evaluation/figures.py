"""Figures of results: bar charts of the IoU of each class, and maps of the messages to a graph node."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from contextcrf.data.visualization import SERIES_COLORS
from contextcrf.utils.files import atomic_write


def iou_bars(
    names: Sequence[str], series: Mapping[str, Sequence[float]], means: Mapping[str, float] | None = None
) -> Figure:
    """Draw a bar chart of the IoU of each class for one or more systems.

    Args:
        names: names of the K classes.
        series: K values in 0..1 by the name of the system; a NaN is drawn as a dash, for a class that neither occurs
            nor is predicted.
        means: mean IoU in 0..1 by the name of the system, for the legend; None is the mean of the values.

    Returns:
        A figure with an axis in percent.

    Raises:
        ValueError: there is no class or no system, a system does not have K values, or a value is outside of 0..1.

    Example:
        >>> figure = iou_bars(["sky", "sea"], {"unary": [0.5, 0.25], "unary+pairwise": [0.75, 0.5]})
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['unary (mean 37.5)', 'unary+pairwise (mean 62.5)']
    """
    if not names or not series:
        raise ValueError(
            f"The chart has {len(names)} class{'' if len(names) == 1 else 'es'} and {len(series)} "
            f"system{'' if len(series) == 1 else 's'}, but needs at least one of each."
        )
    figure = Figure(figsize=(max(5.0, 1.5 + len(names) * (0.3 + 0.16 * len(series))), 3.6), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(names))
    width = 0.8 / len(series)
    for index, (label, row) in enumerate(series.items()):
        values = np.asarray(row, dtype=float)
        if values.shape != (len(names),):
            raise ValueError(
                f"System {label!r} has values of shape {values.shape}, but {len(names)} values are expected, one per "
                "class."
            )
        present = np.isfinite(values)
        if np.isinf(values).any() or (values[present] < 0).any() or (values[present] > 1).any():
            raise ValueError(
                f"System {label!r} has the values {values.tolist()}, but an IoU is a fraction of 0 to 1 or NaN. Divide "
                "values in percent by 100."
            )
        average = means[label] if means is not None else values[present].mean() if present.any() else np.nan
        mean = f"mean {100 * average:.1f}" if np.isfinite(average) else "no class present"
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
    # The legend gets as many columns as fit: a character is about 0.09 inches wide.
    longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
    columns = max(1, min(len(series), 3, int(figure.get_figwidth() / (0.09 * longest + 0.6))))
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    return figure


def explanation_picture(
    image: Image.Image, push: torch.Tensor, pixel: tuple[int, int], scale: float | None = None
) -> Image.Image:
    """Draw on a gray copy of the image how much each neighbor changes the log-odds of a node's label.

    Red cells raise the log-odds of the label, blue cells lower them. A yellow ring marks the node.

    Args:
        image: the image that is explained.
        push: change of the log-odds by each neighbor, [h, w]; the map is stretched over the whole image.
        pixel: row and column of the node, in pixels of the image.
        scale: absolute value that is drawn in full color; None uses the largest absolute value of the map.

    Returns:
        An RGB image of the size of `image`.

    Raises:
        ValueError: the map does not have the shape [h, w].

    Example:
        >>> image = Image.new("RGB", (60, 40), (90, 90, 90))
        >>> picture = explanation_picture(image, torch.tensor([[0.5, -1.0]]), pixel=(20, 10))
        >>> picture.size
        (60, 40)
    """
    if push.ndim != 2:
        raise ValueError(f"The map has the shape {list(push.shape)}, but [h, w] is expected.")
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
    """Write a figure to a file at 150 dots per inch.

    Args:
        figure: the figure.
        path: the file; its suffix (.png, .svg or .pdf) sets the format. Missing folders are created.

    Example:
        >>> save_figure(iou_bars(["sky"], {"unary": [0.5]}), Path("figures/iou.svg"))
        >>> Path("figures/iou.svg").is_file()
        True
    """
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=150)
