"""Evaluation of systems on a data set, at the full resolution of the images."""

import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table as RichTable
from torch import Tensor

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation.comparison import Gain
from contextcrf.evaluation.metrics import ConfusionMatrix, confusion
from contextcrf.inference.predictor import Prediction, Predictor
from contextcrf.modeling.network import ContextNetwork
from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE, System
from contextcrf.utils.files import write_json, write_text
from contextcrf.utils.pipeline import same_key
from contextcrf.utils.progress import track
from contextcrf.utils.tables import Table


@dataclass(frozen=True)
class PackedLabels:
    """Compressed labels of one image, a few kilobytes.

    A report shows the best and the worst images, which are known only after all images have been evaluated. Until then
    the labels of all images are kept in this form.

    Args:
        shape: height and width in pixels.
        data: the labels, uint8 in row order, compressed with zlib.

    Example:
        >>> PackedLabels.pack(torch.tensor([[0, 1], [2, 255]])).unpack().tolist()
        [[0, 1], [2, 255]]
    """

    shape: tuple[int, int]
    data: bytes

    @classmethod
    def pack(cls, labels: Tensor) -> "PackedLabels":
        """Compress labels [H, W] with values in 0..255."""
        height, width = labels.shape
        return cls((height, width), zlib.compress(labels.byte().contiguous().numpy().tobytes(), 1))

    def unpack(self) -> Tensor:
        """Return the labels, int64 [H, W]."""
        flat = torch.frombuffer(bytearray(zlib.decompress(self.data)), dtype=torch.uint8)
        return flat.view(self.shape).long()


