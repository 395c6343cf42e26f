"""The permutohedral lattice, which filters N points in d dimensions with a Gaussian in time O(N d^2).

A direct computation takes O(N^2 d). The method is from Adams, Baek and Davis, "Fast High-Dimensional Filtering Using
the Permutohedral Lattice", Eurographics 2010. Points are placed in the hyperplane sum(y) = 0 of R^(d+1), which the
lattice divides into simplices. The filter has three steps:

1. The value of each point is *splatted* on the d+1 vertices of its simplex with barycentric weights.
2. The values of the vertices are *blurred* with (1/2, 1, 1/2) along d+1 axes.
3. The result is *sliced* at the points with the same barycentric weights.

All scales are the same as in the C++ code of Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with
Gaussian Edge Potentials", NIPS 2011, which pydensecrf wraps.

Each step is a weighted sum of gathered rows, so it is computed by one ``embedding_bag``. Unlike ``index_add_``, this
function needs no temporary tensor [N, d+1, C] and no atomic additions, so results are reproducible on a GPU. On a CPU
it is many times faster than ``index_add_``.
"""

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from contextcrf.crf.blocks import block_elements

# The number of elements of a temporary tensor during the construction of a lattice on a CPU (1 MiB).
_PIECE_ELEMENTS = 1 << 18


