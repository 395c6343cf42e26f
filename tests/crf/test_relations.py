import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextcrf import RangeBox
from contextcrf.crf.relations import Graph, _mean_degree, _offsets

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
    box = RangeBox(top, bottom, left, right, hole=None if own else RangeBox(0.0, 0.0, left, right))
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
    assert graph.num_nodes == h * w
    touching = torch.bincount(graph.edges().flatten(), minlength=h * w).double()
    assert graph.mean_degree() == pytest.approx(touching.mean().item())


@given(sides, sides)
def test_a_window_has_the_displacements_of_the_edges(h, w):
    graph = Graph(RangeBox(0.4, 0.0, 0.7, 0.2, hole=RangeBox(0.0, 0.0, 0.7, 0.2)), h, w, CPU)
    p, q = graph.edges()
    expected = set(zip((q // w - p // w).tolist(), (q % w - p % w).tolist(), strict=True))
    window = graph.window()
    found = {(window.rows[y], window.columns[x]) for y, x in torch.tensor(window.inside).nonzero().tolist()}
    assert found == expected
    outside = {(y, x) for y, places in window.outside() for x in range(places.start, places.stop)}
    table = {(y, x) for y in range(len(window.rows)) for x in range(len(window.columns))}
    assert {(window.rows[y], window.columns[x]) for y, x in table - outside} == expected


@given(sides, sides)
def test_opposite_boxes_have_the_same_edges_in_the_other_direction(h, w):
    for there, back in (
        (RangeBox.above(0.7, 0.9), RangeBox.below(0.7, 0.9)),
        (RangeBox.leftward(0.7, 0.9), RangeBox.rightward(0.7, 0.9)),
    ):
        forth = {(p, q) for p, q in Graph(there, h, w, CPU).edges().T.tolist()}
        assert {(q, p) for p, q in Graph(back, h, w, CPU).edges().T.tolist()} == forth


def test_leftward_holds_only_columns_strictly_left():
    offsets = RangeBox.leftward(0.3, 0.4).offsets(28, 38)
    assert len(offsets) == 8 * 11
    assert offsets[:, 1].unique().tolist() == list(range(-8, 0))


def test_a_ring_is_a_square_without_the_square_in_its_middle():
    outer, inner, ring = (
        {tuple(offset) for offset in box.offsets(28, 38).tolist()}
        for box in (RangeBox.surrounding(0.8), RangeBox.surrounding(0.4), RangeBox.ring(0.8, 0.4))
    )
    assert ring == outer - inner
    assert len(ring) == 23 * 23 - 11 * 11
    with pytest.raises(ValueError, match="inner"):
        RangeBox.ring(0.4, 0.5)


def test_a_grid_of_five_joins_24_neighbors_that_reach_as_far_as_the_box():
    offsets = RangeBox(0.2, 0.2, 0.2, 0.2, grid=5).offsets(28, 38)
    assert len(offsets) == 24
    assert offsets.amin(0).tolist() == [-5, -5]
    assert offsets.amax(0).tolist() == [5, 5]
    few = RangeBox(0.2, 0.2, 0.2, 0.2, grid=5)
    assert torch.equal(few.offsets(6, 6), RangeBox.surrounding(0.4).offsets(6, 6))
    with pytest.raises(ValueError, match=r"grid .* is 1"):
        RangeBox(0.2, 0.2, 0.2, 0.2, grid=1)


def test_several_boxes_join_what_any_of_them_joins_and_no_pair_twice():
    left, wide = RangeBox.leftward(0.5, 0.5), RangeBox(0.0, 0.0, 0.8, 0.8)
    edges = Graph((left, wide), 6, 7, CPU).edges().T.tolist()
    expected = {(p, q) for box in (left, wide) for p, q in Graph(box, 6, 7, CPU).edges().T.tolist()}
    assert len(edges) == len(expected)
    assert {(p, q) for p, q in edges} == expected


def test_a_map_of_one_node_has_no_edges():
    assert Graph(RangeBox.surrounding(1.0), 1, 1, CPU).edges().shape == (2, 0)
    assert Graph(RangeBox.above(1.0, 1.0), 1, 9, CPU).edges().shape == (2, 0)


def test_the_default_device_does_not_matter():
    expected = Graph(RangeBox.surrounding(0.7), 9, 5, torch.device("cpu")).mean_degree()
    _mean_degree.cache_clear()
    _offsets.cache_clear()
    with torch.device("meta"):
        assert Graph(RangeBox.surrounding(0.7), 9, 5, torch.device("cpu")).mean_degree() == expected
