"""The two stages of training with Lightning."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.data.dataset import SegmentationDataset, Transform
from contextcrf.data.transforms import training_transform
from contextcrf.modeling.model import ContextCRF
from contextcrf.training.best_weights import BestWeights
from contextcrf.training.checkpoints import newest_checkpoint
from contextcrf.training.config import THROUGH_CRF, Strategy, TrainingConfig
from contextcrf.training.feature_cache import CachedFeatures, StoredFeatures, cache_features
from contextcrf.training.held_out import ALL_IMAGES, held_out_positions
from contextcrf.training.modules import HeadsModule, ModelModule, TrainingModule
from contextcrf.training.progress import ProgressCallback
from contextcrf.training.sampler import SeededSampler
from contextcrf.training.sharding import ShardedAveraging, ShardedModelModule, sharded_strategy, whole_weights
from contextcrf.utils.runtime import resolve_precision


def augmentation(config: TrainingConfig) -> Transform:
    """Return the augmentation of training images: random scaling, crop, mirroring and color jitter.

    Args:
        config: config of the training; its `crop`, `scale`, `color` and `flip` are used.

    Example:
        >>> from torchvision import tv_tensors
        >>> image = tv_tensors.Image(torch.zeros(3, 64, 96, dtype=torch.uint8))
        >>> mask = tv_tensors.Mask(torch.zeros(64, 96, dtype=torch.int64))
        >>> image, mask = augmentation(TrainingConfig(crop=(32, 48)))(image, mask)
        >>> image.shape, mask.shape
        (torch.Size([3, 32, 48]), torch.Size([32, 48]))
    """
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
    """Train potentials of a model end to end. The model is changed in place.

    Args:
        model: the model.
        train: training images; their transform is the augmentation.
        val: validation images, which are evaluated every `config.val_every` epochs; None disables the validation.
        config: config of the training.
        out: folder for the logs (TensorBoard and CSV) and the checkpoints of the last two epochs. If `config.epochs` is
            0, the function trains nothing and writes nothing.
        checkpoint: "last" resumes exactly from the newest checkpoint in `out`, and a path resumes from that checkpoint;
            None starts from the weights of the model.
        trainer: a trainer of `make_trainer`, for several devices or machines; None uses one device.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes, or a process would have no image, or
            the trainer shards the weights and the model has a learned dense CRF.
        FileNotFoundError: `out` has no checkpoint to resume from.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> root = write_scenes("scenes", train=2, val=1, height=64, width=96)
        >>> config = TrainingConfig(epochs=1, batch_size=2, crop=(64, 96), precision="32-true", workers=0)
        >>> data = open_dataset(root, "train", augmentation(config))
        >>> small = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> model = ContextCRF(small, data.classes, pretrained=False)
        >>> fit(model, data, None, config, Path("run"))
        >>> [path.name for path in Path("run/checkpoints").iterdir()]
        ['epoch=0.ckpt']
    """
    trainer = trainer or make_trainer(config, out)
    rank, world = trainer.global_rank, trainer.world_size
    if config.batch_size % world:
        raise ValueError(
            f"batch_size is {config.batch_size}, but must be a multiple of the {world} processes. Change "
            "--training.batch-size or --devices."
        )
    model.to(memory_format=torch.channels_last)
    left_out, from_epoch = held_out_positions(len(train), config.held_out), round(ALL_IMAGES * config.epochs)
    sampler = SeededSampler(len(train), config.seed, rank, world, left_out, from_epoch)
    # On macOS and Windows, starting the workers again in each epoch would take seconds.
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
        raise ValueError(
            f"The training split has {_count(len(train), 'image')}, but each of the {world} processes needs at least "
            "one. Use fewer devices."
        )
    check_batch(model, len(train), config, world)
    if config.epochs == 0:
        model.eval()
        return
    if config.patience is not None and val is None:
        raise ValueError(
            f"patience is {config.patience}, but there is no validation split. Choose one with --val-split, or set "
            "patience to null."
        )
    weights = class_weights(train, config.class_balance) if config.class_balance else None
    if config.max_edges is not None:
        config = replace(config, max_edges=max(1, config.max_edges // world))
    validation = None
    if val is not None:
        if len(val) < world:
            raise ValueError(
                f"The validation split has {_count(len(val), 'image')}, but each of the {world} processes needs at "
                "least one. Use fewer devices."
            )
        # Each process validates a part of the images. The confusion matrices are added up.
        share = Subset(val, range(rank, len(val), world))
        validation = DataLoader(share, 1, num_workers=config.workers, persistent_workers=persistent)
    steps = config.epochs * len(loader)
    if not isinstance(trainer.strategy, ModelParallelStrategy):
        _run(trainer, ModelModule(model, config, steps, weights), loader, validation, out, checkpoint)
        return
    module = ShardedModelModule(deepcopy(model), config, steps, weights)
    _run(trainer, module, loader, validation, out, checkpoint)
    model.load_state_dict(whole_weights(module.model))


def fit_heads(
    model: ContextCRF,
    train: SegmentationDataset | CachedFeatures | StoredFeatures,
    config: TrainingConfig,
    out: Path,
    copies: int = 2,
    checkpoint: str | Path | None = None,
    trainer: L.Trainer | None = None,
    cache: Path | None = None,
) -> None:
    """Train heads on features of the frozen trunk, which are computed once.

    The features are kept in bfloat16: copies x images x C x h x w numbers, where h x w are the graph nodes, or the
    nodes of the unary if it is among the potentials. The weights of a head do not depend on the other heads that are
    trained with it.

    Args:
        model: a model with a trained shared trunk. The heads in `config.potentials` are changed in place; None trains
            all pairwise heads. With "unary", the head of the unary is trained too, for example on the features of a
            pretrained backbone (`ModelConfig.channels` 0).
        train: training images, whose transform is the augmentation, or features that `cache_features` has computed.
        config: config of the training; `epochs` is the number of passes over the cached features.
        out: folder for the logs and checkpoints.
        copies: number of augmented copies of each image that are cached.
        checkpoint: "last" resumes exactly from the newest checkpoint in `out`, and a path resumes from that checkpoint;
            None starts from the weights of the model.
        trainer: a trainer of `make_trainer` with one process; None creates one.
        cache: folder for the features, which several processes can share; None keeps the features in memory.

    Raises:
        ValueError: the model has a separate trunk for each potential, `config.potentials` is empty, `copies` or
            `epochs` is below 1, or the objective needs images.
        FileNotFoundError: `out` has no checkpoint to resume from.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> root = write_scenes("scenes", train=2, val=1, height=64, width=96)
        >>> config = TrainingConfig(epochs=1, batch_size=2, crop=(64, 96), precision="32-true", workers=0)
        >>> data = open_dataset(root, "train", augmentation(config))
        >>> small = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> model = ContextCRF(small, data.classes, pretrained=False)
        >>> fit_heads(model, data, config, Path("run"), copies=1)
        >>> model.trained_relations
        ['surrounding', 'above']
    """
    if not model.config.shared_trunk:
        raise ValueError(
            "The model has a separate trunk for each potential, but fit-heads needs a shared trunk. Train the "
            "potentials with fit."
        )
    if config.objective in THROUGH_CRF:
        raise ValueError(
            f"The objective {config.objective!r} needs images, but fit-heads trains on cached features. Train the "
            "model with fit."
        )
    if copies < 1:
        raise ValueError(f"copies is {copies}, but must be 1 or greater.")
    if config.epochs < 1:
        raise ValueError(f"epochs is {config.epochs}, but fit-heads needs 1 or more.")
    names = heads_of(model, config)
    weights = None
    if isinstance(train, SegmentationDataset):
        weights = class_weights(train, config.class_balance) if config.class_balance else None
        train = cache_features(model, train, names[0], copies, config, cache)
    elif config.class_balance:
        raise ValueError(
            f"class_balance is {config.class_balance}, but the class weights cannot be computed from cached features. "
            "Pass the images, or set class_balance to 0."
        )
    loader = DataLoader(train, config.batch_size, sampler=SeededSampler(len(train), config.seed))
    module = HeadsModule(model, names, config, config.epochs * len(loader), weights)
    _run(trainer or make_trainer(config, out), module, loader, None, out, checkpoint)


def heads_of(model: ContextCRF, config: TrainingConfig) -> list[str]:
    """Return the potentials that `fit_heads` trains: those in the config, or all relations if it names none.

    Args:
        model: the model.
        config: config of the training.

    Raises:
        ValueError: the config names other potentials, or the model has no relations.
    """
    names = list(model.pairwise) if config.potentials is None else list(model.select(config.potentials))
    if not names:
        raise ValueError("The model has no relations, so fit-heads has no heads to train. Name unary in potentials.")
    return names


def check_batch(model: ContextCRF, images: int, config: TrainingConfig, world: int = 1) -> None:
    """Check that a training step has as many images as the network needs.

    Args:
        model: the model.
        images: number of training images.
        config: config of the training.
        world: number of processes.

    Raises:
        ValueError: a step has fewer images.
    """
    least = max(model.trunk(name).backbone.least_batch for name in model.select(config.potentials))
    size = min(config.batch_size, images) // world
    if size < least:
        raise ValueError(
            f"The network {model.config.network} cannot be trained with {_count(size, 'image')} per step and process, "
            f"because its BatchNorm layers need {least} or more. Set --training.batch-size to {least * world} or more, "
            "and use at least as many training images."
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def class_weights(data: SegmentationDataset, balance: float) -> Tensor:
    """Compute the class weights frequency^-balance of a data set.

    Args:
        data: images and masks; all masks are read.
        balance: the exponent; 0 gives the same weight to all classes.

    Returns:
        Weights [K] whose mean over the labeled pixels is 1. The weight of a class that does not occur is 0.

    Example:
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> data = open_dataset(write_scenes("scenes", train=2, val=1, height=64, width=96), "train")
        >>> class_weights(data, balance=0.5).shape
        torch.Size([10])
    """
    counts = torch.zeros(IGNORE_INDEX + 1, dtype=torch.float64)
    for _, path in data.pairs:
        counts += torch.bincount(data.mask_format.read(path).flatten(), minlength=IGNORE_INDEX + 1)
    frequency = counts[: len(data.classes)] / counts[: len(data.classes)].sum()
    weights = torch.where(frequency > 0, frequency.clamp(min=1e-12) ** -balance, 0)
    return (weights / (weights * frequency).sum()).float()


def make_trainer(
    config: TrainingConfig, out: Path, devices: int = 1, num_nodes: int = 1, strategy: Strategy = "ddp"
) -> L.Trainer:
    """Create the Lightning trainer of a config.

    Args:
        config: config of the training.
        out: folder for the logs and checkpoints.
        devices: number of devices of this machine; they share the images of a step, with one process per device.
        num_nodes: number of machines, each with this many devices; torchrun or SLURM starts the processes.
        strategy: "ddp", in which each process has the whole weights, or "fsdp", in which they are sharded. With one
            process, it is not used.

    Returns:
        A trainer for `fit` or `fit_heads`.

    Raises:
        ValueError: this machine has fewer devices, or `config.patience` is set with "fsdp".

    Example:
        >>> trainer = make_trainer(TrainingConfig(epochs=3, precision="32-true"), Path("run"))
        >>> trainer.max_epochs, trainer.world_size
        (3, 1)
    """
    processes = devices * num_nodes
    sharded = strategy == "fsdp" and processes > 1
    if sharded and config.patience is not None:
        raise ValueError(
            f'patience is {config.patience}, but the best weights are not kept with the strategy "fsdp". Set patience '
            'to null, or use the strategy "ddp".'
        )
    callbacks: list[Callback] = [
        # With two checkpoints, a damaged one costs only one epoch.
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
    if config.patience is not None:
        # It stores the averaged weights, so it comes before the average.
        callbacks.append(BestWeights(config.patience))
    if config.ema:
        callbacks.append((ShardedAveraging if sharded else EMAWeightAveraging)(decay=config.ema))
    # An interrupted process ends only after the next flush of TensorBoard, by default after up to 2 minutes.
    tensorboard = TensorBoardLogger(out, name=None, version="tensorboard", flush_secs=5)
    environment = None
    if processes == 1:
        # With one process, ignore the variables of a launcher, such as RANK: they may belong to unrelated jobs, and
        # Lightning would write no logs if RANK is not 0.
        environment = LightningEnvironment()
        environment.set_global_rank(0)
    with _quiet():
        try:
            return L.Trainer(
                devices=devices,
                num_nodes=num_nodes,
                strategy=sharded_strategy(processes) if sharded else "ddp" if processes > 1 else "auto",
                max_epochs=config.epochs,
                precision=resolve_precision(config.precision),
                callbacks=callbacks,
                plugins=environment,
                logger=[tensorboard, CSVLogger(out, name="csv")],
                check_val_every_n_epoch=config.val_every,
                # The validation before the training measures the initial weights.
                num_sanity_val_steps=0 if config.patience is None else -1,
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=10,
                use_distributed_sampler=False,
            )
        except MisconfigurationException as error:
            raise ValueError(
                f"Training cannot start with devices {devices} and num_nodes {num_nodes}: {error} Set --devices to the "
                "number of devices of this machine."
            ) from error


def _run(
    trainer: L.Trainer,
    module: TrainingModule,
    loader: DataLoader[Any],
    validation: DataLoader[Any] | None,
    out: Path,
    checkpoint: str | Path | None,
) -> None:
    """Run Lightning on a module, from a checkpoint or from the start."""
    path = _checkpoint_path(out, checkpoint)
    device = next(module.parameters()).device
    # The mode of a BatchNorm module decides whether its statistics are updated: set the mode of all modules.
    module.train()
    with _quiet():
        try:
            trainer.fit(module, loader, validation, ckpt_path=path, weights_only=True)
        except SystemExit as end:
            if not trainer.interrupted:
                raise
            # Lightning turns Ctrl-C into SystemExit and ignores every later Ctrl-C, also after the training.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from end
    if module.config.ema and path and not module.trained:
        # Without a training step, Lightning does not replace the last weights by their average.
        module.load_weights(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    module.to(device)  # Lightning moves the module to the CPU, but heads must be on the device of their trunk


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Lightning's messages about itself and unused devices, and its warnings about intended settings."""
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
    """Suppress warnings about intended settings."""
    with warnings.catch_warnings():
        for message in (
            ".*LeafSpec.* is deprecated",
            ".*does not have many workers",
            "Checkpoint directory .* exists and is not empty",
            "The dirpath has changed from",  # the checkpoint is from another training run
            "The number of training batches .* is smaller than the logging interval",
            "You defined a `validation_step` but have no `val_dataloader`",
            r"Found \d+ module\(s\) in eval mode",  # BatchNorm keeps its ImageNet statistics
        ):
            warnings.filterwarnings("ignore", message)
        yield


def _checkpoint_path(out: Path, checkpoint: str | Path | None) -> str | None:
    """Return the path of a checkpoint; "last" is the newest in a folder."""
    if checkpoint != "last":
        return None if checkpoint is None else str(checkpoint)
    found = newest_checkpoint(out / "checkpoints")
    if found is None:
        raise FileNotFoundError(
            f"{out / 'checkpoints'} contains no checkpoint to resume from. Start without --checkpoint last."
        )
    return str(found)
