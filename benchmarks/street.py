"""Parts of `crf.py` that measure time and mean IoU of the CRF on CamVid with the bundled model."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from contextcrf import ContextCRF, DenseCRF, InferenceConfig, PairwisePotential, Predictor, load
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.figures import save_figure
from contextcrf.evaluation.metrics import ConfusionMatrix
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.system import UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.training import CachedFeatures, HeadsModule, SeededSampler, TrainingConfig, augmentation, cache_features
from contextcrf.utils.progress import show_progress
from contextcrf.utils.resizing import upsample
from measure import FIGURES, bfloat16_products, interleaved, store

RelationWeights = Mapping[str, float | None]
ONES: RelationWeights = {"surrounding": 1.0, "above": 1.0}
PLAIN_SUM: RelationWeights = {"surrounding": None, "above": None}
# Learning rates of the objectives. With mean field in the loop, training diverges at 1e-3.
RATES = {"piecewise": 1e-3, "pseudo-likelihood": 1e-3, "mean-field": 1e-4}


def exact(model: ContextCRF, relation_weights: RelationWeights) -> InferenceConfig:
    """Return the inference settings of the model with the given relation weights, in single precision."""
    return replace(model.inference, relation_weights=relation_weights, precision="32-true")


@dataclass(frozen=True)
class FeaturedImage:
    """Features and mask of an image."""

    features: dict[str, Tensor]
    mask: Tensor


@torch.inference_mode()
def extract_features(model: ContextCRF, data: SegmentationDataset) -> list[FeaturedImage]:
    """Compute the features of all images in single precision."""
    predictor = Predictor(model, exact(model, ONES))
    return [
        FeaturedImage(predictor.extract_features(image[None].float()), mask) for image, mask in data.without_transform()
    ]


@torch.inference_mode()
def mean_iou_of(
    model: ContextCRF, images: Sequence[FeaturedImage], relation_weights: RelationWeights, rounded: bool = False
) -> float:
    """Return the mean IoU in % of mean field with the given relation weights, in float32 or rounded to bfloat16."""
    matrix = ConfusionMatrix(model.num_classes)
    for image in images:
        marginals = marginals_of(model, image, relation_weights, rounded)
        matrix.update(upsample(marginals, image.mask.shape).argmax(1), image.mask[None])
    return 100 * matrix.mean_iou()


def marginals_of(
    model: ContextCRF, image: FeaturedImage, relation_weights: RelationWeights, rounded: bool = False
) -> Tensor:
    """Return the marginals [1, K, h, w] of one image."""
    predictor = Predictor(model, exact(model, relation_weights))
    with bfloat16_products() if rounded else nullcontext():
        return predictor.mean_field(image.features, UNARY_PAIRWISE)


def picture(data: Path, repeats: int) -> None:
    """Measure one image of 480 x 360: the unary, the contextual CRF on the unary, and the dense CRF on the result."""
    # With the bundled relation weights of 0, no message would be computed. The paper's graph has a stride of 32.
    model = load("camvid")
    coarse, fine = (
        Predictor(with_config(model, replace(model.config, graph_stride=stride)), exact(model, ONES))
        for stride in (32, 16)
    )
    dense = DenseCRF(**model.inference.dense)
    image, _ = open_dataset(data, "val")[0]
    logits = fine.segment(image).probabilities.clamp(min=1e-8).log()[None]

    @torch.inference_mode()
    def refine() -> None:
        dense(logits, image[None])

    seconds = interleaved(
        {
            "unary": lambda: fine.segment(image, UNARY_ONLY),
            "unary and contextual CRF, graph at stride 32": lambda: coarse.segment(image),
            "unary and contextual CRF, graph at stride 16": lambda: fine.segment(image),
            "dense CRF alone": refine,
        },
        repeats,
    )
    print("| | s | of the unary |\n|---|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} | {value / seconds['unary']:.2f} |")
    store({"picture": {"size": list(image.shape[-2:]), "seconds": seconds}})


def half(data: Path) -> None:
    """Measure the effect of products in bfloat16 on CamVid's validation images."""
    model = load("camvid").eval()
    images = extract_features(model, open_dataset(data, "val"))
    with torch.inference_mode():
        errors = [
            (marginals_of(model, image, ONES, rounded=True) - marginals_of(model, image, ONES)).abs().flatten()
            for image in images
        ]
    error = torch.cat(errors)
    single, rounded = (mean_iou_of(model, images, ONES, precision) for precision in (False, True))
    print("| | float32 | bfloat16 |\n|---|---:|---:|")
    print(f"| mean IoU, relation weights 1, % | {single:.3f} | {rounded:.3f} |")
    print(f"| marginals, mean and largest difference | | {error.mean():.2e}, {error.max():.2e} |")
    store({"bfloat16": {"mIoU": [single, rounded], "mean error": error.mean().item(), "max error": error.max().item()}})


