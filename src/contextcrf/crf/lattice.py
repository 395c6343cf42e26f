"""Permutohedral lattice: Gaussian filtering of N points in d dimensions in time O(N d^2) instead of O(N^2 d).

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010. Points are
placed in the hyperplane sum(y) = 0 of R^(d+1), which the lattice cuts into simplices. A point's value is *splatted* on
the d+1 vertices of its simplex with barycentric weights, the vertices are *blurred* with (1/2, 1, 1/2) along d+1 axes,
and the result is *sliced* back with the same weights. All scales are those of the C++ code of Krähenbühl and Koltun,
"Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011, which pydensecrf wraps.

Each of the three steps is a weighted sum of gathered rows, hence one ``embedding_bag``: it needs no temporary tensor
[N, d+1, C] and no atomic additions (so results are reproducible on a GPU too), and on a CPU it is many times faster
than ``index_add_``.
"""

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Lattice:
    """Fast approximate products with the kernel matrix exp(-|f_p - f_q|^2 / 2) of N fixed points f.

    Args:
        features: the points, [N, d], floating and finite, in units of standard deviations: a pixel column x smoothed
            with a standard deviation of s pixels enters as x / s. The filter is differentiable in them too, once: its
            kernel is piecewise linear, and the gradient is that of the piece in which they lie.

    Attributes:
        num_points: N.
        num_vertices: number of distinct vertices V.
        weights: barycentric weights, [N, d + 1].
        vertices: the vertices of each point's simplex, int32 [N, d + 1].

    Raises:
        ValueError: if ``features`` is anything else, or spans so many standard deviations that vertices of the lattice
            cannot be distinguished (the keys would overflow, or the coordinates exceed the precision of the dtype).

    Example:
        >>> import torch
        >>> from contextcrf.crf.lattice import Lattice
        >>> lattice = Lattice(torch.rand(100, 2, dtype=torch.float64))
        >>> values, ones = torch.rand(100, 1, dtype=torch.float64), torch.ones(100, 1, dtype=torch.float64)
        >>> smoothed = lattice.filter(values) / lattice.filter(ones)
    """

    def __init__(self, features: Tensor) -> None:
        if features.ndim != 2 or features.numel() == 0 or not features.is_floating_point():
            raise ValueError(
                f"features must be floating, [N, d], not empty; got {features.dtype}, {list(features.shape)}"
            )
        cells, rank, weights = _simplex(features)
        self.num_points, corners = weights.shape
        # Many points share a simplex, whose vertices are found once. Indices are int32, half the memory of int64.
        first, simplex = _simplices(cells, rank)
        keys, digits = _vertex_keys(cells[:, first], rank[:, first])
        vertex_keys, vertices = keys.unique(return_inverse=True)
        self.num_vertices = len(vertex_keys)
        self.weights = weights  # the gradient of the features is that of these weights
        by_corner = vertices.int()[:, simplex]
        self.vertices = by_corner.T.contiguous()
        entries, order = by_corner.flatten().sort(stable=True)
        self._splat_order = order.int()  # entries (corner, point), grouped by vertex
        counts = torch.bincount(entries, minlength=self.num_vertices)
        self._splat_starts = (counts.cumsum(0) - counts).int()  # where the group of a vertex begins
        self._splat_points = self._splat_order.remainder(self.num_points)
        # The factor of the C++ code.
        self._factor = 1 / (1 + 2.0 ** -(corners - 1))
        # Along an axis all coordinates rise by 1 but one falls by d; after remainder d comes 0, and quotients rise.
        rising = torch.where(vertex_keys % corners == corners - 1, sum(digits) - corners, 0).to(vertex_keys.dtype)
        self._axes = [_blur_axis(vertex_keys, vertex_keys + (1 - digit) + rising, weights.dtype) for digit in digits]

    @cached_property
    def _splat_weights(self) -> Tensor:
        return self.splat_weights()

    @cached_property
    def _slice_weights(self) -> Tensor:
        return self.slice_weights()

    def splat_weights(self, scale: Tensor | None = None) -> Tensor:
        """The share of each point in the vertices of its simplex, times scale [N, 1], in the order used by `splat`."""
        weights = self.weights.detach() if scale is None else self.weights.detach() * scale
        return weights.T.flatten()[self._splat_order]

    def slice_weights(self, scale: Tensor | None = None) -> Tensor:
        """The share of each vertex of its simplex in a point, times scale [N, 1]: [N, d + 1]."""
        weights = self.weights.detach() * self._factor
        return weights if scale is None else weights * scale

    def splat(self, values: Tensor, weights: Tensor, reverse: bool = False) -> Tensor:
        """Splat and blur: the first two steps of the filter.

        Args:
            values: of the points, [N, C].
            weights: from `splat_weights`.
            reverse: blur along the axes in reverse order.

        Returns:
            Values of the vertices, [V, C].
        """
        vertex_values = weighted_sums(values.contiguous(), self._splat_points, weights, self._splat_starts)
        for neighbors, shares in reversed(self._axes) if reverse else self._axes:
            vertex_values = weighted_sums(vertex_values, neighbors, shares)
        return vertex_values

    def sums(self) -> Tensor:
        """The row sums of the kernel matrix, [N, 1], without a gradient: the result of filtering ones."""
        vertex_values = self.splat(self.weights.new_ones(self.num_points, 1), self.splat_weights())
        return weighted_sums(vertex_values, self.vertices, self.slice_weights())

    def filter(self, values: Tensor) -> Tensor:
        """Return out_p ~ c sum_q exp(-|f_p - f_q|^2 / 2) values_q, the term q = p included.

        Nothing is normalized: divide by the filtered ones to get weighted means. The constant c, which cancels then, is
        2^(d+1) (3/2)^(d/2) / ((1 + 2^-d) sqrt(d+1) (2 pi)^(d/2)): 0.92, 0.88, 0.83 and 0.71 for d = 1, 2, 3 and 5.
        Linear in ``values`` and differentiable with respect to them, any number of times, and once with respect to the
        features. The operator is nearly, not exactly, symmetric.

        Args:
            values: [N, C], float32 or float64, on the device of the features.

        Returns:
            [N, C], of the dtype of ``values``.

        Raises:
            ValueError: if ``values`` has another shape or dtype.
        """
        wrong_shape = values.ndim != 2 or values.shape[0] != self.num_points or values.shape[1] == 0
        if wrong_shape or values.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"values must be float32 or float64, [{self.num_points}, C]; got {values.dtype}, {list(values.shape)}"
            )
        return _Filter.apply(values, self.weights, self, False)

    def _products(self, values: Tensor, vertex_values: Tensor) -> Tensor:
        """Inner products [N, d + 1] of the values [N, C] of each point with the values [V, C] at its vertices."""
        return torch.stack([(values * vertex_values[vertex.long()]).sum(1) for vertex in self.vertices.T], 1)


