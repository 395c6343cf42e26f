"""The lattice against its geometry, a dictionary of vertices, the exact kernel matrix and numerical gradients."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from contextcrf.crf.lattice import Lattice, _place_values, _simplex

# Extents, in standard deviations, of a box where a few hundred random points are dense enough to be smoothed.
EXTENT = {1: 20.0, 2: 8.0, 3: 4.0, 5: 2.5}


def points(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return EXTENT[d] * torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian(features: Tensor) -> Tensor:
    return torch.exp(-0.5 * torch.cdist(features, features) ** 2)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def basis(d: int) -> Tensor:
    """Orthogonal basis [d+1, d] of the hyperplane sum(y) = 0: columns (1, ..., 1, -j, 0, ..., 0) scaled to the blur."""
    columns = torch.zeros(d + 1, d, dtype=torch.float64)
    for j in range(1, d + 1):
        columns[:j, j - 1] = 1
        columns[j, j - 1] = -j
    return columns * math.sqrt(2 / 3) * (d + 1) / columns.norm(dim=0)


def corners(features: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices [N, d+1, d+1] (point, vertex, coordinate) of the simplices and the barycentric weights [N, d+1]."""
    cells, rank, weights = _simplex(features)
    d = features.shape[1]
    vertices = [r + (d + 1) * (cells - (rank > d - r).long()) for r in range(d + 1)]
    return torch.stack(vertices).permute(2, 0, 1), weights


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_weights_and_vertices_give_back_the_point(d: int) -> None:
    features = 7 * (points(200, d) - 3)
    vertices, weights = corners(features)
    torch.testing.assert_close(torch.einsum("nv,nvc->nc", weights, vertices.double()), features @ basis(d).T)
    torch.testing.assert_close(weights.sum(1), torch.ones(200, dtype=torch.float64))
    assert weights.min() > -1e-12
    # Lattice points: coordinates sum to 0 and leave one remainder modulo d+1, a different one at each vertex.
    assert (vertices.sum(2) == 0).all()
    assert (vertices % (d + 1) == torch.arange(d + 1)[None, :, None]).all()


# Keys have 32 bits in the first two rows, where the second row needs the negative ones too, and 64 bits in the third.
@pytest.mark.parametrize(
    ("d", "far"),
    [
        *((1, 0), (2, 0), (3, 0), (5, 0)),
        *((2, 15_000), (3, 450), (5, 24)),
        *((2, 50_000), (3, 3_000), (5, 100), (5, 1_000)),
    ],
)
def test_filter_equals_a_dictionary_of_vertices(d: int, far: int) -> None:
    # A box in the coordinates that the keys are packed from, full to its corners: neighbors on its faces would be
    # confused with vertices on the opposite ones if a digit of a key could overflow.
    generator = torch.Generator().manual_seed(1)
    box = (d + 1) * torch.randint(-2, 2, (80, d), generator=generator) + torch.rand(80, d, generator=generator)
    box[: 4 * (far > 0)] += (d + 1) * far * torch.randint(-1, 2, (4, d), generator=generator)[: 4 * (far > 0)]
    features = torch.linalg.solve(basis(d)[:d], box.double().T).T
    values = torch.rand(80, dtype=torch.float64, generator=generator)
    vertices, weights = corners(features)
    keys = [[tuple(corner) for corner in simplex] for simplex in vertices.tolist()]
    grid = dict.fromkeys(itertools.chain(*keys), 0.0)
    for p, r in itertools.product(range(80), range(d + 1)):
        grid[keys[p][r]] += float(weights[p, r] * values[p])
    for axis in range(d + 1):
        step = [d if i == axis else -1 for i in range(d + 1)]
        ahead = {key: tuple(k + s for k, s in zip(key, step, strict=True)) for key in grid}
        behind = {key: tuple(k - s for k, s in zip(key, step, strict=True)) for key in grid}
        grid = {key: grid[key] + (grid.get(ahead[key], 0.0) + grid.get(behind[key], 0.0)) / 2 for key in grid}
    sliced = [sum(float(weights[p, r]) * grid[keys[p][r]] for r in range(d + 1)) for p in range(80)]
    expected = torch.tensor(sliced, dtype=torch.float64) / (1 + 2**-d)
    lattice = Lattice(features)
    assert lattice.num_vertices == len(grid)
    torch.testing.assert_close(lattice.filter(values[:, None])[:, 0], expected)


@pytest.mark.parametrize(("spread", "dtype"), [(2**31 - 5, torch.int32), (2**31 - 4, torch.int64)])
def test_keys_have_32_bits_as_long_as_all_of_them_fit(spread: int, dtype: torch.dtype) -> None:
    digits, origin, found = _place_values([-7], [spread - 7])
    assert digits == [2, 0]
    assert found == dtype
    # The quotients of neighbors are up to 2 below the lowest one and 1 above the highest one.
    assert origin >= torch.iinfo(dtype).min
    assert origin + 2 * (spread + 3) + 1 <= torch.iinfo(dtype).max


