"""Tables I-III and Figures 6-10 of the paper with the results of a study beside the values of the paper."""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.images import to_picture
from contextcrf.data.layouts import open_dataset
from contextcrf.data.visualization import colorize, qualitative_grid
from contextcrf.evaluation.comparison import COUNTS, write_counts
from contextcrf.evaluation.evaluate import EvaluationResults, SystemResult
from contextcrf.evaluation.metrics import image_scores
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.system import System
from contextcrf.reproduction.rows import TableRow, check, measure
from contextcrf.reproduction.runner import Runner
from contextcrf.utils.files import atomic_write, write_json, write_text
from contextcrf.utils.progress import track
from contextcrf.utils.runtime import resolve_precision
from contextcrf.utils.tables import Table

logger = logging.getLogger(__name__)

# Gains are differences to this row.
UNARY_ROW = "unary-3scales"
# The mean IoU of other systems in percent, as cited in Table I (VOC 2012 val) and Table III (VOC 2012 test).
CITED_VAL = {
    "Zoom-out": 63.5,
    "Deep-struct": 64.1,
    "DeepLab": 59.8,
    "DeepLab-CRF": 63.7,
    "DeepLab-M-CRF": 65.2,
    "BoxSup": 63.8,
    "BoxSup (COCO)": 68.1,
}
CITED_TEST = {
    "Zoom-out": 64.4,
    "SDS": 51.6,
    "DeepLab-CRF": 66.4,
    "DeepLab-M-CRF": 67.1,
    "DeepLab-CRF (COCO)": 70.4,
    "DeepLab-M-C-L (COCO)": 72.7,
    "BoxSup (semi, COCO)": 71.0,
}
EXAMPLES = 4


def write_all(runner: Runner, rows: Sequence[TableRow]) -> EvaluationResults:
    """Build and evaluate rows, and write their tables and figures to the folder of the runner.

    Args:
        runner: the runner.
        rows: the rows.

    Returns:
        The results of the rows.

    Raises:
        ValueError: a row cannot be built, see `check`.
        DataError: an image or a mask is broken.

    Example:
        >>> import yaml
        >>> from contextcrf import ContextCRF
        >>> from contextcrf.data.synthetic import write_scenes
        >>> from contextcrf.reproduction import open_study
        >>> data = write_scenes("scenes", train=1, val=2, height=64, width=96)
        >>> small = {"backbone": "plain", "channels": 8, "hidden": 8, "scales": [1.0]}
        >>> study = {"model": small, "training": {"precision": "32-true"}, "pretrained": False}
        >>> _ = Path("study.yaml").write_text(yaml.safe_dump(study))
        >>> runner = Runner(open_study("study.yaml"), data, Path("tables"))
        >>> classes = open_dataset(data, "val").classes
        >>> model = ContextCRF(runner.study.model, classes, pretrained=False, inference=runner.inference).eval()
        >>> results = write_all(runner, [TableRow("untrained", lambda runner: model)])
        >>> [path.name for path in sorted(Path("tables").glob("table?.md"))]
        ['table1.md', 'table2.md', 'table3.md']
    """
    check(runner, rows)
    study, out = runner.study, runner.out
    val = open_dataset(runner.data, study.val_split)
    metadata = {
        "data": f"{runner.data.name} {study.val_split}, {len(val)} images",
        "backbone": study.model.backbone,
        "precision": resolve_precision(study.training.precision),
    }
    results = EvaluationResults(val.classes.names, [], metadata)
    for number, row in enumerate(rows, 1):
        logger.info("Row %d of %d: %s", number, len(rows), row.name)
        results.systems = [*results.systems, measure(runner, row)]
        # Results are written after each row, since the next row may take a day.
        results.write(out)
        write_counts(out / COUNTS, val.names(runner.data), {found.name: found.counts for found in results.systems})
        write_tables(results, rows[:number], out)
    draw_figures(runner, rows, results.systems, val, out)
    return results


def write_tables(results: EvaluationResults, rows: Sequence[TableRow], out: Path) -> None:
    """Write table1, table2 and table3 as .md, .tex and .json files."""
    for number, table in enumerate(tables(rows, results), 1):
        write_text(out / f"table{number}.md", table.to_markdown())
        write_text(out / f"table{number}.tex", table.to_latex())
        write_json(out / f"table{number}.json", table.to_dict())


