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
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.data.dataset import SegmentationDataset, Transform
from contextcrf.data.images import read_mask
from contextcrf.data.transforms import training_transform
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.training.checkpoints import newest_checkpoint
from contextcrf.training.config import TrainingConfig
from contextcrf.training.feature_cache import CachedFeatures, cache_features
from contextcrf.training.modules import HeadsModule, ModelModule, TrainingModule
from contextcrf.training.progress import ProgressCallback
from contextcrf.training.sampler import SeededSampler
from contextcrf.utils.runtime import resolve_precision


def augmentation(config: TrainingConfig) -> Transform:
    """The augmentation of a configuration's training images."""
    return training_transform(config.crop, config.scale, config.color, config.flip)


def fit(
    model: ContextCRF,
    train: SegmentationDataset,
    val: SegmentationDataset | None,
    config: TrainingConfig,
    out: Path,
    checkpoint: str | Path | None = None,
    trainer: L.Trainer | None = None,
) -> None:
    """Train some or all potentials end to end; the model is changed in place.

    Args:
        model: the model to train.
        train: training images, with their augmentation as transform.
        val: images evaluated every `config.val_every` epochs; None is no validation.
        config: how to train.
        out: folder for logs (TensorBoard, CSV) and checkpoints (the last two epochs).
        checkpoint: "last" resumes from `out`'s newest checkpoint, exactly; a path resumes from that one.
        trainer: with several devices or machines, as `make_trainer` makes it; None is one device.

    Raises:
        ValueError: a step's images cannot be divided evenly among the processes, or a process would have no image.
        FileNotFoundError: there is no checkpoint to resume from.
    """
    trainer = trainer or make_trainer(config, out)
    rank, world = trainer.global_rank, trainer.world_size
    if config.batch_size % world:
        raise ValueError(f"batch_size {config.batch_size}: expected a multiple of the {world} processes")
    model.to(memory_format=torch.channels_last)
    sampler = SeededSampler(len(train), config.seed, rank, world)
    # Where processes are spawned (macOS, Windows), starting them again in every epoch would take seconds.
    persistent = config.workers > 0
    loader = DataLoader(
        train,
        config.batch_size // world,
        sampler=sampler,
        num_workers=config.workers,
        persistent_workers=persistent,
        drop_last=len(train) >= config.batch_size,
    )
    if len(loader) == 0:
        raise ValueError(f"{len(train)} images for {world} processes: expected one for each, or more")
    weights = class_weights(train, config.class_balance) if config.class_balance else None
    if config.max_edges is not None:
        config = replace(config, max_edges=max(1, config.max_edges // world))
    module = ModelModule(model, config, config.epochs * len(loader), weights)
    validation = None
    if val is not None:
        if len(val) < world:
            raise ValueError(f"{len(val)} validation images for {world} processes: expected one for each, or more")
        # Each process validates its share of the images; the confusion matrices are added up.
        share = Subset(val, range(rank, len(val), world))
        validation = DataLoader(share, 1, num_workers=config.workers, persistent_workers=persistent)
    _run(trainer, module, loader, validation, out, checkpoint)


def fit_heads(
    model: ContextCRF,
    train: SegmentationDataset | CachedFeatures,
    config: TrainingConfig,
    out: Path,
    copies: int = 2,
    checkpoint: str | Path | None = None,
    trainer: L.Trainer | None = None,
) -> None:
    """The second stage: train pairwise heads on features of the frozen trunk, computed once.

    The features are kept in memory in bfloat16: copies x images x C x h x w numbers on the graph's grid.

    Args:
        model: with a trained shared trunk; its heads named by `config.potentials` (None: all pairwise ones) change.
        train: training images with their augmentation; or their features, as `cache_features` returns them.
        config: how to train; `epochs` counts passes over the cached features.
        out: folder for logs and checkpoints.
        copies: augmented copies of each image that are cached.
        checkpoint: as in `fit`.
        trainer: of one process, as `make_trainer` makes it; None makes one.

    Raises:
        ValueError: the model has a trunk for each potential, no relation is named, or the objective needs images.
        FileNotFoundError: there is no checkpoint to resume from.
    """
    if not model.config.shared_trunk:
        raise ValueError("fit_heads needs a shared trunk; with a trunk for each potential, train them with fit")
    if config.objective == "crf-rnn":
        raise ValueError("objective 'crf-rnn' needs images, not features alone: train it with fit")
    names = [name for name in model.select(config.potentials) if name != UNARY]
    if copies < 1:
        raise ValueError(f"copies {copies}: expected 1 or more")
    if not names:
        raise ValueError(
            f"potentials {config.potentials}: expected at least one relation; the unary is not trained here"
        )
    if isinstance(train, SegmentationDataset):
        train = cache_features(model, train, names[0], copies, config)
    loader = DataLoader(train, config.batch_size, sampler=SeededSampler(len(train), config.seed))
    module = HeadsModule(model, names, config, config.epochs * len(loader))
    _run(trainer or make_trainer(config, out), module, loader, None, out, checkpoint)


def class_weights(data: SegmentationDataset, balance: float) -> Tensor:
    """Weights frequency^-balance for the classes of a data set, [K], with a mean of 1 over its pixels."""
    counts = torch.zeros(IGNORE_INDEX + 1, dtype=torch.float64)
    for _, path in data.pairs:
        counts += torch.bincount(read_mask(path, data.ignore_index).flatten(), minlength=IGNORE_INDEX + 1)
    frequency = counts[: len(data.classes)] / counts[: len(data.classes)].sum()
    weights = torch.where(frequency > 0, frequency.clamp(min=1e-12) ** -balance, 0)
    return (weights / (weights * frequency).sum()).float()


def make_trainer(config: TrainingConfig, out: Path, devices: int = 1, num_nodes: int = 1) -> L.Trainer:
    """Lightning's trainer for a configuration.

    Args:
        config: how to train.
        out: folder for logs and checkpoints.
        devices: processes, each with a device, on this machine; they share a step's images.
        num_nodes: machines, each with this many devices (torchrun or SLURM starts the processes).

    Raises:
        ValueError: this machine has fewer devices.
    """
    callbacks: list[Callback] = [
        # The last two: should one be damaged, one epoch is lost.
        ModelCheckpoint(
            out / "checkpoints",
            "{epoch}",
            monitor="epoch",
            mode="max",
            save_top_k=2,
            save_on_train_epoch_end=True,
        ),
        LearningRateMonitor("epoch"),
        ProgressCallback(),
    ]
    if config.ema:
        callbacks.append(EMAWeightAveraging(decay=config.ema))
    # After an interruption the writer of TensorBoard may end only with its next flush, by default within 2 minutes.
    tensorboard = TensorBoardLogger(out, name=None, version="tensorboard", flush_secs=5)
    environment = None
    if devices * num_nodes == 1:
        # The variables of a launcher, such as RANK, may be those of several independent trainings. By them Lightning
        # would take this process for one of many, and write no logs.
        environment = LightningEnvironment()
        environment.set_global_rank(0)
    with _quiet():
        try:
            return L.Trainer(
                devices=devices,
                num_nodes=num_nodes,
                strategy="ddp" if devices * num_nodes > 1 else "auto",
                max_epochs=config.epochs,
                precision=resolve_precision(config.precision),
                callbacks=callbacks,
                plugins=environment,
                logger=[tensorboard, CSVLogger(out, name="csv")],
                check_val_every_n_epoch=config.val_every,
                num_sanity_val_steps=0,
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=10,
                use_distributed_sampler=False,
            )
        except MisconfigurationException as error:
            raise ValueError(f"devices {devices}, num_nodes {num_nodes}: {error}") from error


def _run(
    trainer: L.Trainer,
    module: TrainingModule,
    loader: DataLoader[Any],
    validation: DataLoader[Any] | None,
    out: Path,
    checkpoint: str | Path | None,
) -> None:
    path = _checkpoint_path(out, checkpoint)
    device = next(module.parameters()).device
    # BatchNorm trains or not by the mode of its module: set them all.
    module.train()
    with _quiet():
        try:
            trainer.fit(module, loader, validation, ckpt_path=path, weights_only=True)
        except SystemExit as end:
            if not trainer.interrupted:
                raise
            # Lightning turns Ctrl-C into this, and ignores all further ones, also those meant for later steps.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from end
    if module.config.ema and path and not module.trained:
        # No step was left, so Lightning has not exchanged the last weights for their average.
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    module.to(device)  # Lightning leaves it on the CPU; heads belong where their trunk is


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's messages about itself and unused devices, and its warnings about what is intended here."""
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
            "The dirpath has changed from",  # a checkpoint of another training
            "The number of training batches .* is smaller than the logging interval",
            "You defined a `validation_step` but have no `val_dataloader`",
            r"Found \d+ module\(s\) in eval mode",  # BatchNorm at its ImageNet statistics
        ):
            warnings.filterwarnings("ignore", message)
        yield


def _checkpoint_path(out: Path, checkpoint: str | Path | None) -> str | None:
    if checkpoint != "last":
        return None if checkpoint is None else str(checkpoint)
    found = newest_checkpoint(out / "checkpoints")
    if found is None:
        raise FileNotFoundError(f"{out / 'checkpoints'}: no checkpoint to resume from; start without --checkpoint last")
    return str(found)
