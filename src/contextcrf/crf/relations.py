"""Spatial relations: which nodes of the CRF's graph are joined (Section III and Fig. 3 of the paper)."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class RangeBox:
    """A node is joined to every node inside a box around it.

    The extents are measured from the node, as fractions of a = min(height, width) of the feature map, so that the
    graph adapts to the size of the image. In nodes an extent is floor(extent * a).

    An edge is an ordered pair (p, q): p owns the box, q lies inside it. The node itself never belongs to its box.

    Args:
        top, bottom, left, right: extents, each >= 0.
        own_row: whether the nodes of p's own row belong to the box ("above" leaves them out).
    """

    top: float
    bottom: float
    left: float
    right: float
    own_row: bool = True

    def __post_init__(self) -> None:
        for name in ("top", "bottom", "left", "right"):
            extent = getattr(self, name)
            if not (math.isfinite(extent) and extent >= 0):
                raise ValueError(f"RangeBox: {name}={extent}; expected a finite extent >= 0, a fraction of min(h, w)")

    @classmethod
    def surrounding(cls, size: float = 0.4) -> "RangeBox":
        """A square of `size` x `size` centred on the node (the paper's "Pairwise-1": 0.4a x 0.4a)."""
        half = size / 2
        return cls(half, half, half, half)

    @classmethod
    def above(cls, height: float = 0.3, width: float = 0.4) -> "RangeBox":
        """A box whose bottom edge is centred on the node, rows strictly above it (the paper's "Pairwise-2")."""
        return cls(height, 0.0, width / 2, width / 2, own_row=False)

    def offsets(self, height: int, width: int) -> Tensor:
        """The box as displacements (dy, dx) = q - p on a height x width feature map: int64 [T, 2], no (0, 0)."""
        a = min(height, width)
        # 0.57 * 100 is 56.99...: the small constant keeps the floor of an exact product exact.
        top, bottom, left, right = (
            math.floor(extent * a + 1e-9) for extent in (self.top, self.bottom, self.left, self.right)
        )
        pairs = [
            (dy, dx)
            for dy in range(-top, bottom + 1)
            for dx in range(-left, right + 1)
            if (dy, dx) != (0, 0) and (self.own_row or dy != 0)
        ]
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Graph:
    """The edges of one relation on one feature map, as a table over nodes and offsets.

    Attributes:
        neighbours: int64 [N, T], the index y * width + x of node p + offset t; 0 where that lies outside the map.
        inside: bool [N, T], whether it lies inside.
    """

    neighbours: Tensor
    inside: Tensor

    def edges(self) -> Tensor:
        """All edges as node indices (p, q): int64 [2, E], ordered by p."""
        p, t = self.inside.nonzero(as_tuple=True)
        return torch.stack([p, self.neighbours[p, t]])

    def mean_degree(self) -> float:
        """Mean number of edges that touch a node: 2E / N."""
        return 2 * int(self.inside.sum()) / max(1, self.inside.shape[0])


@lru_cache(maxsize=64)
def box_graph(box: RangeBox, height: int, width: int, device: torch.device) -> Graph:
    """The graph of `box` on a height x width feature map. Kept: every image of a size has the same one."""
    offsets = box.offsets(height, width).to(device)
    y = torch.arange(height, device=device).repeat_interleave(width)[:, None] + offsets[:, 0]
    x = torch.arange(width, device=device).repeat(height)[:, None] + offsets[:, 1]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return Graph(torch.where(inside, y * width + x, 0), inside)
