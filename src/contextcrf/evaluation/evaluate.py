"""Intersection over union at full resolution, and tables of it."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table as RichTable
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.inference.tta import ONE_VIEW, Views
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.utils.runtime import autocast


def confusion(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Counts int64 [K, K], rows truth, columns prediction, of labels int64 of one shape; void is 255 in the truth."""
    return multiclass_confusion_matrix(prediction, truth, num_classes, ignore_index=IGNORE_INDEX, validate_args=False)


def intersection_over_union(counts: Tensor) -> Tensor:
    """Of confusion matrices [..., K, K], per class [..., K]; NaN for a class in neither truth nor prediction.

    The mean over classes is `.nanmean(-1)`, Everingham et al. (2010).
    """
    hits = counts.diagonal(dim1=-2, dim2=-1).double()
    return hits / (counts.sum(-2) + counts.sum(-1) - hits)


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
        return intersection_over_union(self.counts)

    def mean_iou(self) -> float:
        """Mean over the classes that occur."""
        return self.iou().nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of known pixels labeled right."""
        return (self.counts.diagonal().sum() / self.counts.sum()).item()


@dataclass
class Row:
    """One row of a table: a system, its confusion matrix [K, K], and that of every image by itself."""

    name: str
    matrix: ConfusionMatrix
    seconds: float = float("nan")
    images: list[Tensor] = field(default_factory=list)


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
        # Classes go down: there may be many, and a terminal is not wide.
        table = RichTable(title=str(self.about.get("title", "IoU, %")))
        cells = [self._header(), *(self._cells(row) for row in self.rows)]
        for i, column in enumerate(cells):
            table.add_column("" if i == 0 else column[0], justify="left" if i == 0 else "right", overflow="fold")
        for number, line in enumerate(list(zip(*cells, strict=True))[1:]):
            table.add_row(*line, end_section=number == 1)
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


@dataclass(frozen=True)
class System:
    """What a row of a table evaluates: some of a model's potentials, with or without the dense CRF behind them."""

    name: str
    potentials: tuple[str, ...]
    dense: bool = False


def systems(model: ContextCRF, names: Sequence[str] | None = None) -> list[System]:
    """The rows of a table by name.

    - "unary" and the names of the relations: that potential alone (a relation's row is called pairwise-<relation>).
    - "crf": all potentials (the paper's "1unary+2pair"); "full": these, then the dense CRF.
    - several joined by "+", for example "unary+above", also with "+dense".

    Args:
        names: None is each potential alone that has been trained, then "crf", then "full" where the model has a dense
            CRF of its own.
    """
    together = f"1unary+{len(model.pairwise)}pair"
    if names is None:
        relations = model.trained_relations
        names = [UNARY, *relations, *(["crf"] if relations else [])]
        names += ["full"] if model.config.dense or model.dense is not None else []
    result = []
    for name in names:
        if name in ("crf", "full"):
            result.append(System(together if name == "crf" else "full", model.potentials, name == "full"))
            continue
        parts = name.split("+")
        potentials = model.select(part for part in parts if part != "dense")
        title = f"pairwise-{name}" if name in model.pairwise else name
        result.append(System(title, potentials, "dense" in parts))
    return result


@torch.inference_mode()
def predict(
    model: ContextCRF, image: Tensor, wanted: Sequence[System], precision: str = "32-true", views: Views = ONE_VIEW
) -> list[tuple[Tensor, float]]:
    """Marginals [K, H, W] of one image uint8 [3, H, W] for every system, and the seconds each takes on its own.

    The trunk runs once a view for all of them; its time counts for each. The model is put into evaluation mode.

    Raises:
        ValueError: a precision other than "32-true" and "bf16-mixed".
    """
    model.eval()
    device = model.mean.device
    pixels = image[None].to(device)
    names = model.select({name for system in wanted for name in system.potentials})
    totals = [torch.zeros(()) for _ in wanted]
    seconds = [0.0 for _ in wanted]
    with autocast(device, precision):
        for view, back in views.of(pixels.float()):
            start = _clock(device)
            features = model.features(view, names)
            trunk = _clock(device) - start
            for number, system in enumerate(wanted):
                start = _clock(device)
                totals[number] = totals[number].to(device) + back(model.infer(features, system.potentials).float())
                seconds[number] += trunk + _clock(device) - start
        results = []
        for number, system in enumerate(wanted):
            start = _clock(device)
            marginals = totals[number] / len(views)
            if system.dense:
                marginals = model.refine(marginals, pixels)
            results.append((marginals[0].cpu(), seconds[number] + _clock(device) - start))
    return results


def _clock(device: torch.device) -> float:
    """Seconds, after all work given to the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def evaluate(
    model: ContextCRF,
    data: SegmentationDataset,
    wanted: Sequence[System],
    precision: str = "32-true",
    progress: bool = True,
    views: Views = ONE_VIEW,
) -> list[Row]:
    """Evaluate systems at the images' full resolution. The model is put into evaluation mode.

    Args:
        data: images and masks, without augmentation.
        wanted: the systems; see `systems`.
        precision: "32-true" or "bf16-mixed".
        progress: show a progress bar.
        views: whose marginals are averaged.

    Raises:
        ValueError: another precision.
    """
    rows = [Row(system.name, ConfusionMatrix(len(data.classes)), 0.0) for system in wanted]
    for image, mask in track(data.without_transform(), "evaluate", total=len(data), disable=not progress):
        for row, (marginals, seconds) in zip(rows, predict(model, image, wanted, precision, views), strict=True):
            before = row.matrix.counts.clone()
            row.matrix.update(marginals.argmax(0)[None], mask[None])
            row.images.append(row.matrix.counts - before)
            row.seconds += seconds / len(data)
    return rows
