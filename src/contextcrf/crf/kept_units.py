"""Mean-field messages on small maps, where the hidden units of all edges are computed once and kept.

`messages.send` computes the hidden units of the edges anew for each set of marginals, in tiles, because those of a
large map do not fit into memory. On a small map, the many small operations of the tiles take most of the time. Here all
iterations of mean field share the hidden units, and so do both directions of an edge (p, q). They are stored at the
node p. The last layer is a matrix W [K, K * D] with the label of p as its first index, and Q are the marginals.

    From p to q:  Q_p W [K, D] is computed once for all edges of p. Its products with the hidden units are summed at q.
    From q to p:  The outer products [K, D] of Q_q and the hidden units are summed over q and multiplied by W^T.

Both ways of computing the messages are differentiable and give the same messages.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.blocks import records_gradients
from contextcrf.crf.cached_indices import cached_indices
from contextcrf.crf.messages import Workspace, sum_precision
from contextcrf.crf.relations import Graph, Relation

# The largest size of the hidden units that are kept, in bytes. With twice this limit, messages would hardly be faster
# in bfloat16, and slower in single precision.
KEPT_BYTES = 1 << 26
# The largest size of the hidden layer of the nodes that are computed together, in bytes. The [K, D] matrices of more
# nodes do not fit into the cache.
BLOCK_BYTES = 1 << 18


class _EdgeLists(NamedTuple):
    """The edges (p, q) of a batch of B maps, whose nodes are numbered consecutively.

    Attributes:
        neighbors: the node q of each of the T edges of each node p, int64 [B * N, T]. It is B * N if there is none.
        edges: the edges that exist, as indices into the flattened `neighbors`, ordered by q.
        owners: the nodes p of these edges.
        starts: the first of the edges of each node q, [B * N].
    """

    neighbors: Tensor
    edges: Tensor
    owners: Tensor
    starts: Tensor


class KeptUnits:
    """The messages of a relation in both directions, with kept hidden units.

    Args:
        owner: the part of the hidden layer of each node as p, [B, N, D].
        neighbor: the part of the hidden layer of each node as q, [B, N, D].
        weight: the weight of the last layer, [K, K, D]. The label of p is the first index.
        bias: the bias of the last layer, [K, K]. The label of p is the first index.
        graph: the edges (p, q).
        workspace: memory that is used if no gradients are needed.
    """

    def __init__(
        self, owner: Tensor, neighbor: Tensor, weight: Tensor, bias: Tensor, graph: Graph, workspace: Workspace
    ) -> None:
        self.lists = _edge_lists(graph.relation, graph.height, graph.width, len(owner), owner.device)
        units = _with_absent(neighbor.flatten(0, 1)).index_select(0, self.lists.neighbors.flatten())
        units = units.unflatten(0, self.lists.neighbors.shape)
        units = units.add_(owner.flatten(0, 1)[:, None]).relu_()
        # All blocks have about the same size, because a small last one would be slow.
        nodes, hidden = units.shape[0], units.shape[2]
        blocks = -(-nodes * hidden * units.element_size() // BLOCK_BYTES)
        # The gradient of one division is one tensor. That of each slice would be a tensor of the size of all units.
        self.blocks = units.split(-(-nodes // blocks))
        self.weight, self.bias = weight.flatten(1), bias
        self.workspace = workspace

    @staticmethod
    def fit(graph: Graph, owner: Tensor) -> bool:
        """Return whether the hidden units of all edges are few enough to be kept, for nodes [B, N, D]."""
        return 0 < len(graph.offsets) * owner.numel() * owner.element_size() <= KEPT_BYTES

    def messages(self, marginals: Tensor) -> Tensor:
        """Compute the summed messages [B, H, W, K] from the marginals of all nodes, [B, H, W, K]."""
        nodes = marginals.flatten(0, 2).to(self.weight.dtype)
        to_neighbors, to_owners = self._products(nodes)
        neighbors, edges, owners, starts = self.lists
        total = (
            to_owners
            + F.embedding_bag(edges, to_neighbors, starts, mode="sum")
            + F.embedding_bag(owners, sum_precision(nodes @ self.bias), starts, mode="sum")
            + F.embedding_bag(neighbors, _with_absent(sum_precision(nodes @ self.bias.T)), mode="sum")
        )
        return total.view(marginals.shape)

    def _products(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the messages without the bias from marginals [B * N, K].

        Returns:
            The messages of all edges to their nodes q, [B * N * T, K], and the summed messages to the nodes p,
                [B * N, K].
        """
        num_classes, hidden = nodes.shape[1], self.blocks[0].shape[2]
        gradients = records_gradients(nodes, self.blocks[0], self.weight)
        rows = _with_absent(nodes)
        to_neighbors, to_owners = [], []
        parts, tables = (each.split(len(self.blocks[0])) for each in (nodes, self.lists.neighbors))
        for units, part, neighbors in zip(self.blocks, parts, tables, strict=True):
            # New memory for each block would take longer than the products.
            out = None if gradients else self.workspace("matrices", len(part), num_classes * hidden)
            contracted = torch.matmul(part, self.weight, out=out).unflatten(1, (num_classes, hidden))
            # In single precision, these products are up to 1.5 times as fast as their transposes.
            to_neighbors.append(sum_precision(torch.bmm(contracted, units.mT).mT.flatten(0, 1)))
            received = rows.index_select(0, neighbors.flatten()).unflatten(0, neighbors.shape)
            out = None if gradients else contracted
            summed = torch.bmm(received.mT, units, out=out)
            to_owners.append(sum_precision(F.linear(summed.flatten(1), self.weight)))
        return torch.cat(to_neighbors), torch.cat(to_owners)


def _with_absent(rows: Tensor) -> Tensor:
    """Append a row of zeros for the neighbors that do not exist."""
    return F.pad(rows, (0, 0, 0, 1))


@cached_indices(maxsize=64)
def _edge_lists(relation: Relation, height: int, width: int, batch: int, device: torch.device) -> _EdgeLists:
    """Return the edges of a relation on a batch of maps."""
    graph = Graph(relation, height, width, torch.device("cpu"))
    table, inside = graph.neighbors(slice(0, graph.num_nodes))
    nodes = batch * graph.num_nodes
    first = torch.arange(0, nodes, graph.num_nodes, device="cpu")[:, None, None]
    neighbors = torch.where(inside, first + table, nodes).flatten(0, 1)
    edges = neighbors.flatten().argsort(stable=True)[: batch * int(inside.sum())]
    counts = neighbors.flatten().bincount(minlength=nodes)[:nodes]
    found = neighbors, edges, edges // table.shape[1], counts.cumsum(0) - counts
    return _EdgeLists(*(indices.to(device) for indices in found))