class _Filter(torch.autograd.Function):
    """The filter with its gradient, which is the transposed filter.

    Splat is the transpose of slice and each blur is symmetric: reversing the axes transposes the whole filter.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, lattice: Lattice, reverse: bool) -> Tensor:
        ctx.lattice, ctx.reverse = lattice, reverse
        if weights.requires_grad:
            ctx.save_for_backward(values)
        vertex_values = lattice.splat(values, lattice._splat_weights, reverse)
        return weighted_sums(vertex_values, lattice.vertices, lattice._slice_weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        lattice, reverse = ctx.lattice, ctx.reverse
        for_values = for_weights = None
        if ctx.needs_input_grad[0]:
            for_values = _Filter.apply(grad, lattice.weights, lattice, not reverse)
        if ctx.needs_input_grad[1]:
            for_weights = _WeightGradient.apply(ctx.saved_tensors[0], grad, lattice, reverse)
        return for_values, for_weights, None, None


class _WeightGradient(torch.autograd.Function):
    """The gradient of the filter by its barycentric weights, which are used twice: to splat and to slice."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, grad: Tensor, lattice: Lattice, reverse: bool) -> Tensor:
        sliced = lattice._products(grad, lattice.splat(values, lattice._splat_weights, reverse))
        splatted = lattice._products(values, lattice.splat(grad, lattice._splat_weights, not reverse))
        return ((sliced + splatted) * lattice._factor).to(lattice.weights.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise NotImplementedError("the lattice is differentiable in its features once")


def weighted_sums(values: Tensor, rows: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """Weighted sums of rows of ``values``, grouped as ``rows`` [G, n] is or, if it is [n], by the ``starts`` [G]."""
    return embedding_bag(rows, values, starts, mode="sum", per_sample_weights=weights.to(values.dtype))


def _simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex of each point (Adams et al., sections 3 and 4.1); the operations are ordered as in the C++ code.

    Vertex r of a simplex, r = 0..d, has the d+1 coordinates (d+1) cells + r - (d+1) [rank > d - r].

    Returns:
        cells: vertex 0 divided by d+1, int64 [d+1, N]; the columns sum to 0.
        rank: rank of each coordinate of (point - vertex 0) in descending order, int8 [d+1, N].
        weights: barycentric weights of the vertices, >= 0 up to rounding, each row sums to 1, [N, d+1].
    """
    num_points, d = features.shape
    # Splat, blur and slice together have the variance 2/3 (d+1)^2 in every direction: one unit of the features.
    # Rounded as in the C++ code: points on the border of two simplices then fall into the same one.
    inv_std = torch.tensor(math.sqrt(2 / 3) * (d + 1), dtype=features.dtype).item()
    elevated = features.new_empty(d + 1, num_points)
    total = features.new_zeros(num_points)
    for j in range(d, 0, -1):
        column = features[:, j - 1] * (1 / math.sqrt(j * (j + 1)) * inv_std)
        elevated[j] = total - j * column
        total = total + column
    elevated[0] = total

    # Beyond this bound rounding errors exceed 1 % of a lattice unit. NaN and infinity fail the test too.
    if not bool(elevated.abs().amax() < 0.01 / torch.finfo(features.dtype).eps):
        raise ValueError(
            f"features from {features.min():.3g} to {features.max():.3g} standard deviations exceed the precision of "
            f"{features.dtype} (or are not finite); use larger standard deviations"
        )

    nearest = (elevated.detach() * (1 / (d + 1))).round()
    excess = nearest.sum(0).to(torch.int8)
    cells = nearest.long()
    residual = elevated.detach() - cells * (d + 1)
    rank = cells.new_zeros(cells.shape, dtype=torch.int8)
    for i in range(d):
        for j in range(i + 1, d + 1):
            below = residual[i] < residual[j]
            rank[i] += below
            rank[j] += ~below
    # Rounding may leave the hyperplane; moving the coordinates with the largest rounding errors returns to it.
    rank += excess
    wrap = (rank < 0).to(torch.int8) - (rank > d).to(torch.int8)
    rank += (d + 1) * wrap
    cells += wrap

    ascending = torch.empty_like(elevated)
    ascending.scatter_(0, (d - rank).long(), (elevated - cells * (d + 1)) * (1 / (d + 1)))
    weights = torch.cat([ascending[:1] + (1 - ascending[-1:]), ascending.diff(dim=0)])
    return cells, rank, weights.T.contiguous()


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the first occurrence of each distinct key [S], ascending by key, and each key's rank in them [N]."""
    ordered, order = keys.sort()
    new = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    number = torch.empty_like(order)
    number[order] = new.cumsum(0) - 1
    return order[new], number


def _simplices(cells: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the first point in each distinct simplex [S], and the number of each point's simplex [N].

    A simplex is given by its vertex 0 and the order of the coordinates.
    """
    d = len(cells) - 1
    orders = (d + 1) ** d
    if math.prod(_sizes(cells[:d], 0)[1]) * orders >= 2**63:
        # The keys would overflow. Treating each point's simplex as distinct takes longer and changes nothing.
        each = torch.arange(cells.shape[1], device=cells.device)
        return each, each
    keys, _ = _packed(cells[:d], 0, orders)
    for i in range(d):
        keys.add_(rank[i], alpha=(d + 1) ** i)
    return _distinct(keys)


def _vertex_keys(cells: Tensor, rank: Tensor) -> tuple[Tensor, list[int]]:
    """One integer for each vertex r = 0..d of the simplices, [d+1, N].

    All coordinates of vertex r leave the remainder r when divided by d+1, so a vertex is given by r, the last digit of
    its key, and the quotients. d quotients suffice, since the coordinates sum to 0.

    Returns:
        The keys, and the place value of the quotient of each axis in them.
    """
    d = len(cells) - 1
    # Vertices lie up to 1 below their simplex's first, and their neighbors 1 to either side.
    first, digits = _packed(cells[:d], 2, d + 1)
    digits = [*digits, 0]
    # From each vertex to the next all coordinates rise by 1, except that one falls by d, and so its quotient by 1: each
    # coordinate once, in descending order of rank.
    places = torch.tensor(digits, dtype=first.dtype, device=first.device)[:, None] - 1
    falling = first.new_empty(cells.shape).scatter_(0, (d - rank).long(), places.expand_as(cells))
    keys = first.new_empty(cells.shape)
    keys[0] = first
    for r in range(d):
        torch.sub(keys[r], falling[r], out=keys[r + 1])
    return keys, digits


def _sizes(cells: Tensor, spare: int) -> tuple[list[int], list[int]]:
    """The lowest value of each row of cells and the length of its range, extended by `spare` at both ends."""
    low, high = (cells.amin(1) - spare).tolist(), (cells.amax(1) + spare).tolist()
    return low, [last - lowest + 1 for lowest, last in zip(low, high, strict=True)]


def _packed(cells: Tensor, spare: int, room: int) -> tuple[Tensor, list[int]]:
    """One integer [N] for each column of cells [d, N], int32 where it suffices, and the place value of each row in it.

    Cells up to `spare` beyond the ends of their range have distinct integers too, and these are multiples of `room`.
    """
    low, sizes = _sizes(cells, spare)
    span = math.prod(sizes) * room
    if span >= 2**63:
        raise ValueError(
            f"features span too many standard deviations in {len(cells)} dimensions: {span:.1e} possible vertices of "
            "the lattice do not fit in 64-bit keys; use larger standard deviations"
        )
    digits = [room * math.prod(sizes[i + 1 :]) for i in range(len(cells))]
    keys = cells.new_zeros(cells.shape[1], dtype=torch.int32 if span < 2**31 else torch.int64)
    for row, lowest, digit in zip(cells, low, digits, strict=True):
        keys.add_((row - lowest).to(keys.dtype), alpha=digit)
    return keys, digits


def _blur_axis(vertex_keys: Tensor, neighbors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows and weights [M, 3] of the blur along one axis: a vertex and its two neighbors, weight 0 for absent ones.

    Args:
        vertex_keys: ascending, [M].
        neighbors: the keys of each vertex's neighbor on one side, [M].
    """
    count = len(vertex_keys)
    vertices = torch.arange(count, device=vertex_keys.device)
    after = torch.searchsorted(vertex_keys, neighbors).clamp_(max=count - 1)
    exists = vertex_keys[after] == neighbors
    # A vertex is the neighbor of its neighbor on the other side; index `count` collects the vertices without neighbor.
    before = vertices.new_full((count + 1,), -1).scatter_(0, torch.where(exists, after, count), vertices)[:count]
    rows = torch.stack([vertices, after, before.clamp(min=0)], 1).int()
    weights = torch.stack([torch.ones_like(exists, dtype=dtype), 0.5 * exists, 0.5 * (before >= 0)], 1)
    return rows, weights.to(dtype)
