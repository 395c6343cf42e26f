"""Measure time and memory of the CRF core as ratios.

Run `python benchmarks/crf.py PART...`; without a part, all parts run. Each part prints a Markdown table and adds its
figures to results/crf/figures.json. The parts growth and objectives also save a plot in that folder. The parts picture,
half and objectives are defined in `street.py` and need CamVid: `--data DATA`.
"""

import argparse
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import street
from contextcrf import PairwisePotential, RangeBox, mean_field
from contextcrf.crf import elbo, mean_field_nll, pseudo_likelihood_nll
from contextcrf.crf.meanfield import pairwise_logits
from contextcrf.evaluation.figures import save_figure
from contextcrf.utils.memory import reuse_freed_memory
from explicit import ExplicitTable, Pairs, naive_nll
from measure import FIGURES, bfloat16_products, exponent, interleaved, matmul_rate, peak_memory, run_parts, store

ROOT = Path(__file__).parent.parent
# This function of the experiments partitions the nodes into groups without edges.
independent_groups = runpy.run_path(str(ROOT / "experiments" / "icm.py"))["independent_groups"]

HIDDEN = CHANNELS = 512
# Height, width, classes. The first size is the paper's own graph: 448 pixels at stride 32.
SIZES = ((14, 19, 21), (28, 38, 21), (56, 75, 21), (28, 38, 150), (28, 38, 11))


def problem(height: int, width: int, classes: int, relations: int = 2) -> tuple[Tensor, Pairs]:
    """Return unary logits and potentials of the paper's two relations, on random features."""
    torch.manual_seed(0)
    features = torch.randn(1, CHANNELS, height, width)
    boxes = (RangeBox.surrounding(), RangeBox.above())[:relations]
    pairs = [(PairwisePotential(CHANNELS, classes, box, HIDDEN), features) for box in boxes]
    return torch.randn(1, classes, height, width), pairs


def edge_count(pairs: Pairs) -> int:
    """Return the number of edges of all relations."""
    return sum(potential.graph(features).edges().shape[1] for potential, features in pairs)


@torch.inference_mode()
def run_explicit(unary: Tensor, pairs: Pairs) -> Tensor:
    """Run two iterations with the explicit table, whose computation is part of the measured time."""
    return ExplicitTable(pairs).mean_field(unary)


@torch.inference_mode()
def run_ours(unary: Tensor, pairs: Pairs) -> Tensor:
    """Run two iterations of `mean_field`."""
    return mean_field(unary, pairs, 2)


def run_rounded(unary: Tensor, pairs: Pairs) -> Tensor:
    """Run two iterations of `mean_field` with products in bfloat16."""
    with bfloat16_products():
        return run_ours(unary, pairs)


def memory_of(run: Callable[[Tensor, Pairs], Tensor], height: int, width: int, classes: int) -> Iterator[None]:
    """Prepare, yield, and run the measured work, as `peak_memory` requires."""
    unary, pairs = problem(height, width, classes)
    edge_count(pairs)  # caches the lists of edges, so that they are not measured
    run(*problem(4, 4, classes))
    yield
    run(unary, pairs)


def inference(repeats: int) -> None:
    """Compare two iterations of mean field with the explicit table."""
    print(
        "| map, K | edges | explicit, s | float32, s | ratio | rounded, s | ratio | MiB explicit | MiB ours | ratio |"
    )
    print("|---|" + "---:|" * 9)
    rows = []
    for height, width, classes in SIZES:
        unary, pairs = problem(height, width, classes)
        work = {
            "explicit": partial(run_explicit, unary, pairs),
            "float32": partial(run_ours, unary, pairs),
            "bfloat16": partial(run_rounded, unary, pairs),
        }
        # The two implementations add up the edges in a different order.
        torch.testing.assert_close(work["explicit"](), work["float32"](), rtol=1e-3, atol=1e-3)
        seconds = interleaved(work, repeats)
        megabytes = {
            name: peak_memory(memory_of, run, height, width, classes)
            for name, run in (("explicit", run_explicit), ("ours", run_ours))
        }
        edges = edge_count(pairs)
        row = {"map": [height, width], "classes": classes, "edges": edges, "seconds": seconds, "MiB": megabytes}
        rows.append(row)
        slow, smaller = seconds["explicit"], megabytes["explicit"] / megabytes["ours"]
        print(
            f"| {height}x{width}, K={classes} | {edges} | {slow:.3f} | {seconds['float32']:.3f} | "
            f"{slow / seconds['float32']:.1f} | {seconds['bfloat16']:.3f} | {slow / seconds['bfloat16']:.1f} | "
            f"{megabytes['explicit']:.0f} | {megabytes['ours']:.0f} | {smaller:.0f} |",
            flush=True,
        )
    store({"inference": rows})


