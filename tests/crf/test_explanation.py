import pytest
import torch

from contextcrf import PairwisePotential, RangeBox
from contextcrf.crf import explain


@pytest.mark.parametrize("box", [RangeBox.surrounding(1.0), RangeBox.above(0.7, 1.0)], ids=["surrounding", "above"])
@pytest.mark.parametrize("node", [(0, 0), (2, 1), (3, 4)])
def test_single_messages_add_up_to_the_message_sum(box, node):
    potential = PairwisePotential(4, 3, box, 6).double()
    maps, marginals = torch.randn(1, 4, 4, 5).double(), torch.randn(1, 3, 4, 5).double().softmax(1)
    found = explain(potential, maps, marginals, node)
    total = potential.messages(maps, marginals)[0, :, node[0], node[1]]
    torch.testing.assert_close(found.messages.sum(0), total)
    index = node[0] * 5 + node[1]
    edges = potential.graph(maps).edges()
    assert int(found.owns.sum()) == int((edges[0] == index).sum())
    assert int((~found.owns).sum()) == int((edges[1] == index).sum())


def test_one_term_is_the_expectation_over_the_explicit_table():
    potential = PairwisePotential(4, 3, RangeBox.above(1.0, 1.0), 6).double()
    maps, marginals = torch.randn(1, 4, 4, 5).double(), torch.randn(1, 3, 4, 5).double().softmax(1)
    edges, logits = potential.pair_logits(maps)
    found = explain(potential, maps, marginals, (2, 2))
    q = marginals[0].flatten(1).T
    for (y, x), owns, message in zip(found.neighbors.tolist(), found.owns.tolist(), found.messages, strict=True):
        here, there = 2 * 5 + 2, y * 5 + x
        p, n = (here, there) if owns else (there, here)
        table = logits[0, ((edges[0] == p) & (edges[1] == n)).nonzero()[0, 0]]
        torch.testing.assert_close(message, table @ q[there] if owns else q[there] @ table)


def test_a_push_map_is_nonzero_where_the_neighbors_are():
    potential = PairwisePotential(4, 3, RangeBox.above(1.0, 1.0), 6)
    found = explain(potential, torch.randn(1, 4, 4, 5), torch.randn(1, 3, 4, 5).softmax(1), (3, 2))
    picture = found.push_map(1, rival=0)
    torch.testing.assert_close(picture.sum(), (found.messages[:, 1] - found.messages[:, 0]).sum())
    assert (picture[3] == 0).all()
    assert (picture[:3, 1:4] != 0).all()
    torch.testing.assert_close(
        found.push(1) + found.push(0) + found.push(2), torch.zeros(len(found.messages)), atol=1e-5, rtol=0
    )


def test_a_node_outside_the_map_and_a_batch_are_refused():
    potential = PairwisePotential(4, 3, RangeBox.above(), 6)
    with pytest.raises(ValueError, match="node"):
        explain(potential, torch.randn(1, 4, 4, 5), torch.rand(1, 3, 4, 5), (4, 0))
    with pytest.raises(ValueError, match="one image"):
        explain(potential, torch.randn(2, 4, 4, 5), torch.rand(2, 3, 4, 5), (0, 0))
