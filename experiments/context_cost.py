r"""Measure the gain and the cost of cheaper pairwise potentials on the features of one trained unary network.

    python experiments/context_cost.py msrc --model runs/unary --data FOLDS --train fold0-train --test fold0-test \
        --work runs/cost

A variant has a graph stride, a number of hidden units, and all neighbors or those of a 5 x 5 grid. Some variants share
the projections of the hidden layer between both relations. The pairwise heads of all variants are trained on the same
features of the frozen network, and measured with the default relation weights and 1 to 3 iterations. The command trains
the variants that the work folder lacks, and may be started again. It then measures the seconds of all variants in one
run, and writes results/context/cost-NAME.json and .md.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from contextcrf import ContextCRF, Predictor, RangeBox, load
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.comparison import classes_in, paired_bootstrap, read_counts, write_counts
from contextcrf.evaluation.metrics import confusion
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.serialization import save
from contextcrf.modeling.system import UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.training import CachedFeatures, StoredFeatures, TrainingConfig, augmentation, cache_features, fit_heads
from contextcrf.utils.files import write_json, write_text
from contextcrf.utils.memory import reuse_freed_memory
from contextcrf.utils.progress import show_progress, track
from contextcrf.utils.resizing import upsample
from contextcrf.utils.tables import Table

RESULTS = Path(__file__).parent.parent / "results" / "context"
STRIDES, HIDDEN, GRIDS, ITERATIONS = (16, 32), (64, 128, 256, 512), (None, 5), (1, 2, 3)
HEADS = TrainingConfig(
    epochs=5,
    batch_size=4,
    lr=0.001,
    weight_decay=0.05,
    max_edges=8192,
    crop=(216, 320),
    scale=(0.8, 1.5),
    color=0.4,
)


@dataclass(frozen=True)
class Variant:
    """The settings of the pairwise potentials that are compared."""

    stride: int
    hidden: int
    grid: int | None
    shared: bool = False

    @property
    def name(self) -> str:
        neighbors = "all" if self.grid is None else f"grid{self.grid}"
        return f"stride{self.stride}-hidden{self.hidden}-{neighbors}{'-shared' if self.shared else ''}"

    def apply(self, network: ContextCRF) -> ContextCRF:
        """Return the network with new pairwise potentials, which are untrained."""
        boxes = {"surrounding": RangeBox.surrounding(), "above": RangeBox.above()}
        relations = {name: replace(box, grid=self.grid) for name, box in boxes.items()}
        own: dict[str, Any] = {"pairwise_hidden": self.hidden, "graph_stride": self.stride, "relations": relations}
        config = replace(network.config, **own)
        inference = replace(network.inference, relation_weights={})
        model = ContextCRF(config, network.classes, False, inference, network.image_format)
        model.trunks.load_state_dict(network.trunks.state_dict())
        model.unary.load_state_dict(network.unary.state_dict())
        if self.shared:
            first, second = (model.pairwise_potential(name) for name in relations)
            second.owner, second.neighbor = first.owner, first.neighbor
        return model.eval()


VARIANTS = [
    *(Variant(*settings) for settings in product(STRIDES, HIDDEN, GRIDS)),
    *(Variant(16, hidden, 5, shared=True) for hidden in HIDDEN),
]


class _Kept(nn.Module):
    """The last result of another module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.result: Tensor | None = None
        module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, result: Tensor) -> None:
        self.result = result

    def forward(self, rows: Tensor) -> Tensor | None:
        return self.result


