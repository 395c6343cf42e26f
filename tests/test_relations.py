import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextcrf import RangeBox
from contextcrf.crf.relations import Graph

CPU = torch.device("cpu")
extents = st.floats(0, 1)
sides = st.integers(1, 7)


def test_surrounding_at_the_papers_size_is_11_by_11():
    offsets = RangeBox.surrounding(0.4).offsets(28, 38)
    assert len(offsets) == 11 * 11 - 1
    assert offsets.min() == -5
    assert offsets.max() == 5


def test_above_holds_only_rows_strictly_above():
    offsets = RangeBox.above(0.3, 0.4).offsets(28, 38)
    assert len(offsets) == 8 * 11
    assert offsets[:, 0].unique().tolist() == list(range(-8, 0))
    assert offsets[:, 1].unique().tolist() == list(range(-5, 6))


def test_a_is_the_shorter_side():
    box = RangeBox.surrounding(0.4)
    assert torch.equal(box.offsets(28, 38), box.offsets(38, 28))


@pytest.mark.parametrize(("extent", "a", "nodes"), [(0.57, 100, 57), (0.3, 10, 3), (0.2, 15, 3), (0.35, 20, 7)])
def test_the_floor_of_an_exact_product_is_exact(extent, a, nodes):
    assert RangeBox(extent, 0, 0, 0).offsets(a, a)[:, 0].min() == -nodes


@pytest.mark.parametrize("extent", [-0.1, math.nan, math.inf])
def test_an_impossible_extent_is_refused_by_name(extent):
    with pytest.raises(ValueError, match="left"):
        RangeBox(0.1, 0.1, extent, 0.1)


@given(extents, extents, extents, extents, st.booleans(), sides, sides)
def test_edges_are_the_pairs_whose_second_node_lies_in_the_box_of_the_first(top, bottom, left, right, own, h, w):
    box = RangeBox(top, bottom, left, right, own)
    a = min(h, w)
    expected = {
        (y * w + x, v * w + u)
        for y in range(h)
        for x in range(w)
        for v in range(h)
        for u in range(w)
        if -math.floor(top * a + 1e-9) <= v - y <= math.floor(bottom * a + 1e-9)
        and -math.floor(left * a + 1e-9) <= u - x <= math.floor(right * a + 1e-9)
        and (v, u) != (y, x)
        and (own or v != y)
    }
    edges = Graph(box, h, w, CPU).edges().T.tolist()
    assert len(edges) == len(expected)
    assert {(p, q) for p, q in edges} == expected


@given(sides, sides)
def test_mean_degree_counts_both_ends_of_every_edge(h, w):
    graph = Graph(RangeBox.surrounding(0.8), h, w, CPU)
    touching = torch.bincount(graph.edges().flatten(), minlength=h * w).double()
    assert graph.mean_degree() == pytest.approx(touching.mean().item())


@given(sides, sides)
def test_a_window_and_its_reverse_hold_the_displacements_of_the_edges(h, w):
    graph = Graph(RangeBox(0.4, 0.0, 0.7, 0.2, own_row=False), h, w, CPU)
    p, q = graph.edges()
    expected = set(zip((q // w - p // w).tolist(), (q % w - p % w).tolist(), strict=True))
    window = graph.window()
    for sign, view in ((1, window), (-1, window.reversed())):
        found = {(sign * (view.top + y), sign * (view.left + x)) for y, x in view.inside.nonzero().tolist()}
        assert found == expected


def test_a_map_of_one_node_has_no_edges():
    assert Graph(RangeBox.surrounding(1.0), 1, 1, CPU).edges().shape == (2, 0)
    assert Graph(RangeBox.above(1.0, 1.0), 1, 9, CPU).edges().shape == (2, 0)
