import pytest
import torch

from contextcrf import PairwisePotential, RangeBox, mean_field
from contextcrf.crf import CoarseGrid, pair_table
from contextcrf.crf.pair_table import PairTable

BOXES = [RangeBox.surrounding(1.0), RangeBox.above(0.7, 1.0), RangeBox.ring(2.0, 0.7)]


def potential(box):
    torch.manual_seed(0)
    return PairwisePotential(3, 4, box, 5).double()


@pytest.fixture(params=BOXES, ids=["surrounding", "above", "ring"])
def box(request):
    return request.param


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("block", [1, 7, 8192])
def test_a_table_gives_the_messages_and_marginals_of_its_potential(box, block, gradients, monkeypatch):
    monkeypatch.setattr(pair_table, "_BLOCK", block)
    head, features = potential(box), torch.randn(1, 3, 4, 5, dtype=torch.float64)
    marginals = torch.randn(3, 4, 4, 5, dtype=torch.float64).softmax(1)
    with torch.inference_mode(not gradients):
        held = PairTable(head, features)
        assert held.messages(marginals).requires_grad == gradients
        torch.testing.assert_close(held.messages(marginals), head.messages(features.expand(3, -1, -1, -1), marginals))
        torch.testing.assert_close(held.edge_marginals(), head.edge_marginals(features))


@pytest.mark.parametrize("factor", [1, 2])
def test_mean_field_takes_tables_and_tables_on_a_coarse_grid(factor):
    heads, features = [potential(box) for box in BOXES], torch.randn(1, 3, 3, 4, dtype=torch.float64)
    logits = torch.randn(1, 4, 3 * factor - factor // 2, 4 * factor, dtype=torch.float64)
    tables = [(CoarseGrid(PairTable(head, features), factor), features) for head in heads]
    expected = mean_field(logits, [(CoarseGrid(head, factor), features) for head in heads], weights=[1.0, 0.5, 2.0])
    torch.testing.assert_close(mean_field(logits, tables, weights=[1.0, 0.5, 2.0]), expected)
    if factor == 1:
        pairs = [PairTable(head, features).pair for head in heads]
        torch.testing.assert_close(mean_field(logits, pairs, weights=[1.0, 0.5, 2.0]), expected)


def test_a_node_without_edges_has_uniform_marginals_and_no_messages():
    held = PairTable(potential(RangeBox.above(0.7, 1.0)), torch.randn(1, 3, 1, 1, dtype=torch.float64))
    assert held.edge_marginals().flatten().tolist() == [0.25] * 4
    assert not held.messages(torch.ones(1, 4, 1, 1, dtype=torch.float64)).any()


@pytest.mark.parametrize("gradients", [True, False])
def test_a_table_in_mixed_precision(gradients):
    """Autocast computes all products in half precision, while messages are summed in single precision."""
    potential, features = PairwisePotential(3, 4, RangeBox.surrounding(), hidden=5), torch.randn(1, 3, 5, 6)
    marginals = torch.randn(1, 4, 5, 6).softmax(1)
    expected = potential.messages(features, marginals)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(not gradients):
        found = PairTable(potential, features).messages(marginals)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)


def test_a_table_is_for_one_image():
    head, features = potential(BOXES[0]), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\).*one image"):
        PairTable(head, features)
    held = PairTable(head, features[:1])
    with pytest.raises(ValueError, match=r"not the tensor .* table\.features"):
        mean_field(torch.zeros(1, 4, 4, 5, dtype=torch.float64), [(held, features[1:])])


@pytest.mark.parametrize("shape", [(1, 4, 8, 10), (1, 4, 5, 4), (1, 3, 4, 5)])
def test_marginals_of_another_size_are_refused(shape):
    held = PairTable(potential(BOXES[0]), torch.randn(1, 3, 4, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"does not fit features of shape \(1, 3, 4, 5\) and 4 classes.*CoarseGrid"):
        mean_field(torch.zeros(shape, dtype=torch.float64), [held.pair])
