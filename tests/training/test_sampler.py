import torch

from contextcrf.training import SeededSampler


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    sampler, other = SeededSampler(50, seed=1), SeededSampler(50, seed=2)
    first = list(sampler)
    assert sorted(index for index, _ in first) == list(range(50))
    torch.rand(3)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(other) != first


def test_two_processes_share_the_samples_of_one():
    whole = list(SeededSampler(7, seed=3))
    parts = [list(SeededSampler(7, seed=3, rank=rank, world=2)) for rank in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    assert [sample for pair in zip(*parts, strict=True) for sample in pair] == whole[:6]
