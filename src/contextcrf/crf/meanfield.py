"""Mean-field inference over unary and learned pairwise potentials (Section IV), energies and bounds."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from contextcrf.crf.checks import whole_number
from contextcrf.crf.potentials import IGNORE_INDEX
from contextcrf.crf.relations import Graph
from contextcrf.crf.unaries import bounded


class Pairwise(Protocol):
    """What inference needs of a pairwise term: `PairwisePotential`, `PairTable`, `CoarseGrid`, or one of your own."""

    def graph(self, features: Tensor) -> Graph:
        """The edges on a feature map [B, C, H, W]."""
        ...

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """Messages as a function of marginals, both [B, K, H, W]: see `PairwisePotential.messages`."""
        ...


# A pairwise term with the features it works on.
Pair = tuple[Pairwise, Tensor]


def mean_field(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    iterations: int = 2,
    weights: Sequence[float] | None = None,
    damping: float = 0.0,
    start: Tensor | None = None,
    trace: list[Tensor] | None = None,
) -> Tensor:
    """Approximate the marginals of the CRF by parallel mean-field updates (Section IV of the paper).

    An update is Q_p(k) proportional to exp( u_p(k) + weighted sum of expected pair logits ), for all nodes at once. The
    fixed points are the stationary points of KL(Q || P) over products Q.

    Args:
        unary_logits: u, [B, K, H, W]; infinite ones are taken as very large.
        pairwise: potentials with their features [B, C, H, W]. For features of a coarser grid see `CoarseGrid`.
        iterations: number of updates; the paper uses 2.
        weights: one factor per potential; None is 1.0 for each, the model itself.
        damping: share in [0, 1) of the old marginals kept at every update.
        start: marginals [B, K, H, W] to start from; None is softmax(unary_logits).
        trace: a list to which the ELBO [B] of the start and of every update is appended; this costs one more round of
            messages.

    Returns:
        Marginals [B, K, H, W].

    Raises:
        ValueError: sizes that do not fit, NaN among the logits, a damping outside [0, 1), or `iterations` that are not
            a whole number >= 0.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox, mean_field
        >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
        >>> logits, features = torch.randn(1, 3, 10, 15), torch.randn(1, 8, 10, 15)
        >>> mean_field(logits, [(above, features)], iterations=2).shape
        torch.Size([1, 3, 10, 15])
    """
    if not 0 <= damping < 1:
        raise ValueError(f"damping={damping}: expected 0 <= damping < 1")
    iterations = whole_number("iterations", iterations, least=0)
    unary_logits = finite(unary_logits)
    marginals = unary_logits.softmax(1) if start is None else start
    if marginals.shape != unary_logits.shape:
        raise ValueError(f"start {tuple(marginals.shape)}: expected the shape of the unary logits")
    message_sum = _message_sum(pairwise, weights)
    for _ in range(iterations):
        messages = message_sum(marginals)
        if trace is not None:
            trace.append(_bound(unary_logits, messages, marginals))
        updated = (unary_logits + messages).softmax(1)
        marginals = damping * marginals + (1 - damping) * updated if damping else updated
    if trace is not None:
        trace.append(_bound(unary_logits, message_sum(marginals), marginals))
    return marginals


def pairwise_logits(pairwise: Sequence[Pair], marginals: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """The weighted sum of all messages: the expected pair logits of every node and label.

    With the unary logits they are E[score | y_p = k] up to a constant per node: the update of mean field, and, where
    the marginals are one-hot, the logits of the conditional P(y_p | all others) of eq. (14).

    Args:
        pairwise: as for `mean_field`.
        marginals: of all nodes, [B, K, H, W].
        weights: as for `mean_field`.

    Returns:
        [B, K, H, W].

    Raises:
        ValueError: sizes that do not fit.
    """
    return _message_sum(pairwise, weights)(marginals)


def elbo(
    unary_logits: Tensor, pairwise: Sequence[Pair], marginals: Tensor, weights: Sequence[float] | None = None
) -> Tensor:
    """The evidence lower bound E_Q[score] + H(Q) of independent nodes, which is log Z - KL(Q || P).

    For one-hot marginals it is the score of the labeling they pick.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        marginals: Q, [B, K, H, W].
        weights: as for `mean_field`.

    Returns:
        One number for each image, [B].

    Raises:
        ValueError: sizes that do not fit, or NaN among the logits.

    Example:
        >>> import torch
        >>> from contextcrf.crf import elbo
        >>> logits = torch.zeros(1, 2, 3, 3)
        >>> log_z = 9 * torch.tensor(2.0).log()  # nine independent nodes of two labels each
        >>> torch.allclose(elbo(logits, [], logits.softmax(1)), log_z)
        True
    """
    return _bound(finite(unary_logits), pairwise_logits(pairwise, marginals, weights), marginals)


def energy(
    unary_logits: Tensor, pairwise: Sequence[Pair], labels: Tensor, weights: Sequence[float] | None = None
) -> Tensor:
    """The energy E(y, x) of a labeling: P(y | x) = exp(-E(y, x)) / Z(x), eq. (1) of the paper.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: y, int64 [B, H, W].
        weights: as for `mean_field`.

    Returns:
        One number for each image, [B].

    Raises:
        ValueError: sizes that do not fit, or NaN among the logits.

    Example:
        >>> import torch
        >>> from contextcrf.crf import energy
        >>> logits = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        >>> energy(logits, [], torch.tensor([[[1]]]))
        tensor([-3.])
    """
    return -elbo(unary_logits, pairwise, one_hot(labels, unary_logits), weights)


def one_hot(labels: Tensor, like: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Labels as one-hot marginals.

    Args:
        labels: int64 [B, H, W].
        like: a tensor [B, K, H, W] with the shape, dtype and device of the result.
        ignore_index: the label of ignored nodes.

    Returns:
        [B, K, H, W], all zero at ignored nodes.
    """
    known = labels != ignore_index
    result = torch.zeros_like(like).scatter(1, torch.where(known, labels, 0)[:, None], 1.0)
    return result * known[:, None]


