"""The size of blocks on each kind of device."""

from types import SimpleNamespace

import torch

from contextcrf.crf import DenseCRF, PairwisePotential, RangeBox, blocks, dense
from contextcrf.crf.blocks import block_elements, slices
from operations import Operations


def test_blocks_are_larger_on_an_accelerator(monkeypatch):
    blocks._cuda_elements.cache_clear()
    gpus = {"cuda:0": 80 << 30, "cuda:1": 8 << 30}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=gpus[str(device)])
    )
    assert block_elements(torch.device("cpu"), on_cpu=1 << 18) == 1 << 18
    assert block_elements(torch.device("cuda:0"), on_cpu=1 << 18) == blocks.CUDA_ELEMENTS
    # A part of 1 / 32 of 8 GiB are 256 MiB.
    assert block_elements(torch.device("cuda:1"), on_cpu=1 << 18) == 1 << 26
    assert block_elements(torch.device("mps"), on_cpu=1 << 18) == blocks.OTHER_ELEMENTS
    blocks._cuda_elements.cache_clear()


def test_slices_cover_a_dimension_in_order_also_in_steps_of_less_than_one():
    assert list(slices(5, 3)) == [slice(0, 3), slice(3, 5)]
    assert list(slices(3, 1)) == list(slices(3, 0)) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert list(slices(0, 4)) == []


def test_an_accelerator_starts_few_kernels():
    """The blocks of the meta device, which computes nothing, have the size of those of an accelerator."""
    potential = PairwisePotential(8, 5, RangeBox.surrounding(), hidden=512).to("meta")
    messages = potential.prepare(torch.empty(1, 8, 28, 38, device="meta"))
    with torch.no_grad(), Operations() as found:
        assert messages(torch.empty(1, 5, 28, 38, device="meta")).shape == (1, 5, 28, 38)
    assert found.all.total() < 200  # with the blocks of one thread of a CPU, there are thousands


def test_a_dense_crf_takes_all_pixels_at_once_on_an_accelerator(monkeypatch):
    torch.manual_seed(0)
    logits, image = torch.randn(1, 4, 30, 40), torch.randint(256, (1, 3, 30, 40), dtype=torch.uint8)
    found = {}
    for elements in (400, 1 << 25):
        monkeypatch.setattr(dense, "block_elements", lambda device, on_cpu, elements=elements: elements)
        with torch.no_grad(), Operations() as operations:
            found[elements] = DenseCRF(iterations=3)(logits, image), operations.all.total()
    (small, many), (large, few) = found.values()
    torch.testing.assert_close(small, large)
    assert few < many
