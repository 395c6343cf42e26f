"""Early stopping, and the best weights of a training run."""

import logging
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

logger = logging.getLogger(__name__)


class BestWeights(Callback):
    """A Lightning callback that keeps the weights with the highest score, and stops a training that no longer improves.

    The score is the mean IoU of the last system that the module validates, which is the largest one. The weights before
    the training are scored too, in the validation that Lightning runs before the first epoch. The result is therefore
    never worse on the validation images than the initial weights.

    Args:
        patience: the number of validations without a higher score after which the training ends.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.initial: float | None = None
        self.weights: dict[str, Tensor] = {}
        self.waited = 0
        self._candidate: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the validated weights, before a moving average is exchanged for the trained weights."""
        self._candidate = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights if their score is the highest."""
        systems: Any = pl_module.systems
        score = float(trainer.callback_metrics[f"val/{systems[-1].name}"])
        if self.initial is None:
            self.initial = score
            logger.info("Before the training: val/%s %.1f %%", systems[-1].name, 100 * score)
        if self.best is None or score > self.best:
            self.best, self.weights, self.waited = score, self._candidate, 0
        else:
            self.waited += 1
            if self.waited >= self.patience:
                trainer.should_stop = True
        self._candidate = {}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the best weights."""
        if not self.weights or self.best is None or self.initial is None:
            return
        pl_module.load_state_dict(self.weights)
        logger.info(
            "The best weights have a mean IoU of %.2f %% on the validation images, and %.2f %% before the training.",
            100 * self.best,
            100 * self.initial,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"best": self.best, "initial": self.initial, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.best, self.initial = state_dict["best"], state_dict["initial"]
        self.waited, self.weights = state_dict["waited"], state_dict["weights"]
