"""Where context pays: what the pairwise potentials gain on drawn scenes, against ambiguity and receptive field.

    python experiments/scenes.py --work runs/context/scenes

For every point: the scenes, one network per potential (plain backbones, trained from nothing), two more networks for
the unary; mean IoU of a unary, of the three unaries' mean, of the CRF. Points whose result lies in the work folder are
not run again; several processes may share the work.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from contextcrf import ContextCRF
from contextcrf.cli.quickstart import CONFIG, RECIPE
from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.data.synthetic import write_scenes
from contextcrf.evaluation.comparison import paired_bootstrap
from contextcrf.evaluation.evaluate import confusion
from contextcrf.evaluation.figures import save_figure
from contextcrf.evaluation.tuning import best_of, tune_strengths
from contextcrf.modeling.config import UNARY
from contextcrf.training import augmentation, fit
from contextcrf.training.config import Recipe
from contextcrf.utils.locks import claim

RESULTS = Path(__file__).parent.parent / "results" / "context"
TRAIN, VAL, TUNING = 160, 60, 12
STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SEEDS = (0, 1)


@dataclass(frozen=True)
class Point:
    """One setting of the experiment."""

    ambiguity: float
    receptive_field: int
    seed: int

    @property
    def name(self) -> str:
        return f"a{self.ambiguity:g}-r{self.receptive_field}-s{self.seed}"


POINTS = [
    *(Point(ambiguity, 15, seed) for seed in SEEDS for ambiguity in (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)),
    *(Point(1.0, pixels, seed) for seed in SEEDS for pixels in (31, 47, 63, 95)),
]


def recipe(seed: int, potentials: list[str] | None) -> Recipe:
    """The tour's, for some potentials."""
    return replace(RECIPE, seed=seed, potentials=potentials)


def train(point: Point, data: Path, seed: int, potentials: list[str] | None, out: Path) -> ContextCRF:
    """Networks of a point, one per potential; None is all potentials."""
    settings = recipe(seed, potentials)
    images = open_dataset(data, "train", augmentation(settings))
    torch.manual_seed(seed)
    config = replace(CONFIG, backbone=f"plain-{point.receptive_field}", shared_trunk=False)
    model = ContextCRF(config, images.classes, pretrained=False)
    fit(model, images, None, settings, out, progress=False)
    return model.eval()


@torch.inference_mode()
def counts(models: list[ContextCRF], names: list[str] | None, data: SegmentationDataset) -> Tensor:
    """Confusion matrices [images, K, K] of the mean of models' marginals."""
    result = []
    for image, mask in data.without_transform():
        marginals = torch.stack([model(image[None].float(), names) for model in models]).mean(0)
        result.append(confusion(marginals.argmax(1), mask[None], len(data.classes)))
    return torch.stack(result)


def measure(point: Point, work: Path) -> dict[str, object]:
    """Train the networks of a point and evaluate them."""
    folder = work / point.name
    data = write_scenes(folder / "scenes", TRAIN, VAL, seed=point.seed, ambiguity=point.ambiguity)
    # Strengths are chosen on scenes that no network has seen and that are not evaluated.
    other = write_scenes(folder / "tuning", TUNING, 1, seed=1000 + point.seed, ambiguity=point.ambiguity)
    model = train(point, data, 10 * point.seed, None, folder / "crf")
    more = [train(point, data, 10 * point.seed + i, [UNARY], folder / f"unary-{i}") for i in (1, 2)]
    trials = tune_strengths(model, open_dataset(other, "train"), STRENGTHS, progress=False)
    model.config.strengths = dict(best_of(trials).settings)
    val = open_dataset(data, "val")
    unary, three = counts([model], [UNARY], val), counts([model, *more], [UNARY], val)
    crf = counts([model], None, val)
    change, control = paired_bootstrap(unary, crf), paired_bootstrap(three, crf)
    return {
        "unary": change.first,
        "three unaries": control.first,
        "crf": change.second,
        "crf - unary": [change.low, change.high],
        "crf - three unaries": [control.low, control.high],
        "strengths": model.config.strengths,
    }


def plot(found: dict[str, dict[str, float]]) -> Figure:
    """Mean IoU against ambiguity and against the receptive field, the mean of the seeds and each of them."""
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
    parser.add_argument("--work", type=Path, required=True, help="folder for scenes and networks")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    for point in POINTS:
        with claim(work / f"{point.name}.json") as mine:
            if mine:
                part = work / f"{point.name}.part"
                part.write_text(json.dumps(measure(point, work)))
                part.rename(work / f"{point.name}.json")
                print(point.name, "done", flush=True)
    missing = [point.name for point in POINTS if not (work / f"{point.name}.json").exists()]
    if missing:
        raise SystemExit(f"{', '.join(missing)}: another process is still at it; start again when it has ended")
    found = {point.name: json.loads((work / f"{point.name}.json").read_text()) for point in POINTS}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "scenes.json").write_text(json.dumps(found, indent=1) + "\n")
    save_figure(plot(found), RESULTS / "scenes.png")


if __name__ == "__main__":
    main()
