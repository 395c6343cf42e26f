"""The objectives are compared with enumeration: conditionals for the pseudo-likelihood, the ELBO for mean field."""

import pytest
import torch

import exact
from contextcrf import PairwisePotential, RangeBox, mean_field
from contextcrf.crf import mean_field_nll, pseudo_likelihood_nll, unrolled_nll

K = 2


def crf(height=2, width=2):
    boxes = [RangeBox.surrounding(2.0), RangeBox.above(0.5, 2.0)]
    maps = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    unary = torch.randn(2, K, height, width, dtype=torch.float64, requires_grad=True)
    return unary, maps, [(PairwisePotential(3, K, box, 4).double(), maps) for box in boxes]


def tables(pairs, image):
    result = []
    for potential, features in pairs:
        edges, logits = potential.pair_logits(features)
        result.append((edges, logits[image]))
    return result


def flat(maps, image):
    return maps[image].flatten(1).T


def test_pseudo_likelihood_is_the_product_of_the_conditionals_of_enumeration():
    unary, maps, pairs = crf()
    labels = torch.randint(K, (2, 2, 2))
    every = exact.labelings(4, K)
    terms = []
    for image in range(2):
        scores, truth = exact.scores(flat(unary, image), tables(pairs, image)), labels[image].flatten()
        for node in range(4):
            others = torch.arange(4) != node
            agrees = (every[:, others] == truth[others]).all(1)
            terms.append(scores[agrees].logsumexp(0) - scores[(every == truth).all(1)][0])
    expected = torch.stack(terms).mean()
    found = pseudo_likelihood_nll(unary, pairs, labels)
    torch.testing.assert_close(found, expected)
    wanted = [unary, maps, *pairs[0][0].parameters(), *pairs[1][0].parameters()]
    for ours, theirs in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_pseudo_likelihood_leaves_out_ignored_nodes_and_the_edges_that_touch_them():
    unary, _, pairs = crf()
    labels = torch.randint(K, (2, 2, 2))
    labels[:, 1, 1] = 255
    terms = []
    for image in range(2):
        truth = labels[image].flatten()
        kept = []
        for edges, logits in tables(pairs, image):
            known = (edges != 3).all(0)
            kept.append((edges[:, known], logits[known]))
        scores = exact.scores(flat(unary, image)[:3], kept)
        every = exact.labelings(3, K)
        for node in range(3):
            others = torch.arange(3) != node
            agrees = (every[:, others] == truth[:3][others]).all(1)
            terms.append(scores[agrees].logsumexp(0) - scores[(every == truth[:3]).all(1)][0])
    torch.testing.assert_close(pseudo_likelihood_nll(unary, pairs, labels), torch.stack(terms).mean())


@pytest.mark.parametrize("ignored", [False, True])
def test_mean_field_likelihood_is_the_bound_of_enumeration(ignored):
    unary, maps, pairs = crf()
    labels = torch.randint(K, (2, 2, 2))
    if ignored:
        labels[0, 0, 1] = 255
    marginals = mean_field(unary, pairs, 2)
    expected = 0
    for image in range(2):
        found, truth = flat(marginals, image), labels[image].flatten()
        chosen = torch.nn.functional.one_hot(truth.clamp(max=K - 1), K).double()
        chosen = torch.where((truth != 255)[:, None], chosen, found)
        for sign, q in ((1, found), (-1, chosen)):
            expected = expected + sign * exact.elbo(q, flat(unary, image), tables(pairs, image))
    expected = expected / (labels != 255).sum()
    found = mean_field_nll(unary, pairs, labels, iterations=2)
    torch.testing.assert_close(found, expected)
    wanted = [unary, maps, *pairs[0][0].parameters()]
    for ours, theirs in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_mean_field_likelihood_is_below_the_true_one_and_meets_it_without_edges():
    unary, _, pairs = crf()
    labels = torch.randint(K, (2, 2, 2))
    every = exact.labelings(4, K)
    truth = 0
    for image in range(2):
        scores = exact.scores(flat(unary, image), tables(pairs, image))
        truth = truth + scores.logsumexp(0) - scores[(every == labels[image].flatten()).all(1)][0]
    assert mean_field_nll(unary, pairs, labels, iterations=5) < truth / 8
    alone = torch.nn.functional.cross_entropy(unary, labels)
    torch.testing.assert_close(mean_field_nll(unary, [], labels), alone)
    torch.testing.assert_close(pseudo_likelihood_nll(unary, [], labels), alone)


@pytest.mark.parametrize("ignored", [False, True])
def test_the_unrolled_objective_is_the_cross_entropy_of_mean_fields_marginals(ignored):
    unary, _, pairs = crf()
    labels = torch.randint(K, (2, 2, 2))
    if ignored:
        labels[0, 0, 1] = 255
    chosen = mean_field(unary, pairs, 3).movedim(1, -1)[labels != 255]
    expected = -chosen.gather(1, labels[labels != 255][:, None]).log().mean()
    torch.testing.assert_close(unrolled_nll(unary, pairs, labels, iterations=3), expected)


def test_gradients_are_those_of_finite_differences():
    unary, maps, pairs = crf()
    labels = torch.randint(K, (2, 2, 2))
    potential = pairs[0][0]
    for objective in (pseudo_likelihood_nll, mean_field_nll, unrolled_nll):
        torch.autograd.gradcheck(lambda u, f, o=objective: o(u, [(potential, f)], labels), (unary, maps))


@pytest.mark.parametrize("objective", [pseudo_likelihood_nll, mean_field_nll, unrolled_nll])
def test_ignored_nodes_alone_are_a_loss_of_zero_and_strange_labels_are_refused(objective):
    unary, _, pairs = crf()
    assert objective(unary, pairs, torch.full((2, 2, 2), 255)).abs() < 1e-12
    with pytest.raises(ValueError, match="contain 7"):
        objective(unary, pairs, torch.full((2, 2, 2), 7))


@pytest.mark.parametrize("objective", [pseudo_likelihood_nll, mean_field_nll, unrolled_nll])
def test_infinite_logits_are_very_large_ones(objective):
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    unary = torch.zeros(1, 2, 2, 2)
    unary[:, 0] = torch.inf
    assert objective(unary, [], labels) == 0


def test_an_unrolled_objective_needs_an_iteration():
    with pytest.raises(ValueError, match="iterations must be a whole number >= 1, but is 0"):
        unrolled_nll(torch.zeros(1, 2, 2, 2), [], torch.zeros(1, 2, 2, dtype=torch.int64), iterations=0)
