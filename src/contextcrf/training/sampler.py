"""The images of a step and their augmentation, as a function of seed and epoch."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class SeededSampler(Sampler[tuple[int, int]]):
    """A new order every epoch and a seed for every sample, both functions of (seed, epoch) alone.

    They do not depend on the state of a global generator, so a resumed run has the batches of an undisturbed one.

    Args:
        size: of the data.
        seed: of orders and seeds.
        rank: the number of this process, from 0.
        world: the number of processes. Each takes every world-th sample, so that a step of all together has the images
            of a step of one process.
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
