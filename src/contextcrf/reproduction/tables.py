"""The paper's Tables I-III and Figs. 6-10, filled with what was measured here, beside what the paper says."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.evaluation.comparison import COUNTS, write_counts
from contextcrf.evaluation.evaluate import Results, intersection_over_union, predict, systems
from contextcrf.evaluation.evaluate import Row as Measured
from contextcrf.evaluation.figures import colorize, qualitative_grid
from contextcrf.modeling.model import ContextCRF
from contextcrf.reproduction.rows import Row, check, measure
from contextcrf.reproduction.runner import Workshop

# Other systems' mean IoU in Table I (VOC 2012 val) and Table III (test), as the paper cites them, in percent.
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


@dataclass(frozen=True)
class Table:
    """Cells of text, the first column a name; numbers in percent, "" where there is none."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_markdown(self) -> str:
        lines = ["| " + " | ".join(self.header) + " |", "|---|" + "---:|" * (len(self.header) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return f"{self.caption}\n\n" + "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """A booktabs table."""
        lines = [" & ".join(map(_escaped, row)) + r" \\" for row in self.rows]
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_escaped(self.caption)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
                r"\toprule",
                " & ".join(map(_escaped, self.header)) + r" \\",
                r"\midrule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def to_json(self) -> str:
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return json.dumps({"caption": self.caption, "rows": rows}, indent=1) + "\n"


def _escaped(text: str) -> str:
    for sign in "&%_#":
        text = text.replace(sign, f"\\{sign}")
    return text


def write_all(shop: Workshop, rows: Sequence[Row]) -> Results:
    """Make and measure rows, and write tables and figures of them into the workshop's folder."""
    check(shop, rows)
    val = open_dataset(shop.data, shop.study.val_split)
    about = {
        "data": f"{shop.data.name} {shop.study.val_split}, {len(val)} images",
        "backbone": shop.study.model.backbone,
    }
    results = Results(val.classes.names, [], about)
    for number, row in enumerate(rows, 1):
        print(f"row {number} of {len(rows)}: {row.name}")
        results.rows = [*results.rows, measure(shop, row)]
        # After each: the next may take a day.
        results.write(shop.out)
        counts = {measured.name: torch.stack(list(measured.images)) for measured in results.rows}
        write_counts(shop.out / COUNTS, val.names(shop.data), counts)
        write_tables(results, rows[:number], shop.out)
    draw_figures(shop, rows, results.rows, val, shop.out)
    return results


def write_tables(results: Results, rows: Sequence[Row], out: Path) -> None:
    """Write table1, table2 and table3, each as .md, .tex and .json."""
    measured = dict(zip((row.name for row in rows), results.rows, strict=True))
    for number, table in enumerate(tables(rows, measured, results), 1):
        for suffix, text in (("md", table.to_markdown()), ("tex", table.to_latex()), ("json", table.to_json())):
            (out / f"table{number}.{suffix}").write_text(text)


def tables(rows: Sequence[Row], measured: dict[str, Measured], results: Results) -> tuple[Table, Table, Table]:
    """Table I, all systems; Table II, the same by class, gains over the unary; Table III, the systems of its test."""
    data = results.about["data"]
    first = [
        [row.name, _percent(measured[row.name].matrix.mean_iou()), _cited(row.val), f"{measured[row.name].seconds:.2f}"]
        for row in rows
    ]
    first += [[name, "", f"{value:.1f}", ""] for name, value in CITED_VAL.items()]
    table1 = Table(
        f"Table I. Mean IoU, %: here on {data}; the paper on PASCAL VOC 2012 val.",
        ["method", "here", "paper", "seconds an image"],
        first,
    )
    unary = measured.get("unary-3scales")
    second = []
    for row in rows:
        iou = measured[row.name].matrix.iou()
        second.append([row.name, _percent(iou.nanmean().item()), *map(_percent, iou.tolist())])
        if unary is not None and row.name.startswith("pairwise"):
            gain = iou - unary.matrix.iou()
            mean = iou.nanmean() - unary.matrix.iou().nanmean()
            second.append(["gain over unary", *(_percent(value, "+") for value in (mean.item(), *gain.tolist()))])
    table2 = Table(f"Table II. IoU by class, %, on {data}.", ["method", "mean", *results.classes], second)
    third = [
        [row.name, _percent(measured[row.name].matrix.mean_iou()), _cited(row.test)]
        for row in rows
        if row.test is not None
    ]
    third += [[name, "", f"{value:.1f}"] for name, value in CITED_TEST.items()]
    table3 = Table(
        f"Table III. Mean IoU, %: here on {data}; the paper on PASCAL VOC 2012 test, whose truth the evaluation server "
        "alone knows (contextcrf voc-submission).",
        ["method", "here", "paper, test"],
        third,
    )
    return table1, table2, table3


def _percent(value: float, sign: str = "") -> str:
    return "" if value != value else f"{100 * value:{sign}.1f}"


def _cited(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def iou_of_images(measured: Measured) -> Tensor:
    """Mean IoU of each image by itself, [images]; NaN where nothing is known."""
    return intersection_over_union(torch.stack(measured.images)).nanmean(1)


def draw_figures(
    shop: Workshop, rows: Sequence[Row], measured: Sequence[Measured], val: SegmentationDataset, out: Path
) -> None:
    """Draw fig6.png, where the last of ours gains most over the unary; fig7 to fig9, examples; fig10, its failures.

    The last of ours is "full" where it is among the rows. Figures without their rows are left out.
    """
    by_name = {row.name: (row, result) for row, result in zip(rows, measured, strict=True)}
    ours = [name for name in ("unary-3scales", "1unary+2pair", "full") if name in by_name]
    if not ours:
        return
    row, result = by_name[ours[-1]]
    scores = iou_of_images(result).nan_to_num(-1)
    order = scores.argsort(descending=True).tolist()
    precision = shop.study.recipe.precision

    def made(row: Row) -> tuple[str, ContextCRF, str]:
        return row.name, *row.make(shop)

    last = made(row)
    if len(ours) > 1 and ours[0] == "unary-3scales":
        before = iou_of_images(by_name[ours[0]][1]).nan_to_num(-1)
        gained = (scores - before).argsort(descending=True).tolist()[:EXAMPLES]
        _draw([made(by_name[ours[0]][0]), last], val, precision, gained, out / "fig6.png")
    count = min(3 * EXAMPLES, len(order))
    spread = [i * len(order) // count for i in range(count)]
    for number in range(3):
        chosen = spread[number * EXAMPLES : (number + 1) * EXAMPLES]
        if chosen:
            _draw([last], val, precision, chosen, out / f"fig{7 + number}.png")
    failed = [number for number in reversed(order) if scores[number] >= 0][:EXAMPLES]
    _draw([last], val, precision, failed, out / "fig10.png")


def _draw(
    made: Sequence[tuple[str, ContextCRF, str]],
    val: SegmentationDataset,
    precision: str,
    numbers: Sequence[int],
    path: Path,
) -> None:
    """Some images with their truth and what rows make of them: each a name, its model, and what of it is drawn."""
    palette = val.classes.palette
    pictures = []
    chosen = SegmentationDataset([val.pairs[i] for i in numbers], val.classes, val.void)
    for image, mask in track(chosen.without_transform(), path.name, total=len(chosen)):
        drawn = [Image.fromarray(image.permute(1, 2, 0).numpy()), colorize(mask, palette)]
        for _, model, what in made:
            [(marginals, _)] = predict(model, image, systems(model, [what]), precision)
            drawn.append(colorize(marginals.argmax(0), palette))
        pictures.append(drawn)
    if pictures:
        qualitative_grid(pictures, ["image", "truth", *(name for name, _, _ in made)], val.classes).save(path)
