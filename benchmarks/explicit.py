"""The usual implementation, for comparison: mean field and the pairwise loss with a table of all pair logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf import PairwisePotential

Pairs = list[tuple[PairwisePotential, Tensor]]

# A table up to this size is kept. A larger table is computed again in every iteration.
TABLE_BYTES = 6 << 30


class ExplicitTable:
    """Mean field on the E x K x K pair logits, which are computed in chunks and kept between iterations if they fit.

    Args:
        pairs: the potentials, each with its features of one image.
        chunk: number of edges in a chunk.
    """

    def __init__(self, pairs: Pairs, chunk: int = 1 << 14) -> None:
        self.pairs, self.chunk = pairs, chunk
        self.edges = [potential.graph(features).edges() for potential, features in pairs]
        self.projections = [[part[0] for part in potential.project(features)] for potential, features in pairs]
        size = 4 * pairs[0][0].num_classes ** 2 * sum(edges.shape[1] for edges in self.edges)
        self.kept: dict[tuple[int, int], Tensor] | None = {} if size <= TABLE_BYTES else None

    def table(self, relation: int, start: int) -> Tensor:
        """Return the pair logits of one chunk of edges, [n, K, K]."""
        if self.kept is not None and (relation, start) in self.kept:
            return self.kept[relation, start]
        potential = self.pairs[relation][0]
        p, q = self.edges[relation][:, start : start + self.chunk]
        owner, neighbor = self.projections[relation]
        table = potential.last(F.relu(owner[p] + neighbor[q])).unflatten(-1, (potential.num_classes,) * 2)
        if self.kept is not None:
            self.kept[relation, start] = table
        return table

    def mean_field(self, unary: Tensor, iterations: int = 2) -> Tensor:
        """Return the same marginals as `contextcrf.mean_field`, for unary logits [1, K, H, W]."""
        marginals = unary[0].flatten(1).T.softmax(1)
        for _ in range(iterations):
            logits = unary[0].flatten(1).T.clone()
            for relation, edges in enumerate(self.edges):
                for start in range(0, edges.shape[1], self.chunk):
                    p, q = edges[:, start : start + self.chunk]
                    table = self.table(relation, start)
                    logits.index_add_(0, p, torch.bmm(table, marginals[q, :, None])[:, :, 0])
                    logits.index_add_(0, q, torch.bmm(marginals[p, None], table)[:, 0])
            marginals = logits.softmax(1)
        return marginals.T.view(unary.shape)


def naive_nll(potential: PairwisePotential, features: Tensor, labels: Tensor) -> Tensor:
    """Compute the pairwise loss in its simplest form, with all logits at once."""
    edges, logits = potential.pair_logits(features)
    known = labels.flatten(1)
    target = known[:, edges[0]] * potential.num_classes + known[:, edges[1]]
    return F.cross_entropy(logits.flatten(0, 1).flatten(1), target.flatten())
