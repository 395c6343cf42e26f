"""The Lightning modules of both training stages: parameters, optimizer, training steps and validation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from contextcrf.crf import PairwisePotential
from contextcrf.evaluation.metrics import ConfusionMatrix
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.system import UNARY_ONLY, System
from contextcrf.training.config import THROUGH_CRF, TrainingConfig
from contextcrf.training.objectives import OBJECTIVES, Batch, seed_of


class TrainingModule(L.LightningModule):
    """The base class of both training stages, which adds up named losses and creates the optimizer.

    Args:
        config: config of the training.
        steps: number of optimizer steps of the whole training run, for the one-cycle schedule.

    Example:
        >>> class Line(TrainingModule):
        ...     def __init__(self, config, steps):
        ...         super().__init__(config, steps)
        ...         self.line = torch.nn.Linear(1, 1)
        ...
        ...     def losses(self, batch):
        ...         return {"squares": (self.line(batch[0]) - batch[1]).square().mean()}
        ...
        ...     def parameter_groups(self):
        ...         return [{"name": "new", "params": list(self.line.parameters()), "lr": self.config.lr}]
        >>> [optimizer], [schedule] = Line(TrainingConfig(), steps=100).configure_optimizers()
        >>> type(optimizer).__name__, schedule["interval"]
        ('AdamW', 'step')
    """

    def __init__(self, config: TrainingConfig, steps: int) -> None:
        super().__init__()
        self.config, self.steps = config, steps
        self.trained = False  # whether this process has started a training step
        self.step_seed: int | None = None  # the seed of the current step

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of a step by name."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups with their learning rates."""
        raise NotImplementedError

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights with those of a checkpoint, which has whole weights."""
        self.load_state_dict(weights)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the global random generator with the number of the step."""
        self.trained = True
        # A seed per step makes a resumed training run exact.
        self.step_seed = self.config.seed * 1_000_003 + self.global_step + (self.global_rank << 40)
        torch.manual_seed(self.step_seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the sum of the losses, and log each of them."""
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()}, batch_size=len(batch[0]))
        # The mean over the epoch and all processes, which `ProgressCallback` shows.
        self.log("loss", total, on_step=False, on_epoch=True, batch_size=len(batch[0]), logger=False, sync_dist=True)
        return total

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the learning rate schedule of the config."""
        config, groups = self.config, self.parameter_groups()
        if config.optimizer == "sgd":
            sgd = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
            return [sgd], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(sgd, 0.97), "interval": "epoch"}]
        adamw = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
        steps = max(4, self.steps)
        # torch divides by pct_start * total_steps - 1, which must not be 0.
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            adamw, [group["lr"] for group in groups], total_steps=steps, pct_start=max(0.1, 1.5 / steps)
        )
        return [adamw], [{"scheduler": cycle, "interval": "step"}]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace the learning rates and the schedule of a checkpoint with the values of the config.

        Args:
            checkpoint: content of the checkpoint, which is changed in place.

        Raises:
            ValueError: the checkpoint was written with another optimizer.
        """
        (optimizer,), (entry,) = self.configure_optimizers()
        fresh, schedule = optimizer.state_dict()["param_groups"], entry["scheduler"].state_dict()
        for found, wanted in zip(checkpoint["optimizer_states"][0]["param_groups"], fresh, strict=True):
            if found.keys() != wanted.keys():
                raise ValueError(
                    f"The optimizer is {self.config.optimizer}, but the checkpoint was written with another optimizer. "
                    "Set training.optimizer to the optimizer of the checkpoint, or start without --checkpoint."
                )
            found["lr"] *= wanted["initial_lr"] / found["initial_lr"]
            found |= {key: wanted[key] for key in ("initial_lr", "max_lr", "min_lr", "weight_decay") if key in wanted}
        for key in ("total_steps", "_schedule_phases", "base_lrs"):
            if key in schedule:
                checkpoint["lr_schedulers"][0][key] = schedule[key]


class ModelModule(TrainingModule):
    """A Lightning module that trains the trunks and heads of potentials on images.

    A batch is a pair of images [B, C, H, W] and masks [B, H, W].

    Args:
        model: model whose potentials are trained.
        config: config of the training.
        steps: number of optimizer steps of the whole training run, for the one-cycle schedule.
        class_weights: class weights [K] of the losses; None weights all classes equally.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(config, classes, pretrained=False)
        >>> module = ModelModule(model, TrainingConfig(precision="32-true"), steps=100)
        >>> sorted(module.losses((255 * torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64))))
        ['above', 'surrounding', 'unary']
    """

    def __init__(
        self, model: ContextCRF, config: TrainingConfig, steps: int, class_weights: Tensor | None = None
    ) -> None:
        super().__init__(config, steps)
        self.model = model
        self.class_weights = class_weights
        self.names = model.select(config.potentials)
        self.systems = self._systems_to_validate()
        self.matrices = torch.nn.ModuleDict({s.name: ConfusionMatrix(model.num_classes) for s in self.systems})
        self.predictor = Predictor(model, replace(model.inference, precision=config.precision))
        model.requires_grad_(False)
        if config.objective in THROUGH_CRF and model.dense is not None:
            model.dense.requires_grad_(True)
        if config.objective == "end-to-end":
            for part in (model.weight_offsets, model.gate):
                if part is not None:
                    part.requires_grad_(True)
        for name in self.names:
            model.trunk(name).requires_grad_(True)
            model.trunk(name).backbone.freeze(config.frozen_stages, config.frozen_filters)
            model.trunk(name).backbone.norm_eval = config.norm_eval
        _prepare_heads({name: model.potential(name) for name in self.names}, config)

    def _systems_to_validate(self) -> list[System]:
        """Return the systems that are validated.

        These are the unary alone, all trained potentials, and all trained potentials with a dense CRF that is trained.
        """
        relations = tuple(name for name in self.names if name != UNARY)
        # The name of all relations together is "pairwise", as in evaluation.
        every = relations == tuple(self.model.pairwise) and relations != ()
        together = System(UNARY in self.names, None if every else relations)
        systems = [UNARY_ONLY, together] if UNARY in self.names else [together]
        if self.config.objective in THROUGH_CRF and self.model.dense is not None:
            systems.append(replace(together, dense=True))
        return list(dict.fromkeys(systems))

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a batch of images and masks by name."""
        images, masks = batch
        weights = None if self.class_weights is None else self.class_weights.to(images.device)
        features = self.model.features(images, self.names)
        step = Batch(self.model, features, masks, images, class_weights=weights, seed=self.step_seed)
        return OBJECTIVES[self.config.objective](step, self.config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of parameters with their learning rates.

        The groups are "new", "pretrained" (a tenth of the learning rate), "pairwise" (only if `part_lr` names it;
        otherwise these parameters belong to "new"), and "weights" and "dense" without weight decay. The factors in
        `part_lr` change the learning rates.
        """
        trunks = [self.model.trunk(name) for name in self.names]
        old = {id(p) for trunk in trunks for p in trunk.pretrained_parameters()}
        dense = [] if self.model.dense is None else [p for p in self.model.dense.parameters() if p.requires_grad]
        learned = [part for part in (self.model.weight_offsets, self.model.gate) if part is not None]
        weights = [p for part in learned for p in part.parameters() if p.requires_grad]
        own_rate = "pairwise" in self.config.part_lr
        heads = [p for p in self.model.pairwise.parameters() if p.requires_grad] if own_rate else []
        apart = {id(p) for p in (*dense, *weights, *heads)}
        trained = [p for p in self.model.parameters() if p.requires_grad and id(p) not in apart]

        def rate(part: str, default: float = 1.0) -> float:
            return self.config.lr * self.config.part_lr.get(part, default)

        groups = [
            {"name": "new", "params": [p for p in trained if id(p) not in old], "lr": rate("new")},
            {"name": "pretrained", "params": [p for p in trained if id(p) in old], "lr": rate("pretrained", 0.1)},
            {"name": "pairwise", "params": heads, "lr": rate("pairwise")},
            # Decay towards 0 would pull the relation weights back to those of the settings.
            {"name": "weights", "params": weights, "lr": rate("weights"), "weight_decay": 0.0},
            # Decay towards 0 makes no sense for logarithms of standard deviations and for compatibilities.
            {"name": "dense", "params": dense, "lr": rate("dense"), "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count the predicted labels of an image in the confusion matrix of each system."""
        [image], masks = batch
        for prediction in self.predictor.predict(image, self.systems):
            matrix = self.matrices[prediction.system.name]
            assert isinstance(matrix, ConfusionMatrix)
            matrix.update(prediction.labels[None].to(masks.device), masks)

    def on_validation_epoch_end(self) -> None:
        """Log the mean IoU of each system over the images of all processes."""
        for name, matrix in self.matrices.items():
            assert isinstance(matrix, ConfusionMatrix)
            # `compute` adds up the counts of all processes.
            self.log(f"val/{name}", ConfusionMatrix.of(matrix.compute()).mean_iou(), sync_dist=True)
            matrix.reset()


class HeadsModule(TrainingModule):
    """A Lightning module that trains heads on cached features.

    A batch is a triple of features [B, C, h, w], labels and unary logits. For pairwise heads alone, the features are
    those of the graph nodes, with labels [B, h, w] and unary logits [B, K, h, w]. If the head of the unary is trained,
    the features are those of its nodes, with labels [B, H, W] of the pixels, and the logits are not used.

    Args:
        model: model whose heads are trained.
        names: names of the potentials whose heads are trained.
        config: config of the training.
        steps: number of optimizer steps of the whole training run, for the one-cycle schedule.
        class_weights: class weights [K] of the losses; None weights all classes equally.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(config, classes, pretrained=False)
        >>> module = HeadsModule(model, ["above"], TrainingConfig(), steps=100)
        >>> features, labels = torch.rand(1, 8, 6, 9), torch.zeros(1, 6, 9, dtype=torch.int64)
        >>> list(module.losses((features, labels, torch.zeros(1, 2, 6, 9))))
        ['above']
    """

    def __init__(
        self,
        model: ContextCRF,
        names: Sequence[str],
        config: TrainingConfig,
        steps: int,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(config, steps)
        self._model = (model,)  # a tuple, since the other parameters of the model are not trained
        self.class_weights = class_weights
        self.heads = torch.nn.ModuleDict({name: model.potential(name) for name in names})
        _prepare_heads(dict(self.heads.items()), config)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a batch of features, labels and unary logits by name."""
        [model], features, labels = self._model, batch[0].float(), batch[1].long()
        weights = None if self.class_weights is None else self.class_weights.to(features.device)
        if UNARY not in self.heads:
            maps = dict.fromkeys(self.heads, features)
            step = Batch(model, maps, labels, unary_logits=batch[2], class_weights=weights, seed=self.step_seed)
        else:
            relations = [name for name in self.heads if name != UNARY]
            coarse = model.pool(features) if relations else features
            maps = {UNARY: features, **dict.fromkeys(relations, coarse)}
            step = Batch(model, maps, labels, class_weights=weights, seed=self.step_seed)
        return OBJECTIVES[self.config.objective](step, self.config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return one group with the parameters of the heads."""
        return [{"name": "new", "params": list(self.heads.parameters()), "lr": self.config.lr}]


def _prepare_heads(heads: Mapping[str, torch.nn.Module], config: TrainingConfig) -> None:
    """Make heads trainable, and initialize zero-initialized pairwise heads at random if the training is piecewise.

    In piecewise training, zero-initialized heads would start to learn late. The other objectives couple the potentials:
    there the heads stay zero-initialized, since random messages of a hundred neighbors would outweigh the unary.
    """
    for name, head in heads.items():
        head.requires_grad_(True)
        if isinstance(head, PairwisePotential) and head.last.is_zero and config.objective == "piecewise":
            with torch.random.fork_rng(devices=[]):
                # The weights of a head do not depend on the other heads that are trained.
                torch.manual_seed(seed_of(config.seed, name))
                head.last.reset_parameters()
