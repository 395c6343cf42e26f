"""A table of the pair logits of one image, for many mean-field iterations on the same image."""

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.blocks import block_elements, slices
from contextcrf.crf.messages import accumulator
from contextcrf.crf.potentials import PairwisePotential
from contextcrf.crf.relations import Graph

# The number of edges in a block on a CPU. The temporary tensors of a block are small compared with the table.
_BLOCK = 8192
# The largest number of elements in training (pair logits, hidden units and their gradients): 512 MiB of float32.
TRAINING_ELEMENTS = 1 << 27


class PairTable:
    """A pairwise potential on the features of one image, whose pair logits are computed once.

    `PairwisePotential` computes the pair logits again in every mean-field iteration and never stores all of them. This
    needs little memory, and for a single prediction it is at least as fast. A table stores E x K x K numbers, and twice
    as many for messages without gradients. With few classes and many hidden units it makes training through mean field
    faster, because all iterations share the pair logits. It can also be traced for export, after one computation with a
    table of a map of the same size.

    Pass a table to `mean_field` in place of a potential: `mean_field(logits, [table.pair])`.

    Args:
        potential: the potential.
        features: the feature map of one image, [1, C, H, W].

    Attributes:
        features: as given.
        num_classes: the number of classes K.
        edges: the edges as node indices (p, q), int64 [2, E].
        logits: the pair logits, [E, K, K]. The entry (k, j) is the logit of y_p = k and y_q = j. Do not change them:
            a transposed copy is kept.

    Raises:
        ValueError: if the features belong to more than one image.

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
            raise ValueError(
                f"The features have the shape {tuple(features.shape)}, but a table is for one image, [1, C, H, W]."
            )
        self.features = features
        self.num_classes = potential.num_classes
        self._graph = potential.graph(features)
        self.edges, logits = potential.pair_logits(features)
        self.logits = logits[0]

    @staticmethod
    def fits(potential: PairwisePotential, features: Tensor) -> bool:
        """Return whether the table of one image with features [B, C, H, W] is small enough for training."""
        graph = potential.graph(features)
        edges = len(graph.offsets) * graph.num_nodes  # an upper bound
        return 2 * edges * (potential.last.in_features + potential.num_classes**2) <= TRAINING_ELEMENTS

    @property
    def pair(self) -> tuple["PairTable", Tensor]:
        """The table and its features, for the argument `pairwise` of `mean_field`."""
        return self, self.features

    def graph(self, features: Tensor) -> Graph:
        """Return the edges of the relation on the feature map of the table.

        Raises:
            ValueError: if `features` is not the tensor from which the table was made.
        """
        self._check(features)
        return self._graph

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the method `messages`.

        Raises:
            ValueError: if `features` is not the tensor from which the table was made.
        """
        self._check(features)
        return self.messages

    def messages(self, marginals: Tensor) -> Tensor:
        """Compute `PairwisePotential.messages` for S different sets of marginals of the image.

        Args:
            marginals: the marginals, [S, K, H, W].

        Returns:
            The summed messages, [S, K, H, W].

        Raises:
            ValueError: if the marginals and the features differ in size, or the number of classes is wrong.
        """
        expected = (self.num_classes, *self.features.shape[-2:])
        if marginals.shape[1:] != expected:
            raise ValueError(
                f"The marginals have the shape {tuple(marginals.shape)}, which does not fit features of shape "
                f"{tuple(self.features.shape)} and {self.num_classes} classes. Expected [S, K, H, W] with "
                f"[K, H, W] = {expected}. If the features have a coarser grid than the marginals, wrap the table in a "
                "CoarseGrid."
            )
        by_node = marginals.flatten(2).permute(2, 1, 0).contiguous()
        total = torch.zeros_like(by_node)
        by_node = by_node.to(self.logits.dtype)
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            for p, q, logits in self._blocks():
                total.index_add_(0, p, (logits @ by_node[q]).to(total.dtype))
                # This product is up to 1.7 times as fast as its transpose, `logits.mT @ by_node[p]`.
                total.index_add_(0, q, (by_node[p].mT @ logits).mT.to(total.dtype))
        else:
            p, q = self.edges
            for sums, nodes in zip(total.unbind(2), by_node.unbind(2), strict=True):
                sums.index_add_(0, p, _weighted_sums(self._transposed, nodes[q]).to(total.dtype))
                sums.index_add_(0, q, _weighted_sums(self.logits, nodes[p]).to(total.dtype))
        return total.permute(2, 1, 0).unflatten(2, marginals.shape[-2:])

    def edge_marginals(self) -> Tensor:
        """Compute `PairwisePotential.edge_marginals` of the image, [1, K, H, W]."""
        total = accumulator(self.logits, self._graph.num_nodes, self.num_classes)
        for p, q, logits in self._blocks():
            joint = logits.flatten(1).to(total.dtype).softmax(1).view_as(logits)
            total.index_add_(0, p, joint.sum(2))
            total.index_add_(0, q, joint.sum(1))
        # Each edge adds 1 to the sum over the labels of both of its nodes.
        count = total.sum(1, keepdim=True).round()
        marginals = torch.where(count > 0, total / count.clamp(min=1), 1 / self.num_classes)
        return marginals.T.unflatten(1, self.features.shape[-2:])[None]

    @cached_property
    def _transposed(self) -> Tensor:
        """The pair logits with the label of q as the first of the two labels, [E, K, K]."""
        return self.logits.mT.contiguous()

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the nodes p and q and the pair logits of one block of edges after the other."""
        step = block_elements(self.logits.device, on_cpu=_BLOCK * self.num_classes**2) // self.num_classes**2
        for rows in slices(len(self.logits), step):
            yield self.edges[0, rows], self.edges[1, rows], self.logits[rows]

    def _check(self, features: Tensor) -> None:
        """Raise ValueError unless these are the features of the table."""
        if features is not self.features:
            raise ValueError(
                f"The features of shape {tuple(features.shape)} are not the tensor from which this table was made. "
                "Pass table.features, or make a new table."
            )


def _weighted_sums(rows: Tensor, weights: Tensor) -> Tensor:
    """Compute the sum over i of weights[e, i] * rows[e, i] for each edge e.

    With few classes, this takes a third of the time of a product of many small matrices. Its gradient takes longer.

    Args:
        rows: rows of pair logits, [E, K, K].
        weights: the weights of the rows, [E, K].

    Returns:
        The sums, [E, K].
    """
    indices = torch.arange(weights.numel(), device=weights.device).view_as(weights)
    return F.embedding_bag(indices, rows.flatten(0, 1), mode="sum", per_sample_weights=weights)
