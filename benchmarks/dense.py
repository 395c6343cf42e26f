"""Measure time and memory of the dense CRF, and those of pydensecrf2 if it is installed.

Run `python benchmarks/dense.py PART...`; without a part, all parts run. The part `random` takes smooth random logits
and 10 iterations, set-up included. The part `real` takes a network's marginals on ten images of `--data DATA`: CamVid,
or the data set of `--model`. The part `stop` takes them too, and ends the iterations early. The part `large` has an
image of 4000 x 3000 pixels, as a whole and in the tiles of `contextcrf refine`. The part `overlap` compares the labels
of tiles with those of whole images. The other parts are `batch`, `gradient` and `growth`. Figures go to
results/dense/figures.json.
"""

import argparse
import runpy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from contextcrf import DenseCRF, Predictor, load
from contextcrf.crf import logits_from_probabilities
from contextcrf.data.layouts import open_dataset
from contextcrf.inference.refinement import MapFormat, refine_files
from contextcrf.inference.tiling import tiles, within
from contextcrf.modeling.system import UNARY_PAIRWISE
from contextcrf.utils.memory import reuse_freed_memory
from contextcrf.utils.resizing import upsample
from measure import cost_of, interleaved, peak_memory, run_parts, store

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "results" / "dense" / "figures.json"
# This function of the tests calls pydensecrf.
REFINE = runpy.run_path(str(ROOT / "tests" / "crf" / "make_dense_reference.py"))["refine"]
DEFAULTS = {
    "spatial_sxy": 3,
    "spatial_compat": 3,
    "bilateral_sxy": 80,
    "bilateral_srgb": 13,
    "bilateral_compat": 10,
    "iterations": 10,
}
INSTALLED = find_spec("pydensecrf") is not None


