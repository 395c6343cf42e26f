"""Pair logits that are held, for an image on which mean field is run many times."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from contextcrf.crf.potentials import PairwisePotential
from contextcrf.crf.relations import Graph

# Edges of a block; its temporaries are a small part of the table.
_BLOCK = 8192
# Pair logits and hidden units, with their gradients, that a table may take in training: 512 MiB of float32.
TRAINING_ELEMENTS = 1 << 27


class PairTable:
    """A pairwise potential on the features of one image, whose pair logits are computed once.

    `PairwisePotential` forms them anew in every round of messages and holds none: that is what fits into memory, and
    for one prediction it is as fast or faster. Where strengths are chosen or systems compared, an image is inferred
    dozens of times; on small maps its E K K numbers are then worth holding. Stands wherever `mean_field` takes a
    potential: `mean_field(logits, [table.pair])`.

    Args:
        potential: whose pair logits are held.
        features: [1, C, H, W].

    Attributes:
        edges: node indices (p, q), int64 [2, E].
        logits: [E, K, K], entry (k, j) for y_p = k, y_q = j.

    Raises:
        ValueError: features of more than one image.
    """

    def __init__(self, potential: PairwisePotential, features: Tensor) -> None:
        if len(features) != 1:
            raise ValueError(f"features {tuple(features.shape)}: expected those of one image, [1, C, H, W]")
        self.features = features
        self.num_classes = potential.num_classes
        self._graph = potential.graph(features)
        self.edges, logits = potential.pair_logits(features)
        self.logits = logits[0]

    @staticmethod
    def fits(potential: PairwisePotential, features: Tensor) -> bool:
        """Whether a table of one image of such features, and what its gradients need, is small enough for training."""
        graph = potential.graph(features)
        edges = len(graph.offsets) * graph.nodes  # at most
        return 2 * edges * (potential.last.in_features + potential.num_classes**2) <= TRAINING_ELEMENTS

    @property
    def pair(self) -> tuple["PairTable", Tensor]:
        """What stands among the potentials of `mean_field`."""
        return self, self.features

    def graph(self, features: Tensor) -> Graph:
        """The edges of the relation; of the table's own features alone."""
        self._check(features)
        return self._graph

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """`messages`; for the table's own features alone."""
        self._check(features)
        return self.messages

    def messages(self, marginals: Tensor) -> Tensor:
        """As `PairwisePotential.messages`, from any number S of marginals of the one image: [S, K, H, W]."""
        beliefs = marginals.flatten(2).permute(2, 1, 0).contiguous()
        total = torch.zeros_like(beliefs)
        for p, q, logits in self._blocks():
            total.index_add_(0, p, (logits @ beliefs[q]).to(total.dtype))
            total.index_add_(0, q, (logits.mT @ beliefs[p]).to(total.dtype))
        return total.permute(2, 1, 0).unflatten(2, marginals.shape[-2:])

    def edge_marginals(self) -> Tensor:
        """As `PairwisePotential.edge_marginals`: [1, K, H, W]."""
        total = self.logits.new_zeros(self._graph.nodes, self.num_classes)
        for p, q, logits in self._blocks():
            joint = logits.flatten(1).softmax(1).view_as(logits)
            total.index_add_(0, p, joint.sum(2))
            total.index_add_(0, q, joint.sum(1))
        # Every edge adds one to the sum over labels at each of its ends.
        count = total.sum(1, keepdim=True).round()
        marginals = torch.where(count > 0, total / count.clamp(min=1), 1 / self.num_classes)
        return marginals.T.unflatten(1, self.features.shape[-2:])[None]

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(self.logits), _BLOCK):
            rows = slice(start, start + _BLOCK)
            yield self.edges[0, rows], self.edges[1, rows], self.logits[rows]

    def _check(self, features: Tensor) -> None:
        if features is not self.features:
            raise ValueError(f"features {tuple(features.shape)}: expected those that the table was made of")
