"""Training objectives for the same potentials that are alternatives to piecewise training.

The piecewise objective, eq. (10)-(13), is the sum of the `nll` of all potentials. The objectives in this module couple
the nodes, so every training step computes messages. `mean_field_nll` and `unrolled_nll` also run inference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.checks import check_labels, whole_number
from contextcrf.crf.meanfield import Pair, elbo, finite, mean_field, one_hot, pairwise_logits
from contextcrf.crf.potentials import IGNORE_INDEX


def pseudo_likelihood_nll(
    unary_logits: Tensor, pairwise: Sequence[Pair], labels: Tensor, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Compute the negative log-pseudo-likelihood, eq. (14)-(18).

    It is the mean of -log P(y_p | all others, x) over the labeled nodes. Edges that touch an ignored node are excluded,
    so ignored nodes send no messages.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: the label of each node, int64 [B, H, W].
        ignore_index: the label of ignored nodes.

    Returns:
        A scalar. It is 0 if all nodes are ignored.

    Raises:
        ValueError: if the labels have a wrong shape or dtype, a label is not in 0..K-1, the sizes of the arguments do
            not match, or a logit is NaN.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox, pseudo_likelihood_nll
        >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
        >>> logits, features = torch.randn(1, 3, 10, 15), torch.randn(1, 8, 10, 15)
        >>> loss = pseudo_likelihood_nll(logits, [(above, features)], torch.randint(3, (1, 10, 15)))
        >>> loss.backward()
    """
    check_labels(labels, unary_logits, unary_logits.shape[1], ignore_index)
    others = one_hot(labels, unary_logits, ignore_index)
    return _conditional_nll(unary_logits, pairwise, others, labels, ignore_index)


def mean_field_nll(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    labels: Tensor,
    iterations: int = 3,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute the negative log-likelihood per labeled node with the mean-field lower bound in place of log Z.

    This is eq. (8) with inference inside the training loop, which the paper calls computationally unviable. The
    gradient is propagated through all iterations. If all nodes are labeled, the gradient at a fixed point is
    E_Q[grad score] - grad score(y), where score(y) = -E(y, x) is the negative energy of the labeling y. The loss is
    then at most the exact loss, since the bound is at most log Z. Neither holds with ignored nodes: in the score of the
    labeling y, the marginals of an ignored node replace its unknown label.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: the label of each node, int64 [B, H, W].
        iterations: the number of mean-field iterations, >= 0.
        ignore_index: the label of ignored nodes.

    Returns:
        A scalar. It is 0 if all nodes are ignored.

    Raises:
        ValueError: if the labels have a wrong shape or dtype, a label is not in 0..K-1, or an argument is not valid for
            `mean_field`.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox, mean_field_nll
        >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
        >>> logits, features = torch.randn(1, 3, 10, 15), torch.randn(1, 8, 10, 15)
        >>> loss = mean_field_nll(logits, [(above, features)], torch.randint(3, (1, 10, 15)))
        >>> loss.backward()
    """
    check_labels(labels, unary_logits, unary_logits.shape[1], ignore_index)
    trace: list[Tensor] = []
    marginals = mean_field(unary_logits, pairwise, iterations, trace=trace)
    known = (labels != ignore_index)[:, None]
    truth = torch.where(known, one_hot(labels, marginals, ignore_index), marginals)
    bound = trace[-1] - elbo(unary_logits, pairwise, truth)
    return bound.sum() / known.sum().clamp(min=1)


def unrolled_nll(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    labels: Tensor,
    iterations: int = 2,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute the cross-entropy of the mean-field marginals as the mean over the labeled nodes.

    Source: Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", ICCV 2015. The loss is computed from
    the same approximate marginals as in prediction. It is not a likelihood of the CRF.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: the label of each node, int64 [B, H, W].
        iterations: the number of mean-field iterations, >= 1.
        ignore_index: the label of ignored nodes.

    Returns:
        A scalar. It is 0 if all nodes are ignored.

    Raises:
        ValueError: if the labels have a wrong shape or dtype, a label is not in 0..K-1, or an argument is not valid for
            `mean_field`.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox, unrolled_nll
        >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
        >>> logits, features = torch.randn(1, 3, 10, 15), torch.randn(1, 8, 10, 15)
        >>> loss = unrolled_nll(logits, [(above, features)], torch.randint(3, (1, 10, 15)))
        >>> loss.backward()
    """
    check_labels(labels, unary_logits, unary_logits.shape[1], ignore_index)
    iterations = whole_number("iterations", iterations, least=1)
    # The loss computes the last update itself from logits, because a softmax may underflow to 0 in single precision.
    marginals = mean_field(unary_logits, pairwise, iterations - 1)
    return _conditional_nll(unary_logits, pairwise, marginals, labels, ignore_index)


def _conditional_nll(
    unary_logits: Tensor, pairwise: Sequence[Pair], others: Tensor, labels: Tensor, ignore_index: int
) -> Tensor:
    """Return the mean cross-entropy of the labeled nodes, given the marginals `others` [B, K, H, W] of all nodes."""
    known = (labels != ignore_index).sum().clamp(min=1)
    logits = finite(unary_logits) + pairwise_logits(pairwise, others)
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / known
