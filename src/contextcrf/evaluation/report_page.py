"""The report of `evaluate` as one HTML file that needs nothing beside it: tables, confusions, pictures."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from contextcrf.data.classes import IGNORE_INDEX, Classes, Color
from contextcrf.evaluation.evaluate import Results, Row, intersection_over_union
from contextcrf.evaluation.figures import SERIES_COLORS, colorize

MISTAKES = 8
# Longer side of the pictures in the page, px.
SIDE = 800
# Green: the last row mends what the first had wrong; red: it spoils what the first had right.
MENDED, SPOILED = (26, 127, 55), (207, 34, 46)


@dataclass(frozen=True)
class Example:
    """An image, and labels of it.

    Args:
        name: of the image.
        score: its mean IoU by itself, of the last row.
        image: uint8 [3, H, W].
        truth: int64 [H, W], void 255.
        labels: of some rows, int64 [H, W] by name.
    """

    name: str
    score: float
    image: Tensor
    truth: Tensor
    labels: Mapping[str, Tensor]


def pick(row: Row, count: int) -> dict[str, list[int]]:
    """Numbers of the best, the middle and the worst images of a row, `count` of each, none twice, the best first.

    Images whose truth is void alone have no score and are left out.
    """
    scores = intersection_over_union(torch.stack(row.images)).nanmean(-1)
    order = [i for i in scores.nan_to_num(-1).argsort(descending=True, stable=True).tolist() if scores[i] >= 0]
    count = min(count, len(order) // 3 or 1)
    middle = (len(order) - count) // 2
    picked = {"Best": order[:count], "Middle": order[middle : middle + count], "Worst": order[-count:]}
    seen: set[int] = set()
    for name, numbers in picked.items():
        picked[name] = [number for number in numbers if number not in seen]
        seen.update(numbers)
    return {name: numbers for name, numbers in picked.items() if numbers}


def render(results: Results, classes: Classes, examples: Mapping[str, Sequence[Example]]) -> str:
    """The page.

    Args:
        results: rows with their confusion matrices; the last row is looked at closely.
        classes: of the data.
        examples: under their headings; each has labels of the same rows.
    """
    last = results.rows[-1]
    shades = [SERIES_COLORS[number % len(SERIES_COLORS)] for number in range(len(results.rows))]
    scores = [row.matrix.iou().tolist() for row in results.rows]
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
    change = f"Change from {columns[2]} to {columns[-2]}: green is mended, red is spoiled." if len(columns) > 4 else ""
    page = Environment(loader=PackageLoader("contextcrf"), autoescape=True, undefined=StrictUndefined)
    return page.get_template("report.html").render(
        title=str(results.about.get("title", f"{results.about.get('data', 'Evaluation')}")),
        about=[(key, str(value).strip("`")) for key, value in results.about.items() if key != "title"],
        rows=[
            {
                "name": row.name,
                "mean": _percent(row.matrix.mean_iou()),
                "accuracy": _percent(row.matrix.pixel_accuracy()),
                "seconds": "-" if row.seconds != row.seconds else f"{row.seconds:.2f}",
                "shade": shade,
            }
            for row, shade in zip(results.rows, shades, strict=True)
        ],
        classes=entries,
        last=last.name,
        confusion=_confusion(last.matrix.counts, classes.names),
        mistakes=_mistakes(last.matrix.counts, classes.names),
        columns=columns,
        change=change,
        groups=[
            (heading, [_layers(example, classes.palette) for example in group]) for heading, group in examples.items()
        ],
    )


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"


def _confusion(counts: Tensor, names: Sequence[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Shares of each row, as text (nothing below half a percent) and as the strength of the color."""
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
        taken = f"{100 * share:.1f} % of {names[truth]} is taken for {names[label]}"
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
        picture[(right_now & ~right_before & known).numpy()] = (*MENDED, 255)
        picture[(right_before & ~right_now & known).numpy()] = (*SPOILED, 255)
        layers.append(("change", _embedded(Image.fromarray(picture), Image.Resampling.NEAREST)))
    photo = Image.fromarray(example.image.permute(1, 2, 0).contiguous().numpy())
    return {
        "name": example.name,
        "score": _percent(example.score),
        "photo": _embedded(photo, Image.Resampling.LANCZOS, "JPEG", quality=85),
        "layers": layers,
    }


def _cover(labels: Tensor, palette: Sequence[Color]) -> str:
    """Colors of labels; the void lets the photograph through."""
    colors = colorize(labels, palette).convert("RGBA")
    colors.putalpha(Image.fromarray((labels != IGNORE_INDEX).numpy().astype(np.uint8) * 255))
    return _embedded(colors, Image.Resampling.NEAREST)


def _embedded(image: Image.Image, resample: Image.Resampling, kind: str = "PNG", **options: Any) -> str:
    """An image as a data URL, shrunk to a longer side of `SIDE`."""
    buffer = BytesIO()
    image.thumbnail((SIDE, SIDE), resample)
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
