"""Mean-field inference with unary and learned pairwise potentials (Section IV of the paper), energies and bounds."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from contextcrf.crf.checks import check_labels, whole_number
from contextcrf.crf.potentials import IGNORE_INDEX
from contextcrf.crf.relations import Graph
from contextcrf.crf.unaries import bounded


class Pairwise(Protocol):
    """The interface of a pairwise term for `mean_field` and the training objectives.

    `PairwisePotential` and `CoarseGrid` are pairwise terms, and so is `PairTable`, which stores the pair logits of one
    image. You can pass an object of your own class if it has these two methods.

    Example:
        >>> import torch
        >>> from contextcrf.crf import RangeBox, mean_field
        >>> from contextcrf.crf.relations import Graph
        >>> class Potts:  # adds a bonus to the label of the left and of the right neighbor
        ...     def graph(self, features):
        ...         box = RangeBox(top=0.0, bottom=0.0, left=0.0, right=1 / min(features.shape[-2:]))
        ...         return Graph(box, *features.shape[-2:], features.device)
        ...     def prepare(self, features):
        ...         def messages(marginals):
        ...             padded = torch.nn.functional.pad(marginals, (1, 1))
        ...             return 2.0 * (padded[..., :-2] + padded[..., 2:])
        ...         return messages
        >>> logits = torch.tensor([[[[0.0, 0.0, 0.0]], [[1.0, -0.5, 1.0]]]])  # [1, 2, 1, 3]
        >>> mean_field(logits, [(Potts(), logits)]).argmax(1)
        tensor([[[1, 1, 1]]])
    """

    def graph(self, features: Tensor) -> Graph:
        """Return the edges on a feature map [B, C, H, W]."""
        ...

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function from marginals [B, K, H, W] to messages [B, K, H, W].

        See `PairwisePotential.messages` for the definition of the messages.
        """
        ...


# A pairwise term with its features.
Pair = tuple[Pairwise, Tensor]


# A factor for each potential, or a tensor of factors for its classes [K] or nodes [B, 1 or K, H, W].
Weights = Sequence[float | Tensor]


def mean_field(
    unary_logits: Tensor,
    pairwise: Sequence[Pair],
    iterations: int = 2,
    weights: Weights | None = None,
    damping: float = 0.0,
    start: Tensor | None = None,
    trace: list[Tensor] | None = None,
) -> Tensor:
    """Approximate the marginals of the CRF by parallel mean-field updates (Section IV of the paper).

    An update sets Q_p(k) proportional to exp( u_p(k) + weighted sum of expected pair logits ) for all nodes in
    parallel. Its fixed points are the stationary points of KL(Q || P) over fully factorized distributions Q. The result
    is differentiable once. Second derivatives are not available on small maps.

    Args:
        unary_logits: the unary logits u, [B, K, H, W]. Infinite logits are replaced by large finite ones.
        pairwise: pairs of a potential and its features [B, C, H, W]. If the features have a coarser grid than the
            logits, wrap the potential in a `CoarseGrid`.
        iterations: the number of updates, >= 0. The paper uses 2.
        weights: the factor of the messages of each potential: a number, one number for each class, [K], or one number
            for each node, [B, 1, H, W] or [B, K, H, W]. Unlike a relation weight, it is used as given and not divided
            by the mean number of neighbors. With None, all factors are 1.0, which is the plain sum. Factors of classes
            or nodes make the two directions of an edge unequal, so the updates then optimize no ELBO.
        damping: the fraction of the old marginals that is kept in every update, in [0, 1).
        start: the initial marginals, [B, K, H, W]. None starts from softmax(unary_logits).
        trace: a list to which the ELBO [B] of the initial marginals and of every update is appended. This costs one
            more computation of the messages. With damping and factors that are numbers, the ELBO rises.

    Returns:
        Marginals [B, K, H, W].

    Raises:
        ValueError: if the sizes of the arguments do not match, a logit is NaN, `damping` is not in [0, 1), or
            `iterations` is not a whole number >= 0.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox, mean_field
        >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
        >>> logits, features = torch.randn(1, 3, 10, 15), torch.randn(1, 8, 10, 15)
        >>> mean_field(logits, [(above, features)], iterations=2).shape
        torch.Size([1, 3, 10, 15])
    """
    if not 0 <= damping < 1:
        raise ValueError(f"damping must be >= 0 and < 1, but is {damping}.")
    iterations = whole_number("iterations", iterations, least=0)
    unary_logits = finite(unary_logits)
    marginals = unary_logits.softmax(1) if start is None else start
    _check_shape("start has", marginals, unary_logits)
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


def pairwise_logits(pairwise: Sequence[Pair], marginals: Tensor, weights: Weights | None = None) -> Tensor:
    """Compute the weighted sum of all messages, that is, the expected pair logits of every node and label.

    Up to a constant per node, unary logits plus these sums are E[score | y_p = k]. They are the logits of the
    mean-field update. If the marginals are one-hot, they are the logits of the conditional P(y_p | all others) of eq.
    (14).

    Args:
        pairwise: as for `mean_field`.
        marginals: the marginals of all nodes, [B, K, H, W].
        weights: as for `mean_field`.

    Returns:
        The weighted messages, [B, K, H, W].

    Raises:
        ValueError: if the sizes of the arguments do not match.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox
        >>> from contextcrf.crf.meanfield import pairwise_logits
        >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
        >>> features, marginals = torch.randn(1, 8, 10, 15), torch.randn(1, 3, 10, 15).softmax(1)
        >>> pairwise_logits([(above, features)], marginals, weights=[0.5]).shape
        torch.Size([1, 3, 10, 15])
    """
    return _message_sum(pairwise, weights)(marginals)


