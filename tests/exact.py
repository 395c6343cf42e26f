"""Exact inference in tiny CRFs by enumeration of all labelings, with which `contextcrf.crf` is compared.

A CRF here is unary logits [N, K] and a list of relations (edges [2, E], pair logits [E, K, K]). The score of a
labeling is the sum of the logits it picks, P(y) = exp(score(y)) / Z. Written for clarity, in loops over labelings.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

Relation = tuple[Tensor, Tensor]


def labelings(num_nodes: int, num_classes: int) -> Tensor:
    """All labelings: int64 [K^N, N]."""
    return torch.tensor(list(itertools.product(range(num_classes), repeat=num_nodes)))


def scores(unary: Tensor, relations: Sequence[Relation], weights: Sequence[float] | None = None) -> Tensor:
    """The score of every labeling, [K^N]."""
    num_nodes, num_classes = unary.shape
    weights = weights or [1.0] * len(relations)
    result = []
    for labels in labelings(num_nodes, num_classes).tolist():
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
    num_nodes, num_classes = unary.shape
    probability = scores(unary, relations).softmax(0)
    one_hot = torch.nn.functional.one_hot(labelings(num_nodes, num_classes), num_classes).to(probability)
    return torch.einsum("l,lnk->nk", probability, one_hot)


def product(q: Tensor) -> Tensor:
    """The probability of every labeling under independent nodes with marginals q [N, K]: [K^N]."""
    num_nodes, num_classes = q.shape
    rows = torch.arange(num_nodes)
    return torch.stack([q[rows, labels].prod() for labels in labelings(num_nodes, num_classes)])


def elbo(q: Tensor, unary: Tensor, relations: Sequence[Relation]) -> Tensor:
    """E_Q[score] + H(Q) of independent nodes with marginals q [N, K], which is log Z - KL(Q || P)."""
    joint = product(q)
    return (joint * (scores(unary, relations) - joint.clamp(min=1e-300).log())).sum()


def mean_field_update(
    q: Tensor, unary: Tensor, relations: Sequence[Relation], weights: Sequence[float] | None = None
) -> Tensor:
    """The parallel update by definition, [N, K]: Q_p(k) ~ exp E[score | y_p = k], with all other nodes drawn from q."""
    num_nodes, num_classes = unary.shape
    every, all_scores = labelings(num_nodes, num_classes), scores(unary, relations, weights)
    logits = torch.zeros_like(q)
    for p in range(num_nodes):
        others = q.clone()
        others[p] = 1
        joint = product(others)
        for k in range(num_classes):
            chosen = every[:, p] == k
            logits[p, k] = (joint[chosen] * all_scores[chosen]).sum()
    return logits.softmax(1)