# Bounds on relative errors in the 2-norm; what was measured is 1/2 to 9/10 of them. The errors are the method's: its
# kernel is piecewise linear and depends on where in its simplex a point lies, and the blur stops at missing vertices.
@pytest.mark.parametrize(
    ("d", "wave_bound", "impulse_bound", "sum_bound"),
    [(1, 0.05, 0.08, 0.015), (2, 0.05, 0.15, 0.02), (3, 0.06, 0.18, 0.04), (5, 0.10, 0.25, 0.12)],
)
def test_filter_approximates_the_exact_kernel(
    d: int, wave_bound: float, impulse_bound: float, sum_bound: float
) -> None:
    features = points(1500, d)
    kernel = gaussian(features)
    lattice = Lattice(features)
    ones = torch.ones(1500, 1, dtype=torch.float64)
    wave = torch.sin(features.sum(1, keepdim=True) / math.sqrt(d))
    impulse = torch.zeros_like(ones).index_fill_(0, torch.tensor([7]), 1.0)

    constant = 2 ** (d + 1) * 1.5 ** (d / 2) / ((1 + 2**-d) * math.sqrt(d + 1) * (2 * math.pi) ** (d / 2))
    assert relative_error(lattice.filter(ones) / constant, kernel @ ones) < sum_bound
    for values, bound in ((wave, wave_bound), (impulse, impulse_bound)):
        found = lattice.filter(values) / lattice.filter(ones)
        exact = (kernel @ values) / (kernel @ ones)
        assert relative_error(found, exact) < bound


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_filter_is_linear_and_keeps_constants_when_normalized(d: int) -> None:
    lattice = Lattice(points(300, d))
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 300, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(lattice.filter(2 * a - 3 * b), 2 * lattice.filter(a) - 3 * lattice.filter(b))
    torch.testing.assert_close(lattice.filter(a)[:, 1:2], lattice.filter(a[:, 1:2]))
    ones = torch.ones(300, 1, dtype=torch.float64)
    torch.testing.assert_close(lattice.filter(-7.5 * ones) / lattice.filter(ones), -7.5 * ones)
    assert lattice.filter(ones).min() > 0


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_gradient_with_respect_to_the_values(d: int) -> None:
    lattice = Lattice(points(12, d))
    values = torch.rand(12, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lattice.filter, values)
    assert torch.autograd.gradgradcheck(lattice.filter, values)


def test_single_precision_and_the_order_of_the_points_change_nothing() -> None:
    features = points(300, 3)
    values = torch.rand(300, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = Lattice(features).filter(values)
    single = Lattice(features.float()).filter(values.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Lattice(features.float()).filter(values), expected, rtol=1e-4, atol=1e-5)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(Lattice(features[order]).filter(values[order]), expected[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_lattice_in_pieces_is_the_whole_lattice(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    features = points(100, 3).to(dtype)
    values = torch.rand(100, 2, generator=torch.Generator().manual_seed(6), dtype=dtype)
    whole = Lattice(features)
    monkeypatch.setattr("contextcrf.crf.lattice._PIECE_ELEMENTS", 4 * 7)
    pieces = Lattice(features)
    assert pieces.num_vertices == whole.num_vertices
    assert torch.equal(pieces.vertices, whole.vertices)
    assert torch.equal(pieces.filter(values), whole.filter(values))


def test_points_of_double_precision_may_be_billions_of_standard_deviations_apart() -> None:
    lattice = Lattice(torch.tensor([[0.3], [1e10]], dtype=torch.float64))
    assert lattice.num_vertices == 4
    assert bool((lattice.weights >= 0).all())
    values = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    alone = Lattice(torch.tensor([[0.3]], dtype=torch.float64)).filter(values[:1])
    torch.testing.assert_close(lattice.filter(values)[:1], alone)


def test_one_point_and_coinciding_points() -> None:
    assert Lattice(torch.full((1, 5), 0.3)).num_vertices == 6
    single = Lattice(torch.full((1, 2), 0.3)).filter(torch.ones(1, 1))
    torch.testing.assert_close(Lattice(torch.full((9, 2), 0.3)).filter(torch.ones(9, 1)), 9 * single.expand(9, 1))


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_gradient_with_respect_to_the_features(d: int) -> None:
    features = points(12, d).requires_grad_()
    values = torch.rand(12, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, v: Lattice(f).filter(v), (features, values))
    out = Lattice(features).filter(values)
    (gradient,) = torch.autograd.grad(out.square().sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="once"):
        gradient.sum().backward()


@pytest.mark.parametrize("d", [2, 3, 5])
def test_the_gradient_of_the_features_resembles_that_of_the_gaussian(d: int) -> None:
    # The kernel is piecewise linear: its derivative approximates worse than itself (measured: 0.93 and 0.9-1.1).
    features = points(800, d).requires_grad_()
    wave = torch.sin(features.detach().sum(1, keepdim=True) / math.sqrt(d))
    constant = 2 ** (d + 1) * 1.5 ** (d / 2) / ((1 + 2**-d) * math.sqrt(d + 1) * (2 * math.pi) ** (d / 2))
    (found,) = torch.autograd.grad((wave * Lattice(features).filter(wave)).sum() / constant, features)
    (exact,) = torch.autograd.grad((wave * (gaussian(features) @ wave)).sum(), features)
    assert (found * exact).sum() / (found.norm() * exact.norm()) > 0.85
    assert 0.8 < found.norm() / exact.norm() < 1.25


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(4), r"\[N, d\].*\[4\]"),
        (torch.ones(0, 3), r"not empty.*\[0, 3\]"),
        (torch.ones(4, 3, dtype=torch.int64), "int64"),
        (torch.tensor([[0.0], [float("nan")]]), "not finite"),
        (torch.tensor([[0.0], [float("inf")]]), "not finite"),
        (torch.tensor([[0.0], [1e7]]), "precision of torch.float32"),
        (torch.diag(torch.full((5,), 1e5, dtype=torch.float64)), "64-bit keys"),
    ],
)
def test_bad_features_are_refused(features: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lattice(features)


@pytest.mark.parametrize("values", [torch.ones(4), torch.ones(5, 2), torch.ones(4, 0), torch.ones(4, 2).long()])
def test_bad_values_are_refused(values: Tensor) -> None:
    with pytest.raises(ValueError, match=r"values must be float32 or float64 of shape \[4, C\]"):
        Lattice(torch.rand(4, 2)).filter(values)