def batches(cached: CachedFeatures, config: TrainingConfig) -> Iterator[list[Tensor]]:
    """Yield batches of features, labels and unary logits without end."""
    sampler = SeededSampler(len(cached), config.seed)
    loader = DataLoader(cached, config.batch_size, sampler=sampler)
    for epoch in count():
        sampler.set_epoch(epoch)
        yield from loader


def reset(head: PairwisePotential) -> None:
    """Reset a head to a random first layer and a zero-initialized last layer, as in a new model."""
    head.owner.reset_parameters()
    head.neighbor.reset_parameters()
    head.last.zero_()


def objectives(data: Path, minutes: float) -> None:
    """Measure validation mean IoU against the time of training steps, for new heads on one frozen trunk."""
    model = load("camvid")
    # Only on the paper's coarse graph does the likelihood with mean field in the loop progress within minutes.
    model = with_config(model, replace(model.config, graph_stride=32)).eval()
    images = extract_features(model, open_dataset(data, "val"))
    curves: dict[str, list[list[float]]] = {}
    alone = mean_iou_of(model, images, dict.fromkeys(ONES, 0.0))
    print(f"unary {alone:.2f}\n\n| objective | s | steps | plain sum | weights 1 |\n|---|" + "---:|" * 4)
    config = TrainingConfig(crop=(360, 480), scale=(0.8, 1.5), color=0.3)
    with show_progress():
        cached = cache_features(model, open_dataset(data, "train", augmentation(config)), "surrounding", 1, config)
    for objective, rate in RATES.items():
        torch.manual_seed(0)
        for name in model.pairwise:
            reset(model.pairwise_potential(name))
        config = replace(config, objective=objective, max_edges=8192 if objective == "piecewise" else None)
        module = HeadsModule(model, list(ONES), config, 0)
        optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.05)
        spent, mark, points = 0.0, minutes * 60 / 64, []
        for steps, batch in enumerate(batches(cached, config), 1):
            begun = time.perf_counter()
            loss = torch.stack(list(module.losses(batch).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent += time.perf_counter() - begun
            if spent >= mark:
                both = [mean_iou_of(model, images, weights) for weights in (PLAIN_SUM, ONES)]
                print(f"| {objective} | {spent:.0f} | {steps} | {both[0]:.2f} | {both[1]:.2f} |", flush=True)
                points.append([spent, *both])
                mark *= 2
            if spent >= minutes * 60:
                break
        curves[objective] = points
    store({"objectives": {"unary": alone, "curves: seconds, plain sum, weights 1": curves}})
    plot(curves, alone)


def plot(curves: dict[str, list[list[float]]], alone: float) -> None:
    """Plot the curves of `objectives` and the mean IoU of the unary."""
    figure = Figure((9, 3.5), layout="constrained")
    for axes, column, title in zip(figure.subplots(1, 2), (1, 2), ("plain sum", "relation weights 1"), strict=True):
        for objective, points in curves.items():
            axes.semilogx([point[0] for point in points], [point[column] for point in points], "o-", label=objective)
        axes.axhline(alone, color="gray", linestyle=":", label="unary")
        axes.set(title=title, xlabel="s of training steps", ylabel="CamVid val, mean IoU, %")
        axes.legend()
    save_figure(figure, FIGURES.parent / "objectives.png")
