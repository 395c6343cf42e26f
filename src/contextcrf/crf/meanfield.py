"""Mean-field inference over unary and learned pairwise potentials (the prediction of Section IV)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.potentials import PairwisePotential


def mean_field(
    unary_logits: Tensor,
    pairwise: Sequence[tuple[PairwisePotential, Tensor]],
    iterations: int = 2,
    weights: Sequence[float] | None = None,
    damping: float = 0.0,
    start: Tensor | None = None,
    cell: int | None = None,
) -> Tensor:
    """Approximate marginals: Q_p(k) proportional to exp( u_p(k) + weighted sum of expected pair logits ).

    All nodes are updated in parallel. The fixed points are the stationary points of KL(Q || P) over products Q.

    A potential's features may be coarser than the unary logits by a whole factor r, each cell of theirs covering
    r x r nodes (fewer at the right and lower border): then every pair of nodes in two joined cells is an edge of
    weight 1 / r^2 whose logits are the cells'. Marginals are averaged over cells, messages copied to their nodes.

    Args:
        unary_logits: [B, K, H, W].
        pairwise: potentials with their features [B, C, h, w], h = ceil(H / r), w = ceil(W / r) for a whole r >= 1.
        iterations: number of parallel updates; the paper uses 2.
        weights: one factor per potential; None is 1.0 for each, the model itself.
        damping: share in [0, 1) of the old marginals kept at every update.
        cell: the factor r of features coarser than the logits; None finds it from the sizes, which leaves a doubt on
            small maps (5 cells of 34 nodes may be 7 or 8 nodes wide).
        start: marginals [B, K, H, W] to start from; None is softmax(unary_logits).

    Returns:
        Marginals [B, K, H, W].

    Raises:
        ValueError: sizes that do not fit, a damping outside [0, 1), a negative number of iterations.
    """
    if not 0 <= damping < 1:
        raise ValueError(f"damping={damping}: expected 0 <= damping < 1")
    if iterations < 0:
        raise ValueError(f"iterations={iterations}: expected 0 or more")
    factors = [1.0] * len(pairwise) if weights is None else list(weights)
    if len(factors) != len(pairwise):
        raise ValueError(f"{len(factors)} weights for {len(pairwise)} pairwise potentials; expected one each")
    # In half precision the sums below would lose their digits.
    unary_logits = unary_logits.to(torch.promote_types(unary_logits.dtype, torch.float32))
    marginals = unary_logits.softmax(1) if start is None else start
    if marginals.shape != unary_logits.shape:
        raise ValueError(f"start {tuple(marginals.shape)}: expected the shape of the unary logits")
    for _ in range(iterations):
        logits = unary_logits
        for (potential, features), factor in zip(pairwise, factors, strict=True):
            if factor != 0:
                logits = logits + factor * _messages(potential, features, marginals, cell)
        updated = logits.softmax(1)
        marginals = damping * marginals + (1 - damping) * updated if damping else updated
    return marginals


def _messages(potential: PairwisePotential, features: Tensor, marginals: Tensor, cell: int | None) -> Tensor:
    """Messages on the features' grid, brought from and to the grid of the marginals."""
    fine, coarse = marginals.shape[-2:], features.shape[-2:]
    ratio = 1 if fine == coarse else cell or max(-(-side // cells) for side, cells in zip(fine, coarse, strict=True))
    if tuple(-(-side // ratio) for side in fine) != tuple(coarse):
        raise ValueError(
            f"features {tuple(features.shape)} do not fit unary logits of {fine[0]} x {fine[1]} nodes; "
            "expected the same height and width, or both divided by one whole number and rounded up"
        )
    if ratio == 1:
        return potential.messages(features, marginals)
    cells = F.avg_pool2d(marginals, ratio, ceil_mode=True)
    messages = potential.messages(features, cells)
    messages = messages.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)
    return messages[..., : fine[0], : fine[1]]
