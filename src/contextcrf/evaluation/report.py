"""What goes with results: examples in the manner of the paper's Figs. 6-7, bars, a page, explanations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track

from contextcrf.crf import Explanation
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.images import ImageLike
from contextcrf.evaluation.evaluate import Results, System, intersection_over_union, predict
from contextcrf.evaluation.figures import colorize, iou_bars, push_picture, qualitative_grid, save_figure
from contextcrf.evaluation.report_page import Example, pick, render
from contextcrf.inference.segmentation import Segmentation
from contextcrf.inference.tta import ONE_VIEW, Views
from contextcrf.modeling.model import ContextCRF


def draw(
    model: ContextCRF,
    examples: SegmentationDataset,
    wanted: Sequence[System],
    results: Results,
    out: Path,
    precision: str = "32-true",
    views: Views = ONE_VIEW,
    progress: bool = True,
) -> None:
    """Write OUT/examples.png (image, truth, first and last system) and OUT/iou.png.

    The model is put into evaluation mode.

    Args:
        examples: the images to show; with none, only the bars are drawn.
        progress: show a progress bar.
    """
    out.mkdir(parents=True, exist_ok=True)
    series = {row.name: row.matrix.iou().tolist() for row in results.rows}
    save_figure(iou_bars(list(results.classes), series), out / "iou.png")
    if not len(examples):
        return
    shown = list(dict.fromkeys((wanted[0], wanted[-1])))
    palette = model.classes.palette
    rows = []
    samples = track(examples.without_transform(), "examples", total=len(examples), disable=not progress)
    for image, mask in samples:
        drawn = [Image.fromarray(image.permute(1, 2, 0).numpy()), colorize(mask, palette)]
        drawn += [
            colorize(marginals.argmax(0), palette) for marginals, _ in predict(model, image, shown, precision, views)
        ]
        rows.append(drawn)
    grid = qualitative_grid(rows, ["image", "truth", *(system.name for system in shown)], model.classes)
    grid.save(out / "examples.png")


def write_page(
    model: ContextCRF,
    data: SegmentationDataset,
    wanted: Sequence[System],
    results: Results,
    out: Path,
    pictures: int = 6,
    precision: str = "32-true",
    views: Views = ONE_VIEW,
    progress: bool = True,
) -> None:
    """Write OUT/report.html: tables, confusions, and about so many pictures, a third each best, middle and worst.

    The model is put into evaluation mode.

    Args:
        data: what was evaluated; `results` has the confusion matrices of its images, in their order.
        wanted: the systems of the rows; the first and the last are drawn.
        progress: show a progress bar.
    """
    shown = list(dict.fromkeys((wanted[0], wanted[-1])))
    names = [system.name for system in shown]
    examples: dict[str, list[Example]] = {}
    picked = pick(results.rows[-1], -(-pictures // 3)) if pictures else {}
    chosen = [(heading, number) for heading, numbers in picked.items() for number in numbers]
    samples = SegmentationDataset([data.pairs[number] for _, number in chosen], data.classes, data.void)
    pairs = zip(chosen, samples.without_transform(), strict=True)
    shown_bar = progress and bool(chosen)
    for (heading, number), (image, mask) in track(pairs, "report", total=len(chosen), disable=not shown_bar):
        labels = [marginals.argmax(0) for marginals, _ in predict(model, image, shown, precision, views)]
        score = intersection_over_union(results.rows[-1].images[number]).nanmean().item()
        name = data.pairs[number][0].name
        found = Example(name, score, torch.as_tensor(image), mask, dict(zip(names, labels, strict=True)))
        examples.setdefault(heading, []).append(found)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(render(results, data.classes, examples), encoding="utf-8")


def draw_explanation(model: ContextCRF, image: ImageLike, pixel: tuple[int, int]) -> Image.Image:
    """What pushed the node at a pixel (row, column) to its label and away from the runner-up, relation by relation.

    Raises:
        ValueError: a pixel outside the image, or no neighbor that pushes at all.
    """
    return draw_pushes(model.segment(image), model.explain(image, pixel), pixel, model.config.strengths)


def draw_pushes(
    segmentation: Segmentation,
    explanations: Mapping[str, Explanation],
    pixel: tuple[int, int],
    strengths: Mapping[str, float | None],
) -> Image.Image:
    """`draw_explanation`, of an inference that has been done.

    Args:
        segmentation: what inference ended with.
        explanations: what the relations say about the pixel.
        pixel: row and column in the image.
        strengths: those of the inference, for the error.
    """
    photo = Image.fromarray(segmentation.image.permute(1, 2, 0).numpy())
    label, rival = segmentation.probabilities[:, pixel[0], pixel[1]].topk(2).indices.tolist()
    pushes = {name: found.push_map(label, rival) for name, found in explanations.items()}
    scale = max((float(push.abs().max()) for push in pushes.values()), default=0.0)
    if scale == 0:
        raise ValueError(
            f"pixel {pixel}: no neighbor pushes its label: the relations are untrained, or their strengths are 0 "
            f"(here {dict(strengths)}); other strengths show what they would say"
        )
    names = segmentation.classes.names
    titles = [f"{names[label]} (then {names[rival]})"]
    titles += [f"{name}: {float(push.sum()):+.2f}" for name, push in pushes.items()]
    drawn = [push_picture(photo, push, pixel, scale) for push in pushes.values()]
    return qualitative_grid([[segmentation.overlay(), *drawn]], titles, segmentation.classes)
