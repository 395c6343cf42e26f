"""Texts that explain the label of a pixel by the messages of its neighbors."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from contextcrf.crf import Explanation
from contextcrf.inference.segmentation import Segmentation

# The number of neighbor classes that are named for each sign. The other classes are summed.
MAX_CLASSES = 3


def changes_score(explanations: Mapping[str, Explanation], pairwise: Segmentation, pixel: tuple[int, int]) -> bool:
    """Whether any message changes the score of the pixel's label over the second most probable class.

    Args:
        explanations: the messages to the node of the pixel, by relation.
        pairwise: the segmentation of unary+pairwise.
        pixel: row and column in the image.
    """
    label, rival = pairwise.probabilities[:, pixel[0], pixel[1]].topk(2).indices.tolist()
    return any(bool(found.push(label, rival).any()) for found in explanations.values())


def describe(
    explanations: Mapping[str, Explanation],
    graph_labels: Tensor,
    unary: Segmentation,
    pairwise: Segmentation,
    pixel: tuple[int, int],
) -> str:
    """Describe the label of one pixel in Markdown.

    Args:
        explanations: the messages to the node of the pixel, by relation.
        graph_labels: labels int64 [h, w] of the graph nodes.
        unary: the segmentation of the unary.
        pairwise: the segmentation of unary+pairwise.
        pixel: row and column in the image.

    Returns:
        Paragraphs with the probabilities, the sum of the messages, a list by relation, and the strongest message.
    """
    row, column = pixel
    names = [_plain(name) for name in pairwise.classes.names]
    with_pairs, alone = pairwise.probabilities[:, row, column], unary.probabilities[:, row, column]
    label, rival = with_pairs.topk(2).indices.tolist()
    first = int(alone.argmax())
    same = "also " if first == label else ""
    head = (
        f"**Row {row}, column {column} is labeled {names[label]}** with a probability of {with_pairs[label]:.0%}. The "
        f"next class is {names[rival]} with {with_pairs[rival]:.0%}. The unary {same}labels it {names[first]}, with a "
        f"probability of {alone[first]:.0%}."
    )
    if not explanations:
        return f"{head}\n\nThis model has no pairwise potentials, so the neighbors have no influence on the label."
    if not any(len(found.neighbors) for found in explanations.values()):
        return f"{head}\n\nThe pixel has no neighbors, because the image is too small for the relations."
    if not changes_score(explanations, pairwise, pixel):
        return (
            f"{head}\n\nNo neighbor changes the label, because the weights of the relations are 0 or their potentials "
            "are not trained. Raise a weight to see the messages."
        )
    total = sum(float(found.push(label, rival).sum()) for found in explanations.values())
    verb = "raise" if total >= 0 else "lower"
    summary = f"The neighbors {verb} the score of {names[label]} over {names[rival]} by {abs(total):.2f} log-odds:"
    lines = [_relation(name, found, graph_labels, names, label, rival) for name, found in explanations.items()]
    strongest = _strongest(explanations, graph_labels, names, pairwise, pixel)
    return "\n\n".join([head, summary, "\n".join(lines), strongest])


def _relation(
    relation: str, found: Explanation, graph_labels: Tensor, names: Sequence[str], label: int, rival: int
) -> str:
    """Return a list item with the sum of the messages of a relation, and its parts by the class of the neighbors."""
    push = found.push(label, rival)
    if not push.any():
        return f"- Messages through *{relation}* add nothing, because its weight is 0 or it has no neighbors here."
    classes = _classes(found, graph_labels)
    sums = push.new_zeros(len(names)).index_add(0, classes, push)
    counts = torch.bincount(classes, minlength=len(names)).tolist()
    order = sums.abs().argsort(descending=True).tolist()
    chosen = [k for sign in (1, -1) for k in [k for k in order if sign * sums[k] > 0][:MAX_CLASSES]]
    parts = [f"{float(sums[k]):+.2f} from {names[k]} ({_count(counts[k], 'message')})" for k in chosen]
    if others := [k for k in order if sums[k] != 0 and k not in chosen]:
        parts.append(f"{float(sums[others].sum()):+.2f} from other classes")
    return f"- Messages through *{relation}* add **{float(push.sum()):+.2f}**: {', '.join(parts)}."


def _strongest(
    explanations: Mapping[str, Explanation],
    graph_labels: Tensor,
    names: Sequence[str],
    pairwise: Segmentation,
    pixel: tuple[int, int],
) -> str:
    """Return sentences on the message with the largest absolute value and on the position of its neighbor."""
    label, rival = pairwise.probabilities[:, pixel[0], pixel[1]].topk(2).indices.tolist()
    height, width = pairwise.labels.shape
    pushes = {name: found.push(label, rival) for name, found in explanations.items() if len(found.neighbors)}
    relation = max(pushes, key=lambda name: float(pushes[name].abs().max()))
    found, index = explanations[relation], int(pushes[relation].abs().argmax())
    rows, columns = found.size
    neighbor = found.neighbors[index].tolist()
    # The distance from the pixel to the center of the neighbor's cell. Below half a cell, no direction is named.
    down, right = (neighbor[0] + 0.5) * height / rows - pixel[0], (neighbor[1] + 0.5) * width / columns - pixel[1]
    directions = [
        f"{abs(distance):.0f} px {words[distance > 0]}"
        for distance, cell, words in (
            (down, height / rows, ("above", "below")),
            (right, width / columns, ("to the left", "to the right")),
        )
        if abs(distance) > cell / 2
    ]
    neighbor_class = names[int(_classes(found, graph_labels)[index])]
    return (
        f"The strongest message adds {float(pushes[relation][index]):+.3f}. It comes through *{relation}* from a "
        f"neighbor labeled {neighbor_class}, {' and '.join(directions) or 'next to the pixel'}."
    )


def _classes(found: Explanation, graph_labels: Tensor) -> Tensor:
    """Return the label of every neighbor, int64 [M]."""
    return graph_labels[found.neighbors[:, 0], found.neighbors[:, 1]]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _plain(name: str) -> str:
    """Escape the characters of a name that have a meaning in Markdown."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", name)