def rate(repeats: int) -> None:
    """Compute the share of the machine's rate of matrix products, counting only products over existing edges."""
    peak = matmul_rate()
    print(f"matrix product, float32: {peak:.0f} GFLOP/s\n")
    print("| map, K | products alone, GFLOP/s | share | all, GFLOP/s | share |\n|---|" + "---:|" * 4)
    rows = []
    for height, width, classes in SIZES:
        unary, pairs = problem(height, width, classes)
        nodes = height * width
        # Two iterations, two directions, and the contraction of the marginals of every node.
        work = 2 * 2 * 2 * HIDDEN * classes * (edge_count(pairs) + len(pairs) * nodes * classes)
        # The two parts of the first layer are computed once.
        work += 2 * 2 * len(pairs) * nodes * CHANNELS * HIDDEN
        run = partial(run_ours, unary, pairs)
        whole = work / interleaved({"ours": run}, repeats)["ours"] / 1e9
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        kinds = ("aten::bmm", "aten::mm", "aten::addmm")
        microseconds = sum(event.self_cpu_time_total for event in profile.key_averages() if event.key in kinds)
        products = work / microseconds / 1e3
        rows.append({"map": [height, width], "classes": classes, "products": products, "all": whole})
        print(
            f"| {height}x{width}, K={classes} | {products:.0f} | {100 * products / peak:.0f} % | "
            f"{whole:.0f} | {100 * whole / peak:.0f} % |",
            flush=True,
        )
    store({"rate, GFLOP/s": {"matrix product": peak, "rows": rows}})


CURVES: dict[str, tuple[str, list[tuple[int, int, int]], int | None]] = {
    # Unit, sizes, and the number of nodes from the middle of the box to its side.
    "box of 11 x 11": ("nodes", [(side, side, 21) for side in (16, 24, 32, 48, 64)], 5),
    "box of 0.4 a": ("nodes", [(side, side, 21) for side in (16, 24, 32, 48, 64)], None),
    "28 x 38 nodes": ("classes", [(28, 38, k) for k in (5, 11, 21, 40, 80, 150)], None),
}


def one_box(height: int, width: int, classes: int, reach: int | None) -> tuple[Tensor, Pairs]:
    """Like `problem`, but with one box of 0.4 a, or of `reach` nodes to every side."""
    unary, pairs = problem(height, width, classes, relations=1)
    if reach is None:
        return unary, pairs
    # Half a node is added so that the floor gives exactly `reach`.
    extent = (reach + 0.5) / min(height, width)
    return unary, [(PairwisePotential(CHANNELS, classes, RangeBox(*[extent] * 4), HIDDEN), pairs[0][1])]


def memory_of_growth(height: int, width: int, classes: int, reach: int | None) -> Iterator[None]:
    """Prepare, yield, and run the measured work, as `peak_memory` requires."""
    unary, pairs = one_box(height, width, classes, reach)
    run_ours(*problem(4, 4, classes))
    yield
    run_ours(unary, pairs)


def growth(repeats: int) -> None:
    """Measure time and memory against the numbers of nodes and of classes, and fit exponents."""
    curves: dict[str, dict[str, Any]] = {}
    for name, (unit, sizes, reach) in CURVES.items():
        points = []
        for height, width, classes in sizes:
            work = {"ours": partial(run_ours, *one_box(height, width, classes, reach))}
            megabytes = peak_memory(memory_of_growth, height, width, classes, reach)
            count = classes if unit == "classes" else height * width
            points.append((count, interleaved(work, repeats)["ours"], megabytes))
        counts, seconds, memory = zip(*points, strict=True)
        curves[name] = {
            "unit": unit,
            "points": points,
            "exponents": {"s": exponent(counts, seconds), "MiB": exponent(counts, memory)},
        }
        print(f"{unit}, {name}: exponents {curves[name]['exponents']}")
        print(", ".join(f"{n}: {s:.3f} s, {m:.0f} MiB" for n, s, m in points), flush=True)
    store({"growth": curves})
    draw_growth(curves)


