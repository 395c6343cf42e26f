"""Potentials on a coarse grid are compared with enumeration of the edges between the nodes of joined cells."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import exact
from contextcrf.crf import CoarseGrid, PairwisePotential, RangeBox, elbo, energy, mean_field, mean_field_nll
from contextcrf.crf import pseudo_likelihood_nll as pseudo_nll
from contextcrf.crf.coarse_grid import enlarge, shrink

K = 2


def potential(channels=4):
    return PairwisePotential(channels, K, RangeBox.surrounding(2.0), 6).double()


def problem(height, width, factor=2, box=None):
    """Unary logits, the CRF on the coarse grid, and its fine edges as an explicit table."""
    coarse = torch.randn(1, 4, -(-height // factor), -(-width // factor), dtype=torch.float64)
    unary = torch.randn(1, K, height, width, dtype=torch.float64)
    inner = potential() if box is None else PairwisePotential(4, K, box, 6).double()
    edges, logits = inner.pair_logits(coarse)
    assert edges.shape[1] > 0
    cells = [[] for _ in range(coarse.shape[2] * coarse.shape[3])]
    for node in range(height * width):
        cells[node // width // factor * coarse.shape[3] + node % width // factor].append(node)
    fine, tables = [], []
    for (p, q), table in zip(edges.T.tolist(), logits[0].detach(), strict=True):
        for a in cells[p]:
            for b in cells[q]:
                fine.append((a, b))
                tables.append(table / factor**2)
    return unary, [(CoarseGrid(inner, factor), coarse)], (torch.tensor(fine).T, torch.stack(tables))


def flat(maps):
    return maps[0].flatten(1).T.detach()


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(2, 4, 2), (2, 3, 2), (1, 3, 2), (3, 3, 2), (2, 4, 3), (1, 7, 3)]
)
@pytest.mark.parametrize("box", [RangeBox.surrounding(2.0), RangeBox.rightward(1.0, 1.0)], ids=["square", "right"])
def test_every_pair_of_nodes_of_two_joined_cells_is_an_edge_with_a_share_of_the_weight(height, width, factor, box):
    """This includes cells that the border cuts."""
    unary, pairs, relation = problem(height, width, factor, box)
    marginals = exact.mean_field_update(flat(unary).softmax(1), flat(unary), [relation])
    torch.testing.assert_close(flat(mean_field(unary, pairs, 1)), marginals)
    torch.testing.assert_close(
        elbo(unary, pairs, mean_field(unary, pairs, 1))[0], exact.elbo(marginals, flat(unary), [relation])
    )
    every = exact.labelings(height * width, K)[:: max(1, K ** (height * width) // 50)]
    scores = exact.scores(flat(unary), [relation])[:: max(1, K ** (height * width) // 50)]
    for labels, score in zip(every, scores, strict=True):
        torch.testing.assert_close(energy(unary, pairs, labels.view(1, height, width))[0], -score.detach())


def test_pseudo_likelihood_is_that_of_enumeration():
    unary, pairs, relation = problem(2, 3)
    labels = torch.randint(K, (1, 2, 3))
    every, scores, truth = exact.labelings(6, K), exact.scores(flat(unary), [relation]), labels.flatten()
    terms = []
    for node in range(6):
        others = torch.arange(6) != node
        agrees = (every[:, others] == truth[others]).all(1)
        terms.append(scores[agrees].logsumexp(0) - scores[(every == truth).all(1)][0])
    torch.testing.assert_close(pseudo_nll(unary, pairs, labels), torch.stack(terms).mean())


def test_gradients_are_those_of_finite_differences():
    unary, [(wrapped, coarse)], _ = problem(3, 5)
    labels = torch.randint(K, (1, 3, 5))
    inputs = (unary.requires_grad_(), coarse.requires_grad_())
    torch.autograd.gradcheck(lambda u, f: mean_field(u, [(wrapped, f)], 2), inputs)
    torch.autograd.gradcheck(lambda u, f: mean_field_nll(u, [(wrapped, f)], labels), inputs)


def test_factor_one_is_the_potential_itself():
    inner, features = potential(), torch.randn(1, 4, 3, 5, dtype=torch.float64)
    unary = torch.randn(1, K, 3, 5, dtype=torch.float64)
    wrapped = CoarseGrid(inner, 1)
    assert torch.equal(mean_field(unary, [(wrapped, features)]), mean_field(unary, [(inner, features)]))
    assert torch.equal(wrapped.graph(features).edges(), inner.graph(features).edges())


def test_the_factor_decides_where_several_would_fit_the_sizes():
    unary, features = torch.randn(1, K, 34, 34), torch.randn(1, 4, 5, 5)
    inner = PairwisePotential(4, K, RangeBox.surrounding(1.0), 6)
    seven, eight = (mean_field(unary, [(CoarseGrid(inner, factor), features)]) for factor in (7, 8))
    assert not torch.equal(seven, eight)


@pytest.mark.parametrize(("factor", "message"), [(9, "4 x 4 cells"), (6, "6 x 6 cells"), (1, r"\(1, 2, 34, 34\)")])
def test_sizes_that_do_not_fit_the_factor_are_refused(factor, message):
    wrapped = CoarseGrid(PairwisePotential(4, K, RangeBox.surrounding(1.0), 6), factor)
    with pytest.raises(ValueError, match=r"\(1, 4, 5, 5\)") as error:
        mean_field(torch.randn(1, K, 34, 34), [(wrapped, torch.randn(1, 4, 5, 5))])
    assert error.match("does not fit")
    assert error.match(r"\(1, 2, 34, 34\)")
    assert error.match(message)


@pytest.mark.parametrize("factor", [0, -1, 1.5, True, "2"])
def test_a_factor_that_is_no_whole_number_of_at_least_one_is_refused(factor):
    with pytest.raises(ValueError, match=f"factor must be a whole number >= 1, but is {factor!r}"):
        CoarseGrid(potential(), factor)


def test_a_factor_of_any_integral_type():
    assert CoarseGrid(potential(), np.int64(2)).factor == 2


def test_shrink_is_the_sum_over_a_cell_divided_by_its_full_size():
    fine = torch.arange(15.0).view(1, 1, 3, 5)
    assert shrink(fine, 2).tolist() == [[[[3.0, 5.0, 3.25], [5.25, 6.25, 3.5]]]]
    assert torch.equal(shrink(fine, 1), fine)


def test_enlarge_gives_every_node_the_value_of_its_cell():
    coarse = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    assert enlarge(coarse, 2, (3, 5)).tolist() == [[[[1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]]]


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 12, 4), (7, 9, 2), (3, 5, 3)])
def test_bilinear_messages_are_those_of_the_cells_interpolated_between_their_centers(height, width, factor):
    unary, [(grid, coarse)], _ = problem(height, width, factor)
    smooth = CoarseGrid(grid.pairwise, factor, "bilinear")
    marginals = unary.softmax(1)
    cells = grid.pairwise.messages(coarse, shrink(marginals, factor))
    whole = F.interpolate(cells, scale_factor=factor, mode="bilinear")[..., :height, :width]
    expected = (unary + whole).softmax(1)
    torch.testing.assert_close(mean_field(unary, [(smooth, coarse)], 1), expected)
    assert not torch.allclose(expected, mean_field(unary, [(grid, coarse)], 1), atol=1e-3)
    # A constant map has nothing to interpolate, and with one node per cell both are the same.
    constant = torch.full((1, K, *coarse.shape[2:]), 3.0)
    assert torch.equal(
        enlarge(constant, factor, (height, width), "bilinear"), enlarge(constant, factor, (height, width))
    )
    same = [(CoarseGrid(grid.pairwise, 1, "bilinear"), coarse)]
    logits = torch.randn(1, K, *coarse.shape[2:], dtype=torch.float64)
    assert torch.equal(mean_field(logits, same), mean_field(logits, [(grid.pairwise, coarse)]))


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="upsampling is 'cubic', but must be 'nearest' or 'bilinear'"):
        CoarseGrid(potential(), 2, "cubic")
