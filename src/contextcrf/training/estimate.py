"""How long a training will take, said before it starts."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

# The first step of a kind is slower: memory is found, kernels are chosen.
STEPS = 2


class Estimate(Callback):
    """Takes a step or two for the clock alone, and prints what the whole run will take.

    What they change is put back: the run that follows is the one that it would have been.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loader = trainer.train_dataloader
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        if loader is None or epochs <= 0 or trainer.world_size > 1:
            return  # on several devices a backward pass is a matter of all
        start = time.perf_counter()
        batch = next(iter(loader))
        loading = time.perf_counter() - start
        batch = trainer.strategy.batch_to_device(batch)
        buffers = {name: value.clone() for name, value in pl_module.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            for _ in range(STEPS):
                seconds = _step(trainer, pl_module, batch)
        pl_module.zero_grad()
        for name, value in pl_module.named_buffers():
            value.copy_(buffers[name])
        steps = len(loader)
        seconds += 0.0 if loader.num_workers else loading
        place = f"{pl_module.device}, {trainer.precision}, batches of {len(batch[0])}"
        print(f"{epochs} epochs of {steps} steps, {seconds:.2g} s each ({place}): {duration(epochs * steps * seconds)}")


def _step(trainer: L.Trainer, module: Any, batch: Any) -> float:
    start = time.perf_counter()
    with trainer.precision_plugin.forward_context():
        loss = torch.stack(list(module.losses(batch).values())).sum()
    loss.backward()
    float(loss.detach())  # waits for the device
    return time.perf_counter() - start


def duration(seconds: float) -> str:
    """About how long, in words: "about 40 s", "about 12 min", "about 3.5 h"."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