def tables(rows: Sequence[TableRow], results: EvaluationResults) -> tuple[Table, Table, Table]:
    """Return the three tables of the paper.

    Table I has the mean IoU of all rows. Table II has the IoU of each class and the gains over the unary. Table III has
    the rows for which the paper has a result on the test set.
    """
    data = results.metadata["data"]
    measured = dict(zip((row.name for row in rows), results.systems, strict=True))
    iou = {name: result.matrix.iou() for name, result in measured.items()}
    mean = {name: result.matrix.mean_iou() for name, result in measured.items()}
    first = [[row.name, _percent(mean[row.name]), _cited(row.val), f"{measured[row.name].seconds:.2f}"] for row in rows]
    first += [[name, "", f"{value:.1f}", ""] for name, value in CITED_VAL.items()]
    table1 = Table(
        ["method", "here", "paper", "seconds per image"],
        first,
        f"Table I. Mean IoU in percent: here on {data}, in the paper on PASCAL VOC 2012 val.",
    )
    second = []
    for row in rows:
        second.append([row.name, _percent(mean[row.name]), *map(_percent, iou[row.name].tolist())])
        if UNARY_ROW in iou and not row.system.unary:
            gain = iou[row.name] - iou[UNARY_ROW]
            total = mean[row.name] - mean[UNARY_ROW]
            second.append(["gain over unary", *(_percent(value, "+") for value in (total, *gain.tolist()))])
    table2 = Table(["method", "mean", *results.classes], second, f"Table II. IoU of each class in percent on {data}.")
    third = [[row.name, _percent(mean[row.name]), _cited(row.test)] for row in rows if row.test is not None]
    third += [[name, "", f"{value:.1f}"] for name, value in CITED_TEST.items()]
    table3 = Table(
        ["method", "here", "paper, test"],
        third,
        f"Table III. Mean IoU in percent: here on {data}, in the paper on PASCAL VOC 2012 test. The ground truth of "
        "the test set is only on the evaluation server, see contextcrf voc-submission.",
    )
    return table1, table2, table3


def _percent(value: float, sign: str = "") -> str:
    return "" if value != value else f"{100 * value:{sign}.1f}"


def _cited(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def draw_figures(
    runner: Runner, rows: Sequence[TableRow], measured: Sequence[SystemResult], val: SegmentationDataset, out: Path
) -> None:
    """Draw Figures 6-10 of the paper for the last of the rows "unary-3scales", "1unary+2pair" and "full" in `rows`.

    The file fig6.png shows the images with the largest gains over the unary. The files fig7.png to fig9.png show
    examples that are spread over all scores, and fig10.png shows the worst images. Figures without their rows are left
    out.
    """
    by_name = {row.name: (row, result) for row, result in zip(rows, measured, strict=True)}
    ours = [name for name in (UNARY_ROW, "1unary+2pair", "full") if name in by_name]
    if not ours:
        return
    row, result = by_name[ours[-1]]
    scores = image_scores(result.counts).nan_to_num(-1)
    order = scores.argsort(descending=True).tolist()

    def built(row: TableRow) -> _Drawn:
        return row.name, Predictor(row.build(runner)), row.system

    last = built(row)
    if len(ours) > 1 and ours[0] == UNARY_ROW:
        before, unary = by_name[UNARY_ROW][1], built(by_name[UNARY_ROW][0])
        gained = (scores - image_scores(before.counts).nan_to_num(-1)).argsort(descending=True).tolist()[:EXAMPLES]
        _draw([unary, last], val, gained, out / "fig6.png")
    count = min(3 * EXAMPLES, len(order))
    spread = [i * len(order) // count for i in range(count)]
    for number in range(3):
        chosen = spread[number * EXAMPLES : (number + 1) * EXAMPLES]
        if chosen:
            _draw([last], val, chosen, out / f"fig{7 + number}.png")
    failed = [number for number in reversed(order) if scores[number] >= 0][:EXAMPLES]
    _draw([last], val, failed, out / "fig10.png")


# Name, predictor and system of a drawn row.
_Drawn = tuple[str, Predictor, System]


def _draw(drawn: Sequence[_Drawn], val: SegmentationDataset, numbers: Sequence[int], path: Path) -> None:
    """Draw a grid of images with their ground truth and the labels of rows."""
    pictures: list[list[Image.Image]] = []
    seen: list[Tensor] = []
    for number in track(numbers, f"Drawing {path.name}"):
        image, mask = val.sample(number)
        labels = [mask, *(predictor.predict(image, [system])[0].labels for _, predictor, system in drawn)]
        pictures.append([to_picture(image), *(colorize(found, val.classes.palette) for found in labels)])
        seen += labels
    if pictures:
        titles = ["image", "ground truth", *(name for name, _, _ in drawn)]
        grid = qualitative_grid(pictures, titles, val.classes, seen)
        with atomic_write(path) as partial:
            grid.save(partial)