def draw_growth(curves: dict[str, dict[str, Any]]) -> None:
    """Plot the curves of `growth` with the fitted lines."""
    figure = Figure((12, 6), layout="constrained")
    for column, (name, curve) in zip(figure.subplots(2, len(curves)).T, curves.items(), strict=True):
        counts, *measured = zip(*curve["points"], strict=True)
        for axes, values, (what, power) in zip(column, measured, curve["exponents"].items(), strict=True):
            axes.loglog(counts, values, "o")
            x, y = (torch.tensor(numbers, dtype=torch.float64).log() for numbers in (counts, values))
            axes.plot(counts, (y.mean() + power * (x - x.mean())).exp().tolist(), "-", color="gray")
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
            axes.set(title=f"{name}: exponent {power:.2f}", xlabel=curve["unit"], ylabel=f"{what}, two iterations")
    save_figure(figure, FIGURES.parent / "growth.png")


def training_step(objective: str, unary: Tensor, pairs: Pairs, labels: Tensor) -> None:
    """Run the forward and the backward pass of the pairwise part of a training step."""
    for potential, _ in pairs:
        nn.Module.zero_grad(potential)
    if objective == "piecewise":
        loss = torch.stack([potential.nll(features, labels) for potential, features in pairs]).sum()
    elif objective == "naive":
        loss = torch.stack([naive_nll(potential, features, labels) for potential, features in pairs]).sum()
    elif objective == "pseudo-likelihood":
        loss = pseudo_likelihood_nll(unary, pairs, labels)
    else:
        loss = mean_field_nll(unary, pairs, labels, iterations=3)
    loss.backward()


OBJECTIVES = ("piecewise", "naive", "pseudo-likelihood", "mean-field")


def step_problem(classes: int) -> tuple[Tensor, Pairs, Tensor]:
    """Return a problem of 28 x 38 nodes with the surrounding box, whose features need a gradient too."""
    unary, pairs = problem(28, 38, classes, relations=1)
    pairs = [(potential, features.requires_grad_()) for potential, features in pairs]
    return unary.requires_grad_(), pairs, torch.randint(classes, (1, 28, 38))


def memory_of_step(objective: str, classes: int) -> Iterator[None]:
    """Prepare, yield, and run the measured work, as `peak_memory` requires."""
    # As in the commands: freed memory that no later tensor fits into is part of the peak.
    reuse_freed_memory()
    unary, pairs, labels = step_problem(classes)
    pairs[0][0].graph(pairs[0][1]).edges()
    yield
    training_step(objective, unary, pairs, labels)


def training(repeats: int) -> None:
    """Measure a step of each objective on one relation."""
    rows = []
    for classes in (21, 150):
        # The pair logits of 150 classes would take over 8 GB, and their gradient as much again.
        objectives = [objective for objective in OBJECTIVES if objective != "naive" or classes <= 21]
        unary, pairs, labels = step_problem(classes)
        # A step with 150 classes takes a minute.
        times = repeats if classes <= 21 else 1
        steps = {objective: partial(training_step, objective, unary, pairs, labels) for objective in objectives}
        seconds = interleaved(steps, times)
        megabytes = {objective: peak_memory(memory_of_step, objective, classes) for objective in objectives}
        rows.append({"classes": classes, "seconds": seconds, "MiB": megabytes})
        print(f"K={classes}\n\n| step | s | over piecewise | MiB | over piecewise |\n|---|" + "---:|" * 4)
        for name in objectives:
            time, memory = seconds[name] / seconds["piecewise"], megabytes[name] / megabytes["piecewise"]
            print(f"| {name} | {seconds[name]:.2f} | {time:.1f} | {megabytes[name]:.0f} | {memory:.1f} |", flush=True)
    store({"training": rows})


