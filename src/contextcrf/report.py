"""The pictures that go with a table: examples in the manner of the paper's Figs. 6-7, bars of the IoU per class."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation import Results, System, predict
from contextcrf.figures import colorize, iou_bars, qualitative_grid, save_figure
from contextcrf.model import ContextCRF


def draw(
    model: ContextCRF,
    examples: SegmentationDataset,
    wanted: Sequence[System],
    results: Results,
    out: Path,
    precision: str = "32-true",
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
        drawn += [colorize(marginals.argmax(0), palette) for marginals, _ in predict(model, image, shown, precision)]
        rows.append(drawn)
    grid = qualitative_grid(rows, ["image", "truth", *(system.name for system in shown)], model.classes)
    grid.save(out / "examples.png")
