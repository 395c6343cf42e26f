"""What the CRF costs and brings on real streets: the parts of the benchmark that need CamVid and the bundled model."""

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from contextcrf import ContextCRF, DenseCRF, PairwisePotential, load
from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.evaluation.evaluate import ConfusionMatrix
from contextcrf.evaluation.figures import save_figure
from contextcrf.modeling.config import UNARY
from contextcrf.training import CachedFeatures, CachedHeads, SeededSampler, augmentation, cache_features
from contextcrf.training.config import Recipe
from contextcrf.utils.resizing import upsample
from measure import FIGURES, bfloat16_products, interleaved, store

Strengths = Mapping[str, float | None]
ONES: Strengths = {"surrounding": 1.0, "above": 1.0}
PLAIN: Strengths = {"surrounding": None, "above": None}
# Learning rates of the objectives; mean field in the loop diverges at 1e-3.
RATES = {"piecewise": 1e-3, "pseudo-likelihood": 1e-3, "mean-field": 1e-4}


@dataclass
class Known:
    """What a network says of an image once and for all."""

    features: dict[str, Tensor]
    mask: Tensor


@torch.inference_mode()
def look(model: ContextCRF, data: SegmentationDataset) -> list[Known]:
    """Features of all images."""
    return [Known(model.features(image[None].float()), mask) for image, mask in data]


@torch.inference_mode()
def mean_iou(model: ContextCRF, known: list[Known], strengths: Strengths, rounded: bool = False) -> float:
    """Mean IoU, %, of mean field with these strengths; the products in float32, or rounded to bfloat16."""
    matrix = ConfusionMatrix(model.num_classes)
    for image in known:
        marginals = infer(model, image, strengths, rounded)
        matrix.update(upsample(marginals, image.mask.shape).argmax(1), image.mask[None])
    return 100 * matrix.mean_iou()


def infer(model: ContextCRF, image: Known, strengths: Strengths, rounded: bool) -> Tensor:
    """Marginals of one image."""
    with bfloat16_products() if rounded else nullcontext():
        return model.infer(image.features, strengths=strengths)


def picture(data: Path, repeats: int) -> None:
    """The whole way of a picture of 480x360: the unary, the contextual CRF on top, the dense CRF on top of that."""
    # At the bundled strengths of 0 no message is sent at all. The paper's graph has a stride of 32.
    model, coarse = load("camvid"), load("camvid")
    model.config = replace(model.config, strengths=dict(ONES))
    coarse.config = replace(model.config, graph_stride=32)
    dense = DenseCRF(**model.config.dense)
    image, _ = open_dataset(data, "val")[0]
    marginals = model.segment(image).probabilities.clamp(min=1e-8).log()[None]

    @torch.inference_mode()
    def refine() -> None:
        dense(marginals, image[None])

    seconds = interleaved(
        {
            "unary": lambda: model.segment(image, [UNARY]),
            "unary and contextual CRF, graph at stride 32": lambda: coarse.segment(image),
            "unary and contextual CRF, graph at stride 16": lambda: model.segment(image),
            "dense CRF alone": refine,
        },
        repeats,
    )
    print("| | s | of the unary |\n|---|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} | {value / seconds['unary']:.2f} |")
    store({"picture": {"size": list(image.shape[-2:]), "seconds": seconds}})


def half(data: Path) -> None:
    """What products in bfloat16 change on CamVid's validation images."""
    model = load("camvid").eval()
    known = look(model, open_dataset(data, "val"))
    with torch.inference_mode():
        errors = [
            (infer(model, image, ONES, True) - infer(model, image, ONES, False)).abs().flatten() for image in known
        ]
    error = torch.cat(errors)
    exact, rounded = (mean_iou(model, known, ONES, way) for way in (False, True))
    print("| | float32 | bfloat16 |\n|---|---:|---:|")
    print(f"| mean IoU, strengths 1, % | {exact:.3f} | {rounded:.3f} |")
    print(f"| marginals, mean and largest difference | | {error.mean():.2e}, {error.max():.2e} |")
    store({"bfloat16": {"mIoU": [exact, rounded], "mean error": error.mean().item(), "max error": error.max().item()}})


def batches(cached: CachedFeatures, recipe: Recipe) -> Iterator[list[Tensor]]:
    """Features, labels and unary logits, for ever."""
    sampler = SeededSampler(len(cached), recipe.seed)
    loader = DataLoader(cached, recipe.batch_size, sampler=sampler)
    for epoch in count():
        sampler.set_epoch(epoch)
        yield from loader


def reset(head: PairwisePotential) -> None:
    """As a new model has it: random, and silent."""
    head.owner.reset_parameters()
    head.neighbor.reset_parameters()
    head.last.silence()


def objectives(data: Path, minutes: float) -> None:
    """Validation mean IoU against the time spent in training steps, heads from scratch on one frozen trunk."""
    model = load("camvid")
    # The likelihood with mean field in the loop needs the paper's coarse graph to make any progress in minutes.
    model.config = replace(model.config, graph_stride=32)
    known = look(model.eval(), open_dataset(data, "val"))
    curves: dict[str, list[list[float]]] = {}
    alone = mean_iou(model, known, dict.fromkeys(ONES, 0.0))
    print(f"unary {alone:.2f}\n\n| objective | s | steps | plain sum | strength 1 |\n|---|" + "---:|" * 4)
    recipe = Recipe(crop=(360, 480), scale=(0.8, 1.5), color=0.3, precision="bf16-mixed")
    cached = cache_features(model, open_dataset(data, "train", augmentation(recipe)), "surrounding", 1, recipe)
    for objective, rate in RATES.items():
        torch.manual_seed(0)
        for head in model.pairwise.values():
            reset(head)
        recipe = replace(recipe, objective=objective, max_edges=8192 if objective == "piecewise" else None)
        module = CachedHeads(model, list(ONES), recipe, 0)
        optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.05)
        spent, mark, points = 0.0, minutes * 60 / 64, []
        for steps, batch in enumerate(batches(cached, recipe), 1):
            begun = time.perf_counter()
            loss = torch.stack(list(module.losses(batch).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent += time.perf_counter() - begun
            if spent >= mark:
                both = [mean_iou(model, known, strengths) for strengths in (PLAIN, ONES)]
                print(f"| {objective} | {spent:.0f} | {steps} | {both[0]:.2f} | {both[1]:.2f} |", flush=True)
                points.append([spent, *both])
                mark *= 2
            if spent >= minutes * 60:
                break
        curves[objective] = points
    store({"objectives": {"unary": alone, "curves: seconds, plain sum, strength 1": curves}})
    plot(curves, alone)


def plot(curves: dict[str, list[list[float]]], alone: float) -> None:
    """The curves of `objectives` beside the unary."""
    figure = Figure((9, 3.5), layout="constrained")
    for axes, column, title in zip(figure.subplots(1, 2), (1, 2), ("plain sum", "strength 1"), strict=True):
        for objective, points in curves.items():
            axes.semilogx([point[0] for point in points], [point[column] for point in points], "o-", label=objective)
        axes.axhline(alone, color="gray", linestyle=":", label="unary")
        axes.set(title=title, xlabel="s of training steps", ylabel="CamVid val, mean IoU, %")
        axes.legend()
    save_figure(figure, FIGURES.parent / "objectives.png")
