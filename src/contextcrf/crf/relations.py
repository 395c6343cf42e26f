"""Spatial relations, which determine the edges between the nodes of the CRF (Section III and Fig. 3 of the paper)."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from contextcrf.crf.cached_indices import cached_indices


@dataclass(frozen=True)
class RangeBox:
    """A spatial relation that joins a node to every node inside a box around it (Fig. 3 of the paper).

    An extent is the distance from the node to a side of the box. Extents are fractions of a = min(height, width) of the
    feature map, so the box grows with the image. An extent covers floor(extent * a) nodes.

    An edge is an ordered pair (p, q) in which p owns the box and q lies inside it. A node never lies in its own box.

    Args:
        top: the upward extent, >= 0.
        bottom: the downward extent, >= 0.
        left: the extent to the left, >= 0.
        right: the extent to the right, >= 0.
        hole: a box around the same node whose nodes are excluded. `above` excludes the row of p, and `ring` excludes
            the inner square. The `hole` and `grid` of the excluded box itself are ignored.
        grid: the number of rows and of columns of a regular grid over the box. Only nodes on this grid are joined. With
            5, a square has the 24 neighbors of the authors' CVPR 2016 paper. None joins all nodes in the box.

    Raises:
        ValueError: if an extent is negative or not finite, or if `grid` is less than 2.

    Example:
        >>> from contextcrf.crf import RangeBox
        >>> RangeBox.surrounding(0.4).offsets(28, 38).shape  # 11 x 11 nodes without the center
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
                raise ValueError(f"{name} must be a finite fraction >= 0 of min(height, width), but is {extent}.")
        if self.grid is not None and self.grid < 2:
            raise ValueError(f"grid must be >= 2 rows and columns, but is {self.grid}.")

    @classmethod
    def surrounding(cls, size: float = 0.4) -> "RangeBox":
        """Return a square that is centered on the node (the paper's "Pairwise-1": 0.4a x 0.4a).

        Args:
            size: the side of the square.
        """
        half = size / 2
        return cls(half, half, half, half)

    @classmethod
    def above(cls, height: float = 0.3, width: float = 0.4) -> "RangeBox":
        """Return a box whose bottom edge is centered on the node (the paper's "Pairwise-2").

        The box contains only rows strictly above the node.

        Args:
            height: the height of the box.
            width: the width of the box.
        """
        half = width / 2
        return cls(height, 0.0, half, half, hole=cls(0.0, 0.0, half, half))

    @classmethod
    def below(cls, height: float = 0.3, width: float = 0.4) -> "RangeBox":
        """Return a box whose top edge is centered on the node, with only the rows strictly below it.

        Args:
            height: the height of the box.
            width: the width of the box.
        """
        half = width / 2
        return cls(0.0, height, half, half, hole=cls(0.0, 0.0, half, half))

    @classmethod
    def leftward(cls, width: float = 0.3, height: float = 0.4) -> "RangeBox":
        """Return a box whose right edge is centered on the node, with only the columns strictly left of it.

        Args:
            width: the width of the box.
            height: the height of the box.
        """
        half = height / 2
        return cls(half, half, width, 0.0, hole=cls(half, half, 0.0, 0.0))

    @classmethod
    def rightward(cls, width: float = 0.3, height: float = 0.4) -> "RangeBox":
        """Return a box whose left edge is centered on the node, with only the columns strictly right of it.

        Args:
            width: the width of the box.
            height: the height of the box.
        """
        half = height / 2
        return cls(half, half, 0.0, width, hole=cls(half, half, 0.0, 0.0))

    @classmethod
    def ring(cls, outer: float = 0.8, inner: float = 0.4) -> "RangeBox":
        """Return a square without the smaller square at its center.

        Args:
            outer: the side of the square.
            inner: the side of the smaller square, at most `outer`.

        Raises:
            ValueError: if `inner` is greater than `outer`.
        """
        if inner > outer:
            raise ValueError(f"inner must be <= outer, but inner is {inner} and outer is {outer}.")
        return cls(outer / 2, outer / 2, outer / 2, outer / 2, hole=cls.surrounding(inner))

    def offsets(self, height: int, width: int) -> Tensor:
        """Return the displacements (dy, dx) = q - p from a node to the nodes in its box.

        Args:
            height: the number of rows of the feature map.
            width: the number of columns of the feature map.

        Returns:
            The displacements, int64 [T, 2]. The displacement (0, 0) is never among them.
        """
        top, bottom, left, right = self._extents(height, width)
        pairs = [(dy, dx) for dy in self._spread(top, bottom) for dx in self._spread(left, right) if (dy, dx) != (0, 0)]
        if self.hole is not None:
            above, below, before, after = self.hole._extents(height, width)
            pairs = [(y, x) for y, x in pairs if not (-above <= y <= below and -before <= x <= after)]
        return torch.tensor(pairs, dtype=torch.int64, device="cpu").reshape(-1, 2)

    def _extents(self, height: int, width: int) -> tuple[int, ...]:
        """Return the four extents in nodes."""
        a = min(height, width)
        # In floating point, 0.57 * 100 is 56.99... With the small constant, its floor is 57.
        return tuple(math.floor(extent * a + 1e-9) for extent in (self.top, self.bottom, self.left, self.right))

    def _spread(self, before: int, after: int) -> list[int]:
        """Return the displacements along one axis, all or those on the grid."""
        if self.grid is None or self.grid > before + after:
            return list(range(-before, after + 1))
        return [-before + round(i * (before + after) / (self.grid - 1)) for i in range(self.grid)]


