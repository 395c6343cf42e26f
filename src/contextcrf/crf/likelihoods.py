"""Alternatives to piecewise training, over the same potentials.

Piecewise training itself, eq. (10)-(13), is the sum of the potentials' own `nll`. The objectives here couple the nodes,
so every training step computes messages, and all objectives but the first run inference.
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
    """Negative log-pseudo-likelihood, eq. (14)-(18): the mean over labeled nodes of -log P(y_p | all others, x).

    Ignored nodes send no messages: the edges that touch them are left out.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: int64 [B, H, W].
        ignore_index: the label of ignored nodes.

    Returns:
        A scalar, 0 if all nodes are ignored.

    Raises:
        ValueError: labels of another shape or dtype or outside 0..K-1, sizes that do not fit, or NaN among the logits.

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
    """Negative log-likelihood per labeled node, with mean field's lower bound in place of log Z.

    This is eq. (8) with inference inside the training loop, which the paper calls computationally unviable. The
    gradient flows through all iterations; at a fixed point it is E_Q[grad score] - grad score(y). The bound is below
    log Z, so the loss is below the true one. Ignored nodes keep their marginals in the second term.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: int64 [B, H, W].
        iterations: mean-field iterations, >= 0.
        ignore_index: the label of ignored nodes.

    Returns:
        A scalar, 0 if all nodes are ignored.

    Raises:
        ValueError: labels of another shape or dtype or outside 0..K-1, and the errors of `mean_field`.

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
    """Cross-entropy of the marginals of mean field, the mean over labeled nodes.

    Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", ICCV 2015. It trains exactly what prediction
    computes, approximation included, and is no likelihood of the CRF.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: int64 [B, H, W].
        iterations: mean-field iterations, >= 1.
        ignore_index: the label of ignored nodes.

    Returns:
        A scalar, 0 if all nodes are ignored.

    Raises:
        ValueError: labels of another shape or dtype or outside 0..K-1, and the errors of `mean_field`.

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
    # The last update is left to the loss, which takes its logits: their softmax may be 0 in single precision.
    marginals = mean_field(unary_logits, pairwise, iterations - 1)
    return _conditional_nll(unary_logits, pairwise, marginals, labels, ignore_index)


def _conditional_nll(
    unary_logits: Tensor, pairwise: Sequence[Pair], others: Tensor, labels: Tensor, ignore_index: int
) -> Tensor:
    """Mean over labeled nodes of the cross-entropy of a node whose neighbors have marginals `others` [B, K, H, W]."""
    known = (labels != ignore_index).sum().clamp(min=1)
    logits = finite(unary_logits) + pairwise_logits(pairwise, others)
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / known
