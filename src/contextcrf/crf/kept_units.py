"""Mean-field messages on small maps, where the hidden units of all edges are computed once and kept.

`messages.send` computes the hidden units of the edges anew for each set of marginals, in tiles, because those of a
large map do not fit into memory. On a small map, the many small operations of the tiles take most of the time. Here
each direction of all edges takes one matrix product for the contraction and one for the messages, and all iterations of
mean field share the hidden units. Both ways are differentiable and give the same messages.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.blocks import slices
from contextcrf.crf.messages import Workspace, sum_precision
from contextcrf.crf.relations import Graph, Relation

# The largest size of the hidden units that are kept for both directions, in bytes. Twice this limit made no messages
# faster.
KEPT_BYTES = 1 << 26
# The number of hidden units of the senders whose marginals are contracted together. With more, the result does not fit
# into the cache.
CONTRACTED_UNITS = 1 << 16


class _Routes(NamedTuple):
    """The edges of all nodes in one direction.

    Attributes:
        receivers: the receiver of each of the T edges of each sender, int64 [N * T]. It is 0 if there is no receiver.
        edges: the edges that exist, as indices into `receivers`, ordered by their receivers.
        senders: the senders of these edges.
        starts: the first of the edges of each receiver, [N].
    """

    receivers: Tensor
    edges: Tensor
    senders: Tensor
    starts: Tensor


class KeptUnits:
    """The messages from all nodes in one direction of a relation, with kept hidden units.

    Args:
        senders: the part of the hidden layer of each sender, [B, N, D].
        receivers: the part of the hidden layer of each receiver, [B, N, D].
        weight: the weight of the last layer, [K, K, D]. The sender's label is the first index.
        bias: the bias of the last layer, [K, K]. The sender's label is the first index.
        graph: the edges (p, q).
        to_owners: each sender is the node q of its edges. False if it is the node p.
        workspace: memory that is used if no gradients are needed.
    """

    def __init__(
        self,
        senders: Tensor,
        receivers: Tensor,
        weight: Tensor,
        bias: Tensor,
        graph: Graph,
        to_owners: bool,
        workspace: Workspace,
    ) -> None:
        self.routes = _routes(graph.relation, graph.height, graph.width, to_owners, senders.device)
        units = receivers.index_select(1, self.routes.receivers).unflatten(1, (senders.shape[1], -1))
        self.units = units.add_(senders[:, :, None]).relu_().flatten(0, 1)
        self.weight, self.bias = weight.flatten(1), bias
        self.workspace = workspace

    @staticmethod
    def fit(graph: Graph, senders: Tensor) -> bool:
        """Return whether the hidden units of both directions are few enough to be kept, for senders [B, N, D]."""
        return 0 < 2 * len(graph.offsets) * senders.numel() * senders.element_size() <= KEPT_BYTES

    def messages(self, marginals: Tensor) -> Tensor:
        """Compute the summed messages [B, N, K] from the marginals of the senders, [B, N, K]."""
        batch, nodes, num_classes = marginals.shape
        flat = marginals.flatten(0, 1).to(self.weight.dtype)
        sent = self._sent(flat, num_classes)
        biases = sum_precision(flat @ self.bias).unflatten(0, (batch, nodes))
        rows = sum_precision(sent.mT).unflatten(0, (batch, nodes)).flatten(1, 2)
        _, edges, senders, starts = self.routes
        return torch.stack(
            [
                F.embedding_bag(edges, rows[image], starts, mode="sum")
                + F.embedding_bag(senders, biases[image], starts, mode="sum")
                for image in range(batch)
            ]
        )

    def _sent(self, marginals: Tensor, num_classes: int) -> Tensor:
        """Compute the messages without their biases, [B * N, K, T], from marginals [B * N, K]."""
        hidden = self.units.shape[2]
        gradients = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (marginals, self.units, self.weight)
        )
        sent = []
        for some in slices(len(marginals), CONTRACTED_UNITS // hidden):
            part = marginals[some]
            # New memory for each block would take longer than the product.
            out = None if gradients else self.workspace("contracted", len(part), num_classes * hidden)
            contracted = torch.matmul(part, self.weight, out=out).unflatten(1, (num_classes, hidden))
            # These products are up to 1.5 times as fast as their transposes.
            sent.append(torch.bmm(contracted, self.units[some].mT))
        return torch.cat(sent)


@lru_cache(maxsize=64)
def _routes(relation: Relation, height: int, width: int, to_owners: bool, device: torch.device) -> _Routes:
    """Return the edges of a relation on a map in one direction."""
    # The first call may run in inference mode, but later uses of the cached tensors may need gradients.
    with torch.inference_mode(False):
        graph = Graph(relation, height, width, torch.device("cpu"))
        table, mask = graph.neighbors(slice(0, graph.num_nodes), reverse=to_owners)
        receivers, inside = table.flatten(), mask.flatten()
        order = torch.where(inside, receivers, graph.num_nodes).argsort(stable=True)[: int(inside.sum())]
        counts = receivers[inside].bincount(minlength=graph.num_nodes)
        found = receivers, order, order // table.shape[1], counts.cumsum(0) - counts
        return _Routes(*(indices.to(device) for indices in found))
