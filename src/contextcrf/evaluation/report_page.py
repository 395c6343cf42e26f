"""The report of an evaluation as one self-contained HTML file with tables, confusion matrix and images."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from contextcrf.data.classes import IGNORE_INDEX, Classes, Color
from contextcrf.data.images import to_picture
from contextcrf.data.visualization import SERIES_COLORS, colorize
from contextcrf.evaluation.evaluate import EvaluationResults
from contextcrf.evaluation.metrics import image_scores

MISTAKES = 8
# Longer side of the embedded images in pixels.
SIDE = 800
# Green pixels are wrong in the first system and right in the last, red pixels the reverse.
IMPROVED, WORSENED = (26, 127, 55), (207, 34, 46)


@dataclass(frozen=True)
class Example:
    """An image with its ground truth and the predicted labels of some systems.

    Args:
        name: name of the image.
        score: mean IoU of the last system on this image alone, a fraction.
        image: uint8 [C, H, W].
        truth: ground truth, int64 [H, W]; 255 for pixels without a label.
        labels: predicted labels by the name of the system, int64 [H, W].
    """

    name: str
    score: float
    image: Tensor
    truth: Tensor
    labels: Mapping[str, Tensor]


def pick(counts: Tensor, count: int) -> dict[str, list[int]]:
    """Choose the images with the best, median and worst mean IoU. No image is chosen twice.

    Images without labeled pixels have no score and are left out.

    Args:
        counts: confusion matrices [images, K, K] of a system.
        count: number of images per group.

    Returns:
        Indices of the images by the heading of the group, the best first.
    """
    scores = image_scores(counts)
    order = [i for i in scores.nan_to_num(-1).argsort(descending=True, stable=True).tolist() if scores[i] >= 0]
    count = min(count, len(order) // 3 or 1)
    middle = (len(order) - count) // 2
    picked = {"Best": order[:count], "Median": order[middle : middle + count], "Worst": order[-count:]}
    seen: set[int] = set()
    for name, numbers in picked.items():
        picked[name] = [number for number in numbers if number not in seen]
        seen.update(numbers)
    return {name: numbers for name, numbers in picked.items() if numbers}


def render(results: EvaluationResults, classes: Classes, examples: Mapping[str, Sequence[Example]]) -> str:
    """Render the HTML page.

    Args:
        results: results of the systems; the confusion matrix is that of the last system.
        classes: classes of the data set.
        examples: examples by heading; all of them have labels of the same systems.

    Returns:
        The text of the page.
    """
    metadata = {key: value for key, value in results.metadata.items() if key != "title"}
    last, matrices = results.systems[-1], [system.matrix for system in results.systems]
    shades = [SERIES_COLORS[number % len(SERIES_COLORS)] for number in range(len(results.systems))]
    scores = [matrix.iou().tolist() for matrix in matrices]
    entries = [
        {
            "name": name,
            "color": "rgb({} {} {})".format(*color),
            "iou": [_percent(row[k]) for row in scores],
            "bars": [(0 if row[k] != row[k] else round(100 * row[k], 1), shades[i]) for i, row in enumerate(scores)],
        }
        for k, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True))
    ]
    shown = [list(example.labels) for group in examples.values() for example in group]
    columns = ["image", "ground truth", *(shown[0] if shown else [])]
    columns += ["change"] if shown and len(shown[0]) > 1 else []
    change = (
        f"Change from {columns[2]} to {columns[-2]}: green pixels have become right, red pixels have become wrong."
        if len(columns) > 4
        else ""
    )
    page = Environment(loader=PackageLoader("contextcrf.evaluation"), autoescape=True, undefined=StrictUndefined)
    return page.get_template("report.html").render(
        title=str(results.metadata.get("title", f"{results.metadata.get('data', 'Evaluation')}")),
        metadata=[(key, _shown(value), isinstance(value, dict)) for key, value in metadata.items()],
        gains=results.gains,
        systems=[
            {
                "name": system.name,
                "mean": _percent(matrix.mean_iou()),
                "accuracy": _percent(matrix.pixel_accuracy()),
                "seconds": "-" if system.seconds != system.seconds else f"{system.seconds:.2f}",
                "shade": shade,
            }
            for system, matrix, shade in zip(results.systems, matrices, shades, strict=True)
        ],
        classes=entries,
        last=last.name,
        confusion=_confusion(matrices[-1].counts, classes.names),
        mistakes=_mistakes(matrices[-1].counts, classes.names),
        columns=columns,
        change=change,
        groups=[
            (heading, [_layers(example, classes.palette) for example in group]) for heading, group in examples.items()
        ],
    )


def _shown(value: Any) -> str:
    """Return a metadata value as text: settings become YAML, and Markdown quotes are removed."""
    if not isinstance(value, dict):
        return str(value).strip("`")
    return yaml.safe_dump(value, sort_keys=False, width=100).strip() if value else "default"


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"


def _confusion(counts: Tensor, names: Sequence[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return the shares of each row as text (empty below 0.5 %) and as the opacity of the color."""
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return [
        (
            name,
            [("" if share < 0.005 else f"{100 * share:.0f}", round(share if j != k else 0.0, 3)) for j, share in row],
        )
        for k, (name, row) in enumerate(zip(names, (enumerate(row) for row in shares.tolist()), strict=True))
    ]


