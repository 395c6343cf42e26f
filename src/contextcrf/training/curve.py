"""The picture of a training run: its losses and validation scores by epoch."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from contextcrf.utils.files import atomic_write

CURVE = "curve.png"


def read_curve(folder: Path) -> dict[str, dict[int, float]]:
    """Read the logs of a training run, also of one that was interrupted and resumed.

    Args:
        folder: output folder of the training run, whose subfolder `csv` has the logs.

    Returns:
        The value of each epoch, counted from 1, by the name of the loss ("train/unary") or score ("val/unary"). Losses
        are averaged over the logged steps of the epoch. The dictionary is empty if there are no logs.
    """
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((folder / "csv").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        # A resumed training run repeats the epoch in which it was interrupted.
        epochs = {row["epoch"] for row in _rows(path)}
        for name in found:
            for epoch in epochs:
                found[name].pop(int(epoch) + 1, None)
        for row in _rows(path):
            for name, value in row.items():
                if name.startswith(("train/", "val/")) and value:
                    found[name][int(row["epoch"]) + 1].append(float(value))
    return {name: {e: sum(all_) / len(all_) for e, all_ in sorted(rows.items())} for name, rows in found.items()}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a log that belong to an epoch."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from (row for row in csv.DictReader(file) if row.get("epoch"))


def draw_curve(curve: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw the losses and the validation scores of a training run.

    Args:
        curve: the values by name and epoch, as `read_curve` returns them.
        path: the picture to write.

    Example:
        >>> draw_curve({"train/unary": {1: 2.0, 2: 1.5}, "val/unary": {2: 0.4}}, Path("curve.png"))
        >>> Path("curve.png").is_file()
        True
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from contextcrf.data.visualization import SERIES_COLORS

    parts = [(kind, {n: v for n, v in curve.items() if n.startswith(kind)}) for kind in ("train/", "val/")]
    shown = [(kind, values) for kind, values in parts if values]
    figure = Figure(figsize=(5 * len(shown), 3.6), layout="constrained")
    for number, (kind, values) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1)
        for color, (name, points) in zip(SERIES_COLORS, values.items(), strict=False):
            scale = 100 if kind == "val/" else 1
            heights = [scale * value for value in points.values()]
            axes.plot(list(points), heights, "o-", markersize=3, color=color, label=name.removeprefix(kind))
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss" if kind == "train/" else "mean IoU on the validation images [%]")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
        axes.legend(frameon=False)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
