"""Unusual uses of the CRF: other threads, modes, dtypes and devices, and wrong arguments."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from contextcrf import PairwisePotential, RangeBox
from contextcrf.crf import DenseCRF, elbo, energy, explain, kept_units, mean_field, unrolled_nll
from contextcrf.crf.block_sum import block_sum
from contextcrf.crf.kept_units import KeptUnits
from contextcrf.crf.messages import Workspace, send
from contextcrf.crf.pair_table import PairTable

SIZE = (9, 13)


@pytest.fixture(params=["kept units", "tiles"])
def potential(request, monkeypatch):
    """A potential whose messages use kept hidden units, or tiles."""
    if request.param == "tiles":
        monkeypatch.setattr(kept_units, "KEPT_BYTES", 0)
    torch.manual_seed(0)
    return PairwisePotential(5, 3, RangeBox.surrounding(0.6), hidden=7)


def inputs(batch=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 5, *SIZE, generator=generator), torch.randn(batch, 3, *SIZE, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_likelihood_has_finite_gradients_under_autocast(dtype):
    """The sum of the gradients of a block would exceed the range of float16, whatever the scale of the loss."""
    torch.manual_seed(0)
    potential = PairwisePotential(16, 2, RangeBox.surrounding(0.4), hidden=16)
    features, labels = 8 * torch.randn(4, 16, 28, 38).relu(), torch.zeros(4, 28, 38, dtype=torch.int64)

    def gradients():
        potential.zero_grad()
        with torch.autocast("cpu", dtype, enabled=enabled):
            potential.nll(features, labels).backward()
        return torch.cat([parameter.grad.flatten() for parameter in potential.parameters()])

    enabled = False
    expected = gradients()
    enabled = True
    found = gradients()
    assert found.isfinite().all()
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_a_prepared_function_may_be_used_in_several_threads(potential):
    features, _ = inputs()
    with torch.no_grad():
        messages = potential.prepare(features)
        many = [torch.randn(1, 3, *SIZE).softmax(1) for _ in range(40)]
        expected = [messages(marginals) for marginals in many]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(torch.no_grad()(messages), many))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_prepared_function_may_be_used_in_and_outside_of_inference_mode(potential):
    features, logits = inputs()
    with torch.inference_mode():
        messages = potential.prepare(features)
        expected = messages(logits.softmax(1))
    with torch.no_grad():
        torch.testing.assert_close(messages(logits.softmax(1)), expected)


def test_training_after_a_prediction_in_inference_mode(potential):
    """The places of unequally spaced neighbors are cached, and are needed for the gradients."""
    potential = PairwisePotential(5, 3, RangeBox(0.6, 0.6, 0.6, 0.6, grid=5), hidden=7)
    rows = potential.graph(inputs()[0]).window().rows
    assert len({later - earlier for earlier, later in pairwise(rows)}) > 1
    features, logits = inputs()
    with torch.inference_mode():
        mean_field(logits, [(potential, features)])
    unrolled_nll(logits, [(potential, features)], torch.zeros(1, *SIZE, dtype=torch.int64)).backward()
    assert potential.owner.weight.grad.abs().sum() > 0


def test_the_default_device_has_no_effect(potential):
    features, logits = inputs()
    expected = mean_field(logits, [(potential, features)])
    kept_units._edge_lists.cache_clear()
    with torch.device("meta"):
        found = mean_field(logits, [(potential, features)])
    torch.testing.assert_close(found, expected)


def test_an_untimely_trace_leaves_nothing_in_the_caches():
    """Placeholders in the caches would make every later use of the relation fail."""
    box = RangeBox.surrounding(0.57)
    potential = PairwisePotential(5, 3, box, hidden=7)
    features, logits = inputs()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.potential = potential

        def forward(self, features, logits):
            return mean_field(logits, [PairTable(self.potential, features).pair])

    with pytest.raises(RuntimeError, match="run the same computation once"):
        torch.export.export(Model(), (features, logits))
    expected = Model()(features, logits)
    exported = torch.export.export(Model(), (features, logits)).module()
    torch.testing.assert_close(exported(features, logits), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_all_methods_take_potentials_of_other_dtypes(potential, dtype):
    features, logits = inputs()
    expected = mean_field(logits, [(potential, features)])
    potential, features = potential.to(dtype), features.to(dtype)
    table = PairTable(potential, features)
    tolerance = {"atol": 0.05, "rtol": 0} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 0}
    for pair in ((potential, features), table.pair):
        torch.testing.assert_close(mean_field(logits, [pair]).float(), expected, **tolerance)
    with torch.no_grad():
        without_gradients = mean_field(logits, [PairTable(potential, features).pair]).float()
        torch.testing.assert_close(without_gradients, expected, **tolerance)
    labels = torch.zeros(1, *SIZE, dtype=torch.int64)
    potential.nll(features, labels).backward()
    assert potential.last.interaction.weight.grad.isfinite().all()
    found = explain(potential, features, logits.softmax(1), (4, 5)).messages.sum(0)
    own = potential.messages(features, logits.softmax(1))[0, :, 4, 5]
    torch.testing.assert_close(found.float(), own.float(), **tolerance)


def test_a_fixed_compatibility_may_change_between_the_passes():
    """The gradient is that of the values in the forward pass."""
    image = torch.randint(256, (1, 3, 20, 24), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def gradient(change):
        crf = DenseCRF(spatial_compat=torch.full((3,), -2.0), bilateral_compat=torch.full((3,), -3.0), iterations=3)
        marginals = crf(logits, image)
        if change:
            for name, buffer in crf.named_buffers():
                if "compat" in name:
                    buffer.mul_(100)
        return torch.autograd.grad((marginals**2).sum(), logits)[0]

    torch.testing.assert_close(gradient(True), gradient(False))


def test_the_backward_pass_of_the_dense_crf_is_the_same_inside_autocast():
    image = torch.randint(256, (1, 3, 20, 24), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            marginals = DenseCRF(spatial_compat=-torch.eye(3), iterations=3)(logits, image)
            found.append(torch.autograd.grad((marginals**2).sum(), logits)[0])
    torch.testing.assert_close(found[1], found[0])


def test_weights_of_classes_that_require_gradients_are_refused():
    potential = PairwisePotential(5, 3, RangeBox.surrounding(0.6), hidden=7)
    features, _ = inputs()
    with pytest.raises(ValueError, match="class_weights must not require gradients"):
        potential.nll(features, torch.zeros(1, *SIZE).long(), class_weights=torch.ones(3, requires_grad=True))
    with pytest.raises(ValueError, match="Pass them as shared tensors"):
        block_sum(lambda x, y: (x * y).sum(), [(torch.ones(2, requires_grad=True),)], [torch.ones(2)])


@pytest.mark.parametrize("max_edges", [0, -1, 2.5])
def test_a_number_of_edges_that_is_no_positive_whole_number_is_refused(max_edges):
    potential = PairwisePotential(5, 3, RangeBox.surrounding(0.6), hidden=7)
    with pytest.raises(ValueError, match="max_edges must be a whole number >= 1"):
        potential.nll(inputs()[0], torch.zeros(1, *SIZE).long(), max_edges=max_edges)


def test_energies_need_a_label_at_each_node_of_each_image():
    _, logits = inputs(batch=2)
    labels = torch.zeros(2, *SIZE, dtype=torch.int64)
    assert energy(logits, [], labels).shape == (2,)
    with pytest.raises(ValueError, match="Expected \\[B, H, W\\]"):
        energy(logits, [], labels[:1])
    for label in (255, -1):
        labels[1, 2, 3] = label
        with pytest.raises(ValueError, match=str(label)):
            energy(logits, [], labels)
    with pytest.raises(ValueError, match="must have the shape of the unary logits"):
        elbo(logits, [], logits[:1].softmax(1))


def test_weights_of_nodes_need_an_axis_of_classes(potential):
    features, logits = inputs(batch=3)
    with pytest.raises(ValueError, match=r"one number for each node \[B, 1, H, W\]"):
        mean_field(logits, [(potential, features)], weights=[torch.ones(3, *SIZE)])


def test_kept_units_and_tiles_are_used(potential):
    """The fixture would test nothing if both parameters computed the messages in the same way."""
    both = potential.prepare(inputs()[0]).__closure__
    cells = [cell.cell_contents for cell in both]
    kept = any(isinstance(getattr(cell, "__self__", None), KeptUnits) for cell in cells)
    tiles = any(getattr(cell, "func", None) is send for cell in cells)
    assert kept != tiles
    assert kept == (kept_units.KEPT_BYTES > 0)


def test_a_workspace_has_other_memory_for_each_thread_and_for_inference_mode():
    workspace = Workspace(torch.ones(1))
    first = workspace("a", 2)
    assert workspace("a", 1, 2).data_ptr() == first.data_ptr()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(workspace, "a", 2).result().data_ptr() != first.data_ptr()
    with torch.inference_mode():
        assert workspace("a", 2).data_ptr() != first.data_ptr()
