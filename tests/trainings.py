"""Small trainings, and what is compared after them."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from contextcrf.data.layouts import open_dataset
from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.training import FitHeadsJob, FitJob, TrainingConfig
from contextcrf.training.objectives import OBJECTIVES, Batch

MODEL = ModelConfig("plain", channels=8, hidden=8, scales=(1.0,))
QUICK = TrainingConfig(
    epochs=3,
    batch_size=2,
    crop=(64, 96),
    scale=(0.8, 1.2),
    lr=0.01,
    max_edges=64,
    val_every=3,
    precision="32-true",
    workers=0,
)
# The same for objectives that take all edges.
COUPLED = replace(QUICK, max_edges=None)


def fit_job(data: Path, out: Path, **changes: object) -> FitJob:
    """A training that takes a second."""
    exact = InferenceConfig(precision="32-true")
    job = FitJob(data, out, MODEL, QUICK, exact, val_split=None, pretrained=False)
    return replace(job, **changes)  # type: ignore[arg-type]


def heads_job(model: Path, data: Path, out: Path, **changes: object) -> FitHeadsJob:
    """The second stage of such a training."""
    return replace(FitHeadsJob(str(model), data, out, QUICK), **changes)  # type: ignore[arg-type]


def weights(module: nn.Module) -> Tensor:
    """All weights of a module, one after the other."""
    return torch.cat([value.detach().flatten() for value in module.state_dict().values()])


def training_batch(data: Path) -> tuple[Tensor, Tensor]:
    """All training images of a data set, with their masks."""
    dataset = open_dataset(data, "train")
    images, masks = torch.utils.data.default_collate([dataset[i] for i in range(len(dataset))])
    return images.float(), masks


def losses(model: ContextCRF, data: Path, config: TrainingConfig = COUPLED) -> dict[str, Tensor]:
    """The losses of an objective over all training images."""
    images, masks = training_batch(data)
    potentials = model.select(config.potentials)
    with torch.no_grad():
        batch = Batch(model, model.features(images, potentials), masks, images)
        return OBJECTIVES[config.objective](batch, config)


def logged(out: Path) -> list[dict[str, str]]:
    """The rows of the metrics of a training, as text."""
    lines = (out / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
