"""The pictures that go with results: examples in the manner of the paper's Figs. 6-7, bars, explanations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from contextcrf.crf import Explanation
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation import Results, System, predict
from contextcrf.figures import colorize, iou_bars, push_picture, qualitative_grid, save_figure
from contextcrf.model import ContextCRF, Segmentation
from contextcrf.pixels import ImageLike
from contextcrf.views import ONE_VIEW, Views


def draw(
    model: ContextCRF,
    examples: SegmentationDataset,
    wanted: Sequence[System],
    results: Results,
    out: Path,
    precision: str = "32-true",
    views: Views = ONE_VIEW,
) -> None:
    """Write OUT/examples.png (image, truth, first and last system) and OUT/iou.png.

    Args:
        examples: the images to show; with none, only the bars are drawn.
    """
    out.mkdir(parents=True, exist_ok=True)
    series = {row.name: row.matrix.iou().tolist() for row in results.rows}
    save_figure(iou_bars(list(results.classes), series), out / "iou.png")
    if not len(examples):
        return
    shown = list(dict.fromkeys((wanted[0], wanted[-1])))
    palette = model.classes.palette
    rows = []
    for image, mask in examples.without_transform():
        drawn = [Image.fromarray(image.permute(1, 2, 0).numpy()), colorize(mask, palette)]
        drawn += [
            colorize(marginals.argmax(0), palette) for marginals, _ in predict(model, image, shown, precision, views)
        ]
        rows.append(drawn)
    grid = qualitative_grid(rows, ["image", "truth", *(system.name for system in shown)], model.classes)
    grid.save(out / "examples.png")


def draw_explanation(model: ContextCRF, image: ImageLike, pixel: tuple[int, int]) -> Image.Image:
    """What pushed the node at a pixel (row, column) to its label and away from the runner-up, relation by relation.

    Raises:
        ValueError: a pixel outside the image, or no neighbour that pushes at all.
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
            f"pixel {pixel}: no neighbour pushes its label: the relations are untrained, or their strengths are 0 "
            f"(here {dict(strengths)}); other strengths show what they would say"
        )
    names = segmentation.classes.names
    titles = [f"{names[label]} (then {names[rival]})"]
    titles += [f"{name}: {float(push.sum()):+.2f}" for name, push in pushes.items()]
    drawn = [push_picture(photo, push, pixel, scale) for push in pushes.values()]
    return qualitative_grid([[segmentation.overlay(), *drawn]], titles, segmentation.classes)
