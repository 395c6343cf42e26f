import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import exact
from contextcrf import PairwisePotential, RangeBox, UnaryPotential
from contextcrf.crf import kept_units, messages, potentials
from contextcrf.crf.kept_units import KeptUnits

BOXES = {
    "surrounding": RangeBox.surrounding(1.0),
    "above": RangeBox.above(0.7, 1.0),
    "lopsided": RangeBox(0.4, 1.0, 0.0, 0.7),
    "left": RangeBox.leftward(1.0, 0.7),
    "ring": RangeBox.ring(2.0, 0.7),
    "grid": RangeBox(0.4, 0.4, 0.4, 0.7, grid=2),
    # The rows -1, 1, 2 and the columns -3, -1, 2 are not equally spaced.
    "uneven grid": RangeBox(0.4, 0.7, 1.0, 0.7, grid=3),
    "two boxes": (RangeBox(0.0, 0.0, 1.0, 0.0), RangeBox(0.7, 0.7, 0.0, 0.0)),
    "far": RangeBox(0.0, 1.0, 0.0, 1.0, hole=RangeBox(0.0, 0.4, 0.0, 0.4)),
}


def pairwise(box, channels=3, num_classes=3, hidden=5):
    return PairwisePotential(channels, num_classes, box, hidden).double()


def features(batch=2, channels=3, height=3, width=4):
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


@pytest.fixture(params=BOXES, ids=str)
def box(request):
    return BOXES[request.param]


def test_unary_is_two_fully_connected_layers_on_each_node():
    unary, maps = UnaryPotential(3, 4, hidden=5).double(), features()
    node = maps[1, :, 2, 3]
    hidden = (unary.first.weight[:, :, 0, 0] @ node + unary.first.bias).clamp(min=0)
    expected = unary.last.weight[:, :, 0, 0] @ hidden + unary.last.bias
    torch.testing.assert_close(unary(maps)[1, :, 2, 3], expected)


