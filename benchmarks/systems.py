"""What whole systems cost: `python benchmarks/systems.py PART...`, or all parts.

`paper`: the paper's networks at full size, one training step and one picture of 500 x 375 with 21 classes, each in a
process of its own. `training`: images a second of every system that `contextcrf reproduce camvid` trains, as ratios of
one run. `pictures`: seconds of an image of 480 x 360 through each of them, as ratios of one run. Figures go to
results/systems/figures.json.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from contextcrf.data.classes import Classes
from contextcrf.data.dataset import CAMVID, VOC
from contextcrf.modeling.config import UNARY, ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.reproduction import Study, open_study, shape_of, through_dense
from contextcrf.training import CachedHeads, Piecewise
from contextcrf.training.config import Recipe
from contextcrf.utils.runtime import autocast
from measure import apart, interleaved, run_parts, store

FIGURES = Path(__file__).parent.parent / "results" / "systems" / "figures.json"
# Of PASCAL VOC.
HEIGHT, WIDTH = 375, 500


def model_of(config: ModelConfig, classes: Classes = VOC) -> ContextCRF:
    """A model with random weights, whose pairwise heads speak."""
    torch.manual_seed(0)
    model = ContextCRF(config, classes, pretrained=False)
    for head in model.pairwise.values():
        head.last.reset_parameters()  # type: ignore[union-attr, operator]
    return model


def batch_of(count: int, height: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures with a grain, and masks of squares.

    The lattice of a dense CRF has as many vertices as for a photograph; of plain noise it has sixty times as many.
    """
    coarse = 255 * torch.rand(count, 1, -(-height // 64), -(-width // 64)) + 20 * torch.rand(count, 3, 1, 1)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images = (smooth + 3 * torch.randn_like(smooth)).clamp(0, 255).to(torch.uint8)
    squares = torch.randint(classes, (count, 1, -(-height // 50), -(-width // 50))).float()
    masks = torch.nn.functional.interpolate(squares, (height, width))[:, 0].long()
    return images, masks


def step_of(module: Piecewise | CachedHeads, batch: tuple[torch.Tensor, ...], precision: str) -> Callable[[], None]:
    """A training step: forward, backward, the optimizer."""
    module.train()
    [optimizer], _ = module.configure_optimizers()

    def step() -> None:
        optimizer.zero_grad()
        with autocast(torch.device("cpu"), precision):
            losses = module.losses(batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def paper_step(potential: str, scales: tuple[float, ...]) -> Iterator[None]:
    """The second training step of one of the paper's networks, when the optimizer's memory is there."""
    study = open_study("voc")
    model = model_of(replace(study.model, scales=scales))
    for name in model.potentials:
        if name != potential:
            del model.trunks[name]  # each network is trained by itself
    module = Piecewise(model, replace(study.recipe, potentials=[potential]), 10)
    step = step_of(module, batch_of(1, HEIGHT, WIDTH, len(VOC)), study.recipe.precision)
    step()
    yield
    step()


def paper_picture(potentials: tuple[str, ...], scales: tuple[float, ...], dense: bool) -> Iterator[None]:
    """One picture through some of the paper's networks."""
    study = open_study("voc")
    model = model_of(replace(study.model, scales=scales)).eval()
    for name in model.potentials:
        if name not in potentials:
            del model.trunks[name]
    images, _ = batch_of(1, HEIGHT, WIDTH, len(VOC))
    yield
    model.segment(images[0], potentials, dense)


def paper(options: argparse.Namespace) -> None:
    """Seconds and GiB of a step and of a picture."""
    three, one = (1.2, 0.8, 0.4), (1.0,)
    every = (UNARY, "surrounding", "above")
    steps = {
        "unary-1scale": (UNARY, one),
        "unary-3scales": (UNARY, three),
        "pairwise-surrounding": ("surrounding", three),
        "pairwise-above": ("above", three),
    }
    pictures: dict[str, tuple[Any, ...]] = {
        "unary-1scale": ((UNARY,), one, False),
        "unary-3scales": ((UNARY,), three, False),
        "pairwise-surrounding": (("surrounding",), three, False),
        "pairwise-above": (("above",), three, False),
        "1unary+2pair": (every, three, False),
        "full": (every, three, True),
    }
    print("| row | step, s | step, GiB | picture, s | picture, GiB |\n|---|---:|---:|---:|---:|")
    found = {}
    for row, arguments in pictures.items():
        costs = {"step": apart(paper_step, *steps[row])} if row in steps else {}
        costs["picture"] = apart(paper_picture, *arguments)
        cells = [f"{cost.seconds:.1f} | {cost.total / 1024:.1f}" for cost in costs.values()]
        print(f"| {row} | {' | '.join([' | '] * (2 - len(cells)) + cells)} |", flush=True)
        found[row] = {name: cost._asdict() for name, cost in costs.items()}
    store({"paper": found}, FIGURES)


def training(options: argparse.Namespace) -> None:
    """Images a second of each system's training on CamVid's recipe."""
    study = open_study("camvid")
    functions = dict(_training_steps(study))
    seconds = interleaved(functions, options.repeats)
    rates = {name: study.recipe.batch_size / value for name, value in seconds.items()}
    print("| system | images/s | of unary-3scales |\n|---|---:|---:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.2f} | {rate / rates['unary-3scales']:.2f} |")
    store({"training": rates}, FIGURES)


def pictures(options: argparse.Namespace) -> None:
    """Seconds of an image of CamVid's size through each system that `contextcrf reproduce camvid` measures."""
    study = open_study("camvid")
    image = batch_of(1, 360, 480, len(CAMVID))[0][0]

    def through(changes: dict[str, Any], potentials: list[str] | None, dense: bool) -> Callable[[], None]:
        tuned = {"spatial_compat": 0, "bilateral_sxy": 20, "bilateral_srgb": 3, "bilateral_compat": 4}
        model = model_of(replace(study.model, dense=tuned, **changes), CAMVID).eval()

        def look() -> None:
            with autocast(torch.device("cpu"), study.recipe.precision):
                model.segment(image, potentials, dense)

        return look

    functions = {
        "unary-1scale": through({"scales": (1.0,)}, [UNARY], False),
        "unary-3scales": through({}, [UNARY], False),
        "1unary+2pair": through({}, None, False),
        "full": through({}, None, True),
    }
    for name in ("fcn-8s", "deeplab-largefov", "deeplab-msc-largefov", "deeplabv3plus"):
        functions[name] = through(shape_of(name), [UNARY], False)
    for name in ("fcn-8s", "deeplab-largefov", "deeplab-msc-largefov"):
        functions[f"{name}+dense"] = through(shape_of(name), [UNARY], True)
    graph = {"graph_stride": study.model.graph_stride, "strengths": study.model.strengths}
    functions["deeplabv3plus+2pair"] = through({**shape_of("deeplabv3plus"), **graph}, None, False)
    seconds = interleaved(functions, options.repeats)
    print("| system | s | of unary-3scales |\n|---|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} | {value / seconds['unary-3scales']:.2f} |")
    store({"pictures": seconds}, FIGURES)


def _training_steps(study: Study) -> Iterator[tuple[str, Callable[[], None]]]:
    recipe, size = study.recipe, study.recipe.crop

    def networks(config: ModelConfig, recipe: Recipe) -> Callable[[], None]:
        model = model_of(config, CAMVID).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name in {*model.trunks}:
            model.trunk(name if name != "shared" else UNARY).backbone.pretrained = True
        module = Piecewise(model, recipe, 10)
        return step_of(module, batch_of(recipe.batch_size, *size, len(CAMVID)), recipe.precision)

    one = replace(study.model, scales=(1.0,))
    yield "unary-1scale", networks(one, replace(recipe, potentials=[UNARY]))
    yield "unary-3scales", networks(study.model, replace(recipe, potentials=[UNARY]))
    for name in study.model.relations:
        yield f"pairwise-{name}", networks(study.model, replace(recipe, potentials=[name]))
    yield "all potentials together", networks(study.model, recipe)
    for name in ("fcn-8s", "deeplab-largefov", "deeplab-msc-largefov", "deeplabv3plus"):
        config = replace(study.model, **shape_of(name))
        yield name, networks(config, replace(recipe, potentials=[UNARY]))
    config = replace(study.model, **shape_of("fcn-8s"), learned_dense=True, dense={"iterations": 5})
    yield "crf-rnn, its last quarter", networks(config, replace(through_dense(recipe), potentials=[UNARY]))
    config = replace(study.model, learned_dense=True, dense={"iterations": 5})
    yield "full-end-to-end, its last quarter", networks(config, through_dense(recipe))
    yield "heads on cached features", _heads(study)


def _heads(study: Study) -> Callable[[], None]:
    model = model_of(study.model, CAMVID)
    images, masks = batch_of(study.heads.batch_size, *study.heads.crop, len(CAMVID))
    with torch.no_grad():
        maps = model.eval().features(images.float())["surrounding"].to(torch.bfloat16)
    labels = torch.nn.functional.interpolate(masks[:, None].float(), maps.shape[-2:])[:, 0].long()
    module = CachedHeads(model, list(model.pairwise), study.heads, 10)
    unary = torch.zeros(len(labels), len(CAMVID), *labels.shape[-2:])
    return step_of(module, (maps, labels, unary), study.heads.precision)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run_parts(parser, {"paper": paper, "training": training, "pictures": pictures}, needy=set())
