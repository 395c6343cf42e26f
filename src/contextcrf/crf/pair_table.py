"""A table of the pair logits of one image, for running mean field on it many times."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from contextcrf.crf.potentials import PairwisePotential
from contextcrf.crf.relations import Graph

# Edges of a block: its temporary tensors are small beside the table.
_BLOCK = 8192
# Most numbers, pair logits and hidden units with their gradients, of a table in training: 512 MiB of float32.
TRAINING_ELEMENTS = 1 << 27


class PairTable:
    """A pairwise potential on the features of one image, whose pair logits are computed once.

    `PairwisePotential` computes them anew in every round of messages and never stores them all. That needs little
    memory, and for one prediction it is as fast or faster. A table of E K K numbers makes training through mean field
    faster on small maps, since its iterations share the pair logits, and it can be traced for export.

    It stands wherever `mean_field` takes a potential: `mean_field(logits, [table.pair])`.

    Args:
        potential: the potential.
        features: [1, C, H, W].

    Attributes:
        features: as given.
        num_classes: K.
        edges: node indices (p, q), int64 [2, E].
        logits: [E, K, K], entry (k, j) for y_p = k, y_q = j.

    Raises:
        ValueError: features of more than one image.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox, mean_field
        >>> from contextcrf.crf.pair_table import PairTable
        >>> potential = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.surrounding())
        >>> table = PairTable(potential, torch.randn(1, 8, 10, 15))
        >>> mean_field(torch.randn(1, 3, 10, 15), [table.pair]).shape
        torch.Size([1, 3, 10, 15])
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
        """Whether a table of one image with such features [B, C, H, W] is small enough for training with gradients."""
        graph = potential.graph(features)
        edges = len(graph.offsets) * graph.num_nodes  # at most
        return 2 * edges * (potential.last.in_features + potential.num_classes**2) <= TRAINING_ELEMENTS

    @property
    def pair(self) -> tuple["PairTable", Tensor]:
        """The table with its features, as an entry of the `pairwise` argument of `mean_field`."""
        return self, self.features

    def graph(self, features: Tensor) -> Graph:
        """The edges of the relation on the features of the table.

        Raises:
            ValueError: other features than those of the table.
        """
        self._check(features)
        return self._graph

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """`messages`, for the features of the table.

        Raises:
            ValueError: other features than those of the table.
        """
        self._check(features)
        return self.messages

    def messages(self, marginals: Tensor) -> Tensor:
        """As `PairwisePotential.messages`, for any number S of different marginals of the one image.

        Args:
            marginals: [S, K, H, W].

        Returns:
            [S, K, H, W].

        Raises:
            ValueError: marginals of another size than the features, or of another number of labels.
        """
        expected = (self.num_classes, *self.features.shape[-2:])
        if marginals.shape[1:] != expected:
            raise ValueError(
                f"marginals {tuple(marginals.shape)} do not fit features {tuple(self.features.shape)} and "
                f"{self.num_classes} classes; expected [S, K, H, W] of the same H, W, [K, H, W] = {expected} "
                "(for features of a coarser grid wrap the table in a CoarseGrid)"
            )
        by_node = marginals.flatten(2).permute(2, 1, 0).contiguous()
        total = torch.zeros_like(by_node)
        for p, q, logits in self._blocks():
            total.index_add_(0, p, (logits @ by_node[q]).to(total.dtype))
            total.index_add_(0, q, (logits.mT @ by_node[p]).to(total.dtype))
        return total.permute(2, 1, 0).unflatten(2, marginals.shape[-2:])

    def edge_marginals(self) -> Tensor:
        """`PairwisePotential.edge_marginals` of the features of the table, [1, K, H, W]."""
        total = self.logits.new_zeros(self._graph.num_nodes, self.num_classes)
        for p, q, logits in self._blocks():
            joint = logits.flatten(1).softmax(1).view_as(logits)
            total.index_add_(0, p, joint.sum(2))
            total.index_add_(0, q, joint.sum(1))
        # Every edge adds 1 to the sum over labels of each of its nodes.
        count = total.sum(1, keepdim=True).round()
        marginals = torch.where(count > 0, total / count.clamp(min=1), 1 / self.num_classes)
        return marginals.T.unflatten(1, self.features.shape[-2:])[None]

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The nodes p and q and the pair logits of the edges, block by block."""
        for start in range(0, len(self.logits), _BLOCK):
            rows = slice(start, start + _BLOCK)
            yield self.edges[0, rows], self.edges[1, rows], self.logits[rows]

    def _check(self, features: Tensor) -> None:
        if features is not self.features:
            raise ValueError(f"features {tuple(features.shape)}: expected those that the table was made of")
