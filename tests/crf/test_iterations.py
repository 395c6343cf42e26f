"""The iterations neither read tensors nor make tensors from numbers, for which a program waits for a GPU."""

import pytest
import torch

from contextcrf.crf import CoarseGrid, DenseCRF, PairwisePotential, RangeBox, mean_field
from contextcrf.crf.colors import to_colors
from contextcrf.crf.pair_table import PairTable
from operations import Operations

BOXES = {
    "surrounding": RangeBox.surrounding(0.8),
    "above": RangeBox.above(0.6, 0.8),
    "ring": RangeBox.ring(0.9, 0.4),
    "uneven grid": RangeBox(0.5, 0.5, 0.5, 0.5, grid=4),
    "union": (RangeBox.above(0.6, 0.8), RangeBox.leftward(0.5, 0.2)),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_messages_need_no_values_of_tensors(box):
    """Tensors of the meta device have no values."""
    messages = PairwisePotential(8, 5, box, hidden=8).to("meta").prepare(torch.empty(1, 8, 12, 14, device="meta"))
    with torch.no_grad(), Operations() as found:
        assert messages(torch.empty(1, 5, 12, 14, device="meta")).shape == (1, 5, 12, 14)
    assert not found.waiting


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("kind", ["plain", "coarse", "table"])
@pytest.mark.parametrize("gradients", [False, True])
def test_iterations_of_mean_field_wait_for_no_gpu(box, kind, gradients):
    potential = PairwisePotential(8, 3, box, hidden=8)
    features = torch.randn(1, 8, 10, 12)
    logits = torch.randn(1, 3, 20, 24) if kind == "coarse" else torch.randn(1, 3, 10, 12)
    terms = {
        "plain": lambda: potential,
        "coarse": lambda: CoarseGrid(potential, 2),
        "table": lambda: PairTable(potential, features),
    }

    def run(iterations):
        with torch.set_grad_enabled(gradients), Operations() as found:
            pair = (terms[kind](), features)
            marginals = mean_field(logits.requires_grad_(gradients), [pair], iterations, damping=0.1)
            if gradients:
                marginals.square().sum().backward()
        return found

    _, few, many = run(1), run(1), run(3)  # the first run also fills the caches of edges
    assert many.all.total() > few.all.total()
    assert many.waiting == few.waiting


CRFS = {
    "fixed": {},
    "matrix": {"spatial_compat": -torch.eye(4)},
    "not normalized": {"normalization": "none", "bilateral_compat": 0.1},
    "learnable": {"learnable": True},
}


def run_dense(iterations, classes=4, **arguments):
    crf = DenseCRF(bilateral_sxy=8, iterations=iterations, **arguments)
    torch.manual_seed(0)
    logits, images = torch.randn(2, classes, 16, 20), torch.randint(256, (2, 3, 16, 20), dtype=torch.uint8)
    learnable = arguments.get("learnable", False)
    with torch.set_grad_enabled(learnable), Operations() as found:
        marginals = crf(logits, images)
        if learnable:
            marginals.square().sum().backward()
    return found


@pytest.mark.parametrize("arguments", CRFS.values(), ids=CRFS)
def test_iterations_of_the_dense_crf_wait_for_no_gpu(arguments):
    few, many = run_dense(1, **arguments), run_dense(3, **arguments)
    assert many.all.total() > few.all.total()
    assert many.waiting == few.waiting


def test_the_early_end_of_the_dense_crf_reads_one_number_per_iteration():
    few, many = run_dense(1, stop_below=1e-30), run_dense(3, stop_below=1e-30)
    assert (many.waiting - few.waiting).total() == 2 * 2  # two images


def test_checks_of_images_read_a_batch_once():
    counts = []
    for batch in (1, 4):
        images = torch.randint(256, (batch, 3, 16, 20), dtype=torch.uint8)
        for image_range in (None, (0, 255)):
            with Operations() as found:
                to_colors(images, image_range)
            counts.append(found.waiting.total())
    assert counts[:2] == counts[2:]
