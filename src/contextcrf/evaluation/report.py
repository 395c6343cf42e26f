"""The pictures and the page that go with results, and pictures of explanations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from contextcrf.crf import Explanation
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.images import to_picture
from contextcrf.data.visualization import colorize, qualitative_grid
from contextcrf.evaluation.evaluate import EvaluationResults, SystemResult
from contextcrf.evaluation.figures import explanation_picture, iou_bars, save_figure
from contextcrf.evaluation.metrics import image_scores
from contextcrf.evaluation.report_page import Example, pick, render
from contextcrf.inference.predictor import Predictor
from contextcrf.inference.segmentation import Segmentation
from contextcrf.modeling.system import UNARY_PAIRWISE
from contextcrf.utils.files import atomic_write, write_text
from contextcrf.utils.progress import track


def write_report(data: SegmentationDataset, results: EvaluationResults, out: Path, pictures: int = 6) -> None:
    """Write OUT/examples.png (image, truth, first and last system), OUT/iou.png and OUT/report.html.

    Nothing is computed again: the labels of the first and the last system were kept by `evaluate`.

    Args:
        data: the images and masks that were evaluated.
        results: with one entry per image of `data` in every system.
        out: folder, made if missing.
        pictures: the number of examples: evenly spread ones in examples.png, and in the page a third each of the best,
            middle and worst images, rounded up. 0 for none.

    Raises:
        ValueError: there are examples to draw, and the labels of the first or the last system were not kept.
    """
    series = {system.name: system.matrix.iou().tolist() for system in results.systems}
    save_figure(iou_bars(list(results.classes), series), out / "iou.png")
    shown = list({system.name: system for system in (results.systems[0], results.systems[-1])}.values())
    if pictures:
        for system in shown:
            if len(system.labels) != len(data):
                raise ValueError(f"system {system.name!r}: its labels were not kept; evaluate it with keep_labels")
        _draw_examples(data, shown, [i * len(data) // pictures for i in range(pictures)], out / "examples.png")
    picked = pick(results.systems[-1].counts, -(-pictures // 3)) if pictures else {}
    chosen = [(heading, number) for heading, numbers in picked.items() for number in numbers]
    scores = image_scores(results.systems[-1].counts)
    examples: dict[str, list[Example]] = {}
    for heading, number in track(chosen, "report"):
        image, mask = data.sample(number)
        labels = {system.name: system.labels[number].unpack() for system in shown}
        name = data.pairs[number][0].name
        examples.setdefault(heading, []).append(Example(name, scores[number].item(), image, mask, labels))
    write_text(out / "report.html", render(results, data.classes, examples))


def _draw_examples(
    data: SegmentationDataset, shown: Sequence[SystemResult], numbers: Sequence[int], path: Path
) -> None:
    """A grid of some images with their truth and the labels of some systems."""
    palette, rows = data.classes.palette, []
    for number in track(list(dict.fromkeys(numbers)), "examples"):
        image, mask = data.sample(number)
        drawn = [to_picture(image), colorize(mask, palette)]
        rows.append(drawn + [colorize(system.labels[number].unpack(), palette) for system in shown])
    grid = qualitative_grid(rows, ["image", "truth", *(system.name for system in shown)], data.classes)
    with atomic_write(path) as partial:
        grid.save(partial)


@torch.inference_mode()
def draw_explanation(predictor: Predictor, image: torch.Tensor, pixel: tuple[int, int]) -> Image.Image:
    """A picture of the neighbors that raise or lower one node's log-odds of its label, relation by relation.

    Args:
        predictor: the model with its settings.
        image: uint8 [3, H, W].
        pixel: row and column in the image.

    Raises:
        ValueError: a pixel outside the image, or no message that differs between labels.
    """
    segmentation = predictor.segment(image, UNARY_PAIRWISE)
    return draw_messages(segmentation, predictor.explain(image, pixel), pixel, predictor.weights)


def draw_messages(
    segmentation: Segmentation,
    explanations: Mapping[str, Explanation],
    pixel: tuple[int, int],
    weights: Mapping[str, float | None],
) -> Image.Image:
    """`draw_explanation`, for labels and explanations that have been computed.

    Args:
        segmentation: labels and marginals of the image.
        explanations: by relation, of the pixel.
        pixel: row and column in the image.
        weights: the relation weights of the inference, for the error.
    """
    label, rival = segmentation.probabilities[:, pixel[0], pixel[1]].topk(2).indices.tolist()
    pushes = {name: found.push_map(label, rival) for name, found in explanations.items()}
    scale = max((float(push.abs().max()) for push in pushes.values()), default=0.0)
    if scale == 0:
        raise ValueError(
            f"pixel {pixel}: no neighbor changes its label: the relations are untrained, or their weights are 0 (here "
            f"{dict(weights)}); other weights show what the messages would be"
        )
    names = segmentation.classes.names
    titles = [f"{names[label]} (then {names[rival]})"]
    titles += [f"{name}: {float(push.sum()):+.2f}" for name, push in pushes.items()]
    drawn = [explanation_picture(segmentation.picture, push, pixel, scale) for push in pushes.values()]
    return qualitative_grid([[segmentation.overlay(), *drawn]], titles, segmentation.classes)
