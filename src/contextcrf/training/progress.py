"""The progress of a training, reported like that of every other long step."""

import logging
from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from contextcrf.utils.progress import Task, task

logger = logging.getLogger(__name__)


class ProgressCallback(Callback):
    """Reports steps; logs the mean loss of every epoch, with the validation scores where it ended with a validation.

    Of several processes, the first one reports.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._task: Task | None = None
        self._validated = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs, steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
        if trainer.is_global_zero and trainer.current_epoch < epochs:
            self._task = self._stack.enter_context(task(self._label(trainer), epochs * steps))
            self._task.advance(trainer.current_epoch * steps)  # those before a resumption

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = False
        if self._task is not None:
            self._task.describe(self._label(trainer))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._task is not None:
            self._task.advance()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # In every process: the mean over processes is computed here.
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self._task is None:
            return
        # Lightning keeps the scores of the last validation.
        scores = {name: value for name, value in found.items() if name.startswith("val/") and self._validated}
        shown = [f"loss {found['loss']:.3f}", *(f"{name} {100 * value:.1f} %" for name, value in scores.items())]
        logger.info("%s: %s", self._label(trainer), ", ".join(shown))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()  # there is no teardown after an error

    def _end(self) -> None:
        self._task = None
        self._stack.close()

    @staticmethod
    def _label(trainer: L.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
