"""Iterated conditional modes of the experiments are compared with enumeration."""

import doctest
import sys

import pytest
import torch

import exact
from contextcrf.crf import CoarseGrid, PairwisePotential, RangeBox, energy
from icm import icm, independent_groups

K = 2


def crf(height=2, width=3, factor=1):
    """A tiny CRF of two relations: unary logits and (potential, features) pairs."""
    maps = torch.randn(1, 4, -(-height // factor), -(-width // factor), dtype=torch.float64)
    unary = torch.randn(1, K, height, width, dtype=torch.float64)
    pairs = []
    for box in (RangeBox.surrounding(1.0), RangeBox.above(0.5, 2.0)):
        potential = PairwisePotential(4, K, box, 6).double()
        with torch.no_grad():
            for parameter in potential.last.parameters():
                parameter.mul_(2)
        pairs.append((potential if factor == 1 else CoarseGrid(potential, factor), maps))
    return unary, pairs


@pytest.mark.parametrize(("height", "width", "factor"), [(2, 3, 1), (2, 4, 2), (3, 3, 2)])
def test_icm_never_raises_the_energy_and_ends_where_no_single_change_lowers_it(height, width, factor):
    unary, pairs = crf(height, width, factor)
    every = exact.labelings(height * width, K)
    for start in (0, 13, 42, 63):
        labels = every[start].view(1, height, width)
        for _ in range(4):
            swept = icm(unary, pairs, labels, sweeps=1)
            assert energy(unary, pairs, swept) <= energy(unary, pairs, labels) + 1e-12
            labels = swept
        found = icm(unary, pairs, every[start].view(1, height, width))
        for node in range(height * width):
            changed = found.flatten().clone()
            changed[node] = 1 - changed[node]
            assert energy(unary, pairs, changed.view_as(found)) >= energy(unary, pairs, found) - 1e-12


def test_no_two_nodes_of_a_group_are_joined():
    _, [(surrounding, _), (above, _)] = crf()
    unary = torch.randn(1, K, 9, 14)
    pairs = [(surrounding, torch.randn(1, 4, 9, 14)), (CoarseGrid(above, 3), torch.randn(1, 4, 3, 5))]
    groups = independent_groups(unary, pairs)
    assert torch.stack(groups).sum(0).eq(1).all()
    for (potential, features), factor in zip(pairs, (1, 3), strict=True):
        joined = {(p, q) for p, q in potential.graph(features).edges().T.tolist()}
        for group in groups:
            cells = {(y // factor) * features.shape[-1] + x // factor for y, x in group.nonzero().tolist()}
            assert not any((p, q) in joined for p in cells for q in cells)


def test_infinite_logits_decide_the_label():
    unary, pairs = crf()
    unary[0, 0, 0, 0], unary[0, 1, 1, 2] = torch.inf, -torch.inf
    labels = icm(unary, pairs)
    assert labels[0, 0, 0] == labels[0, 1, 2] == 0


def test_weights_of_zero_leave_the_argmax_of_the_unary_logits():
    unary, pairs = crf()
    assert torch.equal(icm(unary, pairs, weights=[0.0, 0.0]), unary.argmax(1))


def test_the_example_runs():
    failed, attempted = doctest.testmod(sys.modules["icm"])
    assert not failed
    assert attempted


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1)])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_lines_points_and_a_single_class(size, num_classes):
    maps = torch.randn(1, 4, *size)
    pairs = [(PairwisePotential(4, num_classes, box, 6), maps) for box in (RangeBox.surrounding(1.0), RangeBox.above())]
    assert icm(torch.randn(1, num_classes, *size), pairs).shape == (1, *size)
