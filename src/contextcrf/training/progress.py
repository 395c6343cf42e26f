"""The progress of a training, reported like that of every other long step."""

import logging
from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from contextcrf.utils.progress import task

logger = logging.getLogger(__name__)


class ProgressCallback(Callback):
    """Reports steps, and logs the loss and the validation scores after every epoch."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs, steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
        if trainer.is_global_zero and trainer.current_epoch < epochs:
            self._running = self._stack.enter_context(task(self._label(trainer), epochs * steps))
            self._running.advance(trainer.current_epoch * steps)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._running.describe(self._label(trainer))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self._running.advance()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            found = {name: float(value) for name, value in trainer.callback_metrics.items()}
            scores = [f"{name} {100 * value:.1f} %" for name, value in found.items() if name.startswith("val/")]
            logger.info("%s: %s", self._label(trainer), ", ".join([f"loss {found['loss']:.3f}", *scores]))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stack.close()

    @staticmethod
    def _label(trainer: L.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
