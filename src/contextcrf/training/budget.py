"""Training runs that end within a given time, with a finished learning rate schedule.

The time of a step is measured on the machine, and the number of epochs follows from it. The decision is stored in the
output folder, so that an interrupted training run resumes with the same number of epochs.
"""

import json
import logging
import re
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation.tuning import tune_relation_weights
from contextcrf.training.config import FitHeadsJob, FitJob, Job, TrainingConfig
from contextcrf.training.feature_cache import cache_features
from contextcrf.training.held_out import divide
from contextcrf.training.inputs import initial_model, model_for_heads, open_training_images, open_validation_images
from contextcrf.training.modules import HeadsModule, ModelModule, TrainingModule
from contextcrf.training.sampler import SeededSampler
from contextcrf.training.trainer import check_batch, heads_of
from contextcrf.utils.files import write_json
from contextcrf.utils.progress import reporting
from contextcrf.utils.provenance import Provenance
from contextcrf.utils.runtime import autocast, default_device

logger = logging.getLogger(__name__)

PLAN = "budget.json"
# The part of the budget that is planned. The rest is for checkpoints and for steps that take longer than measured.
PLANNED = 0.85
# After the first steps, which are slower, this many steps are measured.
WARM_UP, MEASURED = 1, 3
# A moving average of the weights over the last 100 steps would contain the start of a shorter training run.
SHORT, SHORT_EMA = 500, 0.9


