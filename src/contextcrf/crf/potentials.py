"""The potentials of the CRF ("Network Part-2"): feature maps in, logits out.

Everywhere in this package *logits* are negative energies,

    P(y | x)  is proportional to  exp( sum_p u_p(y_p) + sum_(p,q) v_pq(y_p, y_q) ),

so u = -U of eq. (3) and v = -V of eq. (4). Nodes are the positions of a feature map, index y * width + x.

The pairwise network is one hidden layer over the concatenated features of two nodes. Its first layer splits,
W1 [f_p; f_q] = A f_p + B f_q, so the features of an edge are never concatenated: two products over nodes replace one
over edges. Its last layer has K x K outputs an edge; nothing here except `pair_logits` holds them for all edges.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from contextcrf.crf.messages import Scratch, accumulator, send
from contextcrf.crf.relations import Graph, Relation

IGNORE_INDEX = 255

# Elements of the largest temporary a block of edges may take (64 MiB of float32).
_BLOCK_ELEMENTS = 1 << 24


class UnaryPotential(nn.Module):
    """u_p(k): FC hidden, ReLU, FC K on the feature of one node (eq. (3), Fig. 5).

    Args:
        in_channels: channels C of the feature map.
        num_classes: K.
        hidden: units of the hidden layer; None is a linear classification of the features.
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: int | None = 512) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Conv2d(in_channels, hidden, 1) if hidden is not None else None
        self.last = nn.Conv2d(hidden if hidden is not None else in_channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, C, H, W] to logits [B, K, H, W]."""
        return self.last(features if self.first is None else F.relu(self.first(features)))

    def nll(
        self,
        features: Tensor,
        labels: Tensor,
        ignore_index: int = IGNORE_INDEX,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Piecewise negative log-likelihood, eq. (10): mean over the known nodes, a scalar.

        Args:
            features: [B, C, H, W].
            labels: int64 [B, H, W]; `ignore_index` marks void. With void alone the result is 0.
            class_weights: [K], weight of a node by its label (not in the paper; None is 1 for all).
        """
        return nodes_nll(self(features), labels, ignore_index, class_weights)


def nodes_nll(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, class_weights: Tensor | None = None
) -> Tensor:
    """Of logits [B, K, H, W] what `UnaryPotential.nll` is of features."""
    check_labels(labels, logits, logits.shape[1], ignore_index)
    known = (labels != ignore_index).sum().clamp(min=1)
    total = F.cross_entropy(_at_least_single(logits), labels, class_weights, ignore_index=ignore_index, reduction="sum")
    return total / known


class LabelPairs(nn.Module):
    """FC K^2: a linear layer whose output for the labels (k, j) is a_k + b_j + c_kj, main effects and interaction.

    The sum is a linear layer as any other, so the paper's potential is what it was. But most pairs of labels are rare:
    with the main effects, what one pair teaches about k serves all pairs with k. (The names are those of log-linear
    models of contingency tables; Agresti 2013, chapter 9.)

    Args:
        in_features: units D of the hidden layer.
        num_classes: K.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features, self.num_classes = in_features, num_classes
        self.owner = nn.Linear(in_features, num_classes)
        self.neighbor = nn.Linear(in_features, num_classes)
        self.interaction = nn.Linear(in_features, num_classes**2)

    @property
    def weight(self) -> Tensor:
        """Of the whole layer, [K^2, D], the owner's label first."""
        interaction = self.interaction.weight.unflatten(0, (self.num_classes, self.num_classes))
        return (interaction + self.owner.weight[:, None] + self.neighbor.weight).flatten(0, 1)

    @property
    def bias(self) -> Tensor:
        """Of the whole layer, [K^2]."""
        interaction = self.interaction.bias.unflatten(0, (self.num_classes, self.num_classes))
        return (interaction + self.owner.bias[:, None] + self.neighbor.bias).flatten()

    def reset_parameters(self) -> None:
        """New random parameters."""
        for layer in (self.owner, self.neighbor, self.interaction):
            layer.reset_parameters()

    def silence(self) -> None:
        """Make all outputs 0."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @property
    def silent(self) -> bool:
        """Whether all outputs are 0."""
        return not any(parameter.any() for parameter in self.parameters())

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden units [..., D] to logits [..., K^2]."""
        return F.linear(hidden, self.weight, self.bias)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in ("weight", "bias"):
            # The first models had one plain layer here.
            if (whole := state.pop(f"{prefix}{name}", None)) is not None:
                state[f"{prefix}interaction.{name}"] = whole
                for effect in ("owner", "neighbor"):
                    state[f"{prefix}{effect}.{name}"] = whole.new_zeros(self.num_classes, *whole.shape[1:])
        super()._load_from_state_dict(state, prefix, *rest)


