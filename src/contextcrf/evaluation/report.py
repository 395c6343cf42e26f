"""The figures and the HTML page of a report, and figures of explanations."""

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

_CAPTION = (
    "Red neighbors raise the score of {} relative to {}, and blue neighbors lower it. The number is the sum over all "
    "neighbors. Edges in both directions count: the neighbors are the nodes in the box of the pixel (yellow ring), and "
    "the nodes whose box contains the pixel."
)


def write_report(data: SegmentationDataset, results: EvaluationResults, out: Path, pictures: int = 6) -> None:
    """Write the report of an evaluation: OUT/report.html, OUT/iou.png and OUT/examples.png.

    The figure examples.png shows images with their ground truth and the labels of the first and the last system. No
    network runs: the examples use the labels that `evaluate` has kept with `keep_labels`.

    Args:
        data: images and masks that were evaluated.
        results: results of systems on the images of `data`.
        out: folder of the report; it is created if it is missing.
        pictures: number of examples; 0 draws none. The examples of examples.png are spread evenly over the data set.
            The page also shows the best, the median and the worst images. Each of these three groups has `pictures` / 3
            images, rounded up.

    Raises:
        ValueError: examples are drawn, but the labels of the first or the last system were not kept.

    Example:
        >>> from contextcrf import ContextCRF, InferenceConfig, ModelConfig
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> from contextcrf.evaluation.evaluate import evaluate
        >>> from contextcrf.modeling.system import UNARY_ONLY
        >>> data = open_dataset(write_scenes("scenes", train=1, val=2, height=64, width=96), "val")
        >>> config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> settings = InferenceConfig(precision="32-true")
        >>> model = ContextCRF(config, data.classes, pretrained=False, inference=settings).eval()
        >>> systems = evaluate(Predictor(model), data, [UNARY_ONLY], keep_labels=[UNARY_ONLY])
        >>> results = EvaluationResults(data.classes.names, systems, {"data": "scenes val, 2 images"})
        >>> write_report(data, results, Path("report"), pictures=1)
        >>> sorted(path.name for path in Path("report").iterdir())
        ['examples.png', 'iou.png', 'report.html']
    """
    series = {system.name: system.matrix.iou().tolist() for system in results.systems}
    means = {system.name: system.matrix.mean_iou() for system in results.systems}
    save_figure(iou_bars(list(results.classes), series, means), out / "iou.png")
    shown = list({system.name: system for system in (results.systems[0], results.systems[-1])}.values())
    if pictures:
        for system in shown:
            if len(system.labels) != len(data):
                raise ValueError(
                    f"The labels of system {system.name!r} were not kept, but the examples show them. Pass the system "
                    "to evaluate(keep_labels=...), or set pictures=0."
                )
        _draw_examples(data, shown, [i * len(data) // pictures for i in range(pictures)], out / "examples.png")
    picked = pick(results.systems[-1].counts, -(-pictures // 3)) if pictures else {}
    chosen = [(heading, number) for heading, numbers in picked.items() for number in numbers]
    scores = image_scores(results.systems[-1].counts)
    examples: dict[str, list[Example]] = {}
    for heading, number in track(chosen, "Drawing the report"):
        image, mask = data.sample(number)
        labels = {system.name: system.labels[number].unpack() for system in shown}
        name = data.pairs[number][0].name
        examples.setdefault(heading, []).append(Example(name, scores[number].item(), image, mask, labels))
    write_text(out / "report.html", render(results, data.classes, examples))


def _draw_examples(
    data: SegmentationDataset, shown: Sequence[SystemResult], numbers: Sequence[int], path: Path
) -> None:
    """Draw a grid of images with their ground truth and the labels of the systems."""
    rows: list[list[Image.Image]] = []
    drawn: list[torch.Tensor] = []
    for number in track(list(dict.fromkeys(numbers)), "Drawing examples"):
        image, mask = data.sample(number)
        labels = [mask, *(system.labels[number].unpack() for system in shown)]
        rows.append([to_picture(image), *(colorize(found, data.classes.palette) for found in labels)])
        drawn += labels
    titles = ["image", "ground truth", *(system.name for system in shown)]
    grid = qualitative_grid(rows, titles, data.classes, drawn)
    with atomic_write(path) as partial:
        grid.save(partial)


@torch.inference_mode()
def draw_explanation(predictor: Predictor, image: torch.Tensor, pixel: tuple[int, int]) -> Image.Image:
    """Draw, for each relation, how the neighbors of a node change the log-odds of its label.

    Args:
        predictor: the model with its inference settings.
        image: uint8 [C, H, W].
        pixel: row and column of the node, in pixels of the image.

    Returns:
        A figure with the predicted labels and one map per relation.

    Raises:
        ValueError: the pixel is outside of the image, or no message changes the log-odds of the label.
    """
    segmentation = predictor.segment(image, UNARY_PAIRWISE)
    return draw_messages(segmentation, predictor.explain(image, pixel), pixel, predictor.weights)


def draw_messages(
    segmentation: Segmentation,
    explanations: Mapping[str, Explanation],
    pixel: tuple[int, int],
    weights: Mapping[str, float | None],
) -> Image.Image:
    """Draw the figure of `draw_explanation` from labels and explanations that have been computed before.

    Args:
        segmentation: labels and marginals of the image.
        explanations: explanation of the pixel by relation.
        pixel: row and column of the node, in pixels of the image.
        weights: relation weights of the inference settings, for the error message.

    Returns:
        A figure with the predicted labels and one map per relation.

    Raises:
        ValueError: no message changes the log-odds of the label.
    """
    label, rival = segmentation.probabilities[:, pixel[0], pixel[1]].topk(2).indices.tolist()
    pushes = {name: found.push_map(label, rival) for name, found in explanations.items()}
    scale = max((float(push.abs().max()) for push in pushes.values()), default=0.0)
    if scale == 0:
        raise ValueError(
            f"No neighbor changes the label of pixel {pixel}: the relations are untrained, or their weights are 0 (the "
            f"relation weights are {dict(weights)}). Set other relation weights to see the messages, as in "
            f"--relation-weights '{{\"{next(iter(pushes), 'above')}\": 1}}'."
        )
    names = segmentation.classes.names
    titles = [f"{names[label]} (second: {names[rival]})"]
    titles += [f"{name}: {float(push.sum()):+.2f}" for name, push in pushes.items()]
    drawn = [explanation_picture(segmentation.picture, push, pixel, scale) for push in pushes.values()]
    return qualitative_grid(
        [[segmentation.overlay(), *drawn]],
        titles,
        segmentation.classes,
        [segmentation.labels],
        caption=_CAPTION.format(names[label], names[rival]),
    )
