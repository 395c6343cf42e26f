"""Measure the gain of the pairwise potentials on synthetic scenes, against ambiguity and receptive field.

    python experiments/scenes.py --work runs/context/scenes

Each point has its own scenes, a network for each potential (plain backbones, trained from random weights) and two more
networks for the unary. Its results are the mean IoU of the unary, of the mean of the three unaries, and of the CRF. A
point whose results are in the work folder is not run again. Several processes may share the work.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from contextcrf import ContextCRF, InferenceConfig, Predictor, System
from contextcrf.cli.quickstart import INFERENCE, MODEL, TRAINING
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.data.synthetic import write_scenes
from contextcrf.evaluation.comparison import paired_bootstrap
from contextcrf.evaluation.figures import save_figure
from contextcrf.evaluation.metrics import confusion
from contextcrf.evaluation.tuning import best_of, tune_relation_weights
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.system import UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.training import TrainingConfig, augmentation, fit
from contextcrf.utils.files import write_json
from contextcrf.utils.locks import claim
from contextcrf.utils.progress import show_progress

RESULTS = Path(__file__).parent.parent / "results" / "context"
TRAIN, VAL, TUNING = 160, 60, 12
RELATION_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SEEDS = (0, 1)


@dataclass(frozen=True)
class ScenePoint:
    """One setting of the experiment.

    Args:
        ambiguity: the ambiguity of the local appearance, as for `write_scenes`.
        receptive_field: the receptive field of the networks in pixels.
        seed: the seed of the scenes and of the networks.
    """

    ambiguity: float
    receptive_field: int
    seed: int

    @property
    def name(self) -> str:
        """A name for files and for the results."""
        return f"a{self.ambiguity:g}-r{self.receptive_field}-s{self.seed}"


POINTS = [
    *(ScenePoint(ambiguity, 15, seed) for seed in SEEDS for ambiguity in (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)),
    *(ScenePoint(1.0, pixels, seed) for seed in SEEDS for pixels in (31, 47, 63, 95)),
]


def training_config(seed: int, potentials: list[str] | None) -> TrainingConfig:
    """Return the training configuration of the quickstart for some potentials; None means all potentials."""
    return replace(TRAINING, seed=seed, potentials=potentials)


def train_networks(point: ScenePoint, data: Path, seed: int, potentials: list[str] | None, out: Path) -> ContextCRF:
    """Train the networks of a point, one for each of the potentials; None means all potentials."""
    config = training_config(seed, potentials)
    images = open_dataset(data, "train", augmentation(config))
    torch.manual_seed(seed)
    model_config = replace(MODEL, backbone=f"plain-{point.receptive_field}", shared_trunk=False)
    model = ContextCRF(model_config, images.classes, pretrained=False, inference=INFERENCE)
    fit(model, images, None, config, out)
    return model.eval()


def image_counts(
    models: Sequence[ContextCRF], inference: InferenceConfig, system: System, data: SegmentationDataset
) -> Tensor:
    """Return the confusion matrices [images, K, K] of a system for the mean of the models' marginals."""
    predictors = [Predictor(model, inference) for model in models]
    counts = []
    for image, mask in data.without_transform():
        found = torch.stack([predictor.predict(image, [system])[0].marginals for predictor in predictors])
        counts.append(confusion(found.mean(0).argmax(0), mask, len(data.classes)))
    return torch.stack(counts)


def measure_point(point: ScenePoint, work: Path) -> dict[str, object]:
    """Train the networks of a point and measure them."""
    folder = work / point.name
    data = write_scenes(folder / "scenes", TRAIN, VAL, seed=point.seed, ambiguity=point.ambiguity)
    # The relation weights are chosen on scenes that are neither trained on nor measured.
    other = write_scenes(folder / "tuning", TUNING, 1, seed=1000 + point.seed, ambiguity=point.ambiguity)
    model = train_networks(point, data, 10 * point.seed, None, folder / "crf")
    more = [train_networks(point, data, 10 * point.seed + i, [UNARY], folder / f"unary-{i}") for i in (1, 2)]
    inference = best_of(tune_relation_weights(model, open_dataset(other, "train"), RELATION_WEIGHTS)).inference
    val = open_dataset(data, "val")
    unary, three = (image_counts(models, inference, UNARY_ONLY, val) for models in ([model], [model, *more]))
    crf = image_counts([model], inference, UNARY_PAIRWISE, val)
    over_one, over_three = paired_bootstrap(unary, crf), paired_bootstrap(three, crf)
    return {
        "unary": over_one.first,
        "three unaries": over_three.first,
        "crf": over_one.second,
        "crf - unary": [over_one.low, over_one.high],
        "crf - three unaries": [over_three.low, over_three.high],
        "relation_weights": dict(inference.relation_weights),
    }


def plot_points(found: dict[str, dict[str, float]]) -> Figure:
    """Plot the mean IoU against ambiguity and receptive field: a dot for each seed, a line through their means."""
    fig = Figure(figsize=(10, 4), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True)
    settings = (
        (left, "ambiguity of local appearance", [p for p in POINTS if p.receptive_field == 15], "ambiguity"),
        (right, "receptive field of the networks, px", [p for p in POINTS if p.ambiguity == 1.0], "receptive_field"),
    )
    for axes, label, points, key in settings:
        for row, color in (("unary", "#0072B2"), ("three unaries", "#56B4E9"), ("crf", "#D55E00")):
            values: dict[float, list[float]] = {}
            for point in points:
                values.setdefault(getattr(point, key), []).append(100 * found[point.name][row])
            places = sorted(values)
            axes.plot(places, [sum(values[x]) / len(values[x]) for x in places], color=color, label=row)
            axes.plot(*zip(*((x, value) for x in places for value in values[x]), strict=True), ".", color=color)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("mean IoU, %")
    left.legend()
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the scenes and the networks")
    work = parser.parse_args().work
    for point in POINTS:
        result = work / f"{point.name}.json"
        with claim(result) as mine:
            if mine:
                write_json(result, measure_point(point, work))
                print(point.name, "done", flush=True)
    missing = [point.name for point in POINTS if not (work / f"{point.name}.json").exists()]
    if missing:
        raise SystemExit(
            f"Results are missing for {', '.join(missing)}. Another process is working on them. Start this command "
            "again when that process has ended."
        )
    found = {point.name: json.loads((work / f"{point.name}.json").read_text()) for point in POINTS}
    write_json(RESULTS / "scenes.json", found)
    save_figure(plot_points(found), RESULTS / "scenes.png")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    with show_progress():
        main()