class PairwisePotential(nn.Module):
    """v_pq(k, j): FC hidden, ReLU, FC K^2 on the concatenated features of two nodes (eq. (4), Fig. 5).

    The order of the concatenation makes the potential asymmetric: k is the label of p, who owns the box, j that of q.

    Args:
        in_channels: channels C of the feature map.
        num_classes: K.
        box: the relation, that is which nodes are joined: a box, or several together.
        hidden: units D of the hidden layer.
    """

    def __init__(self, in_channels: int, num_classes: int, box: Relation, hidden: int = 512) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.box = box
        self.owner = nn.Linear(in_channels, hidden)
        self.neighbor = nn.Linear(in_channels, hidden, bias=False)
        self.last = LabelPairs(hidden, num_classes)
        # The two halves are one layer over 2C inputs; each alone would be initialized as if it had C.
        bound = (2 * in_channels) ** -0.5
        for parameter in (self.owner.weight, self.owner.bias, self.neighbor.weight):
            nn.init.uniform_(parameter, -bound, bound)

    def graph(self, features: Tensor) -> Graph:
        """The edges of this relation on a feature map [B, C, H, W]."""
        return Graph(self.box, features.shape[-2], features.shape[-1], features.device)

    def pair_logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The explicit table, for study and tests: it takes E x K x K numbers an image.

        Args:
            features: [B, C, H, W].

        Returns:
            edges int64 [2, E], node indices (p, q); logits [B, E, K, K], entry (k, j) for y_p = k, y_q = j.
        """
        edges = self.graph(features).edges().clone()  # those of the graph are shared by all maps of a size
        owner, neighbor = self.project(features)
        logits = self.last(F.relu(owner[:, edges[0]] + neighbor[:, edges[1]]))
        return edges, logits.unflatten(-1, (self.num_classes, self.num_classes))

    def nll(
        self, features: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, max_edges: int | None = None
    ) -> Tensor:
        """Piecewise negative log-likelihood, eq. (11)-(12): mean over the edges whose ends are both known.

        Args:
            features: [B, C, H, W].
            labels: int64 [B, H, W]; `ignore_index` marks void. Without a known edge the result is 0.
            max_edges: take the mean over this many edges, drawn uniformly without replacement from the batch's known
                ones (an unbiased estimate); None takes all.

        Returns:
            A scalar. Blocks of edges are recomputed in the backward pass, so memory does not grow with E x K x K.
        """
        check_labels(labels, features, self.num_classes, ignore_index)
        image, p, q = self._known_edges(features, labels.flatten(1), ignore_index)
        if max_edges is not None and len(p) > max_edges:
            drawn = torch.randperm(len(p), device=p.device)[:max_edges]
            image, p, q = image[drawn], p[drawn], q[drawn]
        nodes = labels.shape[-2] * labels.shape[-1]
        labels = labels.flatten()
        p, q = image * nodes + p, image * nodes + q
        target = labels[p] * self.num_classes + labels[q]
        # In single precision, so that the gradients of a node's hundred edges are added up in it.
        owner, neighbor = (_at_least_single(part).flatten(0, 1) for part in self.project(features))
        block = max(1, _BLOCK_ELEMENTS // (self.num_classes**2 + self.last.in_features))
        losses = [
            checkpoint(self._edge_loss, owner, neighbor, *part, use_reentrant=False)
            for part in zip(p.split(block), q.split(block), target.split(block), strict=True)
        ]
        return torch.stack(losses).sum() / max(1, len(p))

    def messages(self, features: Tensor, marginals: Tensor) -> Tensor:
        """Expected pair logits, summed over the edges that touch a node: the mean-field update without its unary.

        For node p and label k: the sum over edges (p, q) of sum_j Q_q(j) v_pq(k, j), and over edges (q, p), whose box
        holds p, of sum_j Q_q(j) v_qp(j, k).

        Args:
            features: [B, C, H, W].
            marginals: Q, [B, K, H, W].

        Returns:
            [B, K, H, W].
        """
        return self.prepare(features)(marginals)

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """`messages` as a function of the marginals: what the iterations of mean field share is computed once."""
        window = self.graph(features).window()
        owner, neighbor = (part.unflatten(1, features.shape[-2:]) for part in self.project(features))
        weight = self.last.weight.to(owner.dtype).unflatten(0, (self.num_classes, self.num_classes))
        bias = self.last.bias.to(owner.dtype).unflatten(0, (self.num_classes, self.num_classes))
        # The sender's label comes first.
        scratch = Scratch(owner)
        to_neighbors = weight, bias, window, scratch
        to_owners = weight.transpose(0, 1), bias.T, window.reversed(), scratch

        def messages(marginals: Tensor) -> Tensor:
            expected = (len(features), self.num_classes, *features.shape[-2:])
            if marginals.shape != expected:
                raise ValueError(
                    f"marginals {tuple(marginals.shape)} do not fit features {tuple(features.shape)} "
                    f"and {self.num_classes} classes; expected [B, K, H, W] of the same B, H, W, {expected}"
                )
            beliefs = marginals.movedim(1, -1)
            # From p to the q in its box, whose label j comes second; then from q to the owners p of the boxes it is in.
            total = send(owner, neighbor, beliefs, *to_neighbors)
            total = total + send(neighbor, owner, beliefs, *to_owners)
            return total.movedim(-1, 1)

        return messages

    def edge_marginals(self, features: Tensor) -> Tensor:
        """What this potential alone says of a node: mean over touching edges of the node's marginal of eq. (11).

        The piecewise likelihood trains each edge's joint P_V(y_p, y_q | x) to be right by itself; this is its readout
        without any inference, and a better start for mean field without a unary than the uniform distribution.

        Args:
            features: [B, C, H, W].

        Returns:
            Marginals [B, K, H, W]; uniform at a node without edges.
        """
        graph = self.graph(features)
        owner, neighbor = self.project(features)
        batch = len(owner)
        total = accumulator(owner, batch, graph.nodes, self.num_classes)
        per_node = max(1, len(graph.offsets)) * (self.num_classes**2 + self.last.in_features) * batch
        for rows in _blocks(graph.nodes, per_node):
            table, inside = graph.neighbors(rows)
            joint = _at_least_single(self.last(F.relu(owner[:, rows, None] + neighbor[:, table]))).softmax(-1)
            joint = joint.unflatten(-1, (self.num_classes, self.num_classes)) * inside[..., None, None]
            total[:, rows] += joint.sum((2, 4))
            total.index_add_(1, table.flatten(), joint.sum(3).flatten(1, 2))
        # Every edge adds one to the sum over labels at each of its ends.
        count = total.sum(2, keepdim=True).round()
        uniform = torch.full_like(total, 1 / self.num_classes)
        marginals = torch.where(count > 0, total / count.clamp(min=1), uniform)
        return marginals.transpose(1, 2).unflatten(2, features.shape[-2:])

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of the first layer, A f_p + bias and B f_q, each [B, N, D]."""
        nodes = features.flatten(2).transpose(1, 2)
        return self.owner(nodes), self.neighbor(nodes)

    def _known_edges(self, features: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image, p and q of every edge of the batch whose two labels are known."""
        edges = self.graph(features).edges()
        known = (labels != ignore_index)[:, edges].all(1)
        image, edge = known.nonzero(as_tuple=True)
        return image, edges[0, edge], edges[1, edge]

    def _edge_loss(self, owner: Tensor, neighbor: Tensor, p: Tensor, q: Tensor, target: Tensor) -> Tensor:
        logits = self.last(F.relu(owner[p] + neighbor[q]))
        return F.cross_entropy(_at_least_single(logits), target, reduction="sum")


def _blocks(nodes: int, elements_per_node: int) -> Iterator[slice]:
    """Slices of nodes small enough that a block's temporary stays below the limit."""
    step = max(1, _BLOCK_ELEMENTS // elements_per_node)
    return (slice(start, min(start + step, nodes)) for start in range(0, nodes, step))


def _at_least_single(logits: Tensor) -> Tensor:
    """Half precision has too few digits for the logarithm of a sum; double stays double."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_labels(labels: Tensor, features: Tensor, num_classes: int, ignore_index: int) -> None:
    """ValueError unless labels are int64 [B, H, W] of the map's size and 0..K-1 or `ignore_index`."""
    if labels.shape != (features.shape[0], *features.shape[-2:]):
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit features {tuple(features.shape)}; expected [B, H, W] of the same "
            "B, H, W (down-sample the masks to the feature map)"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"labels of {labels.dtype}: expected int64 (call .long())")
    check_values(labels, num_classes, ignore_index)


def check_values(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """ValueError unless labels are 0..K-1 or `ignore_index`."""
    strange = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
    if strange.any():
        raise ValueError(
            f"label {int(labels[strange][0])}: expected 0..{num_classes - 1}, or {ignore_index} where unknown"
        )