Relation = RangeBox | tuple[RangeBox, ...]
"""The rule that determines which nodes are joined: one box, or the union of several boxes."""


@dataclass(frozen=True)
class Window:
    """The displacements of a relation as a table of rows and columns.

    The table is no tensor, because reading a tensor would make the program wait for the device.

    Args:
        rows: the values of dy, ascending.
        columns: the values of dx, ascending.
        inside: one tuple for each row. Its entry is True for each pair (dy, dx) that belongs to the relation.

    Example:
        >>> import torch
        >>> from contextcrf.crf import RangeBox
        >>> from contextcrf.crf.relations import Graph
        >>> window = Graph(RangeBox.surrounding(1.0), height=3, width=3, device=torch.device("cpu")).window()
        >>> window.rows, window.columns
        ((-1, 0, 1), (-1, 0, 1))
        >>> window.inside
        ((True, True, True), (True, False, True), (True, True, True))
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    inside: tuple[tuple[bool, ...], ...]

    def between(self, first: int, last: int) -> "Window":
        """Return the part of the window with `first` <= dy <= `last`."""
        kept = slice(bisect_left(self.rows, first), bisect_right(self.rows, last))
        return Window(self.rows[kept], self.columns, self.inside[kept])

    def outside(self) -> Iterator[tuple[int, slice]]:
        """Yield the places in the table that do not belong to the relation: the index of a row and some columns.

        Example:
            >>> window = Window((-1, 0), (-1, 0, 1), ((True, True, True), (True, False, False)))
            >>> list(window.outside())
            [(1, slice(1, 3, None))]
        """
        for i, row in enumerate(self.inside):
            for inside, places in groupby(range(len(row)), row.__getitem__):
                if not inside:
                    first, *others = places
                    yield i, slice(first, first + 1 + len(others))


class Graph:
    """The edges of one relation on one feature map.

    The nodes are the positions of the map. The node in row y and column x has the index y * width + x. The neighbors of
    any block of nodes are computed on demand, so no tensor with all E edges needs to be stored.

    Args:
        relation: the rule that determines which nodes are joined.
        height: the number of rows of the feature map.
        width: the number of columns of the feature map.
        device: the device of the returned tensors.

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
        """The number of nodes N = height * width."""
        return self.height * self.width

    def neighbors(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the nodes in the boxes of a block of n nodes.

        Args:
            rows: the slice of the node indices of the block.

        Returns:
            A table and a mask. The table contains node indices, int64 [n, T]. The mask is bool [n, T] and False if an
                offset leads outside the map. The node index is then 0.
        """
        nodes = torch.arange(rows.start, rows.stop, device=self.device)
        y = (nodes // self.width)[:, None] + self.offsets[:, 0]
        x = (nodes % self.width)[:, None] + self.offsets[:, 1]
        inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
        return torch.where(inside, y * self.width + x, 0), inside

    def window(self) -> Window:
        """Return a table of the displacements q - p that occur on this map."""
        return _window(self.relation, self.height, self.width)

    def edges(self) -> Tensor:
        """Return all edges as node indices (p, q), int64 [2, E], ordered by p. Do not modify this cached tensor."""
        return _edges(self.relation, self.height, self.width, self.device)

    def mean_degree(self) -> float:
        """Return the mean number of edges that touch a node, 2E / N."""
        return _mean_degree(self.relation, self.height, self.width)


@cached_indices(maxsize=64)
def _offsets(relation: Relation, height: int, width: int, device: torch.device) -> Tensor:
    """Return the distinct displacements of all boxes of a relation."""
    boxes = (relation,) if isinstance(relation, RangeBox) else relation
    return torch.cat([box.offsets(height, width) for box in boxes]).unique(dim=0).to(device)


@lru_cache(maxsize=64)
def _window(relation: Relation, height: int, width: int) -> Window:
    """Return `Graph.window`."""
    offsets = _offsets(relation, height, width, torch.device("cpu")).tolist()
    pairs = {(dy, dx) for dy, dx in offsets if abs(dy) < height and abs(dx) < width}
    rows, columns = (tuple(sorted(set(values))) for values in (zip(*pairs, strict=True) if pairs else ((), ())))
    return Window(rows, columns, tuple(tuple((dy, dx) in pairs for dx in columns) for dy in rows))


@lru_cache(maxsize=64)
def _mean_degree(relation: Relation, height: int, width: int) -> float:
    """Return `Graph.mean_degree`."""
    size = torch.tensor([height, width], device="cpu")
    reach = size - _offsets(relation, height, width, torch.device("cpu")).abs()
    return 2 * int(reach.clamp(min=0).prod(1).sum()) / (height * width)


@cached_indices(maxsize=8)
def _edges(relation: Relation, height: int, width: int, device: torch.device) -> Tensor:
    """Return `Graph.edges`. The result is cached, because all training images of one size share it."""
    table, inside = Graph(relation, height, width, device).neighbors(slice(0, height * width))
    p, t = inside.nonzero(as_tuple=True)
    return torch.stack([p, table[p, t]])
