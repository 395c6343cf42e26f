"""Mean-field inference over unary and learned pairwise potentials (Section IV), energies and bounds."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.potentials import IGNORE_INDEX
from contextcrf.crf.relations import Graph
from contextcrf.crf.unaries import bounded


class Pairwise(Protocol):
    """What inference asks of pairwise terms: `PairwisePotential`, a `PairTable`, or your own."""

    def graph(self, features: Tensor) -> Graph:
        """The edges on a feature map [B, C, H, W]."""
        ...

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """Expected pair logits [B, K, H, W] as a function of marginals likewise, as `PairwisePotential.messages`."""
        ...


# A potential with the features it works on.
Pair = tuple[Pairwise, Tensor]


def mean_field(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    iterations: int = 2,
    weights: Sequence[float] | None = None,
    damping: float = 0.0,
    start: Tensor | None = None,
    cell: int | None = None,
    trace: list[Tensor] | None = None,
) -> Tensor:
    """Approximate marginals: Q_p(k) proportional to exp( u_p(k) + weighted sum of expected pair logits ).

    All nodes are updated in parallel. The fixed points are the stationary points of KL(Q || P) over products Q.

    A potential's features may be coarser than the unary logits by a whole factor r, each cell of theirs covering
    r x r nodes (fewer at the right and lower border): then every pair of nodes in two joined cells is an edge of
    weight 1 / r^2 whose logits are the cells'. Marginals go to the cells by `shrink`, messages to their nodes by
    `enlarge`.

    Args:
        unary_logits: [B, K, H, W]; infinite ones are taken as very large.
        pairwise: potentials with their features [B, C, h, w], h = ceil(H / r), w = ceil(W / r) for a whole r >= 1.
        iterations: number of parallel updates; the paper uses 2.
        weights: one factor per potential; None is 1.0 for each, the model itself.
        damping: share in [0, 1) of the old marginals kept at every update.
        cell: the factor r of features coarser than the logits; None finds it from the sizes, which leaves a doubt on
            small maps (5 cells of 34 nodes may be 7 or 8 nodes wide).
        start: marginals [B, K, H, W] to start from; None is softmax(unary_logits).
        trace: a list that gets the ELBO [B] of the start and after every update; it costs one more round of messages.

    Returns:
        Marginals [B, K, H, W].

    Raises:
        ValueError: sizes that do not fit, NaN among the logits, a damping outside [0, 1), a negative number of
            iterations.
    """
    if not 0 <= damping < 1:
        raise ValueError(f"damping={damping}: expected 0 <= damping < 1")
    if iterations < 0:
        raise ValueError(f"iterations={iterations}: expected 0 or more")
    unary_logits = finite(unary_logits)
    marginals = unary_logits.softmax(1) if start is None else start
    if marginals.shape != unary_logits.shape:
        raise ValueError(f"start {tuple(marginals.shape)}: expected the shape of the unary logits")
    received_from = _listen(pairwise, unary_logits, weights, cell)
    for _ in range(iterations):
        received = received_from(marginals)
        if trace is not None:
            trace.append(_bound(unary_logits, received, marginals))
        updated = (unary_logits + received).softmax(1)
        marginals = damping * marginals + (1 - damping) * updated if damping else updated
    if trace is not None:
        trace.append(_bound(unary_logits, received_from(marginals), marginals))
    return marginals


def pairwise_logits(
    pairwise: Sequence[Pair], marginals: Tensor, weights: Sequence[float] | None = None, cell: int | None = None
) -> Tensor:
    """The expected pair logits of every node and label, the other nodes drawn from their marginals: [B, K, H, W].

    With the unary logits they are E[score | y_p = k] up to a constant per node: the update of mean field, and, the
    marginals being one-hot, the conditional P(y_p | all others) of eq. (14). Arguments as for `mean_field`.
    """
    return _listen(pairwise, marginals, weights, cell)(marginals)


def elbo(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    marginals: Tensor,
    weights: Sequence[float] | None = None,
    cell: int | None = None,
) -> Tensor:
    """E_Q[score] + H(Q) of independent nodes with these marginals, [B]: log Z less KL(Q || P).

    For one-hot marginals it is the score of the labeling they pick. Arguments as for `mean_field`.
    """
    return _bound(finite(unary_logits), pairwise_logits(pairwise, marginals, weights, cell), marginals)


def energy(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    labels: Tensor,
    weights: Sequence[float] | None = None,
    cell: int | None = None,
) -> Tensor:
    """The energy of a labeling int64 [B, H, W] up to log Z, [B]: less is more probable; eq. (2) of the paper."""
    return -elbo(unary_logits, pairwise, one_hot(labels, unary_logits), weights, cell)


def icm(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    labels: Tensor | None = None,
    sweeps: int = 10,
    weights: Sequence[float] | None = None,
    cell: int | None = None,
) -> Tensor:
    """Iterated conditional modes (Besag 1986): every node takes its best label given all others, until none changes.

    Nodes that are not joined take theirs at once, so that the energy never rises. A sweep costs as many rounds of
    messages as it takes to visit the nodes so: it is for study, where mean field serves for use.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: int64 [B, H, W] to start from; None is the argmax of the unary logits.
        sweeps: at most this many visits of every node.
        weights: as for `mean_field`.
        cell: as for `mean_field`.

    Returns:
        Labels int64 [B, H, W].
    """
    unary_logits = finite(unary_logits)
    labels = unary_logits.argmax(1) if labels is None else labels
    groups = independent_groups(unary_logits, pairwise, cell)
    received_from = _listen(pairwise, unary_logits, weights, cell)
    for _ in range(sweeps):
        before = labels
        for group in groups:
            logits = unary_logits + received_from(one_hot(labels, unary_logits))
            current = logits.gather(1, labels[:, None])[:, 0]
            best, wanted = logits.max(1)
            labels = torch.where(group & (best > current), wanted, labels)
        if torch.equal(labels, before):
            break
    return labels


def shrink(fine: Tensor, cell: int) -> Tensor:
    """Maps [B, C, H, W] of the unary's grid, summed over the nodes of each cell and divided by cell^2.

    That is their mean, but in a cell that the border cuts: what has fewer nodes says less.
    """
    height, width = fine.shape[-2:]
    return F.avg_pool2d(F.pad(fine, (0, -width % cell, 0, -height % cell)), cell)


def enlarge(coarse: Tensor, cell: int, size: Sequence[int]) -> Tensor:
    """Maps [B, C, h, w] of the pairwise graph on the unary's grid of that size: every node has its cell's value."""
    return coarse.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[..., : size[0], : size[1]]


def independent_groups(unary_logits: Tensor, pairwise: Sequence[Pair], cell: int | None = None) -> list[Tensor]:
    """A partition of the nodes in which no two nodes of one group are joined: masks bool [H, W]."""
    height, width = unary_logits.shape[-2:]
    group = torch.zeros(height, width, dtype=torch.int64, device=unary_logits.device)
    for potential, features in pairwise:
        ratio = _cell(unary_logits, features, cell)
        offsets = potential.graph(features).offsets
        if len(offsets) == 0:
            continue
        rows, columns = (offsets.abs().amax(0) + 1).tolist()
        y = torch.arange(height, device=group.device)[:, None] // ratio % rows
        x = torch.arange(width, device=group.device) // ratio % columns
        # Groups of all relations at once: numbers in a mixed base.
        group = group * rows * columns + y * columns + x
    return [group == value for value in group.unique()]


def one_hot(labels: Tensor, like: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Labels int64 [B, H, W] as marginals [B, K, H, W] of the shape of `like`; all zero where the label is unknown."""
    known = labels != ignore_index
    result = torch.zeros_like(like).scatter(1, torch.where(known, labels, 0)[:, None], 1.0)
    return result * known[:, None]


