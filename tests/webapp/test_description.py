"""Explanations in words."""

import pytest
import torch

from contextcrf.crf import Explanation
from contextcrf.data.classes import Classes
from contextcrf.inference.segmentation import Segmentation
from contextcrf.webapp.description import changes_score, describe

NAMES = ("sky", "sea", "[link](http://elsewhere.example)", "boat", "sand")
CLASSES = Classes(NAMES, tuple((10 * k, 0, 0) for k in range(5)))
# A graph of 2 x 4 nodes, and an image of 4 x 8 pixels; the explained pixel lies in node (0, 0).
GRAPH_LABELS = torch.tensor([[0, 1, 2, 3], [4, 1, 1, 0]])


def labeled(*probabilities):
    """An image whose pixels all have these probabilities."""
    marginals = torch.tensor(probabilities)[:, None, None].expand(5, 4, 8)
    return Segmentation(torch.zeros(3, 4, 8, dtype=torch.uint8), marginals, CLASSES)


UNARY, PAIRWISE = labeled(0.1, 0.2, 0.6, 0.1, 0.0), labeled(0.7, 0.2, 0.1, 0.0, 0.0)


def explanation(*pushes):
    """Messages of nodes (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2) in order: logits of "sky"."""
    places = torch.tensor([(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)])[: len(pushes)]
    messages = torch.zeros(len(pushes), 5)
    messages[:, 0] = torch.tensor(pushes)
    return Explanation(places, torch.ones(len(pushes), dtype=torch.bool), messages, (2, 4))


def test_messages_are_summed_by_the_labels_of_the_neighbors():
    text = describe({"near": explanation(1.0, -0.25, 0.5, 0.125, 0.5)}, GRAPH_LABELS, UNARY, PAIRWISE, (0, 1))
    head, summary, line, strongest = text.split("\n\n")
    escaped = r"\[link\]\(http\:\/\/elsewhere\.example\)"
    assert head == (
        "**Row 0, column 1 is labeled sky** with a probability of 70%. The next class is sea with 20%. The unary "
        f"labels it {escaped}, with a probability of 60%."
    )
    assert summary == "The neighbors raise the score of sky over sea by 1.88 log-odds:"
    assert line == (
        "- Messages through *near* add **+1.88**: +1.50 from sea (2 messages), +0.50 from boat (1 message), +0.12 from "
        f"sand (1 message), -0.25 from {escaped} (1 message)."
    )
    assert strongest == (
        "The strongest message adds +1.000. It comes through *near* from a neighbor labeled sea, 2 px to the right."
    )


def test_classes_beyond_the_third_are_summed_up():
    relation = explanation(1.0, 0.75, 0.5, 0.25)
    text = describe({"near": relation}, GRAPH_LABELS, PAIRWISE, PAIRWISE, (0, 1))
    assert "(1 message), +0.25 from other classes." in text
    assert "The unary also labels it sky" in text


def test_a_score_that_is_lowered():
    near, far = explanation(-1.0), explanation(0.25, 0.0)
    text = describe({"near": near, "far": far}, GRAPH_LABELS, UNARY, PAIRWISE, (3, 7))
    assert "lower the score of sky over sea by 0.75 log-odds" in text
    assert "- Messages through *near* add **-1.00**: -1.00 from sea (1 message).\n- Messages through *far*" in text
    assert text.endswith("through *near* from a neighbor labeled sea, 2 px above and 4 px to the left.")


def test_a_relation_without_influence():
    text = describe({"near": explanation(1.0), "far": explanation(0.0)}, GRAPH_LABELS, UNARY, PAIRWISE, (0, 1))
    assert "- Messages through *far* add nothing, because its weight is 0 or it has no neighbors here." in text


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({}, "This model has no pairwise potentials"),
        ({"near": explanation()}, "The pixel has no neighbors"),
        ({"near": explanation(0.0, 0.0)}, "No neighbor changes the label"),
    ],
)
def test_without_influence_the_text_gives_the_reason(found, sentence):
    assert not changes_score(found, PAIRWISE, (0, 1))
    assert sentence in describe(found, GRAPH_LABELS, UNARY, PAIRWISE, (0, 1))


def test_messages_that_favor_no_label_change_nothing():
    """Only differences between labels matter."""
    found = explanation(0.0)
    found.messages.fill_(3.0)
    assert not changes_score({"near": found}, PAIRWISE, (0, 1))
    assert "No neighbor changes the label" in describe({"near": found}, GRAPH_LABELS, UNARY, PAIRWISE, (0, 1))
