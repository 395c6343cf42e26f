"""Measure the dense CRF, mean field, training steps and predictions on a GPU: time, memory, agreement with the CPU.

    python benchmarks/gpu.py --out runs/gpu

Without an accelerator, smaller problems run on the CPU (`--sizes small`), which only shows that the benchmark works.
Parts may be named: `python benchmarks/gpu.py dense meanfield --out runs/gpu`. The folder receives `gpu.json` and
`gpu.md`. A problem that does not fit into memory is reported with its error, and the others run.

Each problem runs twice before its time is measured, and each measurement waits until the device has finished. Memory is
the peak of the tensors on the device. On the CPU, it is the peak of the process in the first run. The marginals are
compared with those of the CPU on the same inputs.
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dense
from contextcrf import DenseCRF, PairwisePotential, Predictor, RangeBox, load, mean_field
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.system import FULL, UNARY_PAIRWISE, System
from contextcrf.utils.files import write_json, write_text
from contextcrf.utils.runtime import default_device
from contextcrf.utils.tables import Table
from measure import Cost, cost_here, interleaved, machine
from systems import paper_training, random_batch

CPU = torch.device("cpu")
CHANNELS = 512
PARTS = ("dense", "meanfield", "training", "prediction")


@dataclass(frozen=True)
class Sizes:
    """The sizes of the problems.

    Args:
        note: a sentence about them.
        image: the height and the width of the images of the dense CRF and of the training steps.
        maps: the height, the width and the number of classes of each mean field.
        scales: the scales of the networks that are trained.
        network: values of `ModelConfig` that replace those of the paper.
        models: the bundled models that predict, each with the height and the width of the images of its data set.
        images: the number of images that each model labels.
    """

    note: str
    image: tuple[int, int] = (375, 500)
    maps: tuple[tuple[int, int, int], ...] = ((28, 38, 21), (28, 38, 150), (56, 75, 21), (56, 75, 150))
    scales: tuple[float, ...] = (1.2, 0.8, 0.4)
    network: tuple[tuple[str, Any], ...] = ()
    models: tuple[tuple[str, int, int], ...] = (("camvid", 360, 480), ("msrc21", 213, 320))
    images: int = 16


SIZES = {
    "full": Sizes("The problems have their full size."),
    "small": Sizes(
        "The problems are smaller than in the full benchmark, so the figures are no results.",
        image=(96, 128), maps=((14, 19, 21), (14, 19, 150), (28, 38, 21)), scales=(1.0,), images=1,
    ),
    "tiny": Sizes(
        "The problems are tiny and the trained networks are not VGG-16, so the figures only test the benchmark.",
        image=(32, 40), maps=((5, 6, 3),), scales=(1.0,),
        network=(("backbone", "plain"), ("channels", 8), ("hidden", 8), ("stride", 8)),
        models=(("camvid", 48, 64),), images=1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A row of the table.

    Args:
        part: the part of the benchmark.
        name: the name of the row.
        prepare: a function that takes a device and returns the work that is measured.
        images: the number of images that the work computes.
        compared: whether the work returns marginals [B, K, H, W], which are compared with those of the CPU.
    """

    part: str
    name: str
    prepare: Callable[[torch.device], Callable[[], Any]]
    images: int = 1
    compared: bool = True


def dense_crf(size: tuple[int, int], batch: int, device: torch.device) -> Callable[[], Tensor]:
    """Return ten iterations of the dense CRF on random images with 21 classes, with the set-up of the lattices."""
    logits, images = (tensor.to(device) for tensor in dense.problem(*size, 21, batch))
    return torch.inference_mode()(partial(DenseCRF(**dense.DEFAULTS).to(device), logits, images))


def contextual_mean_field(height: int, width: int, classes: int, device: torch.device) -> Callable[[], Tensor]:
    """Return two iterations of mean field with the two relations of the paper on random features."""
    torch.manual_seed(0)
    unary, features = torch.randn(1, classes, height, width), torch.randn(1, CHANNELS, height, width).to(device)
    boxes = (RangeBox.surrounding(), RangeBox.above())
    pairs = [(PairwisePotential(CHANNELS, classes, box).to(device), features) for box in boxes]
    return torch.inference_mode()(partial(mean_field, unary.to(device), pairs, 2))


def paper_step(potential: str, sizes: Sizes, device: torch.device) -> Callable[[], None]:
    """Return a training step of one of the paper's networks. A first step has created the state of the optimizer."""
    step = paper_training(potential, sizes.scales, device, sizes.image, **dict(sizes.network))
    step()
    return step


def prediction(
    name: str, size: tuple[int, int], system: System, images: int, device: torch.device
) -> Callable[[], Tensor]:
    """Return the predictions of a bundled model for several images."""
    torch.manual_seed(0)
    model = load(name).to(device)
    pictures, _ = random_batch(images, *size, len(model.classes))
    predictor = Predictor(model)
    return lambda: torch.stack([predictor.predict(picture, [system])[0].marginals for picture in pictures])


def problems(sizes: Sizes) -> Iterator[Problem]:
    """Yield the problems of all parts."""
    height, width = sizes.image
    for batch in (1, 8):
        name = f"dense CRF, {width} x {height}, K=21, 10 iterations" + (f", batch of {batch}" if batch > 1 else "")
        yield Problem("dense", name, partial(dense_crf, sizes.image, batch), batch)
    for rows, columns, classes in sizes.maps:
        name = f"mean field, {rows} x {columns}, K={classes}, 2 relations, 2 iterations"
        yield Problem("meanfield", name, partial(contextual_mean_field, rows, columns, classes))
    for potential in (UNARY, "surrounding", "above"):
        name = f"training step of {potential}, {width} x {height}, {len(sizes.scales)} scale(s)"
        yield Problem("training", name, partial(paper_step, potential, sizes), compared=False)
    for model, rows, columns in sizes.models:
        for system in (UNARY_PAIRWISE, FULL):
            name = f"prediction of {model}, {columns} x {rows}, {system.name}"
            yield Problem(
                "prediction", name, partial(prediction, model, (rows, columns), system, sizes.images), sizes.images
            )


