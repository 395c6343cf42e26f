import pytest
import torch

from contextcrf import PairwisePotential, RangeBox
from contextcrf.crf import potentials
from contextcrf.crf.block_sum import block_sum

BLOCKS = [(torch.tensor([0, 1]), torch.tensor([1.0, 2.0])), (torch.tensor([2]), torch.tensor([3.0]))]


def term(x, y, places, factors):
    return (factors * (x[places] * y[places]).exp()).sum()


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_the_gradients_are_those_of_the_whole_sum(needed):
    x, y = (torch.rand(3, dtype=torch.float64).requires_grad_(value) for value in needed)
    leaves = [tensor for tensor in (x, y) if tensor.requires_grad]
    whole = term(x, y, torch.arange(3), torch.tensor([1.0, 2.0, 3.0]))
    total = block_sum(term, BLOCKS, [x, y])
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(5 * total, leaves), torch.autograd.grad(5 * whole, leaves))
    torch.autograd.gradcheck(lambda *tensors: block_sum(term, BLOCKS, tensors), (x, y))


def test_each_term_is_computed_once_with_and_without_gradients():
    calls = []

    def counted(x, places, factors):
        calls.append(places)
        return (factors * x[places]).sum()

    x = torch.rand(3, requires_grad=True)
    block_sum(counted, BLOCKS, [x]).backward()
    assert len(calls) == 2
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 2.0, 3.0]))
    with torch.no_grad():
        total = block_sum(counted, BLOCKS, [x])
    assert len(calls) == 4
    assert not total.requires_grad
    assert not block_sum(counted, BLOCKS, [x.detach()]).requires_grad


def test_second_derivatives_are_refused():
    x = torch.rand(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(block_sum(term, BLOCKS, [x, x]), [x], create_graph=True)


def test_the_likelihood_has_the_same_gradients_in_mixed_precision(monkeypatch):
    monkeypatch.setattr(potentials, "_BLOCK_ELEMENTS", 1000)  # several blocks
    torch.manual_seed(0)
    potential, features = PairwisePotential(6, 4, RangeBox.surrounding(1.0), 8), torch.randn(2, 6, 5, 6)
    torch.nn.init.normal_(potential.last.interaction.weight)
    labels, leaves = torch.randint(4, (2, 5, 6)), list(potential.parameters())
    exact = torch.autograd.grad(potential.nll(features, labels), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = torch.autograd.grad(potential.nll(features, labels), leaves)
    for first, second in zip(exact, rounded, strict=True):
        assert second.dtype == torch.float32
        torch.testing.assert_close(second, first, atol=0.02 * float(first.abs().max()), rtol=0)