def _mistakes(counts: Tensor, names: Sequence[str]) -> list[str]:
    """Describe the most frequent confusions, one sentence each."""
    wrong = counts.clone().fill_diagonal_(0)
    pixels, places = wrong.flatten().topk(min(MISTAKES, wrong.numel()))
    found = []
    for count, place in zip(pixels.tolist(), places.tolist(), strict=True):
        if count == 0:
            break
        truth, label = divmod(place, len(names))
        share, all_wrong = count / int(counts[truth].sum()), count / int(wrong.sum())
        confused = f"{100 * share:.1f} % of the {names[truth]} pixels are labeled {names[label]}"
        found.append(f"{confused} ({100 * all_wrong:.1f} % of all errors)")
    return found


def _layers(example: Example, palette: Sequence[Color]) -> dict[str, Any]:
    """Return the embedded image of an example, and the layers that the page draws over it."""
    shown = {"ground truth": example.truth, **example.labels}
    layers: list[tuple[str, str | None]] = [("image", None)]
    layers += [(name, _cover(labels, palette)) for name, labels in shown.items()]
    if len(example.labels) > 1:
        first, *_, last = example.labels.values()
        right_before, right_now, known = first == example.truth, last == example.truth, example.truth != IGNORE_INDEX
        picture = np.zeros((*example.truth.shape, 4), np.uint8)
        picture[(right_now & ~right_before & known).numpy()] = (*IMPROVED, 255)
        picture[(right_before & ~right_now & known).numpy()] = (*WORSENED, 255)
        layers.append(("change", _embedded(Image.fromarray(picture), Image.Resampling.NEAREST)))
    photo = to_picture(example.image)
    return {
        "name": example.name,
        "score": _percent(example.score),
        "photo": _embedded(photo, Image.Resampling.LANCZOS, "JPEG", quality=85),
        "layers": layers,
    }


def _cover(labels: Tensor, palette: Sequence[Color]) -> str:
    """Return an embedded image of labels in their colors; pixels without a label are transparent."""
    colors = colorize(labels, palette).convert("RGBA")
    colors.putalpha(Image.fromarray((labels != IGNORE_INDEX).numpy().astype(np.uint8) * 255))
    return _embedded(colors, Image.Resampling.NEAREST)


def _embedded(image: Image.Image, resample: Image.Resampling, kind: str = "PNG", **options: Any) -> str:
    """Return an image as a data URL; a longer side above `SIDE` is reduced to `SIDE`."""
    buffer = BytesIO()
    image.thumbnail((SIDE, SIDE), resample)
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
