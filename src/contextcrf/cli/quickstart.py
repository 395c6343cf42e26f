"""`contextcrf tour`: the main job from end to end on context scenes, which need no download.

The trunk sees 15 x 15 pixels. A sheep and a boat, a wall and a trunk look the same through that window, so the unary
can only guess, and what is around or above must tell: here the pairwise potentials have to win.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from contextcrf.data.dataset import open_dataset
from contextcrf.data.preparation import device
from contextcrf.data.synthetic import write_scenes
from contextcrf.evaluation.evaluate import Results, evaluate, systems
from contextcrf.evaluation.report import draw
from contextcrf.evaluation.tuning import adopt, best_of, tune_strengths
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import save
from contextcrf.training import augmentation, fit
from contextcrf.training.config import Recipe

STRENGTHS = (0.0, 1.0, 4.0, 16.0)
TUNING_IMAGES = 12

CONFIG = ModelConfig(
    backbone="plain",
    stride=8,
    channels=64,
    scales=(1.0,),
    hidden=64,
    dense={"bilateral_sxy": 20, "bilateral_srgb": 20, "bilateral_compat": 4, "spatial_sxy": 2, "spatial_compat": 1},
)

RECIPE = Recipe(
    epochs=20,
    batch_size=8,
    lr=3e-3,
    weight_decay=1e-4,
    max_edges=8192,
    crop=(160, 240),
    scale=(1.0, 1.0),
    color=0.2,
    val_every=5,
)


def run(out: Path, epochs: int, train_images: int, val_images: int) -> Results:
    """Draw scenes, train, tune, evaluate; everything is written below `out`.

    Args:
        out: a new or empty folder, or an earlier tour's, whose results are replaced.
        epochs: of training.
        train_images, val_images: scenes to train and to evaluate on.
    """
    marker = out / ".contextcrf-tour"
    if out.exists() and any(out.iterdir()):
        if not marker.exists():
            raise FileExistsError(f"{out} holds files that no tour made; choose an empty or new folder with --out")
        for part in ("scenes", "fit", "model", "results"):
            shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    console = Console()
    console.print(f"[bold]1/4[/] drawing {train_images} + {val_images} scenes into {out / 'scenes'}")
    scenes = write_scenes(out / "scenes", train_images, val_images, progress=True)

    recipe = replace(RECIPE, epochs=epochs)
    console.print("[bold]2/4[/] training the unary and both pairwise potentials, jointly and piecewise")
    torch.manual_seed(recipe.seed)
    train = open_dataset(scenes, "train", augmentation(recipe))
    val = open_dataset(scenes, "val")
    model = ContextCRF(CONFIG, train.classes, pretrained=False).to(device())
    fit(model, train, val, recipe, out / "fit")

    console.print("[bold]3/4[/] choosing the strength of the pairwise terms on training scenes")
    trials = tune_strengths(model, open_dataset(scenes, "train").spread(TUNING_IMAGES), STRENGTHS)
    adopt(model, best_of(trials))
    save(model, out / "model", {"data": "context scenes", "recipe": recipe.to_dict()})

    console.print("[bold]4/4[/] evaluating")
    wanted = systems(model, [*model.potentials, "crf", "full"])
    about = {"title": "mean IoU on context scenes, %", "data": f"context scenes val, {val_images} images"}
    results = Results(val.classes.names, evaluate(model, val, wanted), about)
    results.write(out / "results")
    draw(model, val.spread(6), wanted, results, out / "results")
    console.print(results.to_rich())
    console.print(f"pictures: {out / 'results' / 'examples.png'}, {out / 'results' / 'iou.png'}")
    return results