def elbo(unary_logits: Tensor, pairwise: Sequence[Pair], marginals: Tensor, weights: Weights | None = None) -> Tensor:
    """Compute the evidence lower bound (ELBO) of a fully factorized distribution Q.

    The ELBO is E_Q[score(y)] + H(Q) = log Z - KL(Q || P), where score(y) = -E(y, x) is the negative energy of a
    labeling y. If the marginals are one-hot, the ELBO is the score of the labeling that they define.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        marginals: the marginals of Q, [B, K, H, W].
        weights: as for `mean_field`.

    Returns:
        The ELBO of each image, [B].

    Raises:
        ValueError: if the sizes of the arguments do not match, or a logit is NaN.

    Example:
        >>> import torch
        >>> from contextcrf.crf import elbo
        >>> logits = torch.zeros(1, 2, 3, 3)
        >>> log_z = 9 * torch.tensor(2.0).log()  # nine independent nodes with two labels each
        >>> torch.allclose(elbo(logits, [], logits.softmax(1)), log_z)
        True
    """
    _check_shape("The marginals have", marginals, unary_logits)
    return _bound(finite(unary_logits), pairwise_logits(pairwise, marginals, weights), marginals)


def energy(unary_logits: Tensor, pairwise: Sequence[Pair], labels: Tensor, weights: Weights | None = None) -> Tensor:
    """Compute the energy E(y, x) of a labeling y, where P(y | x) = exp(-E(y, x)) / Z(x), eq. (1) of the paper.

    Args:
        unary_logits: as for `mean_field`.
        pairwise: as for `mean_field`.
        labels: the labeling y, int64 [B, H, W], without ignored nodes.
        weights: as for `mean_field`, but only numbers.

    Returns:
        The energy of each image, [B].

    Raises:
        ValueError: if the sizes of the arguments do not match, a label is not in 0..K-1, or a logit is NaN.

    Example:
        >>> import torch
        >>> from contextcrf.crf import energy
        >>> logits = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        >>> energy(logits, [], torch.tensor([[[1]]]))
        tensor([-3.])
    """
    check_labels(labels, unary_logits, unary_logits.shape[1], ignore_index=None)
    # The default ignore_index is a class if there are more than 255.
    return -elbo(unary_logits, pairwise, one_hot(labels, unary_logits, ignore_index=-1), weights)


def one_hot(labels: Tensor, like: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Convert labels to one-hot marginals.

    Args:
        labels: the labels, int64 [B, H, W].
        like: a tensor [B, K, H, W] with the shape, dtype and device of the result.
        ignore_index: the label of ignored nodes.

    Returns:
        One-hot marginals, [B, K, H, W]. They are all zero at ignored nodes.

    Example:
        >>> import torch
        >>> from contextcrf.crf.meanfield import one_hot
        >>> one_hot(torch.tensor([[[1, 255]]]), like=torch.zeros(1, 2, 1, 2)).tolist()
        [[[[0.0, 0.0]], [[1.0, 0.0]]]]
    """
    known = labels != ignore_index
    result = torch.zeros_like(like).scatter(1, torch.where(known, labels, 0)[:, None], 1.0)
    return result * known[:, None]


def finite(unary_logits: Tensor) -> Tensor:
    """Convert unary logits to at least single precision and replace infinite ones by large finite ones.

    Raises:
        ValueError: if a logit is NaN.
    """
    logits = unary_logits.to(torch.promote_types(unary_logits.dtype, torch.float32))
    # A traced graph cannot branch on values.
    if not torch.compiler.is_exporting() and logits.isnan().any():
        raise ValueError("unary_logits contains NaN. Check the network that computed the logits.")
    return bounded(logits)


def _check_shape(subject: str, marginals: Tensor, unary_logits: Tensor) -> None:
    """Raise ValueError if marginals do not have the shape of the unary logits. The message begins with `subject`."""
    if marginals.shape != unary_logits.shape:
        raise ValueError(
            f"{subject} the shape {tuple(marginals.shape)}, but must have the shape of the unary logits, "
            f"{tuple(unary_logits.shape)}."
        )


def _bound(unary_logits: Tensor, messages: Tensor, marginals: Tensor) -> Tensor:
    """Return the ELBO [B] of marginals, given their messages."""
    # The messages are halved because they contain every edge twice. The clamp keeps the gradient finite at zero.
    tiny = torch.finfo(marginals.dtype).tiny
    return (marginals * (unary_logits + messages / 2 - marginals.clamp(min=tiny).log())).sum((1, 2, 3))


def _message_sum(pairwise: Sequence[Pair], weights: Weights | None) -> Callable[[Tensor], Tensor]:
    """Return `pairwise_logits` as a function of the marginals, with all shared computations done beforehand."""
    factors: list[float | Tensor] = [1.0] * len(pairwise) if weights is None else list(weights)
    if len(factors) != len(pairwise):
        raise ValueError(
            f"weights must have one factor for each pairwise potential, but has {len(factors)} for {len(pairwise)}."
        )
    for factor in factors:
        if isinstance(factor, Tensor) and factor.ndim not in (0, 1, 4):
            raise ValueError(
                f"A weight has the shape {tuple(factor.shape)}, but a number, one number for each class [K], or one "
                "number for each node [B, 1, H, W] or [B, K, H, W] is expected."
            )
    terms = [
        (
            factor.view(1, -1, 1, 1) if isinstance(factor, Tensor) and factor.ndim == 1 else factor,
            potential.prepare(features),
        )
        for (potential, features), factor in zip(pairwise, factors, strict=True)
        if isinstance(factor, Tensor) or factor != 0
    ]

    def message_sum(marginals: Tensor) -> Tensor:
        total = torch.zeros_like(marginals)
        for factor, messages in terms:
            total = total + factor * messages(marginals)
        return total

    return message_sum