def grid_problem(height: int, width: int, hidden: int, grid: int | None) -> tuple[Tensor, Pairs]:
    """Return 21 classes and both relations, with all neighbors or with a grid over each box, in bfloat16."""
    torch.manual_seed(0)
    features = torch.randn(1, CHANNELS, height, width).bfloat16()
    boxes = [replace(box, grid=grid) for box in (RangeBox.surrounding(), RangeBox.above())]
    potentials = [PairwisePotential(CHANNELS, 21, box, hidden).bfloat16() for box in boxes]
    return torch.randn(1, 21, height, width), [(potential, features) for potential in potentials]


def run_backward(unary: Tensor, pairs: Pairs) -> None:
    """Run two iterations and their backward pass."""
    for potential, _ in pairs:
        nn.Module.zero_grad(potential)
    mean_field(unary, pairs, 2).square().sum().backward()


def neighbors(repeats: int) -> None:
    """Compare two iterations with all neighbors with those with the neighbors of a 5 x 5 grid."""
    print("| nodes | hidden units | | edges, all | edges, 5 x 5 | all, ms | 5 x 5, ms | ratio |")
    print("|---|---:|---|" + "---:|" * 5)
    rows = []
    sizes = [(23, 30, hidden, run) for run in (run_ours, run_backward) for hidden in (64, 128, 512)]
    for height, width, hidden, run in [*sizes, (46, 60, 64, run_ours), (46, 60, 512, run_ours)]:
        problems = {name: grid_problem(height, width, hidden, grid) for name, grid in (("all", None), ("5 x 5", 5))}
        seconds = interleaved({name: partial(run, *problem) for name, problem in problems.items()}, repeats)
        edges = {name: edge_count(pairs) for name, (_, pairs) in problems.items()}
        what = "prediction" if run is run_ours else "with gradients"
        rows.append({"map": [height, width], "hidden": hidden, "what": what, "edges": edges, "seconds": seconds})
        print(
            f"| {height} x {width} | {hidden} | {what} | {edges['all']} | {edges['5 x 5']} | "
            f"{1e3 * seconds['all']:.0f} | {1e3 * seconds['5 x 5']:.0f} | {seconds['all'] / seconds['5 x 5']:.1f} |",
            flush=True,
        )
    store({"neighbors": rows})


@torch.inference_mode()
def updates() -> None:
    """Compare the ELBO of parallel, damped and sequential updates after several numbers of rounds of messages.

    The potentials are random, on a small map. At the smallest weight all updates do well; two larger weights follow.
    """
    print("| weight | update | rounds of messages | ELBO per node |\n|---|---|---:|---:|")
    rows = []
    for weight in (0.1, 1.0, 4.0):
        unary, pairs = problem(10, 13, 8)
        weights = [weight / potential.graph(features).mean_degree() * 10 for potential, features in pairs]
        nodes = unary[0, 0].numel()
        for name, damping in (("parallel", 0.0), ("damped 0.5", 0.5)):
            trace: list[Tensor] = []
            mean_field(unary, pairs, 64, weights, damping, trace=trace)
            for rounds in (2, 8, 64):
                rows.append([weight, name, rounds, float(trace[rounds]) / nodes])
        groups = independent_groups(unary, pairs)
        marginals = unary.softmax(1)
        for sweep in range(1, 9):
            for group in groups:
                updated = (unary + pairwise_logits(pairs, marginals, weights)).softmax(1)
                marginals = torch.where(group, updated, marginals)
            if sweep in (1, 2, 8):
                bound = float(elbo(unary, pairs, marginals, weights)) / nodes
                rows.append([weight, "sequential", sweep * len(groups), bound])
    for weight, name, rounds, bound in rows:
        print(f"| {weight:g} | {name} | {rounds} | {bound:.4f} |")
    store({"updates": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=4, help="minutes of training for each objective (part objectives)"
    )
    parts = {
        "inference": lambda options: inference(options.repeats),
        "rate": lambda options: rate(options.repeats),
        "growth": lambda options: growth(options.repeats),
        "training": lambda options: training(options.repeats),
        "neighbors": lambda options: neighbors(options.repeats),
        "updates": lambda options: updates(),
        "picture": lambda options: street.picture(options.data, options.repeats),
        "half": lambda options: street.half(options.data),
        "objectives": lambda options: street.objectives(options.data, options.minutes),
    }
    reuse_freed_memory()
    run_parts(parser, parts, {"picture", "half", "objectives"})


if __name__ == "__main__":
    main()