class Lattice:
    """A lattice that approximates products with the kernel matrix exp(-|f_p - f_q|^2 / 2) of N fixed points f.

    Args:
        features: the points, floating and finite, [N, d]. Their unit is the standard deviation. For a standard
            deviation of s pixels, for example, the feature of a pixel in column x is x / s. The filter is once
            differentiable with respect to the features. Its kernel is piecewise linear, and the gradient is the
            gradient of the linear piece that contains the features.

    Attributes:
        num_points: the number of points N.
        num_vertices: the number of distinct vertices V.
        weights: the barycentric weights, [N, d + 1].
        vertices: the vertices of the simplex of each point, int32 [N, d + 1].

    Raises:
        ValueError: if ``features`` has another shape or dtype, is not finite, or spans so many standard deviations that
            the vertices of the lattice cannot be distinguished (the keys would overflow, or the coordinates would
            exceed the precision of the dtype).

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
                f"features must be a floating-point tensor [N, d] that is not empty, but is {features.dtype} of shape "
                f"{list(features.shape)}."
            )
        keys, self.weights, digits = _vertex_keys(features)
        self.num_points, corners = keys.shape
        vertex_keys, self.vertices, self._splat_order, self._splat_starts = _numbered(keys)
        self.num_vertices = len(vertex_keys)
        self._splat_points = self._splat_order // corners
        # This factor is the same as in the C++ code.
        self._factor = 1 / (1 + 2.0 ** -(corners - 1))
        # Along an axis, one coordinate falls by d and all others rise by 1. If their remainder is d, it becomes 0, and
        # their quotients rise by 1.
        steps = torch.where(vertex_keys % corners == corners - 1, sum(digits) + 1 - corners, 1).to(vertex_keys.dtype)
        dtype = self.weights.dtype
        self._axes = [_blur_axis(vertex_keys, vertex_keys + (steps - digit), dtype) for digit in digits]

    @cached_property
    def _splat_weights(self) -> Tensor:
        """The splat weights without a scale."""
        return self.splat_weights()

    @cached_property
    def _slice_weights(self) -> Tensor:
        """The slice weights without a scale."""
        return self.slice_weights()

    def splat_weights(self, scale: Tensor | None = None) -> Tensor:
        """Return the weights of the points at their vertices, times `scale` [N, 1], in the order of `splat`."""
        weights = self.weights.detach() if scale is None else self.weights.detach() * scale
        # Indexing with brackets would convert the order to int64.
        return weights.flatten().index_select(0, self._splat_order)

    def slice_weights(self, scale: Tensor | None = None) -> Tensor:
        """Return the weights [N, d + 1] of the vertices of its simplex at each point, times `scale` [N, 1]."""
        weights = self.weights.detach() * self._factor
        return weights if scale is None else weights * scale

    def splat(self, values: Tensor, weights: Tensor, reverse: bool = False) -> Tensor:
        """Splat and blur values, which are the first two steps of the filter.

        Args:
            values: the values of the points, [N, C].
            weights: the result of `splat_weights`.
            reverse: blur along the axes in reverse order.

        Returns:
            The values of the vertices, [V, C].
        """
        vertex_values = weighted_sums(values.contiguous(), self._splat_points, weights, self._splat_starts)
        for neighbors, shares in reversed(self._axes) if reverse else self._axes:
            vertex_values = weighted_sums(vertex_values, neighbors, shares)
        return vertex_values

    def sums(self) -> Tensor:
        """Compute the row sums of the kernel matrix, [N, 1], by filtering ones. The result has no gradient."""
        vertex_values = self.splat(self.weights.new_ones(self.num_points, 1), self.splat_weights())
        return weighted_sums(vertex_values, self.vertices, self.slice_weights())

    def filter(self, values: Tensor) -> Tensor:
        """Compute out_p ~ c sum_q exp(-|f_p - f_q|^2 / 2) values_q, where the sum includes q = p.

        The result is not normalized. Divide it by the filtered ones to obtain weighted means, in which the constant c
        cancels. The constant is 2^(d+1) (3/2)^(d/2) / ((1 + 2^-d) sqrt(d+1) (2 pi)^(d/2)), which is 0.92, 0.88, 0.83
        and 0.71 for d = 1, 2, 3 and 5.

        The filter is linear in ``values`` and any number of times differentiable with respect to them. It is once
        differentiable with respect to the features. The operator is approximately, but not exactly, symmetric.

        Args:
            values: the values of the points, float32 or float64 [N, C], on the device of the features.

        Returns:
            The filtered values, [N, C], with the dtype of ``values``.

        Raises:
            ValueError: if ``values`` has another shape or dtype.

        Example:
            >>> import torch
            >>> from contextcrf.crf.lattice import Lattice
            >>> Lattice(torch.rand(100, 2)).filter(torch.rand(100, 3)).shape
            torch.Size([100, 3])
        """
        wrong_shape = values.ndim != 2 or values.shape[0] != self.num_points or values.shape[1] == 0
        if wrong_shape or values.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"values must be float32 or float64 of shape [{self.num_points}, C], but is {values.dtype} of shape "
                f"{list(values.shape)}."
            )
        return _Filter.apply(values, self.weights, self, False)

    def _products(self, values: Tensor, vertex_values: Tensor) -> Tensor:
        """Compute inner products [N, d + 1] of the values [N, C] of points and the values [V, C] of their vertices."""
        return torch.stack([(values * vertex_values[vertex.long()]).sum(1) for vertex in self.vertices.T], 1)


class _Filter(torch.autograd.Function):
    """The filter with its gradient, which is the transposed filter.

    Splatting is the transpose of slicing, and each blur is symmetric. Therefore, reversing the order of the axes
    transposes the whole filter.
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
    """The gradient of the filter with respect to its barycentric weights, which both splat and slice values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, grad: Tensor, lattice: Lattice, reverse: bool) -> Tensor:
        sliced = lattice._products(grad, lattice.splat(values, lattice._splat_weights, reverse))
        splatted = lattice._products(values, lattice.splat(grad, lattice._splat_weights, not reverse))
        return ((sliced + splatted) * lattice._factor).to(lattice.weights.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise NotImplementedError(
            "The lattice is only once differentiable with respect to its features. Detach the features to compute "
            "second derivatives with respect to the values."
        )


def weighted_sums(values: Tensor, rows: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """Compute weighted sums of groups of rows.

    Args:
        values: the rows, [M, C].
        rows: the indices of the rows in each of G groups, [G, n]. Or the indices of all groups in sequence, [n].
        weights: the weight of each index, with the shape of ``rows``.
        starts: the position of the first index of each group, [G], if ``rows`` is [n].

    Returns:
        The sums, [G, C].
    """
    return embedding_bag(rows, values, starts, mode="sum", per_sample_weights=weights.to(values.dtype))


def _vertex_keys(features: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Compute an integer key for each vertex r = 0..d of the simplex of each point.

    All coordinates of vertex r have the remainder r when divided by d+1. A vertex is therefore defined by r, which is
    the last digit of its key, and by the quotients. The first d quotients are enough, since the coordinates sum to 0.

    Returns:
        The keys, [N, d+1], and the barycentric weights of the vertices, [N, d+1], through which the gradient reaches
            the features. Also the place value of the quotient of each axis in the keys.
    """
    num_points, d = features.shape
    # The temporary tensors of a piece of the points fit into the cache of a CPU.
    step = max(1, block_elements(features.device, on_cpu=_PIECE_ELEMENTS) // (d + 1))
    cells, ranks, weights = zip(*(_simplex(points) for points in features.split(step)), strict=True)
    low = torch.stack([piece[:d].amin(1) for piece in cells]).amin(0).tolist()
    high = torch.stack([piece[:d].amax(1) for piece in cells]).amax(0).tolist()
    digits, origin, dtype = _place_values(low, high)
    places = torch.tensor(digits, dtype=dtype, device=features.device)[:, None]
    keys = torch.empty(num_points, d + 1, dtype=dtype, device=features.device)
    for rows, piece, rank in zip(keys.split(step), cells, ranks, strict=True):
        of_vertex = torch.empty(piece.shape, dtype=dtype, device=features.device)
        of_vertex[0] = origin
        for cell, lowest, digit in zip(piece[:d], low, digits[:d], strict=True):
            of_vertex[0].add_((cell - (lowest - 2)).to(dtype), alpha=digit)
        # From each vertex to the next, one coordinate falls by d and its quotient by 1, and all others rise by 1.
        # Each coordinate falls once, in descending order of rank.
        falling = torch.empty_like(of_vertex).scatter_(0, (d - rank).long(), (places - 1).expand_as(of_vertex))
        for r in range(d):
            torch.sub(of_vertex[r], falling[r], out=of_vertex[r + 1])
        rows.copy_(of_vertex.T)
    del cells, ranks  # They are as large as the weights.
    return keys, torch.cat(weights), digits


def _place_values(low: list[int], high: list[int]) -> tuple[list[int], int, torch.dtype]:
    """Define integers for the vertices of simplices whose first vertices have quotients in the ranges low..high.

    A digit of an integer is a quotient minus (low - 2). The quotients of a vertex lie up to 1 below those of the first
    vertex of its simplex, and its neighbors lie 1 to either side. The digits of a vertex are therefore in 1..n-1 for
    n = high - low + 3, and those of a neighbor in 0..n. If digits of a neighbor are n, they carry over, and the lowest
    of them becomes 0. No vertex has a 0, so the neighbor is not confused with a vertex.

    Args:
        low: the lowest value of each of the first d quotients.
        high: the highest value of each quotient.

    Returns:
        The place value of the quotient of each of the d+1 axes, which is 0 for the last axis. Also the integer whose
            digits are all 0, which is a multiple of d+1, and the dtype of the integers: int32 if possible, because it
            is sorted in half the time of int64.

    Raises:
        ValueError: if the integers do not fit into 64 bits.
    """
    corners = len(low) + 1
    sizes = [last - first + 3 for first, last in zip(low, high, strict=True)]
    digits = [corners * math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    # The first digit of a neighbor may be n, and the others may carry over into it.
    span = (sizes[0] + 2) * digits[0]
    if span >= 2**63:
        raise ValueError(
            f"features span too many standard deviations in {len(sizes)} dimensions, because {span:.1e} possible "
            "vertices of the lattice do not fit into 64-bit keys. Use larger standard deviations."
        )
    half = 2**31 // corners * corners
    fits = span <= 2 * half
    return [*digits, 0], -half if fits else 0, torch.int32 if fits else torch.int64


def _numbered(keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Number the distinct keys in ascending order.

    Args:
        keys: the keys of the entries, [N, n].

    Returns:
        The distinct keys, [V], and the number of each entry, int32 [N, n]. Also the entries in the order of their
            numbers, int32 [N n], and the first position of each number in this order, int32 [V].
    """
    ordered, order = keys.flatten().sort(stable=True)
    first = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    numbers = first.cumsum(0, dtype=torch.int32).sub_(1)
    numbers = torch.empty_like(numbers).scatter_(0, order, numbers).view(keys.shape)
    return ordered[first], numbers, order.int(), first.nonzero().flatten().int()


def _simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex of each point (Adams et al., sections 3 and 4.1).

    Vertex r of a simplex, r = 0..d, has the d+1 coordinates (d+1) cells + r - (d+1) [rank > d - r]. The order of the
    floating-point operations is the same as in the C++ code.

    Returns:
        cells: vertex 0 divided by d+1, [d+1, N], int64 for double precision and int32 otherwise. Each column sums to 0.
        rank: the rank of each coordinate of (point - vertex 0) in descending order, int8 [d+1, N].
        weights: the barycentric weights of the vertices, [N, d+1]. They are >= 0 up to rounding, and each row sums to
            1.
    """
    num_points, d = features.shape
    # Splatting, blurring and slicing together have the variance 2/3 (d+1)^2 in every direction, which must be one unit
    # of the features. The rounding is the same as in the C++ code. Both codes then assign points on the border of two
    # simplices to the same simplex.
    inv_std = torch.tensor(math.sqrt(2 / 3) * (d + 1), dtype=features.dtype).item()
    elevated = features.new_empty(d + 1, num_points)
    total = features.new_zeros(num_points)
    for j in range(d, 0, -1):
        column = features[:, j - 1] * (1 / math.sqrt(j * (j + 1)) * inv_std)
        elevated[j] = total - j * column
        total = total + column
    elevated[0] = total

    # Beyond this bound, rounding errors exceed 1 % of a lattice unit. NaN and infinity also fail this test.
    if not bool(elevated.abs().amax() < 0.01 / torch.finfo(features.dtype).eps):
        raise ValueError(
            f"features range from {features.min():.3g} to {features.max():.3g} standard deviations, so they are not "
            f"finite or exceed the precision of {features.dtype}. Use finite features and larger standard deviations."
        )

    nearest = (elevated.detach() * (1 / (d + 1))).round_()
    excess = nearest.sum(0).to(torch.int8)
    # The bound above keeps the cells of single precision within int32, which needs half the memory of int64.
    cells = nearest.to(torch.int64 if features.dtype == torch.float64 else torch.int32)
    rank = _ranks(torch.sub(elevated.detach(), cells, alpha=d + 1))
    # Rounding may move a point off the hyperplane. Changing the coordinates with the largest rounding errors corrects
    # this.
    rank += excess
    wrap = (rank < 0).to(torch.int8) - (rank > d).to(torch.int8)
    rank += (d + 1) * wrap
    cells += wrap

    ascending = torch.empty_like(elevated)
    ascending.scatter_(0, (d - rank).long(), torch.sub(elevated, cells, alpha=d + 1) * (1 / (d + 1)))
    weights = torch.cat([ascending[:1] + (1 - ascending[-1:]), ascending.diff(dim=0)])
    return cells, rank, weights.T.contiguous()


def _ranks(residual: Tensor) -> Tensor:
    """Return the rank of each coordinate of each point [d+1, N] in descending order, int8. Equal ones stay in order."""
    places = torch.arange(len(residual), dtype=torch.int8, device=residual.device)
    # Without any difference, coordinate i has the rank i.
    rank = places[:, None].repeat(1, residual.shape[1])
    for i in range(len(residual) - 1):
        for j in range(i + 1, len(residual)):
            below = (residual[i] < residual[j]).to(torch.int8)
            rank[i] += below
            rank[j] -= below
    return rank


def _blur_axis(vertex_keys: Tensor, neighbors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the rows and the weights of the blur along one axis, both [M, 3].

    The three columns are a vertex and its two neighbors. A neighbor that does not exist has the weight 0.

    Args:
        vertex_keys: the keys of the vertices in ascending order, [M].
        neighbors: the key of each vertex's neighbor on one side, [M].
        dtype: the dtype of the weights.
    """
    count = len(vertex_keys)
    vertices = torch.arange(count, dtype=torch.int32, device=vertex_keys.device)
    after = torch.searchsorted(vertex_keys, neighbors, out_int32=True).clamp_(max=count - 1)
    exists = vertex_keys.index_select(0, after) == neighbors
    # Each vertex is the neighbor, on the opposite side, of its own neighbor. The entry `count` is a dummy for vertices
    # without a neighbor.
    before = vertices.new_full((count + 1,), -1).scatter_(0, torch.where(exists, after, count).long(), vertices)[:count]
    rows = torch.stack([vertices, after, before.clamp(min=0)], 1)
    shares = torch.ones(rows.shape, dtype=dtype, device=rows.device)
    torch.mul(exists, 0.5, out=shares[:, 1])
    torch.mul(before >= 0, 0.5, out=shares[:, 2])
    return rows, shares