def problem(height: int, width: int, classes: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Return smooth random logits, in which every label is somewhere the best, and images with edges and some noise."""
    generator = torch.Generator().manual_seed(0)

    def smooth(channels: int, size: int) -> Tensor:
        coarse = torch.randn(batch, channels, height // size + 2, width // size + 2, generator=generator)
        return F.interpolate(coarse, (height, width), mode="bicubic")

    noise = torch.randn(batch, 3, height, width, generator=generator)
    images = 128 + 40 * smooth(3, 40) + 40 * smooth(3, 9).sign() + 4 * noise
    return 2 * smooth(classes, 32), images.clamp(0, 255).to(torch.uint8)


@torch.inference_mode()
def ours(logits: Tensor, images: Tensor, tolerance: float = 1e-7, **changes: float) -> Tensor:
    """Return the marginals of `DenseCRF`."""
    return DenseCRF(**{**DEFAULTS, "tolerance": tolerance, **changes})(logits, images)


def theirs(logits: Tensor, images: Tensor, **changes: float) -> np.ndarray:
    """Return the marginals of pydensecrf2 for the first image."""
    return REFINE(logits[0].numpy(), images[0].permute(1, 2, 0).numpy(), **{**DEFAULTS, **changes})


def memory_of(run: Callable[[Tensor, Tensor], object], height: int, width: int, classes: int) -> Iterator[None]:
    """Prepare, yield, and run the measured work, as `peak_memory` requires."""
    run(*problem(16, 16, classes))
    logits, images = problem(height, width, classes)
    yield
    run(logits, images)


def implementations() -> dict[str, Callable[[Tensor, Tensor], object]]:
    """Return the installed implementations, by name."""
    return {"pydensecrf2": theirs, "ours": ours} if INSTALLED else {"ours": ours}


def random(repeats: int) -> None:
    """Measure smooth random logits of several sizes."""
    print("| size, K | pydensecrf2, s | ours, s | ratio | pydensecrf2, MiB | ours, MiB | ratio |\n|---|" + "---:|" * 6)
    rows = []
    for height, width, classes in ((375, 500, 21), (375, 500, 2), (512, 512, 150)):
        logits, images = problem(height, width, classes)
        seconds = interleaved({name: partial(run, logits, images) for name, run in implementations().items()}, repeats)
        megabytes = {
            name: peak_memory(memory_of, run, height, width, classes, processes=3)
            for name, run in implementations().items()
        }
        rows.append({"size": [height, width], "classes": classes, "seconds": seconds, "MiB": megabytes})
        print(f"| {width}x{height}, K={classes} | {comparison(seconds)} | {comparison(megabytes, '.0f')} |", flush=True)
    store({"random": rows}, FIGURES)


def comparison(values: dict[str, float], form: str = ".2f") -> str:
    """Return the cells of a table: pydensecrf2, ours, their ratio."""
    if not INSTALLED:
        return f"| {values['ours']:{form}} |"
    return f"{values['pydensecrf2']:{form}} | {values['ours']:{form}} | {values['pydensecrf2'] / values['ours']:.1f}"


def marginals_of(model: str, data: Path) -> list[tuple[Tensor, Tensor]]:
    """Return the logits of a network's marginals and the images, for ten images."""
    network = load(model)
    predictor = Predictor(network, replace(network.inference, precision="32-true"))
    pairs = []
    for image, _ in open_dataset(data, "val").spread(10).without_transform():
        marginals = predictor.segment(image, UNARY_PAIRWISE).probabilities[None]
        pairs.append((logits_from_probabilities(marginals, floor=1e-8), image[None]))
    return pairs


def stop(model: str, data: Path, repeats: int) -> None:
    """Measure `stop_below` on the marginals of a network: iterations, time, and what it changes.

    The parameters are those of pydensecrf, and then those that were tuned for the model.
    """
    pairs = marginals_of(model, data)
    _stop(f"stop, {data.name}", pairs, {}, repeats)
    names = ("spatial_sxy", "spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat")
    tuned = load(model).inference.dense_crf()
    _stop(f"stop, {data.name}, tuned", pairs, {name: float(getattr(tuned, name)) for name in names}, repeats)


def _stop(title: str, pairs: list[tuple[Tensor, Tensor]], parameters: dict[str, float], repeats: int) -> None:
    """Measure `stop_below` with these parameters, and store the figures under a title."""
    limits = (0.0, 1e-3, 1e-2, 5e-2, 1e-1)
    work: dict[str, Callable[[], object]] = {
        f"ours, stop below {limit:g}": lambda limit=limit: [
            ours(*pair, stop_below=limit, **parameters) for pair in pairs
        ]
        for limit in limits
    }
    if INSTALLED:
        work["pydensecrf2"] = lambda: [theirs(*pair, **parameters) for pair in pairs]
    seconds = {name: value / len(pairs) for name, value in interleaved(work, repeats).items()}
    counts = range(DEFAULTS["iterations"] + 1)
    trajectories = [[ours(*pair, **{**parameters, "iterations": count}) for count in counts] for pair in pairs]
    print(
        f"{title}: {parameters or 'parameters of pydensecrf'}\n\n"
        "| | s per image | iterations | mean, largest change of a marginal | changed labels, % |\n|---|" + "---:|" * 4
    )
    rows = {}
    for limit, name in zip(limits, work, strict=False):
        last = [_last_iteration(trajectory, limit) for trajectory in trajectories]
        changes = [(way[-1] - way[end]).abs() for way, end in zip(trajectories, last, strict=True)]
        labels = [
            (way[-1].argmax(1) != way[end].argmax(1)).float() for way, end in zip(trajectories, last, strict=True)
        ]
        rows[name] = {
            "seconds": seconds[name],
            "iterations": sum(last) / len(last),
            "mean": torch.stack([change.mean() for change in changes]).mean().item(),
            "max": max(change.max().item() for change in changes),
            "changed_percent": 100 * torch.stack([label.mean() for label in labels]).mean().item(),
        }
        row = rows[name]
        print(
            f"| {name} | {row['seconds']:.3f} | {row['iterations']:.1f} | {row['mean']:.1e}, {row['max']:.1e} "
            f"| {row['changed_percent']:.3f} |"
        )
    if INSTALLED:
        print(f"| pydensecrf2 | {seconds['pydensecrf2']:.3f} | | | |")
        rows["pydensecrf2"] = {"seconds": seconds["pydensecrf2"]}
    store({title: rows}, FIGURES)


def _last_iteration(trajectory: list[Tensor], limit: float) -> int:
    """Return the first iteration that changes no marginal by `limit` or more, or the last one."""
    ended = (n for n, (a, b) in enumerate(pairwise(trajectory), 1) if (a - b).abs().max() < limit)
    return next(ended, len(trajectory) - 1)


def real(model: str, data: Path, repeats: int) -> None:
    """Measure the marginals of a network on ten images."""
    pairs = marginals_of(model, data)
    work: dict[str, Callable[[], object]] = {
        f"ours, tolerance {tolerance:g}": lambda tolerance=tolerance: [ours(*pair, tolerance) for pair in pairs]
        for tolerance in (1e-7, 1e-3, 1e-2)
    }
    if INSTALLED:
        work["pydensecrf2"] = lambda: [theirs(*pair) for pair in pairs]
    seconds = {name: value / len(pairs) for name, value in interleaved(work, repeats).items()}
    exact = [ours(*pair, 0) for pair in pairs]
    print("| | s per image | labels kept | mean, largest change of a marginal |\n|---|---:|---:|---:|")
    rows = {}
    for name, value in seconds.items():
        cells = "| | "
        if name != "pydensecrf2":
            tolerance = float(name.split()[-1])
            found = [ours(*pair, tolerance) for pair in pairs]
            kept = sum((marginals.amax((0, 2, 3)) > 0).sum().item() for marginals in found) / len(pairs)
            error = torch.cat([(a - b).abs().flatten() for a, b in zip(found, exact, strict=True)])
            cells = f"| {kept:.1f} | {error.mean():.1e}, {error.max():.1e} "
            rows[name] = {"kept": kept, "mean": error.mean().item(), "max": error.max().item()}
        print(f"| {name} | {value:.3f} {cells}|")
    store({f"real, {data.name}": {"seconds": seconds, "tolerance": rows}}, FIGURES)


def batch(repeats: int) -> None:
    """Compare one image with a batch of eight."""
    one, eight = problem(375, 500, 21), problem(375, 500, 21, 8)
    seconds = interleaved({"one": lambda: ours(*one), "eight": lambda: ours(*eight)}, repeats)
    print(f"one image {seconds['one']:.2f} s, eight {seconds['eight']:.2f} s: {seconds['eight'] / seconds['one']:.1f}x")
    store({"batch": seconds}, FIGURES)


def gradient(repeats: int) -> None:
    """Measure forward and backward pass, for the gradient of the logits alone and together with all parameters."""
    logits, images = problem(375, 500, 21)

    def step(learnable: bool) -> None:
        leaf = logits.clone().requires_grad_()
        DenseCRF(**DEFAULTS, learnable=learnable)(leaf, images).square().mean().backward()

    seconds = interleaved(
        {"forward": lambda: ours(logits, images), "of logits": lambda: step(False), "of all": lambda: step(True)},
        repeats,
    )
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s")
    store({"gradient": seconds}, FIGURES)


def growth(repeats: int) -> None:
    """Measure time and memory against the number of pixels."""
    print("| pixels | s | MiB |\n|---:|---:|---:|")
    rows = []
    for height, width in ((250, 333), (500, 666), (1000, 1333), (3000, 4000)):
        logits, images = problem(height, width, 11)
        seconds = interleaved({"ours": partial(ours, logits, images)}, repeats)["ours"]
        megabytes = peak_memory(memory_of, ours, height, width, 11)
        rows.append({"size": [height, width], "seconds": seconds, "MiB": megabytes})
        print(f"| {width} x {height} | {seconds:.2f} | {megabytes:.0f} |", flush=True)
    store({"growth, K=11": rows}, FIGURES)


def in_tiles(height: int, width: int, classes: int) -> Iterator[None]:
    """Prepare files, yield, and refine them as the command does."""
    reuse_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / "map.npy", Path(folder) / "image.png"
        logits, images = problem(height, width, classes)
        np.save(pair[0], logits[0].softmax(0).half().numpy())
        Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(pair[1])
        del logits, images
        yield
        outcome = refine_files([pair], DenseCRF(**DEFAULTS), MapFormat(), Path(folder) / "refined")
        if outcome.failed:
            raise RuntimeError(f"The map cannot be refined: {outcome.failed[0][1]}")


def large() -> None:
    """Measure time and memory of one large image, as a whole and with the tiles of `refine`, which reads files."""
    size = (3000, 4000, 11)
    costs = {name: cost_of(memory_of, run, *size) for name, run in implementations().items()}
    costs["refine, in tiles"] = cost_of(in_tiles, *size)
    print("| | s | peak of the process, GB |\n|---|---:|---:|")
    rows = {name: {"seconds": cost.seconds, "GB": cost.total * 2**20 / 1e9} for name, cost in costs.items()}
    for name, row in rows.items():
        print(f"| {name} | {row['seconds']:.0f} | {row['GB']:.1f} |")
    store({"large, 4000x3000, K=11": rows}, FIGURES)


@torch.inference_mode()
def overlap(model: str, data: Path) -> None:
    """Measure how many labels of enlarged images differ if tiles overlap by 1 to 3 standard deviations."""
    height, width, side = 1440, 1920, 640
    network = load(model)
    predictor = Predictor(network, replace(network.inference, precision="32-true"))
    crf = DenseCRF(**DEFAULTS)
    deviation = DEFAULTS["bilateral_sxy"]
    reaches = [round(deviation * factor) for factor in (1, 1.5, 2, 2.5, 3)]
    changed, wrong = 0.0, dict.fromkeys(reaches, 0.0)
    images = [image for image, _ in open_dataset(data, "val").spread(4).without_transform()]
    for image in images:
        marginals = predictor.segment(image, UNARY_PAIRWISE).probabilities[None]
        logits = logits_from_probabilities(upsample(marginals, (height, width)))
        large = upsample(image[None].float(), (height, width)).byte()
        labels = crf(logits, large).argmax(1)
        changed += 100 * (labels != logits.argmax(1)).float().mean().item() / len(images)
        for reach in reaches:
            for computed, kept in tiles(height, width, side, reach):
                found = crf(logits[:, :, *computed], large[:, :, *computed], image_range=(0, 255)).argmax(1)
                differ = found[:, *within(kept, computed)] != labels[:, *kept]
                wrong[reach] += 100 * differ.sum().item() / (height * width * len(images))
    print(f"The dense CRF changes {changed:.2f} % of the labels of {width} x {height} pixels.")
    print("| overlap of the tiles, px | labels that differ from the whole image, % |\n|---:|---:|")
    for reach, percent in wrong.items():
        print(f"| {reach} | {percent:.2f} |")
    store({f"overlap, {data.name}": {"changed_percent": changed, "differ_percent": wrong}}, FIGURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="camvid", help="name of a bundled model, or a model folder (parts real, stop and overlap)"
    )
    parts = {
        "random": lambda options: random(options.repeats),
        "real": lambda options: real(options.model, options.data, options.repeats),
        "stop": lambda options: stop(options.model, options.data, options.repeats),
        "batch": lambda options: batch(options.repeats),
        "gradient": lambda options: gradient(options.repeats),
        "growth": lambda options: growth(options.repeats),
        "large": lambda options: large(),
        "overlap": lambda options: overlap(options.model, options.data),
    }
    # As in the commands. Otherwise, the time depends on how much freed memory the process happens to keep.
    reuse_freed_memory()
    run_parts(parser, parts, {"real", "stop", "overlap"})


if __name__ == "__main__":
    main()
