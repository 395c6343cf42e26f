"""Intersection over union at full resolution, and tables of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table as RichTable
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from contextcrf.classes import IGNORE_INDEX


class ConfusionMatrix:
    """Counts of (truth, prediction) over the pixels whose truth is known; scores of Everingham et al. (2010).

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.metric = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)

    @property
    def seen(self) -> bool:
        """Whether anything was counted."""
        return bool(self.counts.sum() > 0)

    @property
    def counts(self) -> Tensor:
        """int64 [K, K], rows truth, columns prediction."""
        return self.metric.confmat

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count labels int64 [B, H, W] against the truth of the same shape; void is 255."""
        self.metric.to(prediction.device).update(prediction, truth)

    def reset(self) -> None:
        """Forget everything."""
        self.metric.reset()

    def iou(self) -> Tensor:
        """Per class, [K]: intersection over union; NaN for a class in neither truth nor prediction."""
        counts = self.counts.double()
        hits = counts.diagonal()
        return hits / (counts.sum(0) + counts.sum(1) - hits)

    def mean_iou(self) -> float:
        """Mean over the classes that occur."""
        return self.iou().nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of known pixels labelled right."""
        return (self.counts.diagonal().sum() / self.counts.sum()).item()


@dataclass
class Row:
    """One row of a table: a system and its confusion matrix [K, K]."""

    name: str
    matrix: ConfusionMatrix
    seconds: float = float("nan")


@dataclass
class Results:
    """Rows over the same images and classes; written as a terminal table, Markdown and JSON.

    Args:
        classes: names of the classes.
        rows: the systems.
        about: what was measured: data, split, images, command.
    """

    classes: Sequence[str]
    rows: Sequence[Row]
    about: dict[str, Any]

    def to_rich(self) -> RichTable:
        """For the terminal: mean IoU, pixel accuracy and IoU per class, in percent."""
        table = RichTable(title=str(self.about.get("title", "IoU, %")))
        for i, column in enumerate(self._header()):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*self._cells(row))
        return table

    def to_markdown(self) -> str:
        """A Markdown table, preceded by what was measured."""
        header = self._header()
        lines = [f"- {key}: {value}" for key, value in self.about.items()]
        lines += ["", "| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
        lines += ["| " + " | ".join(self._cells(row)) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON: fractions, not percent; None where a class does not occur."""
        rows = [
            {
                "name": row.name,
                "mean_iou": row.matrix.mean_iou(),
                "pixel_accuracy": row.matrix.pixel_accuracy(),
                "iou": {
                    name: None if value != value else value
                    for name, value in zip(self.classes, row.matrix.iou().tolist(), strict=True)
                },
                "seconds_per_image": None if row.seconds != row.seconds else row.seconds,
                "confusion": row.matrix.counts.tolist(),
            }
            for row in self.rows
        ]
        return {"about": self.about, "classes": list(self.classes), "rows": rows}

    def write(self, folder: Path, stem: str = "results") -> None:
        """Write `stem`.json and `stem`.md into a folder, made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.json").write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        (folder / f"{stem}.md").write_text(self.to_markdown())

    def _header(self) -> list[str]:
        return ["row", "mean IoU", "pixel acc.", *self.classes]

    def _cells(self, row: Row) -> list[str]:
        values = [row.matrix.mean_iou(), row.matrix.pixel_accuracy(), *row.matrix.iou().tolist()]
        return [row.name, *("-" if v != v else f"{100 * v:.1f}" for v in values)]


def percent_table(matrix: Tensor) -> Tensor:
    """A confusion matrix [K, K] as shares of each true class, in percent."""
    return 100 * matrix / matrix.sum(1, keepdim=True).clamp(min=1)
