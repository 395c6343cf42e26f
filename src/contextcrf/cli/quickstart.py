"""`contextcrf quickstart`: training, tuning and evaluation on context scenes, which need no download.

The receptive field of the network is 15 x 15 pixels. In a window of this size, a sheep looks like a boat, and a wall
looks like a trunk, so the unary is at chance. Only the pairwise potentials can use the surroundings, in which these
classes differ.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from contextcrf.data.layouts import open_dataset
from contextcrf.data.synthetic import write_scenes
from contextcrf.evaluation.evaluate import EvaluationResults, default_systems, evaluate
from contextcrf.evaluation.report import write_report
from contextcrf.evaluation.tuning import TUNED, best_of, tune_relation_weights
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import save
from contextcrf.training.config import TrainingConfig
from contextcrf.training.trainer import augmentation, fit
from contextcrf.utils.provenance import Provenance
from contextcrf.utils.runtime import default_device

RELATION_WEIGHTS = (0.0, 1.0, 4.0, 16.0)
TUNING_IMAGES = 12

MODEL = ModelConfig(backbone="plain", stride=8, channels=64, scales=(1.0,), hidden=64)
INFERENCE = InferenceConfig(
    dense={"bilateral_sxy": 20, "bilateral_srgb": 20, "bilateral_compat": 4, "spatial_sxy": 2, "spatial_compat": 1},
    precision="32-true",
)
TRAINING = TrainingConfig(
    epochs=20,
    batch_size=8,
    lr=3e-3,
    weight_decay=1e-4,
    max_edges=8192,
    crop=(160, 240),
    scale=(1.0, 1.0),
    color=0.2,
    val_every=5,
    precision="32-true",  # bfloat16 does not make a network of this size faster
)


def run(out: Path, epochs: int, train_images: int, val_images: int) -> EvaluationResults:
    """Draw scenes, train a model, tune and evaluate it, and write everything below `out`.

    Args:
        out: a new or empty folder, or the folder of an earlier quickstart, whose results are replaced.
        epochs: number of epochs of the training.
        train_images: number of scenes in the training split.
        val_images: number of scenes in the validation split.

    Returns:
        The results on the validation split.

    Raises:
        FileExistsError: `out` contains other files.
    """
    marker = out / ".contextcrf-quickstart"
    if out.exists() and any(out.iterdir()):
        if not marker.exists():
            raise FileExistsError(
                f"{out} contains files that the quickstart did not write. Choose an empty or new folder with --out."
            )
        for part in ("scenes", "fit", "model", "results"):
            shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    console = Console()
    console.print(f"[bold]1/4[/] Drawing {train_images} + {val_images} scenes in {out / 'scenes'}")
    scenes = write_scenes(out / "scenes", train_images, val_images)

    config = replace(TRAINING, epochs=epochs)
    console.print("[bold]2/4[/] Training the unary and both pairwise potentials, jointly and piecewise")
    torch.manual_seed(config.seed)
    train, val = open_dataset(scenes, "train", augmentation(config)), open_dataset(scenes, "val")
    model = ContextCRF(MODEL, train.classes, pretrained=False, inference=INFERENCE).to(default_device())
    fit(model, train, val, config, out / "fit")

    console.print("[bold]3/4[/] Tuning the relation weights on training scenes")
    images = open_dataset(scenes, "train").spread(TUNING_IMAGES)
    best = best_of(tune_relation_weights(model, images, RELATION_WEIGHTS))
    inference = best.inference
    trained = Provenance.of(data="context scenes", split="train", training=config).values
    tuned = {"data": "context scenes", "split": "train", "images": len(images), "mean_iou": best.mean_iou}
    save(model, out / "model", {"fit": trained, TUNED: tuned}, inference=inference)

    console.print("[bold]4/4[/] Evaluating")
    systems = default_systems(model)
    measured = evaluate(Predictor(model, inference), val, systems, keep_labels=(systems[0], systems[-1]))
    metadata = {"title": "mean IoU on context scenes, %", "data": f"context scenes val, {val_images} images"}
    results = EvaluationResults(val.classes.names, measured, metadata)
    results.write(out / "results")
    write_report(val, results, out / "results")
    console.print(results.to_rich())
    console.print(f"figures: {out / 'results' / 'examples.png'}, {out / 'results' / 'iou.png'}")
    return results
