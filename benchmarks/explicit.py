"""The usual way, to compare with: the table of all pair logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf import PairwisePotential

Pairs = list[tuple[PairwisePotential, Tensor]]

# The table is kept up to this size, and made anew in every iteration beyond it.
TABLE_BYTES = 6 << 30


class Explicit:
    """The usual way: the E x K x K pair logits, in chunks; kept between iterations where they fit."""

    def __init__(self, pairs: Pairs, chunk: int = 1 << 14) -> None:
        self.pairs, self.chunk = pairs, chunk
        self.edges = [potential.graph(features).edges() for potential, features in pairs]
        self.halves = [[half[0] for half in potential.project(features)] for potential, features in pairs]
        size = 4 * pairs[0][0].num_classes ** 2 * sum(edges.shape[1] for edges in self.edges)
        self.kept: dict[tuple[int, int], Tensor] | None = {} if size <= TABLE_BYTES else None

    def table(self, relation: int, start: int) -> Tensor:
        """Pair logits of one chunk of edges, [n, K, K]."""
        if self.kept is not None and (relation, start) in self.kept:
            return self.kept[relation, start]
        potential = self.pairs[relation][0]
        p, q = self.edges[relation][:, start : start + self.chunk]
        owner, neighbor = self.halves[relation]
        table = potential.last(F.relu(owner[p] + neighbor[q])).unflatten(-1, (potential.num_classes,) * 2)
        if self.kept is not None:
            self.kept[relation, start] = table
        return table

    def mean_field(self, unary: Tensor, iterations: int = 2) -> Tensor:
        """As `contextcrf.mean_field`."""
        beliefs = unary[0].flatten(1).T.softmax(1)
        for _ in range(iterations):
            logits = unary[0].flatten(1).T.clone()
            for relation, edges in enumerate(self.edges):
                for start in range(0, edges.shape[1], self.chunk):
                    p, q = edges[:, start : start + self.chunk]
                    table = self.table(relation, start)
                    logits.index_add_(0, p, torch.bmm(table, beliefs[q, :, None])[:, :, 0])
                    logits.index_add_(0, q, torch.bmm(beliefs[p, None], table)[:, 0])
            beliefs = logits.softmax(1)
        return beliefs.T.view(unary.shape)


def naive_nll(potential: PairwisePotential, features: Tensor, labels: Tensor) -> Tensor:
    """The pairwise loss as one would first write it: all logits at once."""
    edges, logits = potential.pair_logits(features)
    known = labels.flatten(1)
    target = known[:, edges[0]] * potential.num_classes + known[:, edges[1]]
    return F.cross_entropy(logits.flatten(0, 1).flatten(1), target.flatten())
