"""The potentials of the CRF (the paper's "Network Part-2"), which compute logits from feature maps.

Throughout this package *logits* are negative energies,

    P(y | x)  is proportional to  exp( sum_p u_p(y_p) + sum_(p,q) v_pq(y_p, y_q) ),

so u = -U of eq. (3) and v = -V of eq. (4). Nodes are the positions of a feature map, index y * width + x.

The pairwise network has one hidden layer over the concatenated features of two nodes. Its first layer splits,
W1 [f_p; f_q] = A f_p + B f_q, so the features of an edge are never concatenated: two products over nodes replace one
over edges. Its last layer has K x K outputs per edge; only `pair_logits` holds them for all edges at once.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from contextcrf.crf.checks import check_labels
from contextcrf.crf.messages import Scratch, accumulator, send
from contextcrf.crf.relations import Graph, Relation

IGNORE_INDEX = 255

# Most elements of a temporary tensor of a block of edges (64 MiB of float32).
_BLOCK_ELEMENTS = 1 << 24


class UnaryPotential(nn.Module):
    """The unary logits u_p(k): FC hidden, ReLU, FC K on the feature of one node (eq. (3), Fig. 5).

    Args:
        in_channels: channels C of the feature map.
        num_classes: K.
        hidden: units of the hidden layer; None is a linear classifier of the features.

    Example:
        >>> import torch
        >>> from contextcrf.crf import UnaryPotential
        >>> unary = UnaryPotential(in_channels=8, num_classes=3)
        >>> features, labels = torch.randn(2, 8, 10, 15), torch.randint(3, (2, 10, 15))
        >>> unary(features).shape
        torch.Size([2, 3, 10, 15])
        >>> unary.nll(features, labels).backward()
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: int | None = 512) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Conv2d(in_channels, hidden, 1) if hidden is not None else None
        self.last = nn.Conv2d(hidden if hidden is not None else in_channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """The logits [B, K, H, W] of features [B, C, H, W]."""
        return self.last(features if self.first is None else F.relu(self.first(features)))

    def nll(
        self,
        features: Tensor,
        labels: Tensor,
        ignore_index: int = IGNORE_INDEX,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Piecewise negative log-likelihood, eq. (10): the mean over labeled nodes.

        Args:
            features: [B, C, H, W].
            labels: int64 [B, H, W].
            ignore_index: the label of ignored nodes.
            class_weights: [K], weight of a node by its label (not in the paper; None is 1 for all).

        Returns:
            A scalar, 0 if all nodes are ignored.

        Raises:
            ValueError: labels of another shape or dtype, or outside 0..K-1.
        """
        return unary_nll(self(features), labels, ignore_index, class_weights)


def unary_nll(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, class_weights: Tensor | None = None
) -> Tensor:
    """Like `UnaryPotential.nll`, but takes logits [B, K, H, W]."""
    check_labels(labels, logits, logits.shape[1], ignore_index)
    known = (labels != ignore_index).sum().clamp(min=1)
    total = F.cross_entropy(_at_least_single(logits), labels, class_weights, ignore_index=ignore_index, reduction="sum")
    return total / known


class LabelPairs(nn.Module):
    """FC K^2: a linear layer whose output for the labels (k, j) is a_k + b_j + c_kj, main effects and interaction.

    The sum is itself a linear layer, so this is the paper's potential with other parameters. Most pairs of labels are
    rare; the main effects share what is learned about a label k among all pairs (k, j). (The names are those of
    log-linear models of contingency tables; Agresti, "Categorical Data Analysis", 2013, chapter 9.)

    Args:
        in_features: units D of the hidden layer.
        num_classes: K.

    Attributes:
        owner: the main effect a of the label of p, the node that owns the box.
        neighbor: the main effect b of the label of q.
        interaction: the interaction c.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features, self.num_classes = in_features, num_classes
        self.owner = nn.Linear(in_features, num_classes)
        self.neighbor = nn.Linear(in_features, num_classes)
        self.interaction = nn.Linear(in_features, num_classes**2)

    @property
    def weight(self) -> Tensor:
        """The weight of the whole layer, [K^2, D], rows ordered by the label of p, then by that of q."""
        interaction = self.interaction.weight.unflatten(0, (self.num_classes, self.num_classes))
        return (interaction + self.owner.weight[:, None] + self.neighbor.weight).flatten(0, 1)

    @property
    def bias(self) -> Tensor:
        """The bias of the whole layer, [K^2]."""
        interaction = self.interaction.bias.unflatten(0, (self.num_classes, self.num_classes))
        return (interaction + self.owner.bias[:, None] + self.neighbor.bias).flatten()

    def reset_parameters(self) -> None:
        """Draw new random parameters."""
        for layer in (self.owner, self.neighbor, self.interaction):
            layer.reset_parameters()

    def zero_(self) -> None:
        """Set all parameters, and so all outputs, to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @property
    def is_zero(self) -> bool:
        """Whether all parameters, and so all outputs, are zero."""
        return not any(parameter.any() for parameter in self.parameters())

    def forward(self, hidden: Tensor) -> Tensor:
        """The logits [..., K^2] of hidden units [..., D]."""
        return F.linear(hidden, self.weight, self.bias)


class PairwisePotential(nn.Module):
    """The pair logits v_pq(k, j): FC hidden, ReLU, FC K^2 on the concatenated features of two nodes (eq. (4), Fig. 5).

    The order of the concatenation makes the potential asymmetric: k is the label of p, the node that owns the box, and
    j is the label of q.

    Args:
        in_channels: channels C of the feature map.
        num_classes: K.
        box: the relation, that is which nodes are joined: a box, or several together.
        hidden: units D of the hidden layer.

    Attributes:
        box: as given.
        num_classes: as given.
        last: the last layer, a `LabelPairs`.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox
        >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
        >>> features, labels = torch.randn(2, 8, 10, 15), torch.randint(3, (2, 10, 15))
        >>> above.nll(features, labels).backward()
        >>> above.messages(features, torch.full((2, 3, 10, 15), 1 / 3)).shape
        torch.Size([2, 3, 10, 15])
    """

    def __init__(self, in_channels: int, num_classes: int, box: Relation, hidden: int = 512) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.box = box
        self.owner = nn.Linear(in_channels, hidden)
        self.neighbor = nn.Linear(in_channels, hidden, bias=False)
        self.last = LabelPairs(hidden, num_classes)
        # The two halves form one layer with 2C inputs; their own initialization would take them for layers with C.
        bound = (2 * in_channels) ** -0.5
        for parameter in (self.owner.weight, self.owner.bias, self.neighbor.weight):
            nn.init.uniform_(parameter, -bound, bound)

    def graph(self, features: Tensor) -> Graph:
        """The edges of this relation on a feature map [B, C, H, W]."""
        return Graph(self.box, features.shape[-2], features.shape[-1], features.device)

    def pair_logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The pair logits of all edges, for study and tests: the table takes E x K x K numbers per image.

        Args:
            features: [B, C, H, W].

        Returns:
            edges int64 [2, E], node indices (p, q); logits [B, E, K, K], entry (k, j) for y_p = k, y_q = j.
        """
        edges = self.graph(features).edges().clone()  # the cached edges are shared by all maps of this size
        owner, neighbor = self.project(features)
        logits = self.last(F.relu(owner[:, edges[0]] + neighbor[:, edges[1]]))
        return edges, logits.unflatten(-1, (self.num_classes, self.num_classes))

    def nll(
        self, features: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, max_edges: int | None = None
    ) -> Tensor:
        """Piecewise negative log-likelihood, eq. (11)-(12): the mean over the edges whose two nodes are labeled.

        Blocks of edges are recomputed in the backward pass, so memory does not grow with E x K x K.

        Args:
            features: [B, C, H, W].
            labels: int64 [B, H, W].
            ignore_index: the label of ignored nodes.
            max_edges: take the mean over this many edges, drawn uniformly without replacement from all labeled edges
                of the batch (an unbiased estimate); None takes all.

        Returns:
            A scalar, 0 if no edge is labeled.

        Raises:
            ValueError: labels of another shape or dtype, or outside 0..K-1.
        """
        check_labels(labels, features, self.num_classes, ignore_index)
        image, p, q = self._labeled_edges(features, labels.flatten(1), ignore_index)
        if max_edges is not None and len(p) > max_edges:
            drawn = torch.randperm(len(p), device=p.device)[:max_edges]
            image, p, q = image[drawn], p[drawn], q[drawn]
        num_nodes = labels.shape[-2] * labels.shape[-1]
        labels = labels.flatten()
        p, q = image * num_nodes + p, image * num_nodes + q
        target = labels[p] * self.num_classes + labels[q]
        # In single precision, in which the gradients of a node's hundred edges are then summed.
        owner, neighbor = (_at_least_single(part).flatten(0, 1) for part in self.project(features))
        block = max(1, _BLOCK_ELEMENTS // (self.num_classes**2 + self.last.in_features))
        losses = [
            checkpoint(self._edge_loss, owner, neighbor, *part, use_reentrant=False)
            for part in zip(p.split(block), q.split(block), target.split(block), strict=True)
        ]
        return torch.stack(losses).sum() / max(1, len(p))

    def messages(self, features: Tensor, marginals: Tensor) -> Tensor:
        """The expected pair logits, summed over the edges that touch a node: the mean-field update without its unary.

        For node p and label k this is the sum over edges (p, q) of sum_j Q_q(j) v_pq(k, j), plus the sum over edges
        (q, p), where p lies in the box of q, of sum_j Q_q(j) v_qp(j, k).

        Args:
            features: [B, C, H, W].
            marginals: Q, [B, K, H, W].

        Returns:
            [B, K, H, W].

        Raises:
            ValueError: marginals of another size than the features, or of another number of labels.
        """
        return self.prepare(features)(marginals)

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """`messages` as a function of the marginals; what all iterations of mean field share is computed once.

        Args:
            features: [B, C, H, W].

        Returns:
            A function of marginals [B, K, H, W] that returns messages likewise and raises as `messages` does.
        """
        window = self.graph(features).window()
        owner, neighbor = (part.unflatten(1, features.shape[-2:]) for part in self.project(features))
        weight = self.last.weight.to(owner.dtype).unflatten(0, (self.num_classes, self.num_classes))
        bias = self.last.bias.to(owner.dtype).unflatten(0, (self.num_classes, self.num_classes))
        # In both of these the sender's label comes first.
        scratch = Scratch(owner)
        to_neighbors = weight, bias, window, scratch
        to_owners = weight.transpose(0, 1), bias.T, window.reversed(), scratch

        def messages(marginals: Tensor) -> Tensor:
            expected = (len(features), self.num_classes, *features.shape[-2:])
            if marginals.shape != expected:
                raise ValueError(
                    f"marginals {tuple(marginals.shape)} do not fit features {tuple(features.shape)} "
                    f"and {self.num_classes} classes; expected [B, K, H, W] of the same B, H, W, {expected} "
                    "(for features of a coarser grid wrap the potential in a CoarseGrid)"
                )
            channels_last = marginals.movedim(1, -1)
            # From each node to the nodes in its box, then from each node to the owners of the boxes that hold it.
            total = send(owner, neighbor, channels_last, *to_neighbors)
            total = total + send(neighbor, owner, channels_last, *to_owners)
            return total.movedim(-1, 1)

        return messages

    def edge_marginals(self, features: Tensor) -> Tensor:
        """Marginals from this potential alone: the mean of a node's marginals in the joints of the edges that touch it.

        The joint of an edge is P_V(y_p, y_q | x) of eq. (11), which piecewise training fits for each edge by itself.
        The result needs no inference, and it is a better start for mean field without a unary potential than the
        uniform distribution.

        Args:
            features: [B, C, H, W].

        Returns:
            Marginals [B, K, H, W]; uniform at a node without edges.
        """
        graph = self.graph(features)
        owner, neighbor = self.project(features)
        batch = len(owner)
        total = accumulator(owner, batch, graph.num_nodes, self.num_classes)
        per_node = max(1, len(graph.offsets)) * (self.num_classes**2 + self.last.in_features) * batch
        for rows in _blocks(graph.num_nodes, per_node):
            table, inside = graph.neighbors(rows)
            joint = _at_least_single(self.last(F.relu(owner[:, rows, None] + neighbor[:, table]))).softmax(-1)
            joint = joint.unflatten(-1, (self.num_classes, self.num_classes)) * inside[..., None, None]
            total[:, rows] += joint.sum((2, 4))
            total.index_add_(1, table.flatten(), joint.sum(3).flatten(1, 2))
        # Every edge adds 1 to the sum over labels of each of its nodes.
        count = total.sum(2, keepdim=True).round()
        uniform = torch.full_like(total, 1 / self.num_classes)
        marginals = torch.where(count > 0, total / count.clamp(min=1), uniform)
        return marginals.transpose(1, 2).unflatten(2, features.shape[-2:])

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of the first layer, A f_p + bias and B f_q, each [B, N, D], of features [B, C, H, W]."""
        rows = features.flatten(2).transpose(1, 2)
        return self.owner(rows), self.neighbor(rows)

    def _labeled_edges(self, features: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image, p and q of every edge of the batch whose two nodes are labeled."""
        edges = self.graph(features).edges()
        labeled = (labels != ignore_index)[:, edges].all(1)
        image, edge = labeled.nonzero(as_tuple=True)
        return image, edges[0, edge], edges[1, edge]

    def _edge_loss(self, owner: Tensor, neighbor: Tensor, p: Tensor, q: Tensor, target: Tensor) -> Tensor:
        logits = self.last(F.relu(owner[p] + neighbor[q]))
        return F.cross_entropy(_at_least_single(logits), target, reduction="sum")


def _blocks(num_nodes: int, elements_per_node: int) -> Iterator[slice]:
    """Slices of nodes small enough that a block's temporary tensors stay below the limit."""
    step = max(1, _BLOCK_ELEMENTS // elements_per_node)
    return (slice(start, min(start + step, num_nodes)) for start in range(0, num_nodes, step))


def _at_least_single(logits: Tensor) -> Tensor:
    """Single precision for half precision, whose digits are too few for the logarithm of a sum; double stays double."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
