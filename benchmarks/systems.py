"""Measure time and memory of whole systems.

Run `python benchmarks/systems.py PART...`; without a part, all parts run. The part `paper` measures the paper's
networks at full size: one training step and one image of 500 x 375 with 21 classes, each in a separate process. The
part `training` measures the images per second of every system that `contextcrf reproduce camvid` trains. The part
`pictures` measures the seconds that each of these systems takes for an image of 480 x 360. The last two parts are
ratios within one run. Figures go to results/systems/figures.json.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from contextcrf import ContextCRF, InferenceConfig, ModelConfig, Predictor
from contextcrf.data.classes import Classes
from contextcrf.data.layouts import CAMVID, VOC
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE, System
from contextcrf.reproduction import Study, baseline_config, crf_rnn_config, open_study
from contextcrf.reproduction.rows import UNARY_DENSE
from contextcrf.training import HeadsModule, ModelModule, TrainingConfig, TrainingModule
from contextcrf.utils.runtime import autocast
from measure import cost_of, interleaved, run_parts, store

FIGURES = Path(__file__).parent.parent / "results" / "systems" / "figures.json"
# The size of an image of PASCAL VOC.
HEIGHT, WIDTH = 375, 500
COMPETITORS = ("fcn-8s", "deeplab-largefov", "deeplab-msc-largefov", "deeplabv3plus")
FIVE_ITERATIONS = InferenceConfig(dense={"iterations": 5})


def random_model(config: ModelConfig, classes: Classes = VOC, inference: InferenceConfig | None = None) -> ContextCRF:
    """Return a model with random weights, including those of the pairwise heads."""
    torch.manual_seed(0)
    model = ContextCRF(config, classes, pretrained=False, inference=inference)
    for name in model.pairwise:
        model.pairwise_potential(name).last.reset_parameters()
    return model


def random_batch(count: int, height: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return smooth images with a little noise, and masks of squares.

    The lattice of a dense CRF has as many vertices as for a photograph. For plain noise it has sixty times as many.
    """
    coarse = 255 * torch.rand(count, 1, -(-height // 64), -(-width // 64)) + 20 * torch.rand(count, 3, 1, 1)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    images = (smooth + 3 * torch.randn_like(smooth)).clamp(0, 255).to(torch.uint8)
    squares = torch.randint(classes, (count, 1, -(-height // 50), -(-width // 50))).float()
    masks = F.interpolate(squares, (height, width))[:, 0].long()
    return images, masks


def training_step(module: TrainingModule, batch: tuple[torch.Tensor, ...], precision: str) -> Callable[[], None]:
    """Return a function that runs a training step: forward pass, backward pass, optimizer."""
    module.train()
    [optimizer], _ = module.configure_optimizers()

    def step() -> None:
        optimizer.zero_grad()
        with autocast(batch[0].device, precision):
            losses = module.losses(batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def paper_training(
    potential: str,
    scales: tuple[float, ...],
    device: torch.device,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    **changes: Any,
) -> Callable[[], None]:
    """Return a function that runs a training step of one of the paper's networks.

    Args:
        potential: the potential of the network.
        scales: the scales of the image.
        device: the device of the network.
        size: the height and the width of the image.
        changes: values of `ModelConfig` that replace those of the paper.
    """
    study = open_study("voc")
    model = random_model(replace(study.model, scales=scales, **changes))
    for name in model.potentials:
        if name != potential:
            del model.trunks[name]  # each network is trained separately
    module = ModelModule(model, replace(study.training, potentials=[potential]), 10).to(device)
    batch = tuple(tensor.to(device) for tensor in random_batch(1, *size, len(VOC)))
    return training_step(module, batch, study.training.precision)


def paper_step(potential: str, scales: tuple[float, ...]) -> Iterator[None]:
    """Run the second training step of one of the paper's networks, when the state of the optimizer exists."""
    step = paper_training(potential, scales, torch.device("cpu"))
    step()
    yield
    step()


def paper_picture(system: System, scales: tuple[float, ...]) -> Iterator[None]:
    """Run one image through a system of the paper's networks."""
    study = open_study("voc")
    inference = replace(study.inference, precision=study.training.precision)
    model = random_model(replace(study.model, scales=scales), inference=inference).eval()
    for name in set(model.potentials) - set(system.potentials(model.pairwise)):
        del model.trunks[name]
    images, _ = random_batch(1, HEIGHT, WIDTH, len(VOC))
    yield
    model.segment(images[0], system)


def paper(options: argparse.Namespace) -> None:
    """Measure the seconds and GiB of a training step and of an image."""
    three, one = (1.2, 0.8, 0.4), (1.0,)
    steps = {
        "unary-1scale": (UNARY, one),
        "unary-3scales": (UNARY, three),
        "pairwise-surrounding": ("surrounding", three),
        "pairwise-above": ("above", three),
    }
    pictures = {
        "unary-1scale": (UNARY_ONLY, one),
        "unary-3scales": (UNARY_ONLY, three),
        "pairwise-surrounding": (System(unary=False, relations=("surrounding",)), three),
        "pairwise-above": (System(unary=False, relations=("above",)), three),
        "1unary+2pair": (UNARY_PAIRWISE, three),
        "full": (FULL, three),
    }
    print("| row | step, s | step, GiB | image, s | image, GiB |\n|---|---:|---:|---:|---:|")
    found = {}
    for row, arguments in pictures.items():
        costs = {"step": cost_of(paper_step, *steps[row])} if row in steps else {}
        costs["picture"] = cost_of(paper_picture, *arguments)
        cells = [f"{cost.seconds:.1f} | {cost.total / 1024:.1f}" for cost in costs.values()]
        print(f"| {row} | {' | '.join([' | '] * (2 - len(cells)) + cells)} |", flush=True)
        found[row] = {name: cost._asdict() for name, cost in costs.items()}
    store({"paper": found}, FIGURES)


def training(options: argparse.Namespace) -> None:
    """Measure the images per second of each system's training with the configuration of CamVid."""
    study = open_study("camvid")
    seconds = interleaved(dict(_training_steps(study)), options.repeats)
    rates = {name: study.training.batch_size / value for name, value in seconds.items()}
    print("| system | images/s | of unary-3scales |\n|---|---:|---:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.2f} | {rate / rates['unary-3scales']:.2f} |")
    store({"training": rates}, FIGURES)


def pictures(options: argparse.Namespace) -> None:
    """Measure the seconds of an image of CamVid's size in each system that `contextcrf reproduce camvid` evaluates."""
    study = open_study("camvid")
    image = random_batch(1, 360, 480, len(CAMVID))[0][0]
    tuned = {"spatial_compat": 0, "bilateral_sxy": 20, "bilateral_srgb": 3, "bilateral_compat": 4}
    inference = replace(study.inference, dense=tuned, precision=study.training.precision)

    def segment(config: ModelConfig, system: System) -> Callable[[], object]:
        predictor = Predictor(random_model(config, CAMVID).eval(), inference)
        return lambda: predictor.segment(image, system)

    baselines = {name: baseline_config(study.model, name) for name in COMPETITORS}
    functions = {
        "unary-1scale": segment(replace(study.model, scales=(1.0,)), UNARY_ONLY),
        "unary-3scales": segment(study.model, UNARY_ONLY),
        "1unary+2pair": segment(study.model, UNARY_PAIRWISE),
        "full": segment(study.model, FULL),
    }
    for name, config in baselines.items():
        functions[name] = segment(config, UNARY_ONLY)
    for name in ("fcn-8s", "deeplab-largefov", "deeplab-msc-largefov"):
        functions[f"{name}+dense"] = segment(baselines[name], UNARY_DENSE)
    on_baseline = replace(baselines["deeplabv3plus"], graph_stride=study.model.graph_stride)
    functions["deeplabv3plus+2pair"] = segment(on_baseline, UNARY_PAIRWISE)
    seconds = interleaved(functions, options.repeats)
    print("| system | s | of unary-3scales |\n|---|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} | {value / seconds['unary-3scales']:.2f} |")
    store({"pictures": seconds}, FIGURES)


def _training_steps(study: Study) -> Iterator[tuple[str, Callable[[], None]]]:
    training, size = study.training, study.training.crop

    def networks(
        config: ModelConfig, training: TrainingConfig, inference: InferenceConfig | None = None
    ) -> Callable[[], None]:
        model = random_model(config, CAMVID, inference).to(memory_format=torch.channels_last)
        for name in model.potentials:
            model.trunk(name).backbone.pretrained = True
        module = ModelModule(model, training, 10)
        return training_step(module, random_batch(training.batch_size, *size, len(CAMVID)), training.precision)

    unary = replace(training, potentials=[UNARY])
    yield "unary-1scale", networks(replace(study.model, scales=(1.0,)), unary)
    yield "unary-3scales", networks(study.model, unary)
    for name in study.model.relations:
        yield f"pairwise-{name}", networks(study.model, replace(training, potentials=[name]))
    yield "all potentials together", networks(study.model, training)
    for name in COMPETITORS:
        yield name, networks(baseline_config(study.model, name), unary)
    config = replace(baseline_config(study.model, "fcn-8s"), learned_dense=True)
    yield "crf-rnn, its last quarter", networks(config, crf_rnn_config(unary), FIVE_ITERATIONS)
    config = replace(study.model, learned_dense=True)
    inference = replace(FIVE_ITERATIONS, relation_weights=study.inference.relation_weights)
    yield "full-end-to-end, its last quarter", networks(config, crf_rnn_config(training), inference)
    yield "heads on cached features", _heads_step(study)


def _heads_step(study: Study) -> Callable[[], None]:
    model = random_model(study.model, CAMVID)
    images, masks = random_batch(study.heads.batch_size, *study.heads.crop, len(CAMVID))
    with torch.no_grad():
        maps = model.eval().features(images.float())["surrounding"].to(torch.bfloat16)
    labels = F.interpolate(masks[:, None].float(), maps.shape[-2:])[:, 0].long()
    module = HeadsModule(model, list(model.pairwise), study.heads, 10)
    unary = torch.zeros(len(labels), len(CAMVID), *labels.shape[-2:])
    return training_step(module, (maps, labels, unary), study.heads.precision)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run_parts(parser, {"paper": paper, "training": training, "pictures": pictures}, need_data=set())
