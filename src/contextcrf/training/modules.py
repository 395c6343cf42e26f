"""The Lightning modules of the two stages of training: parameters, optimizer, steps, validation."""

from collections.abc import Iterable, Sequence
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
from contextcrf.training.config import TrainingConfig
from contextcrf.training.objectives import OBJECTIVES, Batch
from contextcrf.utils.resizing import channels_last


class TrainingModule(L.LightningModule):
    """The parts that both stages share: named losses that are added up, and the optimizer of a configuration.

    Args:
        config: how to train.
        steps: optimizer steps of the whole run, for the one-cycle schedule.
    """

    def __init__(self, config: TrainingConfig, steps: int) -> None:
        super().__init__()
        self.config, self.steps = config, steps
        self.trained = False  # whether this process has taken a step

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a step, by name."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters with their learning rates."""
        raise NotImplementedError

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.trained = True
        # Edge sampling draws from the global generator: bound to the step, it is the same after a resume.
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step + (self.global_rank << 40))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()}, batch_size=len(batch[0]))
        # The mean of the epoch, over all processes; `ProgressCallback` shows it.
        self.log("loss", total, on_step=False, on_epoch=True, batch_size=len(batch[0]), logger=False, sync_dist=True)
        return total

    def configure_optimizers(self) -> Any:
        config, groups = self.config, self.parameter_groups()
        if config.optimizer == "sgd":
            sgd = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
            return [sgd], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(sgd, 0.97), "interval": "epoch"}]
        adamw = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
        steps = max(4, self.steps)
        # The rise must have a length: with 1 / steps of the run torch divides by zero.
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            adamw, [group["lr"] for group in groups], total_steps=steps, pct_start=max(0.1, 1.5 / steps)
        )
        return [adamw], [{"scheduler": cycle, "interval": "step"}]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the rates and the schedule of this configuration in place of those of the checkpoint.

        Raises:
            ValueError: the checkpoint is that of the other optimizer.
        """
        (optimizer,), (entry,) = self.configure_optimizers()
        fresh, schedule = optimizer.state_dict()["param_groups"], entry["scheduler"].state_dict()
        for found, wanted in zip(checkpoint["optimizer_states"][0]["param_groups"], fresh, strict=True):
            if found.keys() != wanted.keys():
                raise ValueError(f"the checkpoint is that of another optimizer than {self.config.optimizer}")
            found["lr"] *= wanted["initial_lr"] / found["initial_lr"]
            found |= {key: wanted[key] for key in ("initial_lr", "max_lr", "min_lr", "weight_decay") if key in wanted}
        for key in ("total_steps", "_schedule_phases", "base_lrs"):
            if key in schedule:
                checkpoint["lr_schedulers"][0][key] = schedule[key]


class ModelModule(TrainingModule):
    """Trains trunks and heads of some potentials of a model on images. A batch is (images, masks).

    Args:
        model: whose potentials are trained.
        config: how to train.
        steps: optimizer steps of the whole run, for the one-cycle schedule.
        class_weights: [K] for the unary's loss, or None.
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
        if config.objective == "crf-rnn" and model.dense is not None:
            model.dense.requires_grad_(True)
        for name in self.names:
            model.trunk(name).requires_grad_(True)
            model.trunk(name).backbone.freeze(config.frozen_stages, config.frozen_filters)
            model.trunk(name).backbone.norm_eval = config.norm_eval
        _prepare_heads([model.potential(name) for name in self.names], config)

    def _systems_to_validate(self) -> list[System]:
        """The unary alone, all trained potentials together, and with the dense CRF where that is trained too."""
        relations = tuple(name for name in self.names if name != UNARY)
        # All relations of the model are called "pairwise", as in evaluation.
        every = relations == tuple(self.model.pairwise) and relations != ()
        together = System(UNARY in self.names, None if every else relations)
        systems = [UNARY_ONLY, together] if UNARY in self.names else [together]
        if self.config.objective == "crf-rnn":
            systems.append(replace(together, dense=True))
        return list(dict.fromkeys(systems))

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, masks = batch
        weights = None if self.class_weights is None else self.class_weights.to(images.device)
        features = self.model.features(channels_last(images), self.names)
        step = Batch(self.model, features, masks, images, class_weights=weights)
        return OBJECTIVES[self.config.objective](step, self.config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        trunks = [self.model.trunk(name) for name in self.names]
        old = {id(p) for trunk in trunks for p in trunk.pretrained_parameters()}
        dense = [] if self.model.dense is None else [p for p in self.model.dense.parameters() if p.requires_grad]
        apart = {id(p) for p in dense}
        trained = [p for p in self.model.parameters() if p.requires_grad and id(p) not in apart]
        groups = [
            {"name": "new", "params": [p for p in trained if id(p) not in old], "lr": self.config.lr},
            {"name": "pretrained", "params": [p for p in trained if id(p) in old], "lr": self.config.lr / 10},
            # Logarithms of standard deviations, and energies: decay towards 0 has no meaning for them.
            {"name": "dense", "params": dense, "lr": self.config.lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        [image], masks = batch
        for prediction in self.predictor.predict(image, self.systems):
            matrix = self.matrices[prediction.system.name]
            assert isinstance(matrix, ConfusionMatrix)
            matrix.update(prediction.labels[None].to(masks.device), masks)

    def on_validation_epoch_end(self) -> None:
        for name, matrix in self.matrices.items():
            assert isinstance(matrix, ConfusionMatrix)
            # `compute` adds up the images of all processes.
            self.log(f"val/{name}", ConfusionMatrix.of(matrix.compute()).mean_iou(), sync_dist=True)
            matrix.reset()


class HeadsModule(TrainingModule):
    """Trains pairwise heads of a model on cached features. A batch is (features, labels, unary logits).

    Args:
        model: whose heads are trained.
        names: of the relations.
        config: as in `ModelModule`.
        steps: as in `ModelModule`.
    """

    def __init__(self, model: ContextCRF, names: Sequence[str], config: TrainingConfig, steps: int) -> None:
        super().__init__(config, steps)
        self._model = (model,)  # in a tuple: its other parameters do not belong to this module
        self.heads = torch.nn.ModuleDict({name: model.pairwise_potential(name) for name in names})
        _prepare_heads(self.heads.values(), config)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        features, labels, unary = batch[0].float(), batch[1], batch[2]
        step = Batch(self._model[0], dict.fromkeys(self.heads, features), labels, unary_logits=unary)
        return OBJECTIVES[self.config.objective](step, self.config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "new", "params": list(self.heads.parameters()), "lr": self.config.lr}]


def _prepare_heads(heads: Iterable[torch.nn.Module], config: TrainingConfig) -> None:
    """Make heads trainable, and initialize those that are zero at random where the training is piecewise.

    From zero, they would begin to learn late. Under objectives that couple the potentials they stay zero, so that the
    system begins as the unary: random messages from a hundred neighbors would outweigh it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for head in heads:
            head.requires_grad_(True)
            if isinstance(head, PairwisePotential) and head.last.is_zero and config.objective == "piecewise":
                head.last.reset_parameters()