def _bound(unary_logits: Tensor, received: Tensor, marginals: Tensor) -> Tensor:
    # Every edge is received at both of its ends. The clamp keeps the gradient at zero finite.
    tiny = torch.finfo(marginals.dtype).tiny
    return (marginals * (unary_logits + received / 2 - marginals.clamp(min=tiny).log())).sum((1, 2, 3))


def finite(unary_logits: Tensor) -> Tensor:
    """At least single precision, in which the sums keep their digits; infinite values as large as sums can bear."""
    logits = unary_logits.to(torch.promote_types(unary_logits.dtype, torch.float32))
    # A graph that is traced cannot branch on values.
    if not torch.compiler.is_exporting() and logits.isnan().any():
        raise ValueError("unary_logits: NaN among them")
    return bounded(logits)


def _cell(unary_logits: Tensor, features: Tensor, cell: int | None) -> int:
    """How many nodes of the unary's map a cell of the features' map is wide."""
    fine, coarse = unary_logits.shape[-2:], features.shape[-2:]
    ratio = 1 if fine == coarse else cell or max(-(-side // cells) for side, cells in zip(fine, coarse, strict=True))
    if tuple(-(-side // ratio) for side in fine) != tuple(coarse):
        raise ValueError(
            f"features {tuple(features.shape)} do not fit unary logits of {fine[0]} x {fine[1]} nodes; "
            "expected the same height and width, or both divided by one whole number and rounded up"
        )
    return ratio


def _listen(
    pairwise: Sequence[Pair], like: Tensor, weights: Sequence[float] | None, cell: int | None
) -> Callable[[Tensor], Tensor]:
    """`pairwise_logits` as a function of the marginals, which have the shape of `like`."""
    factors = [1.0] * len(pairwise) if weights is None else list(weights)
    if len(factors) != len(pairwise):
        raise ValueError(f"{len(factors)} weights for {len(pairwise)} pairwise potentials; expected one each")
    heard = [
        (factor, _cell(like, features, cell), potential.prepare(features))
        for (potential, features), factor in zip(pairwise, factors, strict=True)
        if factor != 0
    ]

    def received(marginals: Tensor) -> Tensor:
        total = torch.zeros_like(marginals)
        for factor, ratio, messages in heard:
            if ratio == 1:
                total = total + factor * messages(marginals)
                continue
            # From the grid of the marginals to that of the features, and back.
            coarse = messages(shrink(marginals, ratio))
            total = total + factor * enlarge(coarse, ratio, marginals.shape[-2:])
        return total

    return received
