"""Systems measured on a data set at the images' full resolution."""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table as RichTable
from torch import Tensor

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation.metrics import ConfusionMatrix, confusion
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.network import ContextNetwork
from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE, System
from contextcrf.utils.files import write_json, write_text
from contextcrf.utils.progress import track
from contextcrf.utils.tables import Table


@dataclass(frozen=True)
class PackedLabels:
    """Labels [H, W] in compressed form, some kilobytes.

    A report shows a few images, which are chosen after all have been measured; the labels of all are kept until then.
    """

    shape: tuple[int, int]
    data: bytes

    @classmethod
    def pack(cls, labels: Tensor) -> "PackedLabels":
        """Compress labels [H, W] in 0..255."""
        height, width = labels.shape
        return cls((height, width), zlib.compress(labels.byte().contiguous().numpy().tobytes(), 1))

    def unpack(self) -> Tensor:
        """The labels, int64 [H, W]."""
        flat = torch.frombuffer(bytearray(zlib.decompress(self.data)), dtype=torch.uint8)
        return flat.view(self.shape).long()


@dataclass
class SystemResult:
    """The measurement of one system.

    Attributes:
        name: of the system.
        counts: the confusion matrix of every image, int64 [images, K, K].
        seconds: per image, NaN if unknown.
        labels: of every image, if they were kept.
    """

    name: str
    counts: Tensor
    seconds: float = float("nan")
    labels: Sequence[PackedLabels] = field(default=(), repr=False)

    @property
    def matrix(self) -> ConfusionMatrix:
        """The confusion matrix of all images together."""
        return ConfusionMatrix.of(self.counts.sum(0))


@dataclass
class EvaluationResults:
    """Measurements of systems over the same images and classes; written as a terminal table, Markdown and JSON.

    Args:
        classes: names of the classes.
        systems: the measurements.
        metadata: what was measured and how: data, split, images, model, precision, command.
    """

    classes: Sequence[str]
    systems: Sequence[SystemResult]
    metadata: dict[str, Any]

    def to_rich(self) -> RichTable:
        """For the terminal: mean IoU, pixel accuracy and IoU per class, in percent."""
        # Classes go down: there may be many, and a terminal is not wide.
        table = RichTable(title=str(self.metadata.get("title", "IoU, %")))
        cells = [self._header(), *(self._cells(system) for system in self.systems)]
        for i, column in enumerate(cells):
            table.add_column("" if i == 0 else column[0], justify="left" if i == 0 else "right", overflow="fold")
        for number, line in enumerate(list(zip(*cells, strict=True))[1:]):
            table.add_row(*line, end_section=number == 1)
        return table

    def to_markdown(self) -> str:
        """A Markdown table, preceded by the metadata."""
        lines = "".join(f"- {key}: {value}\n" for key, value in self.metadata.items())
        return f"{lines}\n{Table(self._header(), [self._cells(system) for system in self.systems]).to_markdown()}"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON: fractions, not percent; None where a class does not occur."""
        return {
            "metadata": self.metadata,
            "classes": list(self.classes),
            "systems": [self._system_dict(system) for system in self.systems],
        }

    def write(self, folder: Path) -> None:
        """Write results.json and results.md into a folder, made if missing."""
        write_json(folder / "results.json", self.to_dict())
        write_text(folder / "results.md", self.to_markdown())

    def _system_dict(self, system: SystemResult) -> dict[str, Any]:
        matrix = system.matrix
        iou = zip(self.classes, matrix.iou().tolist(), strict=True)
        return {
            "name": system.name,
            "mean_iou": matrix.mean_iou(),
            "pixel_accuracy": matrix.pixel_accuracy(),
            "iou": {name: None if value != value else value for name, value in iou},
            "seconds_per_image": None if system.seconds != system.seconds else system.seconds,
            "confusion": matrix.counts.tolist(),
        }

    def _header(self) -> list[str]:
        return ["system", "mean IoU", "pixel acc.", *self.classes]

    def _cells(self, system: SystemResult) -> list[str]:
        matrix = system.matrix
        values = [matrix.mean_iou(), matrix.pixel_accuracy(), *matrix.iou().tolist()]
        return [system.name, *("-" if v != v else f"{100 * v:.1f}" for v in values)]


def default_systems(model: ContextNetwork) -> list[System]:
    """The systems that are evaluated unless others are asked for.

    Each potential alone that has been trained, then unary+pairwise if a relation has been trained, then
    unary+pairwise+dense if the model has a dense CRF of its own.
    """
    relations = model.trained_relations
    systems = [UNARY_ONLY, *(System(unary=False, relations=(name,)) for name in relations)]
    if relations:
        systems.append(UNARY_PAIRWISE)
    if model.inference.dense or model.dense is not None:
        systems.append(FULL)
    return systems


def evaluate(
    predictor: Predictor,
    data: SegmentationDataset,
    systems: Sequence[System],
    keep_labels: Collection[System] = (),
) -> list[SystemResult]:
    """Measure systems; the network runs once per image for all of them.

    Args:
        predictor: the model with its settings.
        data: images and masks; their transform is not applied.
        systems: what is measured.
        keep_labels: the systems whose labels are kept, for pictures.

    Returns:
        One result for each system, in their order.
    """
    num_classes = len(data.classes)
    counts: list[list[Tensor]] = [[] for _ in systems]
    labels: list[list[PackedLabels]] = [[] for _ in systems]
    seconds = [0.0 for _ in systems]
    for image, mask in track(data.without_transform(), "evaluate", total=len(data)):
        for number, prediction in enumerate(predictor.predict(image, systems)):
            found = prediction.labels
            counts[number].append(confusion(found, mask, num_classes))
            if prediction.system in keep_labels:
                labels[number].append(PackedLabels.pack(found))
            seconds[number] += prediction.seconds / len(data)
    return [
        SystemResult(system.name, torch.stack(counts[number]), seconds[number], labels[number])
        for number, system in enumerate(systems)
    ]
