"""The judge of everything in `contextcrf.crf`: tiny CRFs solved by listing every labeling.

A CRF here is unary logits [N, K] and a list of relations (edges [2, E], pair logits [E, K, K]). The score of a
labeling is the sum of the logits it picks, P(y) = exp(score(y)) / Z. Written for clarity, in loops over labelings.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

Relation = tuple[Tensor, Tensor]


def labelings(nodes: int, num_classes: int) -> Tensor:
    """All of them: int64 [K^N, N]."""
    return torch.tensor(list(itertools.product(range(num_classes), repeat=nodes)))


def scores(unary: Tensor, relations: Sequence[Relation], weights: Sequence[float] | None = None) -> Tensor:
    """Score of every labeling, [K^N]."""
    nodes, num_classes = unary.shape
    weights = weights or [1.0] * len(relations)
    result = []
    for labels in labelings(nodes, num_classes).tolist():
        score = torch.stack([unary[p, k] for p, k in enumerate(labels)]).sum()
        for (edges, logits), weight in zip(relations, weights, strict=True):
            for (p, q), table in zip(edges.T.tolist(), logits, strict=True):
                score = score + weight * table[labels[p], labels[q]]
        result.append(score)
    return torch.stack(result)


def log_partition(unary: Tensor, relations: Sequence[Relation]) -> Tensor:
    """log Z."""
    return scores(unary, relations).logsumexp(0)


def marginals(unary: Tensor, relations: Sequence[Relation]) -> Tensor:
    """P(y_p = k), [N, K]."""
    nodes, num_classes = unary.shape
    probability = scores(unary, relations).softmax(0)
    one_hot = torch.nn.functional.one_hot(labelings(nodes, num_classes), num_classes).to(probability)
    return torch.einsum("l,lnk->nk", probability, one_hot)


def product(beliefs: Tensor) -> Tensor:
    """Probability of every labeling under independent nodes with marginals [N, K]: [K^N]."""
    nodes, num_classes = beliefs.shape
    rows = torch.arange(nodes)
    return torch.stack([beliefs[rows, labels].prod() for labels in labelings(nodes, num_classes)])


def elbo(beliefs: Tensor, unary: Tensor, relations: Sequence[Relation]) -> Tensor:
    """E_Q[score] + H(Q), which is log Z - KL(Q || P)."""
    q = product(beliefs)
    return (q * (scores(unary, relations) - q.clamp(min=1e-300).log())).sum()


def mean_field_update(
    beliefs: Tensor, unary: Tensor, relations: Sequence[Relation], weights: Sequence[float] | None = None
) -> Tensor:
    """The parallel update by its definition: Q_p(k) ~ exp E[score | y_p = k], the others drawn from Q. [N, K]."""
    nodes, num_classes = unary.shape
    every, all_scores = labelings(nodes, num_classes), scores(unary, relations, weights)
    logits = torch.zeros_like(beliefs)
    for p in range(nodes):
        others = beliefs.clone()
        others[p] = 1
        q = product(others)
        for k in range(num_classes):
            chosen = every[:, p] == k
            logits[p, k] = (q[chosen] * all_scores[chosen]).sum()
    return logits.softmax(1)
