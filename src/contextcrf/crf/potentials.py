"""The potentials of the CRF, which compute logits from feature maps (the paper's "Network Part-2").

In this package, *logits* are negative energies,

    P(y | x)  is proportional to  exp( sum_p u_p(y_p) + sum_(p,q) v_pq(y_p, y_q) ),

so u = -U of eq. (3) and v = -V of eq. (4). The nodes are the positions of a feature map. The node in row y and
column x has the index y * width + x.

The pairwise network has one hidden layer over the concatenated features of two nodes. Its first layer is a sum,
W1 [f_p; f_q] = A f_p + B f_q, so the features of an edge need not be concatenated. Two matrix products over nodes
replace one over edges. The last layer has K x K outputs per edge. Only `pair_logits` stores them for all edges.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.crf.block_sum import block_sum
from contextcrf.crf.blocks import block_elements, slices
from contextcrf.crf.checks import check_labels, whole_number
from contextcrf.crf.kept_units import KeptUnits
from contextcrf.crf.messages import Workspace, accumulator, send
from contextcrf.crf.relations import Graph, Relation

IGNORE_INDEX = 255

# The largest number of elements in a temporary tensor of a block of edges on a CPU (16 MiB of float32).
_BLOCK_ELEMENTS = 1 << 22
# The number of hidden units that are computed at once without gradients on a CPU, in whose cache they fit.
_CACHED_UNITS = 1 << 19


class UnaryPotential(nn.Module):
    """A network that computes the unary logits u_p(k) of a node from its features (eq. (3), Fig. 5).

    It consists of a fully connected layer with `hidden` units, a ReLU and a fully connected layer with K outputs.

    Args:
        in_channels: the number of channels C of the feature map.
        num_classes: the number of classes K.
        hidden: the number of units in the hidden layer. None omits this layer, which gives a linear classifier.

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
        """Compute logits [B, K, H, W] from features [B, C, H, W]."""
        return self.last(features if self.first is None else F.relu(self.first(features)))

    def nll(
        self,
        features: Tensor,
        labels: Tensor,
        ignore_index: int = IGNORE_INDEX,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Compute the piecewise negative log-likelihood, eq. (10), as the mean over the labeled nodes.

        Args:
            features: the feature map, [B, C, H, W].
            labels: the label of each node, int64 [B, H, W].
            ignore_index: the label of ignored nodes.
            class_weights: a weight for each class, [K]. The loss of a node is multiplied by the weight of its label,
                which is not in the paper. None weights all classes with 1.

        Returns:
            A scalar. It is 0 if all nodes are ignored.

        Raises:
            ValueError: if the labels have a wrong shape or dtype, or a label is not in 0..K-1.

        Example:
            >>> import torch
            >>> unary = UnaryPotential(in_channels=8, num_classes=3)
            >>> features, labels = torch.randn(1, 8, 4, 6), torch.full((1, 4, 6), 255)
            >>> unary.nll(features, labels).item()  # all nodes are ignored
            0.0
        """
        return unary_nll(self(features), labels, ignore_index, class_weights)


def unary_nll(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, class_weights: Tensor | None = None
) -> Tensor:
    """Compute `UnaryPotential.nll` from logits [B, K, H, W].

    Args:
        logits: the unary logits, [B, K, H, W].
        labels: as for `UnaryPotential.nll`.
        ignore_index: as for `UnaryPotential.nll`.
        class_weights: as for `UnaryPotential.nll`.

    Returns:
        A scalar. It is 0 if all nodes are ignored.

    Raises:
        ValueError: if the labels have a wrong shape or dtype, or a label is not in 0..K-1.

    Example:
        >>> import torch
        >>> from contextcrf.crf.potentials import unary_nll
        >>> unary_nll(torch.zeros(1, 2, 4, 6), torch.zeros(1, 4, 6).long())  # log 2
        tensor(0.6931)
    """
    check_labels(labels, logits, logits.shape[1], ignore_index)
    known = (labels != ignore_index).sum().clamp(min=1)
    total = F.cross_entropy(_at_least_single(logits), labels, class_weights, ignore_index=ignore_index, reduction="sum")
    return total / known


class LabelPairs(nn.Module):
    """A linear layer with K^2 outputs: the output for the labels (k, j) is a_k + b_j + c_kj.

    The terms a and b are main effects, and c is an interaction. The sum is itself a linear layer, so this is the
    paper's potential with another parametrization. Most pairs of labels are rare. All pairs (k, j) of a label k share
    the main effect a_k, which can therefore be learned from all of them. (The terms have the names that are common in
    log-linear models of contingency tables: Agresti, "Categorical Data Analysis", 2013, chapter 9.)

    Args:
        in_features: the number of units D in the hidden layer.
        num_classes: the number of classes K.

    Attributes:
        owner: the layer of the main effect a, for the label of p, the node that owns the box.
        neighbor: the layer of the main effect b, for the label of q.
        interaction: the layer of the interaction c.

    Example:
        >>> import torch
        >>> from contextcrf.crf.potentials import LabelPairs
        >>> LabelPairs(in_features=8, num_classes=3)(torch.randn(5, 8)).shape
        torch.Size([5, 9])
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features, self.num_classes = in_features, num_classes
        self.owner = nn.Linear(in_features, num_classes)
        self.neighbor = nn.Linear(in_features, num_classes)
        self.interaction = nn.Linear(in_features, num_classes**2)

    @property
    def weight(self) -> Tensor:
        """The weight of the whole layer, [K^2, D]. The rows are ordered by the label of p, then by the label of q."""
        interaction = self.interaction.weight.unflatten(0, (self.num_classes, self.num_classes))
        return (interaction + self.owner.weight[:, None] + self.neighbor.weight).flatten(0, 1)

    @property
    def bias(self) -> Tensor:
        """The bias of the whole layer, [K^2]."""
        interaction = self.interaction.bias.unflatten(0, (self.num_classes, self.num_classes))
        return (interaction + self.owner.bias[:, None] + self.neighbor.bias).flatten()

    def reset_parameters(self) -> None:
        """Initialize all parameters randomly."""
        for layer in (self.owner, self.neighbor, self.interaction):
            layer.reset_parameters()

    def zero_(self) -> None:
        """Set all parameters to zero, so that all outputs are zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @property
    def is_zero(self) -> bool:
        """Whether all parameters are zero, so that all outputs are zero."""
        return not any(parameter.any() for parameter in self.parameters())

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute logits [..., K^2] from hidden units [..., D]."""
        return F.linear(hidden, self.weight, self.bias)


class PairwisePotential(nn.Module):
    """A network that computes the pair logits v_pq(k, j) of two nodes from their features (eq. (4), Fig. 5).

    It consists of a fully connected layer with `hidden` units, a ReLU and a fully connected layer with K^2 outputs. Its
    input is the concatenation of the features of p and q. The order makes the potential asymmetric: k is the label of
    p, the node that owns the box, and j is the label of q.

    Args:
        in_channels: the number of channels C of the feature map.
        num_classes: the number of classes K.
        box: the relation, which determines the edges: a box or a tuple of boxes.
        hidden: the number of units D in the hidden layer.

    Attributes:
        box: as given.
        num_classes: as given.
        last: the last layer, with K^2 outputs.

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
        # Both layers are halves of one layer with 2C inputs, but their default initialization assumes C inputs.
        bound = (2 * in_channels) ** -0.5
        for parameter in (self.owner.weight, self.owner.bias, self.neighbor.weight):
            nn.init.uniform_(parameter, -bound, bound)

    def graph(self, features: Tensor) -> Graph:
        """Return the edges of this relation on a feature map [B, C, H, W]."""
        return Graph(self.box, features.shape[-2], features.shape[-1], features.device)

    def pair_logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the pair logits of all E edges.

        The result has E x K x K elements per image, which is too large for training and prediction on large maps.

        Args:
            features: the feature map, [B, C, H, W].

        Returns:
            The edges and the logits. The edges are node indices (p, q), int64 [2, E]. The logits have the shape
                [B, E, K, K]: the entry (k, j) is the logit of y_p = k and y_q = j.

        Example:
            >>> import torch
            >>> from contextcrf.crf import PairwisePotential, RangeBox
            >>> right = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox(0.0, 0.0, left=0.0, right=0.5))
            >>> edges, logits = right.pair_logits(torch.randn(1, 8, 2, 2))
            >>> edges.T.tolist(), logits.shape
            ([[0, 1], [2, 3]], torch.Size([1, 2, 3, 3]))
        """
        edges = self.graph(features).edges().clone()  # all maps of this size share the cached tensor
        owner, neighbor = self.project(features)
        # With gradients, blocks would save no memory. In an exported graph, each block would have its own operations.
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            logits = self.last(F.relu(owner[:, edges[0]] + neighbor[:, edges[1]]))
        else:
            weight, bias = self.last.weight.to(owner.dtype), self.last.bias.to(owner.dtype)
            logits = owner.new_empty(len(owner), edges.shape[1], len(weight))
            workspace, hidden = Workspace(owner), owner.shape[-1]
            elements = block_elements(owner.device, on_cpu=_CACHED_UNITS)
            for image, some in product(range(len(owner)), slices(edges.shape[1], elements // hidden)):
                p, q = edges[:, some]
                units, others = (workspace(name, len(p), hidden) for name in ("units", "others"))
                torch.index_select(owner[image], 0, p, out=units)
                units.add_(torch.index_select(neighbor[image], 0, q, out=others)).relu_()
                torch.addmm(bias, units, weight.T, out=logits[image, some])
        return edges, logits.unflatten(-1, (self.num_classes, self.num_classes))

    def nll(
        self,
        features: Tensor,
        labels: Tensor,
        ignore_index: int = IGNORE_INDEX,
        max_edges: int | None = None,
        class_weights: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Compute the piecewise negative log-likelihood, eq. (11)-(12), as the mean over the labeled edges.

        An edge is labeled if both of its nodes are. The loss and its gradients are computed in blocks of edges, so that
        memory does not grow with E x K x K. Second derivatives, forward mode and `torch.func` are not available. Under
        autocast with float16, the pair logits are computed in single precision, because the sum of the gradients of
        a block exceeds the range of float16.

        Args:
            features: the feature map, [B, C, H, W].
            labels: the label of each node, int64 [B, H, W].
            ignore_index: the label of ignored nodes.
            max_edges: the largest number of edges in the mean. If the batch has more labeled edges, this number of
                edges is drawn uniformly without replacement, which gives an unbiased estimate. None uses all edges.
            class_weights: the weights of the classes [K]. The weight of an edge in the mean is the mean weight of its
                two labels, and the mean divides by the sum of these weights. They get no gradients. None weights all
                edges equally.
            generator: the generator that draws the edges. None is the global generator of PyTorch.

        Returns:
            A scalar. It is 0 if no edge is labeled.

        Raises:
            ValueError: if the labels have a wrong shape or dtype, a label is not in 0..K-1, `max_edges` is less than 1,
                or `class_weights` requires gradients.

        Example:
            >>> import torch
            >>> from contextcrf.crf import PairwisePotential, RangeBox
            >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
            >>> features, labels = torch.randn(1, 8, 10, 15), torch.randint(3, (1, 10, 15))
            >>> above.nll(features, labels, max_edges=100).backward()
        """
        check_labels(labels, features, self.num_classes, ignore_index)
        if max_edges is not None:
            max_edges = whole_number("max_edges", max_edges, least=1)
        if class_weights is not None and class_weights.requires_grad:
            raise ValueError("class_weights must not require gradients, because nll does not compute them.")
        image, p, q = self._labeled_edges(features, labels.flatten(1), ignore_index)
        if max_edges is not None and len(p) > max_edges:
            drawn = torch.randperm(len(p), device=p.device, generator=generator)[:max_edges]
            image, p, q = image[drawn], p[drawn], q[drawn]
        num_nodes = labels.shape[-2] * labels.shape[-1]
        labels = labels.flatten()
        p, q = image * num_nodes + p, image * num_nodes + q
        target = labels[p] * self.num_classes + labels[q]
        weights = torch.ones_like(p, dtype=torch.float32)
        if class_weights is not None:
            weights = (class_weights[labels[p]] + class_weights[labels[q]]) / 2
        # The gradients of about a hundred edges per node are then summed in single precision.
        owner, neighbor = (_at_least_single(part).flatten(0, 1) for part in self.project(features))
        weight, bias = _at_least_single(self.last.weight), _at_least_single(self.last.bias)
        elements = block_elements(features.device, on_cpu=_BLOCK_ELEMENTS)
        block = max(1, elements // (self.num_classes**2 + self.last.in_features))
        blocks = list(zip(*(each.split(block) for each in (p, q, target, weights)), strict=True))
        with _without_float16(features.device.type):
            total = block_sum(_edge_losses, blocks, (owner, neighbor, weight, bias))
        return total / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

    def messages(self, features: Tensor, marginals: Tensor) -> Tensor:
        """Compute the expected pair logits of each node, summed over the edges that touch the node.

        Together with the unary logits, they are the logits of the mean-field update. For node p and label k, each edge
        (p, q) adds sum_j Q_q(j) v_pq(k, j). Each edge (q, p), for which p lies in the box of q, adds
        sum_j Q_q(j) v_qp(j, k).

        Args:
            features: the feature map, [B, C, H, W].
            marginals: the marginals Q, [B, K, H, W].

        Returns:
            The summed messages, [B, K, H, W].

        Raises:
            ValueError: if the marginals and the features differ in size, or the number of classes is wrong.

        Example:
            >>> import torch
            >>> from contextcrf.crf import PairwisePotential, RangeBox
            >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
            >>> above.messages(torch.randn(1, 8, 10, 15), torch.full((1, 3, 10, 15), 1 / 3)).shape
            torch.Size([1, 3, 10, 15])
        """
        return self.prepare(features)(marginals)

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """Return `messages` as a function of the marginals.

        Computations that all iterations of mean field share are done once, when this method is called.

        Args:
            features: the feature map, [B, C, H, W].

        Returns:
            A function that takes marginals [B, K, H, W] and returns messages [B, K, H, W]. It raises the same errors as
                `messages`.
        """
        graph = self.graph(features)
        owner, neighbor = self.project(features)
        weight = self.last.weight.to(owner.dtype).unflatten(0, (self.num_classes, self.num_classes))
        bias = self.last.bias.to(owner.dtype).unflatten(0, (self.num_classes, self.num_classes))
        workspace = Workspace(owner)
        both: Callable[[Tensor], Tensor]
        if KeptUnits.fit(graph, owner):
            both = KeptUnits(owner, neighbor, weight, bias, graph, workspace).messages
        else:
            owner, neighbor = (part.unflatten(1, features.shape[-2:]) for part in (owner, neighbor))
            both = partial(send, owner, neighbor, weight=weight, bias=bias, window=graph.window(), workspace=workspace)

        def messages(marginals: Tensor) -> Tensor:
            expected = (len(features), self.num_classes, *features.shape[-2:])
            if marginals.shape != expected:
                raise ValueError(
                    f"The marginals have the shape {tuple(marginals.shape)}, which does not fit features of shape "
                    f"{tuple(features.shape)} and {self.num_classes} classes. Expected [B, K, H, W] = {expected}. "
                    "If the features have a coarser grid than the marginals, wrap the potential in a CoarseGrid."
                )
            # Each node sends to the nodes in its box, and to the owners of all boxes that contain it.
            return both(marginals.movedim(1, -1)).movedim(-1, 1)

        return messages

    def edge_marginals(self, features: Tensor) -> Tensor:
        """Compute marginals from this potential alone, without inference.

        Each edge has a joint distribution P_V(y_p, y_q | x), eq. (11). Piecewise training fits each of these
        distributions on its own. Each of them gives a marginal for both nodes of the edge, and the result at a node is
        the mean of the marginals that its edges give. For mean field without a unary potential, it is a better start
        than the uniform distribution.

        Args:
            features: the feature map, [B, C, H, W].

        Returns:
            Marginals [B, K, H, W]. They are uniform at a node without edges.
        """
        graph = self.graph(features)
        owner, neighbor = self.project(features)
        batch = len(owner)
        total = accumulator(owner, batch, graph.num_nodes, self.num_classes)
        per_node = max(1, len(graph.offsets)) * (self.num_classes**2 + self.last.in_features) * batch
        elements = block_elements(features.device, on_cpu=_BLOCK_ELEMENTS)
        for rows in slices(graph.num_nodes, elements // per_node):
            table, inside = graph.neighbors(rows)
            joint = _at_least_single(self.last(F.relu(owner[:, rows, None] + neighbor[:, table]))).softmax(-1)
            joint = joint.unflatten(-1, (self.num_classes, self.num_classes)) * inside[..., None, None]
            total[:, rows] += joint.sum((2, 4))
            total.index_add_(1, table.flatten(), joint.sum(3).flatten(1, 2))
        # Each edge adds 1 to the sum over the labels of both of its nodes.
        count = total.sum(2, keepdim=True).round()
        uniform = torch.full_like(total, 1 / self.num_classes)
        marginals = torch.where(count > 0, total / count.clamp(min=1), uniform)
        return marginals.transpose(1, 2).unflatten(2, features.shape[-2:])

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute two contributions of each of the N nodes to the hidden layer, from features [B, C, H, W].

        One is for the node as p of an edge (p, q), and the other is for the node as q. The result is a pair of tensors
        [B, N, D]. The first includes the bias. The input of the ReLU for an edge (p, q) is row p of the first tensor
        plus row q of the second.
        """
        rows = features.flatten(2).transpose(1, 2)
        return self.owner(rows), self.neighbor(rows)

    def _labeled_edges(self, features: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the image index, p and q of every edge in the batch whose two nodes are labeled."""
        edges = self.graph(features).edges()
        labeled = (labels != ignore_index)[:, edges].all(1)
        image, edge = labeled.nonzero(as_tuple=True)
        return image, edges[0, edge], edges[1, edge]


def _edge_losses(
    owner: Tensor, neighbor: Tensor, weight: Tensor, bias: Tensor, p: Tensor, q: Tensor, target: Tensor, weights: Tensor
) -> Tensor:
    """Return the weighted sum of the losses of some edges (p, q)."""
    units = F.relu(owner.index_select(0, p) + neighbor.index_select(0, q))
    losses = F.cross_entropy(_at_least_single(F.linear(units, weight, bias)), target, reduction="none")
    return (weights * losses).sum()


@contextmanager
def _without_float16(device: str) -> Iterator[None]:
    """Switch autocast off in the block if its dtype is float16."""
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        with torch.autocast(device, enabled=False):
            yield
    else:
        yield


def _at_least_single(logits: Tensor) -> Tensor:
    """Convert half to single precision, since half is too inaccurate for the logarithm of a sum. Keep double."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
