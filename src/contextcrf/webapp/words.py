"""An explanation in words: which relations and which neighbors pushed a pixel to its label."""

from collections.abc import Mapping

import torch
from torch import Tensor

from contextcrf.crf import Explanation
from contextcrf.inference.segmentation import Segmentation

# Neighbors' classes that are named on each side; more would not be read.
NAMED = 3


def describe(
    explanations: Mapping[str, Explanation],
    beliefs: Tensor,
    unary: Segmentation,
    crf: Segmentation,
    pixel: tuple[int, int],
) -> str:
    """Markdown on one pixel.

    Args:
        explanations: by relation, what the neighbors say about the pixel.
        beliefs: marginals [K, h, w] on the relations' graph.
        unary, crf: the picture labeled without and with the relations.
        pixel: row and column in the picture.
    """
    row, column = pixel
    names = crf.classes.names
    after, before = crf.probabilities[:, row, column], unary.probabilities[:, row, column]
    label, rival = after.topk(2).indices.tolist()
    first = int(before.argmax())
    told = "too" if first == label else "instead"
    lines = [
        f"**Row {row}, column {column}: {names[label]}** with {after[label]:.0%}, then {names[rival]} with "
        f"{after[rival]:.0%}. The unary alone says {names[first]} {told}, with {before[first]:.0%}."
    ]
    if not explanations:
        return lines[0] + "\n\nThis model has no pairwise potentials: no neighbor has a vote."
    if not any(bool(found.messages.any()) for found in explanations.values()):
        if not any(len(found.neighbors) for found in explanations.values()):
            return lines[0] + "\n\nIt has no neighbors: the picture is too small for the relations."
        return lines[0] + (
            "\n\nNo neighbor pushes: the weights of the relations are 0 or their potentials are untrained. Move a "
            "weight up to hear what the neighbors would say."
        )
    lines.append(f"Pushes towards {names[label]} and away from {names[rival]}, in log-odds:")
    lines += [_relation(name, found, beliefs, names, label, rival) for name, found in explanations.items()]
    strongest = _strongest(explanations, beliefs, crf, pixel)
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + f"\n\n{strongest}"


def _relation(name: str, found: Explanation, beliefs: Tensor, names: tuple[str, ...], label: int, rival: int) -> str:
    """One line of a list: the sum, and the classes of the neighbors it comes from."""
    push = found.push(label, rival)
    if not push.any():
        return f"- *{name}*: says nothing (its weight is 0, or nobody is there)."
    classes = _classes(found, beliefs)
    sums = push.new_zeros(len(names)).index_add(0, classes, push)
    counts = torch.bincount(classes, minlength=len(names)).tolist()
    order = sums.abs().argsort(descending=True).tolist()
    parts = []
    for side, sign in (("for it", 1), ("against it", -1)):
        chosen = [k for k in order if sign * sums[k] > 0][:NAMED]
        if chosen:
            named = ", ".join(f"{names[k]} {float(sums[k]):+.2f} ({counts[k]} votes)" for k in chosen)
            parts.append(f"{side} {named}")
    return f"- *{name}* **{float(push.sum()):+.2f}**: {'; '.join(parts)}."


def _strongest(
    explanations: Mapping[str, Explanation], beliefs: Tensor, crf: Segmentation, pixel: tuple[int, int]
) -> str:
    """The single neighbor with the largest push, and where it lies."""
    label, rival = crf.probabilities[:, pixel[0], pixel[1]].topk(2).indices.tolist()
    height, width = crf.labels.shape
    pushes = {name: found.push(label, rival) for name, found in explanations.items() if len(found.neighbors)}
    name = max(pushes, key=lambda key: float(pushes[key].abs().max()))
    found, index = explanations[name], int(pushes[name].abs().argmax())
    rows, columns = found.size
    neighbor = found.neighbors[index].tolist()
    # From the pixel to the middle of the neighbor's cell; less than half a cell is no direction.
    down, right = (neighbor[0] + 0.5) * height / rows - pixel[0], (neighbor[1] + 0.5) * width / columns - pixel[1]
    ways = [
        f"{abs(length):.0f} px {words[length > 0]}"
        for length, cell, words in (
            (down, height / rows, ("above", "below")),
            (right, width / columns, ("to the left", "to the right")),
        )
        if abs(length) > cell / 2
    ]
    kind = crf.classes.names[int(_classes(found, beliefs)[index])]
    return (
        f"The strongest single vote comes through *{name}*: {kind}, {' and '.join(ways) or 'beside it'}, "
        f"{float(pushes[name][index]):+.3f}."
    )


def _classes(found: Explanation, beliefs: Tensor) -> Tensor:
    """The most probable class of every neighbor, int64 [M]."""
    return beliefs.argmax(0)[found.neighbors[:, 0], found.neighbors[:, 1]]
