"""The report of `evaluate` as one HTML file that needs nothing beside it: tables, confusions, pictures."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from contextcrf.data.classes import IGNORE_INDEX, Classes, Color
from contextcrf.data.images import to_picture
from contextcrf.data.visualization import SERIES_COLORS, colorize
from contextcrf.evaluation.evaluate import EvaluationResults
from contextcrf.evaluation.metrics import image_scores

MISTAKES = 8
# Longer side of the pictures in the page, px.
SIDE = 800
# Green: right in the last system and wrong in the first; red: the other way round.
IMPROVED, WORSENED = (26, 127, 55), (207, 34, 46)


@dataclass(frozen=True)
class Example:
    """An image, and labels of it.

    Args:
        name: of the image.
        score: the image's mean IoU by itself, of the last system.
        image: uint8 [3, H, W].
        truth: int64 [H, W], 255 where unknown.
        labels: of some systems, int64 [H, W] by name.
    """

    name: str
    score: float
    image: Tensor
    truth: Tensor
    labels: Mapping[str, Tensor]


def pick(counts: Tensor, count: int) -> dict[str, list[int]]:
    """Numbers of the best, the middle and the worst images, `count` of each, none twice, the best first.

    Images without a known pixel have no score and are left out.

    Args:
        counts: confusion matrices [images, K, K] of the system that is judged.
        count: images of each kind.
    """
    scores = image_scores(counts)
    order = [i for i in scores.nan_to_num(-1).argsort(descending=True, stable=True).tolist() if scores[i] >= 0]
    count = min(count, len(order) // 3 or 1)
    middle = (len(order) - count) // 2
    picked = {"Best": order[:count], "Middle": order[middle : middle + count], "Worst": order[-count:]}
    seen: set[int] = set()
    for name, numbers in picked.items():
        picked[name] = [number for number in numbers if number not in seen]
        seen.update(numbers)
    return {name: numbers for name, numbers in picked.items() if numbers}


def render(results: EvaluationResults, classes: Classes, examples: Mapping[str, Sequence[Example]]) -> str:
    """The page.

    Args:
        results: the last system is shown in detail.
        classes: of the data.
        examples: under their headings; each has labels of the same systems.
    """
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
    columns = ["image", "truth", *(shown[0] if shown else [])]
    columns += ["change"] if shown and len(shown[0]) > 1 else []
    change = (
        f"Change from {columns[2]} to {columns[-2]}: green has become right, red has become wrong."
        if len(columns) > 4
        else ""
    )
    page = Environment(loader=PackageLoader("contextcrf.evaluation"), autoescape=True, undefined=StrictUndefined)
    return page.get_template("report.html").render(
        title=str(results.metadata.get("title", f"{results.metadata.get('data', 'Evaluation')}")),
        metadata=[(key, str(value).strip("`")) for key, value in results.metadata.items() if key != "title"],
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


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"


def _confusion(counts: Tensor, names: Sequence[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Shares of each row, as text (nothing below half a percent) and as the opacity of the color."""
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return [
        (
            name,
            [("" if share < 0.005 else f"{100 * share:.0f}", round(share if j != k else 0.0, 3)) for j, share in row],
        )
        for k, (name, row) in enumerate(zip(names, (enumerate(row) for row in shares.tolist()), strict=True))
    ]


def _mistakes(counts: Tensor, names: Sequence[str]) -> list[str]:
    """The largest confusions, in words."""
    wrong = counts.clone().fill_diagonal_(0)
    pixels, places = wrong.flatten().topk(min(MISTAKES, wrong.numel()))
    found = []
    for count, place in zip(pixels.tolist(), places.tolist(), strict=True):
        if count == 0:
            break
        truth, label = divmod(place, len(names))
        share, all_wrong = count / int(counts[truth].sum()), count / int(wrong.sum())
        taken = f"{100 * share:.1f} % of {names[truth]} is labeled {names[label]}"
        found.append(f"{taken}: {100 * all_wrong:.1f} % of all mistakes")
    return found


def _layers(example: Example, palette: Sequence[Color]) -> dict[str, Any]:
    shown = {"truth": example.truth, **example.labels}
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
    """Colors of labels; pixels without a label are transparent."""
    colors = colorize(labels, palette).convert("RGBA")
    colors.putalpha(Image.fromarray((labels != IGNORE_INDEX).numpy().astype(np.uint8) * 255))
    return _embedded(colors, Image.Resampling.NEAREST)


def _embedded(image: Image.Image, resample: Image.Resampling, kind: str = "PNG", **options: Any) -> str:
    """An image as a data URL, shrunk to a longer side of `SIDE`."""
    buffer = BytesIO()
    image.thumbnail((SIDE, SIDE), resample)
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