def seconds_of(duration: str) -> float:
    """Convert a duration to seconds.

    Args:
        duration: numbers with the units h, m and s, such as "10m", "1h30m" or "90s".

    Raises:
        ValueError: the text has another form, or the duration is 0.

    Example:
        >>> seconds_of("1h30m"), seconds_of("90s")
        (5400.0, 90.0)
    """
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s)?", duration)
    parts = found.groups() if found else (0, 0, 0)
    total = sum(float(part or 0) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    if total <= 0:
        raise ValueError(f'--budget is {duration!r}, but a duration such as "10m", "1h30m" or "90s" is expected.')
    return total


def plan_within_budget(job: Job) -> Job:
    """Return a job with a number of epochs that fits its budget.

    If the epochs of the config fit, they are kept. The validations during the training are the first part that is
    given up, so that one validation remains at the end. The log states the decision. It is stored in the output folder;
    a later call for the same budget returns the same decision without a measurement.

    Args:
        job: a job with a `budget`.

    Raises:
        ValueError: the budget is not a duration, or not even one epoch fits; the message states the time of an epoch.

    Example:
        >>> from pathlib import Path
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.synthetic import write_scenes
        >>> job = FitJob(
        ...     data=write_scenes("scenes", train=2, val=1, height=64, width=96),
        ...     out=Path("run"),
        ...     model=ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,)),
        ...     training=TrainingConfig(epochs=2, batch_size=2, crop=(64, 96), precision="32-true", workers=0),
        ...     val_split=None,
        ...     pretrained=False,
        ...     budget="1h",
        ... )
        >>> plan_within_budget(job).training.epochs
        2
    """
    assert job.budget is not None
    if job.training.epochs == 0:
        return replace(job, budget=None)
    started = time.perf_counter()
    budget, plan, config = seconds_of(job.budget), job.out / PLAN, job.training
    settings = Provenance.of(budget=job.budget, training=config).values
    stored = json.loads(plan.read_text(encoding="utf-8")) if plan.exists() else {}
    if stored.get("settings") == settings:
        return replace(job, training=replace(config, **stored["changes"]), budget=None)
    cost = _cost_of_heads(job) if isinstance(job, FitHeadsJob) else _cost_of_fit(job)
    available = PLANNED * budget - cost.fixed - (time.perf_counter() - started)
    changes = _changes(config, cost, available)
    if changes.get("epochs") == 0:
        needed = (budget - available / PLANNED) + (cost.epoch + cost.validation) / PLANNED
        raise ValueError(
            f"--budget is {job.budget}, but one epoch takes {_time(cost.epoch)} on this machine. Use a budget of at "
            f"least {_time(needed)}, or a smaller crop, a coarser stride or fewer scales."
        )
    _log(job, changes, cost)
    write_json(plan, {"settings": settings, "changes": changes, "seconds per step": round(cost.step, 4)})
    return replace(job, training=replace(config, **changes), budget=None)


@dataclass(frozen=True)
class _Cost:
    """The cost of training: seconds before it starts, steps of an epoch, seconds of a step and of a validation."""

    fixed: float
    steps: int
    step: float
    validation: float = 0.0

    @property
    def epoch(self) -> float:
        return self.steps * self.step

    def total(self, config: TrainingConfig) -> float:
        """Return the seconds of the whole training of a config."""
        return self.fixed + config.epochs * self.epoch + config.epochs // config.val_every * self.validation


def _changes(config: TrainingConfig, cost: _Cost, available: float) -> dict[str, Any]:
    """Return the settings of a config that must change, so that its training takes at most the available seconds."""
    if cost.total(config) - cost.fixed <= available:
        return {}
    epochs = min(config.epochs, max(0, int((available - cost.validation) / cost.epoch)))
    if epochs * cost.steps < SHORT:
        return {"epochs": epochs, "val_every": max(1, epochs), "ema": min(config.ema, SHORT_EMA)}
    return {"epochs": epochs, "val_every": epochs}


def _log(job: Job, changes: dict[str, Any], cost: _Cost) -> None:
    """Log what the budget allows, and what it costs."""
    wanted, epochs = job.training.epochs, changes.get("epochs", job.training.epochs)
    measured = f"Budget {job.budget}: a step takes {cost.step:.2f} s on this machine, and an epoch {_time(cost.epoch)}."
    if not changes:
        logger.info("%s All %d epochs of the config fit.", measured, wanted)
        return
    validation = " and is validated only at its end" if cost.validation else ""
    logger.info(
        "%s The training has %d instead of %d epochs%s. The learning rate schedule is shortened accordingly. Without "
        "--budget, the training takes about %s.",
        measured,
        epochs,
        wanted,
        validation,
        _time(cost.total(job.training)),
    )


def _cost_of_fit(job: FitJob) -> _Cost:
    """Measure steps and a validation of the training of a whole model."""
    if job.devices * job.num_nodes > 1:
        raise ValueError(
            f"--budget needs a training run with one process, but --devices is {job.devices} and --num-nodes is "
            f"{job.num_nodes}. Set training.epochs instead."
        )
    data = open_training_images(job)
    model = initial_model(job, data).to(default_device()).to(memory_format=torch.channels_last)
    check_batch(model, len(data), job.training)
    steps = max(1, len(data) // job.training.batch_size)
    module = ModelModule(model, job.training, job.training.epochs * steps)
    step = _seconds_per_step(module, data, job.training)
    val = open_validation_images(job)
    if val is None:
        return _Cost(0.0, steps, step)
    model.eval()
    seconds = []
    for _ in range(WARM_UP + 1):
        start = time.perf_counter()
        image, _ = val[0]
        module.predictor.predict(image.to(model.device), module.systems)
        seconds.append(time.perf_counter() - start)
    return _Cost(0.0, steps, step, len(val) * seconds[-1])


def _cost_of_heads(job: FitHeadsJob) -> _Cost:
    """Measure the computation of features and the steps of the training of pairwise heads."""
    model, data = model_for_heads(job), open_training_images(job)
    data, held_out = divide(model, data, job.training)
    few = data.spread(job.training.batch_size)
    few.transform = data.transform
    names = heads_of(model, job.training)
    with reporting(None):
        cache_features(model, few, names[0], 1, job.training, announce=False)  # the first call is slower
        start = time.perf_counter()
        features = cache_features(model, few, names[0], 1, job.training, announce=False)
    computing = job.copies * len(data) * (time.perf_counter() - start) / len(few)
    if held_out is not None:
        with reporting(None):
            tune_relation_weights(model, held_out.spread(1))  # the first call is slower
            start = time.perf_counter()
            tune_relation_weights(model, held_out.spread(1))
        computing += len(held_out) * (time.perf_counter() - start)
    steps = -(-job.copies * len(data) // job.training.batch_size)
    module = HeadsModule(model, names, job.training, job.training.epochs * steps)
    batch = next(iter(DataLoader(features, job.training.batch_size, sampler=SeededSampler(len(few), 0))))
    batch = [part.to(model.device) for part in batch]
    return _Cost(computing, steps, _seconds_of_losses(module, batch, job.training))


def _seconds_per_step(module: TrainingModule, data: SegmentationDataset, config: TrainingConfig) -> float:
    """Measure a step of training on images, with reading and augmentation if no worker does that meanwhile."""
    batch_size = min(config.batch_size, len(data))
    start = time.perf_counter()
    batch = torch.utils.data.default_collate([data[index, 0] for index in range(batch_size)])
    reading = time.perf_counter() - start
    step = _seconds_of_losses(module, [part.to(module.device) for part in batch], config)
    return step + reading if config.workers == 0 else max(step, reading / config.workers)


def _seconds_of_losses(module: TrainingModule, batch: list[torch.Tensor], config: TrainingConfig) -> float:
    """Measure forward pass, backward pass and update on a batch. The weights of the module change."""
    [optimizer], _ = module.configure_optimizers()
    module.train()
    times = []
    for _ in range(WARM_UP + MEASURED):
        start = time.perf_counter()
        with autocast(batch[0].device, config.precision):
            loss = torch.stack(list(module.losses(tuple(batch)).values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for an accelerator
        times.append(time.perf_counter() - start)
    return median(times[WARM_UP:])


def _time(seconds: float) -> str:
    """Return a duration in words."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 0.1):.1f} s"
