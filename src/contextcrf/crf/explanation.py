"""Explanations of messages: how much each neighbor raises or lowers the logit of a label at a node."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.potentials import PairwisePotential


@dataclass(frozen=True)
class Explanation:
    """The messages that one node receives through one relation, one for each of the M edges that touch the node.

    Attributes:
        neighbors: the row and the column of the neighbor at the other end of each edge, int64 [M, 2]. A neighbor that
            is joined in both directions is listed twice.
        owns: bool [M]. True if the explained node owns the box, that is, if it is p of the edge (p, q). False if it
            lies in the box of the neighbor.
        messages: the expected pair logits, [M, K]. Only differences between labels matter.
        size: the height and the width of the feature map.

    Example:
        >>> import torch
        >>> from contextcrf.crf import Explanation
        >>> found = Explanation(torch.tensor([[0, 1]]), torch.tensor([True]), torch.tensor([[0.5, 2.0]]), size=(2, 2))
        >>> found.push(label=1, rival=0)
        tensor([1.5000])
        >>> found.push_map(label=1, rival=0)
        tensor([[0.0000, 1.5000],
                [0.0000, 0.0000]])
    """

    neighbors: Tensor
    owns: Tensor
    messages: Tensor
    size: tuple[int, int]

    def push(self, label: int, rival: int | None = None) -> Tensor:
        """Compute how much each message raises the logit of a label relative to the logit of another label.

        Args:
            label: the label.
            rival: the other label. None compares with the mean over all labels.

        Returns:
            The differences, [M]. A positive difference favors `label`.
        """
        against = self.messages.mean(1) if rival is None else self.messages[:, rival]
        return self.messages[:, label] - against

    def push_map(self, label: int, rival: int | None = None) -> Tensor:
        """Return the result of `push` as a map, with each value at the position of its neighbor.

        Args:
            label: as for `push`.
            rival: as for `push`.

        Returns:
            A map [height, width]. The two values of a neighbor that is joined in both directions are summed. The map is
                zero at all nodes that are not neighbors.
        """
        height, width = self.size
        index = self.neighbors[:, 0] * width + self.neighbors[:, 1]
        flat = self.messages.new_zeros(height * width).index_add(0, index, self.push(label, rival))
        return flat.view(height, width)


@torch.no_grad()
def explain(potential: PairwisePotential, features: Tensor, marginals: Tensor, node: tuple[int, int]) -> Explanation:
    """Compute the individual messages to one node. Their sum is the result of `PairwisePotential.messages` at the node.

    Args:
        potential: the pairwise potential.
        features: the feature map of one image, [1, C, H, W].
        marginals: the marginals of the image, [1, K, H, W].
        node: the row and the column of the node on the feature map.

    Returns:
        The messages, one for each edge that touches the node.

    Raises:
        ValueError: if there is more than one image, the marginals do not match the features, or the node is outside
            the map.

    Example:
        >>> import torch
        >>> from contextcrf.crf import PairwisePotential, RangeBox, explain
        >>> above = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.above())
        >>> features, marginals = torch.randn(1, 8, 10, 15), torch.randn(1, 3, 10, 15).softmax(1)
        >>> found = explain(above, features, marginals, node=(4, 7))
        >>> torch.allclose(found.messages.sum(0), above.messages(features, marginals)[0, :, 4, 7], atol=1e-5)
        True
    """
    height, width = features.shape[-2:]
    y, x = node
    if len(features) != 1 or marginals.shape != (1, potential.num_classes, height, width):
        raise ValueError(
            f"The features have the shape {tuple(features.shape)} and the marginals {tuple(marginals.shape)}. Expected "
            f"[1, C, H, W] and [1, {potential.num_classes}, H, W] of one image."
        )
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(
            f"The node {node} is outside the feature map. Expected a row in 0..{height - 1} and a column in "
            f"0..{width - 1}."
        )
    owner, neighbor = (part[0] for part in potential.project(features))
    by_node = marginals[0].flatten(1).T.to(owner.dtype)
    offsets = potential.graph(features).offsets
    here = torch.tensor([y, x], device=features.device)
    size = torch.tensor([height, width], device=features.device)
    found, messages = [], []
    for sign in (1, -1):
        places = here + sign * offsets
        places = places[((places >= 0) & (places < size)).all(1)]
        others = places[:, 0] * width + places[:, 1]
        p, q = (y * width + x, others) if sign == 1 else (others, y * width + x)
        logits = potential.last(F.relu(owner[p] + neighbor[q])).to(owner.dtype)
        table = logits.unflatten(-1, (potential.num_classes, potential.num_classes))
        messages.append(torch.einsum("mkj,mj->mk" if sign == 1 else "mkj,mk->mj", table, by_node[others]))
        found.append(places)
    owns = torch.arange(sum(map(len, found)), device=features.device) < len(found[0])
    return Explanation(torch.cat(found), owns, torch.cat(messages), (height, width))
