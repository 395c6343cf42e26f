"""Piecewise training (Section IV-B) with Lightning: the module, the recipes, the two stages.

`fit` trains any choice of potentials end to end. `fit_heads` is what "piecewise" buys: given the trunk the potentials
are independent, so the trunk's features are computed once and kept, and the pairwise heads alone are trained on them.
"""

import logging
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from contextcrf.checkpoints import newest
from contextcrf.classes import IGNORE_INDEX
from contextcrf.crf import PairwisePotential
from contextcrf.data.dataset import SegmentationDataset, Transform, read_mask
from contextcrf.data.transforms import training_transform
from contextcrf.estimate import Estimate
from contextcrf.evaluation import ConfusionMatrix
from contextcrf.maps import downsample, upsample
from contextcrf.model import OBJECTIVES, UNARY, ContextCRF
from contextcrf.processes import rank
from contextcrf.recipe import Recipe

CRF_RNN = "crf-rnn"
# Sorting all pixels of a step, once for every class, would cost as much as the networks.
LOVASZ_PIXELS = 65_536


class SeededSampler(Sampler[tuple[int, int]]):
    """A new order every epoch and a seed for every sample, both functions of (seed, epoch) alone.

    Nothing here depends on the state of a global generator, so a resumed run sees what an undisturbed one would have.

    Args:
        size: of the data.
        seed: of orders and seeds.
        rank, world: of `world` processes, each takes every world-th sample: a step of all together has the images that
            a step of one process would have.
    """

    def __init__(self, size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.seed, self.epoch = size, seed, 0
        self.rank, self.world = rank, world

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.size,), generator=generator).tolist()
        samples = list(zip(order, seeds, strict=True))[: len(self) * self.world]
        return iter(samples[self.rank :: self.world])


class _Objective(L.LightningModule):
    """What both stages share: named losses that are added up, and the optimiser of a recipe."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        super().__init__()
        self.recipe, self.steps = recipe, steps
        self.trained = False  # in this process

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The negative log-likelihood of each potential that is trained."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters with their learning rates."""
        raise NotImplementedError

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.trained = True
        # Edge sampling draws from the global generator: bound to the step, it is the same after a resume.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.global_step + (self.global_rank << 40))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()}, batch_size=len(batch[0]))
        self.log("loss", total, prog_bar=True, batch_size=len(batch[0]), logger=False)
        return total

    def configure_optimizers(self) -> Any:
        recipe, groups = self.recipe, self.parameter_groups()
        if recipe.optimizer == "sgd":
            sgd = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
            return [sgd], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(sgd, 0.97), "interval": "epoch"}]
        adamw = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
        steps = max(4, self.steps)
        # The rise must have a length: with 1 / steps of the run torch divides by zero.
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            adamw, [group["lr"] for group in groups], total_steps=steps, pct_start=max(0.1, 1.5 / steps)
        )
        return [adamw], [{"scheduler": cycle, "interval": "step"}]


