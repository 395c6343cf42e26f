"""Progress reports of a training run."""

import logging
import time
from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from contextcrf.utils.progress import Task, duration, task

logger = logging.getLogger(__name__)


class ProgressCallback(Callback):
    """A Lightning callback that reports each step, and logs the loss, the scores and the remaining time of each epoch.

    Scores are logged only for epochs that end with a validation. Of several processes, only the first one reports.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._task: Task | None = None
        self._validated = False
        self._started, self._first = 0.0, 0  # time and epoch of the start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the progress report."""
        epochs, steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
        self._started, self._first = time.monotonic(), trainer.current_epoch
        if trainer.is_global_zero and trainer.current_epoch < epochs:
            self._task = self._stack.enter_context(task(self._label(trainer), epochs * steps))
            self._task.advance(trainer.current_epoch * steps)  # steps before the training was resumed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the number of the epoch."""
        self._validated = False
        if self._task is not None:
            self._task.describe(self._label(trainer))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Report a step."""
        if self._task is not None:
            self._task.advance()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that the epoch has validation scores."""
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the loss and the scores of the epoch."""
        # Every process must read the metrics, since the mean over the processes is computed here.
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self._task is None:
            return
        # Lightning keeps the scores of the last validation in later epochs.
        scores = {name: value for name, value in found.items() if name.startswith("val/") and self._validated}
        shown = [f"loss {found['loss']:.3f}", *(f"{name} {100 * value:.1f} %" for name, value in scores.items())]
        done = trainer.current_epoch + 1
        if left := (trainer.max_epochs or 0) - done:
            passed = time.monotonic() - self._started
            shown.append(f"{duration(passed * left / (done - self._first))} left")
        logger.info("%s: %s", self._label(trainer), ", ".join(shown))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """End the progress report."""
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """End the progress report after an error, since Lightning does not call `teardown` then."""
        self._end()

    def _end(self) -> None:
        self._task = None
        self._stack.close()

    @staticmethod
    def _label(trainer: L.Trainer) -> str:
        return f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
