"""The competitors of piecewise training, over the same potentials.

Piecewise training itself, eq. (10)-(13), is the sum of the potentials' own `nll`. The objectives here couple the nodes,
so every step pays for messages, and all but the first for inference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.meanfield import Pair, elbo, finite, mean_field, one_hot, pairwise_logits
from contextcrf.crf.potentials import IGNORE_INDEX, check_labels


def pseudo_likelihood_nll(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    labels: Tensor,
    ignore_index: int = IGNORE_INDEX,
    cell: int | None = None,
) -> Tensor:
    """Negative log-pseudo-likelihood, eq. (14)-(18): mean over known nodes of -log P(y_p | all others, x), a scalar.

    Nodes of unknown label send no messages: edges that touch them are left out.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: int64 [B, H, W].
        ignore_index: the label that marks void.
        cell: as for `mean_field`.
    """
    check_labels(labels, unary_logits, unary_logits.shape[1], ignore_index)
    return _given_others(
        unary_logits, pairwise, one_hot(labels, unary_logits, ignore_index), labels, ignore_index, cell
    )


def mean_field_nll(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    labels: Tensor,
    iterations: int = 3,
    ignore_index: int = IGNORE_INDEX,
    cell: int | None = None,
) -> Tensor:
    """Negative log-likelihood with mean field's bound in place of log Z, per known node, a scalar.

    This is eq. (8) with inference in the loop, which the paper calls unviable: the gradient flows through all
    iterations. At a fixed point it is E_Q[grad score] - grad score(y). As log Z is approached from below, so is the
    loss. Nodes of unknown label keep their marginals in the second term.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: int64 [B, H, W].
        iterations: of mean field.
        ignore_index: the label that marks void.
        cell: as for `mean_field`.
    """
    check_labels(labels, unary_logits, unary_logits.shape[1], ignore_index)
    trace: list[Tensor] = []
    marginals = mean_field(unary_logits, pairwise, iterations, cell=cell, trace=trace)
    known = (labels != ignore_index)[:, None]
    truth = torch.where(known, one_hot(labels, marginals, ignore_index), marginals)
    bound = trace[-1] - elbo(unary_logits, pairwise, truth, cell=cell)
    return bound.sum() / known.sum().clamp(min=1)


def unrolled_nll(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    labels: Tensor,
    iterations: int = 2,
    ignore_index: int = IGNORE_INDEX,
    cell: int | None = None,
) -> Tensor:
    """Cross-entropy of mean field's own marginals, mean over known nodes, a scalar (Zheng et al. 2015, CRF as RNN).

    It trains what prediction does, approximation and all, and is no likelihood of the CRF.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: int64 [B, H, W].
        iterations: of mean field, at least 1; as many as at prediction.
        ignore_index: the label that marks void.
        cell: as for `mean_field`.
    """
    check_labels(labels, unary_logits, unary_logits.shape[1], ignore_index)
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: expected 1 or more")
    marginals = mean_field(unary_logits, pairwise, iterations - 1, cell=cell)
    # The last update's marginals, as logits.
    return _given_others(unary_logits, pairwise, marginals, labels, ignore_index, cell)


def _given_others(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    others: Tensor,
    labels: Tensor,
    ignore_index: int,
    cell: int | None,
) -> Tensor:
    """Mean over known nodes of the cross-entropy of each, its neighbors having the marginals `others` [B, K, H, W]."""
    known = (labels != ignore_index).sum().clamp(min=1)
    logits = finite(unary_logits) + pairwise_logits(pairwise, others, cell=cell)
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / known
