"""The order of the training images and the seeds of their augmentation."""

from collections.abc import Collection, Iterator

import torch
from torch.utils.data import Sampler


class SeededSampler(Sampler[tuple[int, int]]):
    """A sampler that yields a new order in each epoch, and a seed for the augmentation of each sample.

    Order and seeds depend only on the seed and the epoch, not on the state of a random generator. Therefore a resumed
    training run has the same batches as an uninterrupted one.

    Args:
        size: number of samples in the data set.
        seed: seed from which the orders and the seeds of the samples are derived.
        rank: index of this process, from 0.
        world: number of processes. Each process takes every world-th sample, so that the processes together have the
            same images in a step as a single process.
        left_out: the samples that the last epochs do not have. Other samples are drawn twice instead, so that all
            epochs have the same number of samples.
        left_out_from: the first epoch without these samples.

    Example:
        >>> sampler = SeededSampler(size=4, seed=0)
        >>> first = list(sampler)
        >>> sorted(index for index, _ in first), first == list(sampler)
        ([0, 1, 2, 3], True)
        >>> sampler.set_epoch(1)
        >>> first == list(sampler)
        False
    """

    def __init__(
        self,
        size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        left_out: Collection[int] = (),
        left_out_from: int = 0,
    ) -> None:
        self.size, self.seed, self.epoch = size, seed, 0
        self.rank, self.world = rank, world
        self.left_out, self.left_out_from = frozenset(left_out), left_out_from

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Lightning calls this method at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.size,), generator=generator).tolist()
        if self.left_out and self.epoch >= self.left_out_from:
            kept = [index for index in order if index not in self.left_out]
            order = [*kept, *kept][: self.size]
        samples = list(zip(order, seeds, strict=True))[: len(self) * self.world]
        return iter(samples[self.rank :: self.world])