def measured(problem: Problem, device: torch.device, repeats: int) -> dict[str, Any]:
    """Return the row of a problem: its figures, or the error if there was not enough memory."""
    row: dict[str, Any] = {"part": problem.part, "name": problem.name, "images": problem.images}
    try:
        return {**row, **_figures(problem, device, repeats)}
    except RuntimeError as error:
        # On the CPU, PyTorch has no class of its own for this error.
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        return {**row, "error": str(error)}
    finally:
        gc.collect()
        if device != CPU:
            torch.accelerator.empty_cache()


def _figures(problem: Problem, device: torch.device, repeats: int) -> dict[str, Any]:
    work = problem.prepare(device)

    def finished() -> None:
        work()
        synchronize(device)

    cost = cost_here(once, work) if device == CPU else device_cost(finished, device)
    seconds = interleaved({problem.name: finished}, repeats)[problem.name]
    found = {"seconds": seconds, "images per second": problem.images / seconds}
    found |= {"MiB added": cost.added, "MiB in total": cost.total}
    if problem.compared and device != CPU:
        found |= agreement(work().cpu(), problem.prepare(CPU)())
    return found


def once(work: Callable[[], object]) -> Iterator[None]:
    """Yield and run the work, as `cost_here` requires."""
    yield
    work()


def device_cost(work: Callable[[], object], device: torch.device) -> Cost:
    """Return the peak memory of the tensors on an accelerator, beyond the memory in use before and in total."""
    work()  # Libraries such as cuBLAS reserve memory when they are first used.
    torch.accelerator.reset_peak_memory_stats(device)
    before = torch.accelerator.memory_allocated(device)
    work()
    peak = torch.accelerator.max_memory_allocated(device)
    return Cost(float("nan"), (peak - before) / 2**20, peak / 2**20)


def agreement(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Return the share of pixels with the same label and the largest difference of two marginals [B, K, H, W]."""
    same = (found.argmax(1) == expected.argmax(1)).float().mean().item()
    return {"same labels": same, "largest difference": (found - expected).abs().max().item()}


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device != CPU:
        torch.accelerator.synchronize(device)


def description(device: torch.device) -> str:
    """Return the name and the memory of the device, the CPU and the version of torch."""
    if device == CPU:
        return f"CPU: {machine()}"
    module = torch.get_device_module(device)
    name = module.get_device_name(device) if hasattr(module, "get_device_name") else device.type
    memory = (
        f", {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB" if device.type == "cuda" else ""
    )
    return f"{name}{memory}; CPU: {machine()}"


def markdown(found: dict[str, Any]) -> str:
    """Return the figures as a page in Markdown."""
    header = ("problem", "s", "images/s", "MiB added", "MiB in total", "same labels as the CPU", "largest difference")
    rows = []
    for row in found["rows"]:
        if "error" in row:
            rows.append([row["name"], "not enough memory", *[""] * 5])
            continue
        rate = f"{row['images per second']:.2f}" if row["part"] in ("dense", "prediction") else ""
        cells = [f"{row['seconds']:.4f}", rate, f"{row['MiB added']:.0f}", f"{row['MiB in total']:.0f}"]
        compared = "same labels" in row
        cells += [f"{row['same labels']:.4%}", f"{row['largest difference']:.1e}"] if compared else ["", ""]
        rows.append([row["name"], *cells])
    errors = "".join(f"\n{row['name']}: {row['error']}\n" for row in found["rows"] if "error" in row)
    about = (
        f"`python benchmarks/gpu.py --sizes {found['sizes']}`, median of {found['repeats']}. {found['note']} The "
        f"precision of float32 matrix products is {found['float32 products']!r}. The columns of memory have the peak "
        "beyond the memory in use before, and in total."
    )
    return f"# Times on a device\n\n{found['device']}.\n\n{about}\n\n{Table(header, rows).to_markdown()}{errors}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"parts to run: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--sizes", choices=SIZES, help="default: full with an accelerator and small without one")
    parser.add_argument("--repeats", type=int, help="number of measurements (default: 10 with an accelerator, else 1)")
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"Unknown parts: {', '.join(unknown)}. Choose from {', '.join(PARTS)}.")
    device = default_device()
    sizes = options.sizes or ("small" if device == CPU else "full")
    repeats = options.repeats or (1 if device == CPU else 10)
    found: dict[str, Any] = {
        "device": description(device),
        "sizes": sizes,
        "note": SIZES[sizes].note,
        "repeats": repeats,
        "float32 products": torch.get_float32_matmul_precision(),
        "problems": asdict(SIZES[sizes]),
        "rows": [],
    }
    print(found["device"], found["note"], sep="\n", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    for problem in problems(SIZES[sizes]):
        if problem.part in (options.parts or PARTS):
            row = measured(problem, device, repeats)
            found["rows"].append(row)
            print(f"{problem.name}: " + (row.get("error") or f"{row['seconds']:.4f} s"), flush=True)
            # Written after every row, so that an interruption loses nothing.
            write_json(options.out / "gpu.json", found)
            write_text(options.out / "gpu.md", markdown(found))


if __name__ == "__main__":
    main()