def finite(unary_logits: Tensor) -> Tensor:
    """Unary logits in at least single precision, so that sums keep their digits, with infinite values made finite.

    Raises:
        ValueError: NaN among them.
    """
    logits = unary_logits.to(torch.promote_types(unary_logits.dtype, torch.float32))
    # A graph that is traced cannot branch on values.
    if not torch.compiler.is_exporting() and logits.isnan().any():
        raise ValueError("unary_logits: NaN among them")
    return bounded(logits)


def _bound(unary_logits: Tensor, messages: Tensor, marginals: Tensor) -> Tensor:
    """The ELBO [B] of marginals, given their messages."""
    # Every edge is in the messages of both of its ends, hence the half. The clamp keeps the gradient at zero finite.
    tiny = torch.finfo(marginals.dtype).tiny
    return (marginals * (unary_logits + messages / 2 - marginals.clamp(min=tiny).log())).sum((1, 2, 3))


def _message_sum(pairwise: Sequence[Pair], weights: Sequence[float] | None) -> Callable[[Tensor], Tensor]:
    """`pairwise_logits` as a function of the marginals; what all rounds of messages share is computed once."""
    factors = [1.0] * len(pairwise) if weights is None else list(weights)
    if len(factors) != len(pairwise):
        raise ValueError(f"{len(factors)} weights for {len(pairwise)} pairwise potentials; expected one each")
    terms = [
        (factor, potential.prepare(features))
        for (potential, features), factor in zip(pairwise, factors, strict=True)
        if factor != 0
    ]

    def message_sum(marginals: Tensor) -> Tensor:
        total = torch.zeros_like(marginals)
        for factor, messages in terms:
            total = total + factor * messages(marginals)
        return total

    return message_sum
