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
class Window:
    """The smallest rectangle of displacements that holds a relation's.

    Args:
        top, left: displacement (dy, dx) of its first entry.
        inside: bool [rows, columns], which of its displacements belong to the relation.
    """

    top: int
    left: int
    inside: Tensor

    @property
    def rows(self) -> int:
        """Height of the rectangle."""
        return self.inside.shape[0]

    @property
    def columns(self) -> int:
        """Width of the rectangle."""
        return self.inside.shape[1]

    def reversed(self) -> "Window":
        """The same edges seen from their other end."""
        return Window(1 - self.top - self.rows, 1 - self.left - self.columns, self.inside.flip(0, 1))


class Graph:
    """The edges of one relation on one feature map. Made on the fly for any block of nodes: nothing of size E is kept.

    Nodes are the positions of the map, index y * width + x.

    Args:
        box: the relation.
        height, width: of the feature map.
        device: where tables are made.
    """

    def __init__(self, box: RangeBox, height: int, width: int, device: torch.device) -> None:
        self.box, self.height, self.width, self.device = box, height, width, device
        self.offsets = _offsets(box, height, width, device)

    @property
    def nodes(self) -> int:
        """Number of nodes N."""
        return self.height * self.width

    def neighbours(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The nodes in the boxes of the nodes `rows`.

        Returns:
            table int64 [n, T], node indices, 0 where an offset leads outside the map; inside bool [n, T], whether it
            does not.
        """
        nodes = torch.arange(rows.start, rows.stop, device=self.device)
        y = (nodes // self.width)[:, None] + self.offsets[:, 0]
        x = (nodes % self.width)[:, None] + self.offsets[:, 1]
        inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
        return torch.where(inside, y * self.width + x, 0), inside

    def window(self) -> Window:
        """The displacements q - p that occur on this map, as a rectangle."""
        size = torch.tensor([self.height, self.width], device=self.device)
        offsets = self.offsets[(self.offsets.abs() < size).all(1)]
        if len(offsets) == 0:
            return Window(0, 0, torch.zeros(0, 0, dtype=torch.bool, device=self.device))
        first = offsets.amin(0)
        rows, columns = (offsets.amax(0) - first + 1).tolist()
        inside = torch.zeros(rows, columns, dtype=torch.bool, device=self.device)
        inside[tuple((offsets - first).T)] = True
        return Window(*first.tolist(), inside)

    def edges(self) -> Tensor:
        """All edges as node indices (p, q): int64 [2, E], ordered by p."""
        return _edges(self.box, self.height, self.width, self.device)

    def mean_degree(self) -> float:
        """Mean number of edges that touch a node: 2E / N."""
        reach = torch.tensor([self.height, self.width], device=self.device) - self.offsets.abs()
        return 2 * int(reach.clamp(min=0).prod(1).sum()) / self.nodes


@lru_cache(maxsize=64)
def _offsets(box: RangeBox, height: int, width: int, device: torch.device) -> Tensor:
    # What is kept must be an ordinary tensor, also when it is first asked for under inference mode.
    with torch.inference_mode(False):
        return box.offsets(height, width).to(device)


@lru_cache(maxsize=8)
def _edges(box: RangeBox, height: int, width: int, device: torch.device) -> Tensor:
    """Kept, since every training image of a size has the same ones."""
    with torch.inference_mode(False):
        table, inside = Graph(box, height, width, device).neighbours(slice(0, height * width))
        p, t = inside.nonzero(as_tuple=True)
        return torch.stack([p, table[p, t]])