class Piecewise(_Objective):
    """The piecewise objective (13), the sum of the potentials' negative log-likelihoods. A batch is (images, masks).

    Args:
        model: whose potentials are trained.
        recipe: how.
        steps: optimiser steps of the whole run, for the one-cycle schedule.
        class_weights: [K] for the unary loss, or None.
    """

    def __init__(self, model: ContextCRF, recipe: Recipe, steps: int, class_weights: Tensor | None = None) -> None:
        super().__init__(recipe, steps)
        self.model = model
        self.class_weights = class_weights
        self.names = model.select(recipe.potentials)
        self.lovasz = _lovasz_loss() if recipe.lovasz else None
        self.matrices = {row: ConfusionMatrix(model.num_classes) for row in (UNARY, "crf", "full")}
        model.requires_grad_(False)
        if recipe.objective == CRF_RNN and model.dense is not None:
            model.dense.requires_grad_(True)
        for name in self.names:
            model.trunk(name).requires_grad_(True)
            model.trunk(name).backbone.freeze(recipe.frozen_stages, recipe.frozen_filters)
            model.trunk(name).backbone.norm_eval = recipe.norm_eval
        _wake([model.potential(name) for name in self.names], recipe)

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, masks = batch
        weights = None if self.class_weights is None else self.class_weights.to(images.device)
        features = self.model.features(_channels_last(images), self.names)
        if self.recipe.objective == CRF_RNN:
            return {CRF_RNN: self.model.refined_nll(features, images, masks)}
        if self.recipe.objective != "piecewise":
            return {self.recipe.objective: self.model.coupled_nll(features, masks, self.recipe.objective)}
        surrogate = None if self.lovasz is None else self._lovasz
        return self.model.nll(features, masks, self.recipe.max_edges, weights, self.recipe.loss_at, surrogate)

    def _lovasz(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The Lovász-Softmax loss of at most `LOVASZ_PIXELS` known places, weighted."""
        known = (labels != IGNORE_INDEX).flatten().nonzero()[:, 0]
        if len(known) == 0:
            return 0 * logits.sum()  # of void alone the library's loss is no number
        chosen = known[torch.randperm(len(known), device=known.device)[:LOVASZ_PIXELS]]
        logits = logits.float().movedim(1, -1).flatten(0, -2)[chosen]
        assert self.lovasz is not None
        return self.recipe.lovasz * self.lovasz(logits.T[None, ..., None], labels.flatten()[None, chosen, None])

    def parameter_groups(self) -> list[dict[str, Any]]:
        trunks = [self.model.trunk(name) for name in self.names]
        old = {id(p) for trunk in trunks for p in trunk.pretrained_parameters()}
        dense = [] if self.model.dense is None else [p for p in self.model.dense.parameters() if p.requires_grad]
        apart = {id(p) for p in dense}
        trained = [p for p in self.model.parameters() if p.requires_grad and id(p) not in apart]
        groups = [
            {"name": "new", "params": [p for p in trained if id(p) not in old], "lr": self.recipe.lr},
            {"name": "pretrained", "params": [p for p in trained if id(p) in old], "lr": self.recipe.lr / 10},
            # Standard deviations, by their logarithm, and energies: none of them wants to be 0.
            {"name": "dense", "params": dense, "lr": self.recipe.lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, masks = batch
        features = self.model.features(_channels_last(images), self.names)
        rows: dict[str, tuple[str, ...]] = {"unary": (UNARY,)} if UNARY in self.names else {}
        if len(self.names) > 1 or not rows:
            rows["crf"] = self.names
        for row, names in rows.items():
            marginals = upsample(self.model.infer(features, names).float(), masks.shape[-2:])
            self.matrices[row].update(marginals.argmax(1), masks)
        if self.recipe.objective == CRF_RNN:
            self.matrices["full"].update(self.model.refine(marginals, images).argmax(1), masks)

    def on_validation_epoch_end(self) -> None:
        for row, matrix in self.matrices.items():
            if matrix.seen:
                self.log(f"val/{row}", matrix.mean_iou(), prog_bar=True)
                matrix.reset()


class CachedHeads(_Objective):
    """A recipe's objective for pairwise heads over cached features. A batch is (features, labels, unary logits).

    Args:
        model: whose heads are trained.
        names: of the relations.
        recipe, steps: as in `Piecewise`.
    """

    def __init__(self, model: ContextCRF, names: Sequence[str], recipe: Recipe, steps: int) -> None:
        super().__init__(recipe, steps)
        self.heads = torch.nn.ModuleDict({name: model.pairwise[name] for name in names})
        _wake(self.heads.values(), recipe)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        features, labels, unary = batch[0].float(), batch[1], batch[2]
        heads = {name: head for name, head in self.heads.items() if isinstance(head, PairwisePotential)}
        if (objective := self.recipe.objective) != "piecewise":
            return {objective: OBJECTIVES[objective](unary, [(head, features) for head in heads.values()], labels)}
        return {name: head.nll(features, labels, max_edges=self.recipe.max_edges) for name, head in heads.items()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "new", "params": list(self.heads.parameters()), "lr": self.recipe.lr}]


class CachedFeatures(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """What a frozen trunk says on the graph's grid, in memory, indexed by what `SeededSampler` yields.

    Args:
        features: [N, C, h, w].
        labels: [N, h, w].
        unary: logits [N, K, h, w].
    """

    def __init__(self, features: Tensor, labels: Tensor, unary: Tensor) -> None:
        self.features, self.labels, self.unary = features, labels, unary

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        return self.features[key[0]], self.labels[key[0]], self.unary[key[0]]


def _wake(heads: Iterable[torch.nn.Module], recipe: Recipe) -> None:
    """Let heads be trained. Piecewise, silent ones start at random, since from 0 they learn late.

    Under objectives that couple the potentials they start silent, that is at the unary: random messages from a hundred
    neighbours would drown it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        for head in heads:
            head.requires_grad_(True)
            if isinstance(head, PairwisePotential) and head.last.silent and recipe.objective == "piecewise":
                head.last.reset_parameters()


def _lovasz_loss() -> torch.nn.Module:
    try:
        from segmentation_models_pytorch.losses import LovaszLoss
    except ModuleNotFoundError as error:
        raise ValueError(
            'lovasz needs segmentation_models_pytorch: pip install "contextcrf[baselines]", or set it to 0'
        ) from error
    return LovaszLoss("multiclass", ignore_index=IGNORE_INDEX)


def augmentation(recipe: Recipe) -> Transform:
    """The augmentation of a recipe's training images."""
    return training_transform(recipe.crop, recipe.scale, recipe.colour, recipe.flip)


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
    sampler = SeededSampler(len(train), recipe.seed, rank() if world > 1 else 0, world)
    batch = recipe.batch_size // world
    loader = DataLoader(
        train, batch, sampler=sampler, num_workers=recipe.workers, drop_last=len(train) >= recipe.batch_size
    )
    weights = class_weights(train, recipe.class_balance) if recipe.class_balance else None
    if recipe.max_edges is not None:
        recipe = replace(recipe, max_edges=recipe.max_edges // world)
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


@torch.no_grad()
def cache_features(
    model: ContextCRF, data: SegmentationDataset, name: str, views: int, recipe: Recipe, progress: bool = True
) -> CachedFeatures:
    """Features (bfloat16) of the potential `name`, labels and unary logits of the images, each seen `views` times."""
    model.eval()
    device = next(model.parameters()).device
    features, labels, unary = [], [], []
    samplers = [SeededSampler(len(data), recipe.seed) for _ in range(views)]
    for epoch, sampler in enumerate(samplers):
        sampler.set_epoch(epoch)
        loader = DataLoader(data, recipe.batch_size, sampler=sampler, num_workers=recipe.workers)
        for images, masks in track(loader, f"features, view {epoch + 1} of {views}", disable=not progress):
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16-mixed"):
                both = model.features(_channels_last(images.to(device)), [UNARY, name])
                logits = model.pool(model.unary(both[UNARY]).float())
            maps = both[name]
            unary.append(logits.cpu())
            features.append(maps.to(torch.bfloat16).cpu())
            labels.append(downsample(masks, maps.shape[-2:]))
    return CachedFeatures(torch.cat(features), torch.cat(labels), torch.cat(unary))


def class_weights(data: SegmentationDataset, balance: float) -> Tensor:
    """Weights frequency^-balance for the classes of a data set, [K], with a mean of 1 over its pixels."""
    counts = torch.zeros(IGNORE_INDEX + 1, dtype=torch.float64)
    for _, path in data.pairs:
        counts += torch.bincount(read_mask(path, data.void).flatten(), minlength=IGNORE_INDEX + 1)
    frequency = counts[: len(data.classes)] / counts[: len(data.classes)].sum()
    weights = torch.where(frequency > 0, frequency.clamp(min=1e-12) ** -balance, 0)
    return (weights / (weights * frequency).sum()).float()


def _run(
    module: _Objective,
    loader: DataLoader[Any],
    validation: DataLoader[Any] | None,
    out: Path,
    ckpt_path: str | None,
    progress: bool,
    devices: int = 1,
    nodes: int = 1,
) -> None:
    checkpoint = _checkpoint(out, ckpt_path)
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


def _trainer(recipe: Recipe, out: Path, progress: bool, validate: bool, devices: int, nodes: int) -> L.Trainer:
    callbacks: list[Callback] = [
        ModelCheckpoint(out / "checkpoints", "{epoch}", save_last="link", save_on_train_epoch_end=True),
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


def _channels_last(images: Tensor) -> Tensor:
    return images.float().contiguous(memory_format=torch.channels_last)