def test_pair_logits_are_two_fully_connected_layers_on_concatenated_features(box):
    pot, maps = pairwise(box), features()
    edges, logits = pot.pair_logits(maps)
    first = torch.cat([pot.owner.weight, pot.neighbor.weight], dim=1)
    nodes = maps.flatten(2)
    for e in (0, len(edges[0]) // 2, -1):
        p, q = edges[:, e]
        hidden = (first @ torch.cat([nodes[1, :, p], nodes[1, :, q]]) + pot.owner.bias).clamp(min=0)
        expected = (pot.last.weight @ hidden + pot.last.bias).view(3, 3)
        torch.testing.assert_close(logits[1, e], expected)


def test_pair_logits_in_blocks_are_those_with_gradients(box, monkeypatch):
    pot, maps = pairwise(box), features()
    edges, logits = pot.pair_logits(maps)
    # Seven edges of both images in a block.
    monkeypatch.setattr("contextcrf.crf.potentials._CACHED_UNITS", 14 * pot.last.in_features)
    with torch.no_grad():
        found = pot.pair_logits(maps)
    assert torch.equal(found[0], edges)
    torch.testing.assert_close(found[1], logits)


def test_main_effects_and_interaction_are_one_linear_layer():
    pot = pairwise(BOXES["above"])
    last, hidden = pot.last, torch.rand(5, dtype=torch.float64)
    own, other = last.owner(hidden), last.neighbor(hidden)
    for k, j in itertools.product(range(3), repeat=2):
        expected = own[k] + other[j] + last.interaction(hidden)[3 * k + j]
        torch.testing.assert_close(last(hidden)[3 * k + j], expected)
    assert not last.is_zero
    last.zero_()
    assert last.is_zero
    assert not last(hidden).any()
    last.reset_parameters()
    assert not last.is_zero


def test_unary_nll_is_eq_10_by_enumeration():
    unary, maps = UnaryPotential(3, 3, hidden=4).double(), features(1, 3, 2, 2)
    labels = torch.tensor([[[0, 2], [255, 1]]])
    logits = unary(maps)[0].flatten(1).T
    total = sum(
        exact.log_partition(logits[p : p + 1], []) - logits[p, k] for p, k in enumerate(labels.flatten()) if k != 255
    )
    torch.testing.assert_close(unary.nll(maps, labels), total / 3)


def enumerated_nll(pot, maps, labels):
    """Eq. (11)-(12): every edge is a CRF of two nodes of its own; mean over edges with known ends."""
    edges, logits = pot.pair_logits(maps)
    losses = []
    for image in range(len(maps)):
        known = labels[image].flatten()
        for (p, q), table in zip(edges.T.tolist(), logits[image], strict=True):
            if known[p] != 255 and known[q] != 255:
                unary = table.new_zeros(2, table.shape[0])
                pair = [(torch.tensor([[0], [1]]), table[None])]
                losses.append(exact.log_partition(unary, pair) - table[known[p], known[q]])
    return torch.stack(losses).mean()


def test_pairwise_nll_and_its_gradient_are_those_of_enumeration(box):
    pot, maps = pairwise(box), features(2, 3, 2, 3).requires_grad_()
    labels = torch.randint(3, (2, 2, 3))
    labels[0, 1, 1] = 255
    wanted = [maps, *pot.parameters()]
    expected = enumerated_nll(pot, maps, labels)
    actual = pot.nll(maps, labels)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(torch.autograd.grad(actual, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(a, e)


def test_class_weights_weight_each_edge_by_the_mean_of_its_labels(box):
    pot, maps, weights = pairwise(box), features(1, 3, 2, 3), torch.tensor([0.5, 1.0, 4.0])
    labels = torch.randint(3, (1, 2, 3))
    edges, logits = pot.pair_logits(maps)
    first, second = labels.flatten()[edges]
    losses = -logits[0].flatten(1).log_softmax(1)[torch.arange(len(first)), 3 * first + second]
    share = (weights[first] + weights[second]) / 2
    expected = (share * losses).sum() / share.sum() if len(first) else losses.sum()
    torch.testing.assert_close(pot.nll(maps, labels, class_weights=weights), expected, check_dtype=False)
    equal = pot.nll(maps, labels, class_weights=torch.full((3,), 7.0))
    torch.testing.assert_close(equal, pot.nll(maps, labels))
    assert pot.nll(maps, torch.full((1, 2, 3), 255), class_weights=weights) == 0


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_gradients_agree_with_finite_differences(box, limit, monkeypatch):
    monkeypatch.setattr(kept_units, "KEPT_BYTES", limit)
    pot, unary = pairwise(box), UnaryPotential(3, 3, hidden=4).double()
    labels = torch.randint(3, (1, 2, 2))
    maps = features(1, 3, 2, 2).requires_grad_()
    torch.autograd.gradcheck(lambda f: pot.nll(f, labels), maps)
    torch.autograd.gradcheck(lambda f: unary.nll(f, labels), maps)
    torch.autograd.gradcheck(lambda f: pot.messages(f, unary(f).softmax(1)), maps)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_the_marginals_have_a_gradient_if_the_potential_has_none(box, limit, monkeypatch):
    monkeypatch.setattr(kept_units, "KEPT_BYTES", limit)
    pot, maps = pairwise(box).requires_grad_(False), features(1, 3, 2, 3)
    marginals = torch.rand(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda q: pot.messages(maps, q), marginals)


def test_blocks_change_nothing(box, monkeypatch):
    pot, maps = pairwise(box), features(2, 3, 4, 5)
    labels, marginals = torch.randint(3, (2, 4, 5)), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    monkeypatch.setattr(kept_units, "KEPT_BYTES", 0)
    whole = pot.nll(maps, labels), pot.messages(maps, marginals), pot.edge_marginals(maps)
    monkeypatch.setattr(potentials, "_BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(messages, "BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(messages, "TILE_ELEMENTS", 20)
    monkeypatch.setattr(kept_units, "BLOCK_BYTES", 100)
    blocks = pot.nll(maps, labels), pot.messages(maps, marginals), pot.edge_marginals(maps)
    torch.testing.assert_close(whole, blocks)
    monkeypatch.setattr(messages, "CONTRACTED_UNITS", 1)
    for elements in (100, 1 << 22):  # blocks of one row, and of several rows in several tiles
        monkeypatch.setattr(messages, "BLOCK_ELEMENTS", elements)
        with torch.no_grad():
            torch.testing.assert_close(pot.messages(maps, marginals), whole[1].detach())
    monkeypatch.setattr(kept_units, "KEPT_BYTES", 1 << 20)
    torch.testing.assert_close(pot.messages(maps, marginals), whole[1])
    with torch.no_grad():
        send = pot.prepare(maps)
        # Both calls use the same memory.
        first, second = send(marginals), send(marginals.flip(0))
    torch.testing.assert_close(first, whole[1].detach())
    with torch.no_grad():
        torch.testing.assert_close(second, pot.messages(maps, marginals.flip(0)))


class LargestTensor(TorchDispatchMode):
    """The size in elements of the largest tensor that any operation creates."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_the_table_of_all_edges_is_never_formed(monkeypatch):
    """The loss, the messages and their backward passes, and the edge marginals stay far below E x K x K numbers."""
    monkeypatch.setattr(potentials, "_BLOCK_ELEMENTS", 1 << 14)
    monkeypatch.setattr(messages, "BLOCK_ELEMENTS", 1 << 14)
    monkeypatch.setattr(kept_units, "KEPT_BYTES", 0)
    num_classes = 8
    pot, maps = pairwise(RangeBox.surrounding(1.0), 4, num_classes, 4), features(1, 4, 12, 12)
    labels = torch.randint(num_classes, (1, 12, 12))
    marginals = torch.rand(1, num_classes, 12, 12, dtype=torch.float64)
    with LargestTensor() as table:
        edges, _ = pot.pair_logits(maps)
    with LargestTensor() as used:
        pot.nll(maps, labels).backward()
        pot.messages(maps, marginals).square().sum().backward()
        pot.edge_marginals(maps)
    assert table.elements == edges.shape[1] * num_classes**2
    assert used.elements < table.elements / 10


def test_messages_are_the_sum_over_the_explicit_table(box):
    pot, maps = pairwise(box), features()
    marginals = torch.randn(2, 3, 3, 4, dtype=torch.float64).softmax(1)
    edges, logits = pot.pair_logits(maps)
    q = marginals.flatten(2).transpose(1, 2)
    expected = torch.zeros_like(q)
    for (p, n), table in zip(edges.T.tolist(), logits.transpose(0, 1), strict=True):
        expected[:, p] += torch.einsum("bkj,bj->bk", table, q[:, n])
        expected[:, n] += torch.einsum("bkj,bk->bj", table, q[:, p])
    torch.testing.assert_close(pot.messages(maps, marginals).flatten(2).transpose(1, 2), expected)


def test_edge_marginals_are_the_mean_over_touching_edges(box):
    pot, maps = pairwise(box), features(1)
    edges, logits = pot.pair_logits(maps)
    total, count = torch.zeros(12, 3, dtype=torch.float64), torch.zeros(12)
    for (p, q), table in zip(edges.T.tolist(), logits[0], strict=True):
        joint = table.flatten().softmax(0).view(3, 3)
        total[p] += joint.sum(1)
        total[q] += joint.sum(0)
        count[p] += 1
        count[q] += 1
    expected = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), 1 / 3)
    torch.testing.assert_close(pot.edge_marginals(maps)[0].flatten(1).T, expected)


def test_reversing_every_edge_is_transposing_every_potential():
    above, maps = pairwise(RangeBox.above(0.7, 1.0)), features()
    below = pairwise(RangeBox.below(0.7, 1.0))
    with torch.no_grad():
        below.owner.weight.copy_(above.neighbor.weight)
        below.owner.bias.copy_(above.owner.bias)
        below.neighbor.weight.copy_(above.owner.weight)
        below.last.owner.load_state_dict(above.last.neighbor.state_dict())
        below.last.neighbor.load_state_dict(above.last.owner.state_dict())
        below.last.interaction.weight.copy_(above.last.interaction.weight.view(3, 3, 5).transpose(0, 1).reshape(9, 5))
        below.last.interaction.bias.copy_(above.last.interaction.bias.view(3, 3).T.flatten())
    labels = torch.randint(3, (2, 3, 4))
    marginals = torch.rand(2, 3, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(above.nll(maps, labels), below.nll(maps, labels))
    torch.testing.assert_close(above.messages(maps, marginals), below.messages(maps, marginals))
    torch.testing.assert_close(above.edge_marginals(maps), below.edge_marginals(maps))


def test_the_potential_is_asymmetric():
    pot, maps = pairwise(BOXES["surrounding"]), features(1)
    edges, logits = pot.pair_logits(maps)
    table = {(p, q): logit for (p, q), logit in zip(edges.T.tolist(), logits[0], strict=True)}
    assert not torch.allclose(table[0, 1], table[1, 0].T)


def test_max_edges_is_an_unbiased_mean_of_that_many_edges():
    pot, maps = pairwise(BOXES["surrounding"]), features(1, 3, 2, 2)
    labels = torch.randint(3, (1, 2, 2))
    full = pot.nll(maps, labels)
    torch.testing.assert_close(pot.nll(maps, labels, max_edges=10**6), full)
    with torch.no_grad():
        draws = torch.stack([pot.nll(maps, labels, max_edges=3) for _ in range(2000)])
    assert draws.std() > 0
    assert abs(draws.mean() - full) < 4 * draws.std() / 2000**0.5


def test_ignored_nodes_contribute_to_no_loss():
    pot, unary, maps = pairwise(BOXES["surrounding"]), UnaryPotential(3, 3).double(), features(1)
    labels = torch.full((1, 3, 4), 255)
    assert pot.nll(maps, labels) == 0
    assert unary.nll(maps, labels) == 0
    labels[0, 0, 0] = 1
    assert pot.nll(maps, labels) == 0
    expected = F.cross_entropy(unary(maps)[0, :, 0, 0][None], torch.tensor([1]))
    torch.testing.assert_close(unary.nll(maps, labels), expected)
    torch.testing.assert_close(unary.nll(maps, labels.masked_fill(labels == 255, 7), ignore_index=7), expected)


def test_class_weights_weigh_nodes_by_their_label():
    unary, maps = UnaryPotential(3, 2).double(), features(1, 3, 1, 2)
    labels = torch.tensor([[[0, 1]]])
    plain = F.cross_entropy(unary(maps), labels, reduction="none")[0, 0]
    weighted = unary.nll(maps, labels, class_weights=torch.tensor([2.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(weighted, (2 * plain[0] + 0.5 * plain[1]) / 2)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1)])
def test_degenerate_maps_give_finite_numbers(size, box):
    pot, maps = pairwise(box), features(1, 3, *size)
    uniform = torch.full((1, 3, *size), 1 / 3, dtype=torch.float64)
    assert pot.messages(maps, uniform).isfinite().all()
    assert pot.nll(maps, torch.zeros(1, *size, dtype=torch.int64)).isfinite()
    torch.testing.assert_close(pot.edge_marginals(maps).sum(1), torch.ones(1, *size, dtype=torch.float64))


@given(st.integers(1, 3), st.integers(2, 4), st.integers(1, 4), st.integers(1, 4))
def test_edge_marginals_are_distributions(batch, num_classes, height, width):
    pot = PairwisePotential(2, num_classes, RangeBox.surrounding(1.0), 3).double()
    own = pot.edge_marginals(torch.randn(batch, 2, height, width, dtype=torch.float64))
    torch.testing.assert_close(own.sum(1), torch.ones_like(own[:, 0]))
    assert (own >= 0).all()


def test_bfloat16_keeps_its_precision_over_many_edges():
    pot = PairwisePotential(4, 3, RangeBox.surrounding(1.0), 16)
    maps, labels = torch.randn(1, 4, 12, 12), torch.randint(3, (1, 12, 12))
    marginals = torch.randn(1, 3, 12, 12).softmax(1)
    exactly = pot.nll(maps, labels), pot.messages(maps, marginals), pot.edge_marginals(maps)
    with torch.autocast("cpu", torch.bfloat16):
        roughly = pot.nll(maps, labels), pot.messages(maps, marginals), pot.edge_marginals(maps)
    for exact_value, rough_value in zip(exactly, roughly, strict=True):
        assert rough_value.dtype == torch.float32
        assert (rough_value - exact_value).norm() < 0.01 * exact_value.norm()


def test_labels_that_do_not_fit_are_refused_by_name():
    pot, unary, maps = pairwise(BOXES["above"]), UnaryPotential(3, 3).double(), features(1)
    for part in (pot, unary):
        with pytest.raises(ValueError, match=r"contain 3, .*\(0 to 2\)"):
            part.nll(maps, torch.full((1, 3, 4), 3))
        with pytest.raises(ValueError, match=r"labels have the shape \(1, 6, 8\)"):
            part.nll(maps, torch.zeros(1, 6, 8, dtype=torch.int64))
        with pytest.raises(ValueError, match="uint8"):
            part.nll(maps, torch.zeros(1, 3, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(1, 4, 3, 4\), which does not fit.*CoarseGrid"):
        pot.messages(maps, torch.rand(1, 4, 3, 4))


@pytest.mark.parametrize("classes", [2, 11, 16])
@pytest.mark.parametrize("box", [RangeBox.surrounding(0.8), RangeBox.above(0.5, 0.6), RangeBox.ring(0.9, 0.4)])
def test_messages_are_the_same_with_kept_units_and_without_gradients(classes, box, monkeypatch):
    """The sum is computed from kept hidden units, in tiles of reused memory, or recorded in blocks."""
    head = PairwisePotential(6, classes, box, 8)
    torch.nn.init.normal_(head.last.interaction.weight)
    features, marginals = torch.randn(2, 6, 7, 9), torch.randn(2, classes, 7, 9).softmax(1)
    found = {}
    for limit, gradients in itertools.product((0, 1 << 20), (True, False)):
        monkeypatch.setattr(kept_units, "KEPT_BYTES", limit)
        assert KeptUnits.fit(head.graph(features), head.project(features)[0]) == (limit > 0)
        with torch.inference_mode(not gradients):
            found[limit, gradients] = head.messages(features, marginals)
        assert found[limit, gradients].requires_grad == gradients
    first, *others = found.values()
    for other in others:
        torch.testing.assert_close(other.detach(), first.detach())


def test_hidden_units_are_kept_only_on_small_maps(monkeypatch):
    """The tensors of a map stay below the limit, and a map above it needs no more than its tiles."""
    monkeypatch.setattr(messages, "TILE_ELEMENTS", 1 << 12)
    monkeypatch.setattr(messages, "BLOCK_ELEMENTS", 1 << 12)
    monkeypatch.setattr(messages, "CPU_NODES", 1)
    monkeypatch.setattr(messages, "CPU_UNITS", 1)
    monkeypatch.setattr(messages, "CONTRACTED_UNITS", 1)
    pot, maps = PairwisePotential(4, 2, RangeBox.surrounding(1.0), 32), features(1, 4, 12, 12).float()
    nodes, edges = 12 * 12, len(pot.graph(maps).offsets)
    whole = nodes * edges * 32 * 4
    largest = {}
    for limit in (whole, whole - 1):
        monkeypatch.setattr(kept_units, "KEPT_BYTES", limit)
        with torch.no_grad(), LargestTensor() as used:
            pot.messages(maps, torch.rand(1, 2, 12, 12))
        largest[limit] = used.elements
    assert largest[whole] == nodes * edges * 32
    assert largest[whole - 1] < nodes * edges * 32 / 4


def test_the_returned_edges_are_a_copy():
    potential, features = PairwisePotential(2, 3, RangeBox.surrounding(1.0), 4), torch.randn(1, 2, 3, 3)
    edges, _ = potential.pair_logits(features)
    before = edges.clone()
    edges.add_(1)
    assert torch.equal(potential.pair_logits(features)[0], before)