@dataclass
class SystemResult:
    """The result of one system.

    Args:
        name: name of the system.
        counts: confusion matrix of each image, int64 [images, K, K].
        seconds: mean time per image in seconds; NaN if unknown.
        labels: predicted labels of each image; empty if they were not kept.

    Example:
        >>> SystemResult("unary", torch.tensor([[[3, 1], [0, 4]]])).matrix.pixel_accuracy()
        0.875
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
    """The results of systems on the same images, which can be written as a terminal table, Markdown and JSON.

    Args:
        classes: names of the classes.
        systems: result of each system.
        metadata: named facts about the evaluation, for example data, model, inference settings and precision.
        gains: mIoU gains of the CRF with their confidence intervals, as `comparison.gains` returns them.

    Example:
        >>> systems = [SystemResult("unary", torch.tensor([[[3, 1], [0, 4]]]))]
        >>> results = EvaluationResults(("sky", "sea"), systems, {"data": "beach val, 1 image"})
        >>> print(results.to_markdown())
        - data: beach val, 1 image
        <BLANKLINE>
        | system   |   mean IoU |   pixel acc. |   sky |   sea |
        |:---------|-----------:|-------------:|------:|------:|
        | unary    |       77.5 |         87.5 |  75.0 |  80.0 |
        <BLANKLINE>
    """

    classes: Sequence[str]
    systems: Sequence[SystemResult]
    metadata: dict[str, Any]
    gains: Sequence[Gain] = ()

    def to_rich(self) -> RichTable:
        """Return a table for the terminal: mean IoU, pixel accuracy and IoU per class, in percent."""
        # Each class is a row, since many classes would not fit into the width of a terminal.
        table = RichTable(title=str(self.metadata.get("title", "IoU, %")))
        cells = [self._header(), *(self._cells(system) for system in self.systems)]
        for i, column in enumerate(cells):
            table.add_column("" if i == 0 else column[0], justify="left" if i == 0 else "right", overflow="fold")
        for number, line in enumerate(list(zip(*cells, strict=True))[1:]):
            table.add_row(*line, end_section=number == 1)
        return table

    def to_markdown(self) -> str:
        """Return the metadata, a Markdown table with values in percent, and the mIoU gains."""
        lines = "".join(f"- {key}: {_flat(value)}\n" for key, value in self.metadata.items())
        table = Table(self._header(), [self._cells(system) for system in self.systems]).to_markdown()
        verdicts = "".join(f"- {gain}\n" for gain in self.gains)
        return f"{lines}\n{table}" + (f"\n{verdicts}" if verdicts else "")

    def to_dict(self) -> dict[str, Any]:
        """Return all results for JSON.

        Scores are fractions, not percent. The IoU of a class that does not occur is None.
        """
        return {
            "metadata": self.metadata,
            "classes": list(self.classes),
            "systems": [self._system_dict(system) for system in self.systems],
            "gains": [gain.to_dict() for gain in self.gains],
        }

    def write(self, folder: Path) -> None:
        """Write results.json and results.md into a folder, which is created if it is missing."""
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


def _flat(value: Any) -> str:
    """Return a metadata value as one line: settings become YAML."""
    if not isinstance(value, dict):
        return str(value)
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip() if value else "default"


def default_systems(model: ContextNetwork) -> list[System]:
    """Return the systems that `contextcrf evaluate` measures by default.

    These are the unary alone, each trained relation alone, unary+pairwise if a relation has been trained, and
    unary+pairwise+dense if the dense CRF of the model is learned, or if its inference settings have parameters of a
    dense CRF that is not switched off.
    """
    relations = model.trained_relations
    systems = [UNARY_ONLY, *(System(unary=False, relations=(name,)) for name in relations)]
    if relations:
        systems.append(UNARY_PAIRWISE)
    if model.dense is not None or (model.inference.dense and not model.inference.dense_is_off):
        systems.append(FULL)
    return systems


def evaluate(
    predictor: Predictor,
    data: SegmentationDataset,
    systems: Sequence[System],
    keep_labels: Collection[System] = (),
) -> list[SystemResult]:
    """Evaluate systems on a data set; the network runs once per image for all systems.

    The next image is read while the network computes.

    Args:
        predictor: the model with its inference settings.
        data: images and masks; the transform of the data set is not applied.
        systems: systems to evaluate.
        keep_labels: systems whose predicted labels are kept, for the figures of a report.

    Returns:
        One result for each system, in the order of `systems`.

    Example:
        >>> from contextcrf import ContextCRF, InferenceConfig, ModelConfig
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> data = open_dataset(write_scenes("scenes", train=1, val=2, height=64, width=96), "val")
        >>> config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> settings = InferenceConfig(precision="32-true")
        >>> model = ContextCRF(config, data.classes, pretrained=False, inference=settings).eval()
        >>> [result] = evaluate(Predictor(model), data, [UNARY_ONLY])
        >>> result.name, result.counts.shape
        ('unary', torch.Size([2, 10, 10]))
    """
    num_classes = len(data.classes)
    counts: list[list[Tensor]] = [[] for _ in systems]
    labels: list[list[PackedLabels]] = [[] for _ in systems]
    seconds = [0.0 for _ in systems]
    for mask, predictions in track(_predictions(predictor, data, systems), "Evaluating", total=len(data)):
        for number, prediction in enumerate(predictions):
            found = prediction.labels
            counts[number].append(confusion(found, mask, num_classes))
            if prediction.system in keep_labels:
                labels[number].append(PackedLabels.pack(found))
            seconds[number] += prediction.seconds / len(data)
    return [
        SystemResult(system.name, torch.stack(counts[number]), seconds[number], labels[number])
        for number, system in enumerate(systems)
    ]


def _predictions(
    predictor: Predictor, data: SegmentationDataset, systems: Sequence[System]
) -> Iterator[tuple[Tensor, list[Prediction]]]:
    """Yield the mask and the predictions of each image. Images of one size are predicted together."""
    for batch in same_key(data.without_transform(), lambda sample: sample[0].shape, predictor.images_at_once):
        images, masks = zip(*batch, strict=True)
        yield from zip(masks, predictor.predict_batch(torch.stack(images), systems), strict=True)
