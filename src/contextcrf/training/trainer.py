"""The two stages of training, run by Lightning."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.data.dataset import SegmentationDataset, Transform, read_mask
from contextcrf.data.transforms import training_transform
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.training.checkpoints import newest
from contextcrf.training.config import Recipe
from contextcrf.training.estimate import Estimate
from contextcrf.training.feature_cache import CachedFeatures, cache_features
from contextcrf.training.objectives import CRF_RNN, CachedHeads, Objective, Piecewise
from contextcrf.training.processes import rank
from contextcrf.training.sampler import SeededSampler


def augmentation(recipe: Recipe) -> Transform:
    """The augmentation of a recipe's training images."""
    return training_transform(recipe.crop, recipe.scale, recipe.color, recipe.flip)


def fit(
    model: ContextCRF,
    train: SegmentationDataset,
    val: SegmentationDataset | None,
    recipe: Recipe,
    out: Path,
    ckpt_path: str | None = None,
    progress: bool = True,
    devices: int = 1,
    nodes: int = 1,
) -> None:
    """Train some or all potentials end to end; the model is changed in place.

    Args:
        model: the model to train.
        train: training images, with their augmentation as transform.
        val: images evaluated every `recipe.val_every` epochs; None is no validation.
        recipe: how.
        out: folder for logs (TensorBoard, CSV) and checkpoints (one an epoch; `last.ckpt` is the newest).
        ckpt_path: "last" resumes from `out`'s newest checkpoint, exactly; a path resumes from that one.
        progress: show a progress bar.
        devices: processes, each with a device, on this machine; they share a step's images.
        nodes: machines with so many each (torchrun or SLURM starts them).

    Raises:
        ValueError: a step's images cannot be dealt evenly to the processes.
    """
    world = devices * nodes
    if recipe.batch_size % world:
        raise ValueError(f"batch_size {recipe.batch_size}: expected a multiple of the {world} processes")
    model.to(memory_format=torch.channels_last)
    sampler = SeededSampler(len(train), recipe.seed, rank(world), world)
    batch = recipe.batch_size // world
    loader = DataLoader(
        train, batch, sampler=sampler, num_workers=recipe.workers, drop_last=len(train) >= recipe.batch_size
    )
    if len(loader) == 0:
        raise ValueError(f"{len(train)} images for {world} processes: expected one for each, or more")
    weights = class_weights(train, recipe.class_balance) if recipe.class_balance else None
    if recipe.max_edges is not None:
        recipe = replace(recipe, max_edges=max(1, recipe.max_edges // world))
    module = Piecewise(model, recipe, recipe.epochs * len(loader), weights)
    validation = DataLoader(val, 1, num_workers=recipe.workers) if val is not None else None
    _run(module, loader, validation, out, ckpt_path, progress, devices, nodes)


def fit_heads(
    model: ContextCRF,
    train: SegmentationDataset | CachedFeatures,
    recipe: Recipe,
    out: Path,
    views: int = 2,
    ckpt_path: str | None = None,
    progress: bool = True,
) -> None:
    """The second stage: train pairwise heads on features of the frozen trunk, computed once.

    The features lie in memory in bfloat16: views x images x C x h x w numbers on the graph's grid.

    Args:
        model: with a trained shared trunk; its heads named by `recipe.potentials` (None: all pairwise ones) change.
        train: training images with their augmentation; or their features, as `cache_features` returns them.
        recipe: how; `epochs` counts passes over the cached features.
        out: folder for logs and checkpoints.
        views: augmented copies of each image that are cached.
        ckpt_path: as in `fit`.
        progress: show progress bars.
    """
    if not model.config.shared_trunk:
        raise ValueError("fit_heads needs a shared trunk; with a trunk for each potential, train them with fit")
    if recipe.objective == CRF_RNN:
        raise ValueError(f"objective {CRF_RNN!r} needs images, not features alone: train it with fit")
    names = [name for name in model.select(recipe.potentials) if name != UNARY]
    if views < 1:
        raise ValueError(f"views {views}: expected 1 or more")
    if not names:
        raise ValueError(
            f"potentials {recipe.potentials}: expected at least one relation; the unary is not trained here"
        )
    cached = train
    if isinstance(cached, SegmentationDataset):
        cached = cache_features(model, cached, names[0], views, recipe, progress)
    loader = DataLoader(cached, recipe.batch_size, sampler=SeededSampler(len(cached), recipe.seed))
    module = CachedHeads(model, names, recipe, recipe.epochs * len(loader))
    _run(module, loader, None, out, ckpt_path, progress)


def class_weights(data: SegmentationDataset, balance: float) -> Tensor:
    """Weights frequency^-balance for the classes of a data set, [K], with a mean of 1 over its pixels."""
    counts = torch.zeros(IGNORE_INDEX + 1, dtype=torch.float64)
    for _, path in data.pairs:
        counts += torch.bincount(read_mask(path, data.void).flatten(), minlength=IGNORE_INDEX + 1)
    frequency = counts[: len(data.classes)] / counts[: len(data.classes)].sum()
    weights = torch.where(frequency > 0, frequency.clamp(min=1e-12) ** -balance, 0)
    return (weights / (weights * frequency).sum()).float()


def _run(
    module: Objective,
    loader: DataLoader[Any],
    validation: DataLoader[Any] | None,
    out: Path,
    ckpt_path: str | None,
    progress: bool,
    devices: int = 1,
    nodes: int = 1,
) -> None:
    checkpoint = _checkpoint(out, ckpt_path)
    device = next(module.parameters()).device
    # Whether BatchNorm learns is decided by now: bring every module into its mode.
    module.train()
    with _quiet():
        trainer = _trainer(module.recipe, out, progress, validation is not None, devices, nodes)
        try:
            trainer.fit(module, loader, validation, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as end:
            if not trainer.interrupted:
                raise
            # What Lightning makes of Ctrl-C; it ignores all further ones, also those meant for what comes later.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from end
    if module.recipe.ema and checkpoint and not module.trained:
        # Nothing was left to do, and so Lightning has not exchanged the last weights for their average.
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    module.to(device)  # Lightning leaves it on the CPU; heads belong where their trunk is


def _trainer(recipe: Recipe, out: Path, progress: bool, validate: bool, devices: int, nodes: int) -> L.Trainer:
    callbacks: list[Callback] = [
        # The last two: should one be damaged, one epoch is lost.
        ModelCheckpoint(
            out / "checkpoints",
            "{epoch}",
            monitor="epoch",
            mode="max",
            save_top_k=2,
            save_last="link",
            save_on_train_epoch_end=True,
        ),
        LearningRateMonitor("epoch"),
    ]
    if progress:
        callbacks += [RichProgressBar(), Estimate()]
    if recipe.ema:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema))
    return L.Trainer(
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        max_epochs=recipe.epochs,
        precision=recipe.precision,
        callbacks=callbacks,
        logger=[TensorBoardLogger(out, name=None, version="tensorboard"), CSVLogger(out, name="csv")],
        check_val_every_n_epoch=recipe.val_every,
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=10,
        use_distributed_sampler=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of itself, of devices it does not use, and the warnings about what is meant here."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with _without_warnings():
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in (
            ".*LeafSpec.* is deprecated",
            ".*does not have many workers",
            "Checkpoint directory .* exists and is not empty",
            "The number of training batches .* is smaller than the logging interval",
            "You defined a `validation_step` but have no `val_dataloader`",
            r"Found \d+ module\(s\) in eval mode",  # BatchNorm at its ImageNet statistics
        ):
            warnings.filterwarnings("ignore", message)
        yield


def _checkpoint(out: Path, ckpt_path: str | None) -> str | None:
    if ckpt_path != "last":
        return ckpt_path
    found = newest(out / "checkpoints")
    if found is None:
        raise FileNotFoundError(f"{out / 'checkpoints'}: nothing to resume; start without --ckpt_path last")
    return str(found)
