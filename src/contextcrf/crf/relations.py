"""Spatial relations: which nodes of the graph of the CRF are joined (Section III and Fig. 3 of the paper)."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class RangeBox:
    """A spatial relation that joins a node to every node inside a box around it (Fig. 3 of the paper).

    The extents are measured from the node, as fractions of a = min(height, width) of the feature map, so that the
    graph adapts to the size of the image. In nodes an extent is floor(extent * a).

    An edge is an ordered pair (p, q): p owns the box, q lies inside it. The node itself never belongs to its box.

    Args:
        top: extent upwards, >= 0.
        bottom: extent downwards, >= 0.
        left: extent to the left, >= 0.
        right: extent to the right, >= 0.
        hole: a box around the same node whose nodes are left out ("above" leaves out p's own row, a ring its middle).
            Only the four extents of the hole count.
        grid: take only the displacements on a grid of this many rows and columns, spread evenly over the box; with 5 a
            square has the 24 neighbors of the authors' later work. None takes all.

    Raises:
        ValueError: an extent that is negative or not finite, or a grid of fewer than 2 rows and columns.

    Example:
        >>> from contextcrf.crf import RangeBox
        >>> RangeBox.surrounding(0.4).offsets(28, 38).shape  # 11 x 11 nodes without the one in the middle
        torch.Size([120, 2])
        >>> RangeBox(top=0.2, bottom=0.0, left=0.0, right=0.0).offsets(10, 10).tolist()
        [[-2, 0], [-1, 0]]
    """

    top: float
    bottom: float
    left: float
    right: float
    hole: "RangeBox | None" = None
    grid: int | None = None

    def __post_init__(self) -> None:
        for name in ("top", "bottom", "left", "right"):
            extent = getattr(self, name)
            if not (math.isfinite(extent) and extent >= 0):
                raise ValueError(f"RangeBox: {name}={extent}; expected a finite extent >= 0, a fraction of min(h, w)")
        if self.grid is not None and self.grid < 2:
            raise ValueError(f"RangeBox: grid={self.grid}; expected 2 or more rows and columns")

    @classmethod
    def surrounding(cls, size: float = 0.4) -> "RangeBox":
        """A square of side `size`, centered on the node (the paper's "Pairwise-1": 0.4a x 0.4a)."""
        half = size / 2
        return cls(half, half, half, half)

    @classmethod
    def above(cls, height: float = 0.3, width: float = 0.4) -> "RangeBox":
        """A box whose bottom edge is centered on the node, only rows strictly above it (the paper's "Pairwise-2")."""
        half = width / 2
        return cls(height, 0.0, half, half, hole=cls(0.0, 0.0, half, half))

    @classmethod
    def below(cls, height: float = 0.3, width: float = 0.4) -> "RangeBox":
        """A box whose top edge is centered on the node, only rows strictly below it."""
        half = width / 2
        return cls(0.0, height, half, half, hole=cls(0.0, 0.0, half, half))

    @classmethod
    def leftward(cls, width: float = 0.3, height: float = 0.4) -> "RangeBox":
        """A box whose right edge is centered on the node, only columns strictly left of it."""
        half = height / 2
        return cls(half, half, width, 0.0, hole=cls(half, half, 0.0, 0.0))

    @classmethod
    def rightward(cls, width: float = 0.3, height: float = 0.4) -> "RangeBox":
        """A box whose left edge is centered on the node, only columns strictly right of it."""
        half = height / 2
        return cls(half, half, 0.0, width, hole=cls(half, half, 0.0, 0.0))

    @classmethod
    def ring(cls, outer: float = 0.8, inner: float = 0.4) -> "RangeBox":
        """A square of side `outer` without the square of side `inner` in its middle.

        Raises:
            ValueError: if `inner` is greater than `outer`.
        """
        if inner > outer:
            raise ValueError(f"ring: inner={inner}, outer={outer}; expected inner <= outer")
        return cls(outer / 2, outer / 2, outer / 2, outer / 2, hole=cls.surrounding(inner))

    def offsets(self, height: int, width: int) -> Tensor:
        """The displacements (dy, dx) = q - p from a node to the nodes in its box.

        Args:
            height: rows of the feature map.
            width: columns of the feature map.

        Returns:
            int64 [T, 2], without (0, 0).
        """
        top, bottom, left, right = self._extents(height, width)
        pairs = [(dy, dx) for dy in self._spread(top, bottom) for dx in self._spread(left, right) if (dy, dx) != (0, 0)]
        if self.hole is not None:
            above, below, before, after = self.hole._extents(height, width)
            pairs = [(y, x) for y, x in pairs if not (-above <= y <= below and -before <= x <= after)]
        return torch.tensor(pairs, dtype=torch.int64, device="cpu").reshape(-1, 2)

    def _extents(self, height: int, width: int) -> tuple[int, ...]:
        a = min(height, width)
        # 0.57 * 100 is 56.99... in floating point: the small constant makes its floor 57.
        return tuple(math.floor(extent * a + 1e-9) for extent in (self.top, self.bottom, self.left, self.right))

    def _spread(self, before: int, after: int) -> list[int]:
        if self.grid is None or self.grid > before + after:
            return list(range(-before, after + 1))
        return [-before + round(i * (before + after) / (self.grid - 1)) for i in range(self.grid)]


Relation = RangeBox | tuple[RangeBox, ...]
"""Which nodes are joined: those of a box, or of several boxes together."""


@dataclass(frozen=True)
class Window:
    """The displacements of a relation as a table of rows and columns.

    Args:
        rows: the values of dy, ascending.
        columns: the values of dx, ascending.
        inside: bool [rows, columns], which pairs (dy, dx) belong to the relation.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    inside: Tensor

    def reversed(self) -> "Window":
        """The displacements p - q: the same edges in the other direction."""
        rows, columns = (tuple(-value for value in reversed(values)) for values in (self.rows, self.columns))
        return Window(rows, columns, self.inside.flip(0, 1))

    def between(self, first: int, last: int) -> "Window":
        """The part of the window with dy in first..last."""
        kept = [i for i, dy in enumerate(self.rows) if first <= dy <= last]
        return Window(tuple(self.rows[i] for i in kept), self.columns, self.inside[kept])


class Graph:
    """The edges of one relation on one feature map.

    Nodes are the positions of the map, index y * width + x. The neighbors of any block of nodes are computed on demand,
    so that nothing of size E need be kept.

    Args:
        relation: which nodes are joined.
        height: rows of the feature map.
        width: columns of the feature map.
        device: the device of the tensors it returns.

    Attributes:
        relation: as given.
        height: as given.
        width: as given.
        device: as given.
        offsets: the displacements (dy, dx) = q - p of the relation, int64 [T, 2].

    Example:
        >>> import torch
        >>> from contextcrf.crf import RangeBox
        >>> from contextcrf.crf.relations import Graph
        >>> right = RangeBox(top=0.0, bottom=0.0, left=0.0, right=0.5)
        >>> Graph(right, height=2, width=2, device=torch.device("cpu")).edges().T.tolist()
        [[0, 1], [2, 3]]
    """

    def __init__(self, relation: Relation, height: int, width: int, device: torch.device) -> None:
        self.relation, self.height, self.width, self.device = relation, height, width, device
        self.offsets = _offsets(relation, height, width, device)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N = height * width."""
        return self.height * self.width

    def neighbors(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The nodes in the boxes of a block of nodes.

        Args:
            rows: the node indices of the block.

        Returns:
            table int64 [n, T], node indices, 0 where an offset leads outside the map; inside bool [n, T], False there.
        """
        nodes = torch.arange(rows.start, rows.stop, device=self.device)
        y = (nodes // self.width)[:, None] + self.offsets[:, 0]
        x = (nodes % self.width)[:, None] + self.offsets[:, 1]
        inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
        return torch.where(inside, y * self.width + x, 0), inside

    def window(self) -> Window:
        """The displacements q - p that occur on this map, as a table."""
        size = torch.tensor([self.height, self.width], device=self.device)
        offsets = self.offsets[(self.offsets.abs() < size).all(1)]
        rows, row = offsets[:, 0].unique(return_inverse=True)
        columns, column = offsets[:, 1].unique(return_inverse=True)
        inside = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=self.device)
        inside[row, column] = True
        return Window(tuple(rows.tolist()), tuple(columns.tolist()), inside)

    def edges(self) -> Tensor:
        """All edges as node indices (p, q): int64 [2, E], ordered by p. The tensor is cached: do not change it."""
        return _edges(self.relation, self.height, self.width, self.device)

    def mean_degree(self) -> float:
        """Mean number of edges that touch a node: 2E / N."""
        return _mean_degree(self.relation, self.height, self.width)


@lru_cache(maxsize=64)
def _offsets(relation: Relation, height: int, width: int, device: torch.device) -> Tensor:
    boxes = (relation,) if isinstance(relation, RangeBox) else relation
    # A cached tensor must be an ordinary one, even if the first call is made under inference mode.
    with torch.inference_mode(False):
        return torch.cat([box.offsets(height, width) for box in boxes]).unique(dim=0).to(device)


@lru_cache(maxsize=64)
def _mean_degree(relation: Relation, height: int, width: int) -> float:
    size = torch.tensor([height, width], device="cpu")
    reach = size - _offsets(relation, height, width, torch.device("cpu")).abs()
    return 2 * int(reach.clamp(min=0).prod(1).sum()) / (height * width)


@lru_cache(maxsize=8)
def _edges(relation: Relation, height: int, width: int, device: torch.device) -> Tensor:
    """The edges of a graph, cached because all training images of one size share them."""
    with torch.inference_mode(False):
        table, inside = Graph(relation, height, width, device).neighbors(slice(0, height * width))
        p, t = inside.nonzero(as_tuple=True)
        return torch.stack([p, table[p, t]])
