"""Iterated conditional modes on the potentials of the library, for study only: predictions use mean field.

Besag, "On the Statistical Analysis of Dirty Pictures", Journal of the Royal Statistical Society B, 1986.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from contextcrf.crf import CoarseGrid
from contextcrf.crf.meanfield import Pair, finite, one_hot, pairwise_logits


def icm(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    labels: Tensor | None = None,
    sweeps: int = 10,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Assign to every node its best label given the labels of all other nodes, until no label changes.

    Nodes that are joined are never updated at the same time, so the energy never rises. A sweep takes one round of
    messages for each of the `independent_groups`.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: the start, int64 [B, H, W]; None starts at the argmax of the unary logits.
        sweeps: the maximum number of updates of every node.
        weights: as for `mean_field`.

    Returns:
        Labels int64 [B, H, W].

    Raises:
        ValueError: if sizes do not fit, or if the logits contain NaN.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox
        >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
        >>> logits, features = torch.randn(1, 3, 6, 8), torch.randn(1, 8, 6, 8)
        >>> icm(logits, [(above, features)]).shape
        torch.Size([1, 6, 8])
    """
    unary_logits = finite(unary_logits)
    labels = unary_logits.argmax(1) if labels is None else labels
    groups = independent_groups(unary_logits, pairwise)
    for _ in range(sweeps):
        before = labels
        for group in groups:
            logits = unary_logits + pairwise_logits(pairwise, one_hot(labels, unary_logits), weights)
            current = logits.gather(1, labels[:, None])[:, 0]
            highest, best = logits.max(1)
            labels = torch.where(group & (highest > current), best, labels)
        if torch.equal(labels, before):
            break
    return labels


def independent_groups(unary_logits: Tensor, pairwise: Sequence[Pair]) -> list[Tensor]:
    """Partition the nodes into groups such that no two nodes of one group are joined.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.

    Returns:
        One mask bool [H, W] for each group.
    """
    height, width = unary_logits.shape[-2:]
    group = torch.zeros(height, width, dtype=torch.int64, device=unary_logits.device)
    for potential, features in pairwise:
        factor = potential.factor if isinstance(potential, CoarseGrid) else 1
        offsets = potential.graph(features).offsets
        if len(offsets) == 0:
            continue
        rows, columns = (offsets.abs().amax(0) + 1).tolist()
        y = torch.arange(height, device=group.device)[:, None] // factor % rows
        x = torch.arange(width, device=group.device) // factor % columns
        # One number encodes the groups of all relations, with one digit of a mixed base for each relation.
        group = group * rows * columns + y * columns + x
    return [group == value for value in group.unique()]