class Study:
    """A trained network, its data, and the folder of the trained variants."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.network = load(options.model)
        self.train = open_dataset(options.data, options.train, augmentation(HEADS))
        self.test = open_dataset(options.data, options.test)
        self.work: Path = options.work
        self._cached: dict[int, CachedFeatures | StoredFeatures] = {}

    def trained(self, variant: Variant) -> ContextCRF:
        """Return the trained model of a variant. All variants with one stride are trained on the same features."""
        folder = self.work / variant.name
        if not (folder / "config.json").exists():
            model = variant.apply(self.network)
            if variant.stride not in self._cached:
                self._cached[variant.stride] = cache_features(model, self.train, "above", 1, HEADS)
            fit_heads(model, self._cached[variant.stride], HEADS, self.work / "logs" / variant.name)
            if variant.shared:
                # Files of weights do not store shared tensors.
                second = model.pairwise_potential("above")
                second.owner, second.neighbor = deepcopy(second.owner), deepcopy(second.neighbor)
            save(model.eval(), folder)
        return load(folder)

    def counts(self, variant: Variant) -> dict[str, Tensor]:
        """Return the confusion matrices [images, K, K] of the unary and of each number of iterations."""
        path = self.work / f"{variant.name}.npz"
        if not path.exists():
            found = _counts(self.trained(variant), self.test, f"Evaluating {variant.name}")
            write_counts(path, [image.stem for image, _ in self.test.pairs], found)
        return read_counts(path)[1]

    @torch.inference_mode()
    def seconds(self, images: int, repeats: int) -> dict[str, float]:
        """Return the median seconds per image of the unary and of each variant, in runs that take turns.

        All variants have the same network. It is measured once, because its variation is larger than the time of the
        cheapest potentials.
        """
        predictor = Predictor(self.trained(VARIANTS[0]))
        predictors = {}
        for variant, iterations in product(VARIANTS, ITERATIONS):
            model = self.trained(variant)
            if variant.shared:
                first, second = (model.pairwise_potential(name) for name in model.pairwise)
                second.add_module("owner", _Kept(first.owner))
                second.add_module("neighbor", _Kept(first.neighbor))
            inference = replace(model.inference, iterations=iterations)
            predictors[f"{variant.name}-{iterations}"] = Predictor(model, inference)
        taken: dict[str, list[float]] = {name: [] for name in (UNARY, *predictors)}
        for image, _ in self.test.spread(images).without_transform():
            maps = predictor.extract_features(image[None].float(), [UNARY_ONLY])[UNARY]
            unary = predictor.unary_logits({UNARY: maps})
            work: dict[str, Callable[[], object]] = {UNARY: partial(predictor.predict, image, [UNARY_ONLY])}
            work |= {name: partial(_messages, pairwise, maps, unary) for name, pairwise in predictors.items()}
            least = dict.fromkeys(work, inf)
            for _, (name, run) in product(range(repeats), work.items()):
                start = perf_counter()
                run()
                least[name] = min(least[name], perf_counter() - start)
            for name, value in least.items():
                taken[name].append(value)
        middle = {name: median(values) for name, values in taken.items()}
        return {name: value + (name != UNARY) * middle[UNARY] for name, value in middle.items()}


def _messages(predictor: Predictor, maps: Tensor, unary: Tensor) -> None:
    """Compute everything that the pairwise potentials add to the prediction of an image."""
    coarse = predictor.model.pool(maps)
    predictor.mean_field({UNARY: maps, **dict.fromkeys(predictor.model.pairwise, coarse)}, UNARY_PAIRWISE, unary=unary)


@torch.inference_mode()
def _counts(model: ContextCRF, data: SegmentationDataset, title: str) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    predictors = {count: Predictor(model, replace(model.inference, iterations=count)) for count in ITERATIONS}
    for image, mask in track(data.without_transform(), title, total=len(data)):
        features = predictors[1].extract_features(image[None].float())
        marginals = {UNARY: predictors[1].mean_field(features, UNARY_ONLY)}
        for count, predictor in predictors.items():
            marginals[str(count)] = predictor.mean_field(features, UNARY_PAIRWISE)
        for name, values in marginals.items():
            labels = upsample(values.float(), mask.shape)[0].argmax(0)
            found.setdefault(name, []).append(confusion(labels, mask, model.num_classes))
    return {name: torch.stack(values) for name, values in found.items()}


def rows_of(study: Study, seconds: dict[str, float], min_images: int) -> Iterator[dict[str, Any]]:
    """Yield the gain and the cost of every variant and number of iterations."""
    for variant in VARIANTS:
        counts = study.counts(variant)
        classes = classes_in(counts[UNARY], min_images) if min_images else None
        for iterations in ITERATIONS:
            gain = paired_bootstrap(counts[UNARY], counts[str(iterations)], classes=classes)
            yield {
                "stride": variant.stride,
                "hidden": variant.hidden,
                "neighbors": "all" if variant.grid is None else f"{variant.grid} x {variant.grid}",
                "shared": variant.shared,
                "iterations": iterations,
                "gain": 100 * (gain.second - gain.first),
                "interval": [100 * gain.low, 100 * gain.high],
                "more_time_percent": 100 * (seconds[f"{variant.name}-{iterations}"] / seconds["unary"] - 1),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the results, such as msrc")
    parser.add_argument("--model", required=True, help="trained network whose features are used")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--train", default="train", help="split on which the heads are trained")
    parser.add_argument("--test", default="val", help="split that is measured")
    parser.add_argument("--work", type=Path, required=True, help="folder for the trained variants")
    parser.add_argument("--min-images", type=int, default=0, help="leave out classes that occur in fewer images")
    parser.add_argument("--train-only", action="store_true", help="train and evaluate the variants without timing")
    options = parser.parse_args()
    reuse_freed_memory()
    study = Study(options)
    with show_progress():
        for variant in VARIANTS:
            study.counts(variant)
    if options.train_only:
        return
    seconds_file = options.work / "seconds.json"
    if not seconds_file.exists():
        write_json(seconds_file, study.seconds(images=8, repeats=5))
    rows = list(rows_of(study, json.loads(seconds_file.read_text(encoding="utf-8")), options.min_images))
    header = ["graph stride", "hidden units", "neighbors", "projections", "iterations", "gain", "95% interval"]
    header.append("more time, %")
    cells = [
        [
            *(str(row[key]) for key in ("stride", "hidden", "neighbors")),
            "shared" if row["shared"] else "own",
            str(row["iterations"]),
            f"{row['gain']:+.2f}",
            "[{:+.2f}, {:+.2f}]".format(*row["interval"]),
            f"{row['more_time_percent']:.0f}",
        ]
        for row in rows
    ]
    write_json(
        RESULTS / f"cost-{options.name}.json",
        {"images": len(study.test), "threads": torch.get_num_threads(), "rows": rows},
    )
    write_text(RESULTS / f"cost-{options.name}.md", Table(header, cells).to_markdown())


if __name__ == "__main__":
    main()
