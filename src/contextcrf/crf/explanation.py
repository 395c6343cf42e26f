"""Messages unsummed: which neighbors push a node to a label, and which away from it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.potentials import PairwisePotential


@dataclass(frozen=True)
class Explanation:
    """What one node hears through one relation, neighbor by neighbor.

    Attributes:
        neighbors: int64 [M, 2], rows and columns on the feature map.
        owns: bool [M], whether the node owns the box (else the neighbor does, and the node lies in it). A neighbor
            joined both ways stands here twice.
        messages: [M, K], expected pair logits. Only differences between labels matter.
        size: height and width of the feature map.
    """

    neighbors: Tensor
    owns: Tensor
    messages: Tensor
    size: tuple[int, int]

    def push(self, label: int, rival: int | None = None) -> Tensor:
        """How far each neighbor raises the log-odds of a label, [M]: against a rival, or the mean of all labels."""
        against = self.messages.mean(1) if rival is None else self.messages[:, rival]
        return self.messages[:, label] - against

    def push_map(self, label: int, rival: int | None = None) -> Tensor:
        """`push` laid out on the feature map, [height, width]; zero where there is no neighbor."""
        height, width = self.size
        index = self.neighbors[:, 0] * width + self.neighbors[:, 1]
        flat = self.messages.new_zeros(height * width).index_add(0, index, self.push(label, rival))
        return flat.view(height, width)


@torch.no_grad()
def explain(potential: PairwisePotential, features: Tensor, marginals: Tensor, node: tuple[int, int]) -> Explanation:
    """The terms of the sum that `PairwisePotential.messages` is at one node.

    Args:
        features: of one image, [1, C, H, W].
        marginals: [1, K, H, W].
        node: row and column on the feature map.

    Raises:
        ValueError: more than one image, or a node outside the map.
    """
    height, width = features.shape[-2:]
    y, x = node
    if len(features) != 1 or marginals.shape != (1, potential.num_classes, height, width):
        raise ValueError(
            f"features {tuple(features.shape)}, marginals {tuple(marginals.shape)}: expected one image and "
            f"{potential.num_classes} classes, [1, C, H, W] and [1, K, H, W]"
        )
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"node {node}: expected a row in 0..{height - 1} and a column in 0..{width - 1}")
    owner, neighbor = (part[0] for part in potential.project(features))
    beliefs = marginals[0].flatten(1).T
    offsets = potential.graph(features).offsets
    here = torch.tensor([y, x], device=features.device)
    size = torch.tensor([height, width], device=features.device)
    found, messages = [], []
    for sign in (1, -1):
        places = here + sign * offsets
        places = places[((places >= 0) & (places < size)).all(1)]
        others = places[:, 0] * width + places[:, 1]
        p, q = (y * width + x, others) if sign == 1 else (others, y * width + x)
        logits = potential.last(F.relu(owner[p] + neighbor[q]))
        table = logits.unflatten(-1, (potential.num_classes, potential.num_classes))
        messages.append(torch.einsum("mkj,mj->mk" if sign == 1 else "mkj,mk->mj", table, beliefs[others]))
        found.append(places)
    owns = torch.arange(sum(map(len, found)), device=features.device) < len(found[0])
    return Explanation(torch.cat(found), owns, torch.cat(messages), (height, width))
