"""The dense CRF is compared with pydensecrf and with exact kernel matrices, and its invariants are checked."""

import runpy
import warnings
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contextcrf.crf.dense import DenseCRF

# The script that made the reference also has the formula of its inputs.
REFERENCE = runpy.run_path(str(Path(__file__).with_name("make_dense_reference.py")))


def scene(height: int, width: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy logits, float64 [1, K, H, W], of a vertical boundary between two textures, uint8 [1, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    side = (torch.arange(width) * 2 >= width).long().expand(height, width)
    colors = torch.tensor([[70, 120, 90], [150, 100, 60]])[side].permute(2, 0, 1)
    image = colors + torch.randint(0, 40, (3, height, width), generator=generator)
    logits = 1.5 * torch.randn(classes, height, width, generator=generator, dtype=torch.float64)
    logits[:2] += 1.5 * torch.stack([1 - side, side])[:classes]
    return logits[None], image.to(torch.uint8)[None]


def exact_mean_field(logits: Tensor, image: Tensor, crf: DenseCRF) -> Tensor:
    """The same mean field with the full N x N kernel matrices; [K, ...] and [C, ...] to [K, ...]."""
    place = torch.cartesian_prod(*(torch.arange(n) for n in logits.shape[1:])).to(logits).flip(1)
    color = image.flatten(1).T.to(logits)

    def kernel(*features: Tensor) -> Tensor:
        matrix = torch.exp(-0.5 * torch.cdist(torch.cat(features, 1), torch.cat(features, 1)) ** 2)
        sums = matrix.sum(1)
        before = {"symmetric": sums.rsqrt(), "before": 1 / sums}.get(crf.normalization, torch.ones_like(sums))
        after = {"symmetric": sums.rsqrt(), "after": 1 / sums}.get(crf.normalization, torch.ones_like(sums))
        return after[:, None] * matrix * before

    def energy(compat: Tensor) -> Tensor:
        compat = compat.to(logits)
        return compat if compat.ndim == 2 else torch.diag(-compat.expand(len(logits)) if compat.ndim == 0 else compat)

    kernels = [
        (kernel(place / crf.spatial_sxy), energy(crf.spatial_compat)),
        (kernel(place / crf.bilateral_sxy, color / crf.bilateral_srgb), energy(crf.bilateral_compat)),
    ]
    unary = logits.flatten(1).T
    q = unary.softmax(1)
    for _ in range(crf.iterations):
        q = (unary - sum(matrix @ q @ compat.T for matrix, compat in kernels)).softmax(1)
    return q.T.reshape(logits.shape)


def assert_same_marginals(found: Tensor, reference: Tensor) -> None:
    """Measured: mean 2e-8 and maximum 7e-7 on the whole scene, where the CRF changes half of the labels."""
    assert (found - reference).abs().mean() < 1e-6
    assert (found - reference).abs().max() < 1e-4
    assert (found.argmax(0) == reference.argmax(0)).double().mean() >= 0.9999


def stored(name: str) -> Tensor:
    values = torch.from_numpy(np.load(REFERENCE["PATH"])[name])
    return torch.cat([values, 1 - values.sum(0, keepdim=True)])


def refined(logits: np.ndarray, image: np.ndarray, **parameters: Any) -> Tensor:
    crf = DenseCRF(**{**REFERENCE["PARAMETERS"], **parameters})
    return crf(torch.from_numpy(logits)[None], torch.from_numpy(image).permute(2, 0, 1)[None])[0]


def piece() -> tuple[np.ndarray, np.ndarray]:
    logits, image = REFERENCE["inputs"]()
    height, width = REFERENCE["PIECE"]
    return logits[:, 12 : 12 + height, 22 : 22 + width], image[12 : 12 + height, 22 : 22 + width]


def test_equals_pydensecrf() -> None:
    logits, image = REFERENCE["inputs"]()
    reference = stored("marginals")
    assert_same_marginals(refined(logits, image), reference)
    assert (reference.argmax(0) != torch.from_numpy(logits).argmax(0)).double().mean() > 0.3


@pytest.mark.parametrize("name", REFERENCE["VARIANTS"])
def test_equals_pydensecrf_with_other_normalizations_and_compatibilities(name: str) -> None:
    assert_same_marginals(refined(*piece(), **REFERENCE["VARIANTS"][name]), stored(name))
    # Each variant differs from the defaults, or the test could not distinguish them.
    assert (stored(name) - refined(*piece())).abs().mean() > 0.003


@pytest.mark.skipif(find_spec("pydensecrf") is None, reason="needs pydensecrf2")
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_pydensecrf_that_is_installed(seed: int) -> None:
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (40, 52, 3), dtype=np.uint8)
    logits = generator.normal(0, 2, (6, 40, 52)).astype(np.float32)
    parameters = {"bilateral_srgb": 40, "bilateral_sxy": 10 + 10 * seed}
    found, reference = refined(logits, image, **parameters), REFERENCE["refine"](logits, image, **parameters)
    # Points on the border of two simplices may fall into either, as rounding has it.
    assert np.abs(found.numpy() - reference).mean() < 1e-5
    assert (found.numpy().argmax(0) == reference.argmax(0)).mean() >= 0.9999


ENERGY3 = [[-2.0, 0.5, 1.0], [0.3, -1.0, 0.0], [0.0, 0.7, -3.0]]
ENERGIES = [[-2.0, 0.5, 1.0, 0.0], [0.3, -1.0, 0.0, 0.2], [0.0, 0.7, -3.0, 0.1], [0.4, 0.0, 0.0, -2.5]]


@pytest.mark.parametrize(
    "crf",
    [
        DenseCRF(),
        DenseCRF(3, 1, 30, 5, 2),
        DenseCRF(2, 1, 20, 20, 3, iterations=5),
        DenseCRF(2, 1, 20, 20, 3, normalization="before"),
        DenseCRF(2, 1, 20, 20, 3, normalization="after"),
        DenseCRF(2, 0.1, 20, 20, 0.1, normalization="none"),
        DenseCRF(2, [-1.0, -2.0, -1.0, -3.0], 20, 20, ENERGIES),
        DenseCRF((2, 4), 1, (20, 10), (20, 10, 30), 3),
    ],
    ids=["default", "weak", "soft", "before", "after", "none", "energies", "axes and channels"],
)
@pytest.mark.parametrize("size", [(24, 32), (27, 17)])
def test_approximates_the_exact_mean_field(crf: DenseCRF, size: tuple[int, int]) -> None:
    logits, image = scene(*size)
    found = crf(logits, image)[0]
    exact = exact_mean_field(logits[0], image[0], crf)
    # Bounds on the approximation by the lattice; the CRF itself moves the marginals by ten times as much.
    assert (found - exact).abs().mean() < 0.015
    assert (found.argmax(0) == exact.argmax(0)).double().mean() > 0.97
    assert (logits[0].softmax(0) - exact).abs().mean() > 0.1


def test_a_batch_equals_its_images_one_by_one() -> None:
    first, second = scene(12, 15, seed=1), scene(12, 15, seed=2)
    both = DenseCRF()(torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]))
    torch.testing.assert_close(both, torch.cat([DenseCRF()(*first), DenseCRF()(*second)]), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (13, 11)])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_any_size_gives_distributions(size: tuple[int, int], classes: int) -> None:
    logits, image = scene(*size, classes=classes)
    marginals = DenseCRF()(logits, image)
    assert marginals.shape == logits.shape
    assert marginals.min() >= 0
    torch.testing.assert_close(marginals.sum(1), torch.ones(1, *size, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(channels: int) -> None:
    logits, image = scene(9, 10)
    gray = image[:, :1]
    crf = DenseCRF()
    # Copies of one channel act as one channel with a smaller standard deviation, except for the approximation.
    copies = DenseCRF(bilateral_srgb=13 * channels**0.5)(logits, gray.expand(-1, channels, -1, -1))
    torch.testing.assert_close(copies, crf(logits, gray), rtol=0, atol=0.05)


def test_an_image_without_contrast_leaves_only_positions() -> None:
    logits, image = scene(8, 9)
    black = torch.zeros_like(image)
    expected = DenseCRF()(logits, black)
    torch.testing.assert_close(DenseCRF()(logits, black.float()), expected)
    # In any unit: 0..1 floats are refused only where they matter.
    flat = torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(1, 3, 8, 9)
    torch.testing.assert_close(DenseCRF()(logits, flat), expected, rtol=0, atol=0.02)
    assert expected.isfinite().all()


def test_what_inference_ignores() -> None:
    logits, image = scene(10, 12)
    crf = DenseCRF(iterations=3)
    expected = crf(logits, image)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(crf(logits[:, order], image), expected[:, order])
    offset = torch.arange(120.0).reshape(1, 1, 10, 12)
    torch.testing.assert_close(crf(logits + offset, image), expected)
    for same in (image.float(), image.double(), image.long(), image.half()):
        torch.testing.assert_close(crf(logits, same), expected)
    strided = logits.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(crf(strided, image.mT.contiguous().mT), expected)


def test_nothing_to_do_returns_the_softmax() -> None:
    logits, image = scene(6, 7)
    torch.testing.assert_close(DenseCRF(iterations=0)(logits, image), logits.softmax(1))
    torch.testing.assert_close(DenseCRF(spatial_compat=0, bilateral_compat=0)(logits, image), logits.softmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_of_the_result(dtype: torch.dtype) -> None:
    logits, image = scene(6, 7)
    marginals = DenseCRF()(logits.to(dtype), image)
    assert marginals.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(marginals.double(), DenseCRF()(logits, image), rtol=0, atol=1e-2)


@pytest.mark.parametrize("pieces", [1 << 19, 30])
@pytest.mark.parametrize("learned", [False, True])
def test_iterations_end_when_no_marginal_changes_much(
    learned: bool, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contextcrf.crf.dense._PIECE_ELEMENTS", pieces)
    torch.manual_seed(0)
    logits, image = 3 * torch.randn(1, 3, 12, 16), torch.randint(256, (1, 3, 12, 16))
    results = [DenseCRF(iterations=count, learnable=learned)(logits, image).detach() for count in range(31)]
    changes = [float((after - before).abs().max()) for before, after in pairwise(results)]
    limit = (changes[4] + changes[5]) / 2
    first = next(count for count, change in enumerate(changes, 1) if change < limit)
    assert 1 < first < 30
    found = DenseCRF(iterations=30, learnable=learned, stop_below=limit)(logits, image).detach()
    torch.testing.assert_close(found, results[first])
    # Each image of a batch ends by itself, and the default runs all iterations.
    clear = 100 * torch.nn.functional.one_hot(torch.zeros(1, 12, 16).long(), 3).movedim(3, 1).float()
    crf = DenseCRF(iterations=30, learnable=learned, stop_below=limit)
    both = crf(torch.cat([logits, clear]), image.expand(2, -1, -1, -1)).detach()
    torch.testing.assert_close(both[:1], results[first])
    assert DenseCRF().stop_below == 0
    with pytest.raises(ValueError, match="stop_below must be >= 0 and < 1, but is 1"):
        DenseCRF(stop_below=1)


def test_labels_below_the_tolerance_are_left_out_and_the_error_is_within_the_stated_bound() -> None:
    classes, tolerance = 60, 1e-4
    logits, image = scene(24, 32, classes=classes)
    logits[:, 4:] -= 16
    few = DenseCRF(tolerance=tolerance)(logits, image)
    whole = DenseCRF(tolerance=0)(logits, image)
    left_out = few.amax((0, 2, 3)) == 0
    assert left_out.sum() == classes - 4
    assert whole[:, left_out].max() <= 1.1 * tolerance
    assert 0 < (few - whole).abs().max() <= classes * 13 * tolerance
    torch.testing.assert_close(few.sum(1), torch.ones(1, 24, 32, dtype=torch.float64))
    # The limit is the tolerance itself.
    probability = torch.tensor([1 - 2e-4, 2e-4, 5e-5]).view(1, 3, 1, 1).expand(1, 3, 24, 32)
    assert (DenseCRF(tolerance=tolerance, iterations=0)(probability.log(), image)[0, :, 0, 0] > 0).tolist() == [1, 1, 0]
    # A matrix may raise a label whose probability is below the tolerance at first.
    matrix = torch.zeros(classes, classes)
    matrix[5, 0] = matrix[5, 5] = -90
    raised = DenseCRF(bilateral_compat=matrix, tolerance=tolerance)(logits, image)
    assert raised[:, 5].max() > 0.5


@pytest.mark.parametrize("classes", [4, 15, 16])
@pytest.mark.parametrize("pieces", [1, 100, 1 << 19])
def test_pieces_and_gradients_change_nothing(monkeypatch: pytest.MonkeyPatch, pieces: int, classes: int) -> None:
    monkeypatch.setattr("contextcrf.crf.dense._PIECE_ELEMENTS", pieces)
    logits, images = scene(11, 13, classes=classes)
    with_gradients = DenseCRF()(logits.clone().requires_grad_(), images)
    assert with_gradients.requires_grad
    torch.testing.assert_close(DenseCRF()(logits, images), with_gradients.detach(), rtol=0, atol=1e-12)
    learnable = DenseCRF(learnable=True)
    expected = learnable(logits, images)
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(learnable(logits, images), expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("iterations", [0, 10])
def test_the_best_label_of_a_pixel_is_never_left_out(iterations: int) -> None:
    logits = torch.zeros(1, 150, 5, 6)
    logits[0, 7, 2, 3] = 1e-3
    images = torch.zeros(1, 3, 5, 6, dtype=torch.uint8)
    marginals = DenseCRF(tolerance=1e-2, iterations=iterations)(logits, images)
    torch.testing.assert_close(marginals.sum(1), torch.ones(1, 5, 6))
    assert (marginals.amax((0, 2, 3)) > 0).nonzero().flatten().tolist() == [0, 7]


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_the_probability_of_labels_left_out_is_shared_among_the_rest(weight: float) -> None:
    classes, tolerance = 30, 1e-3
    logits, image = scene(24, 32, classes=classes)
    logits[:, 4:] = logits[:, :4].logsumexp(1, keepdim=True) + torch.tensor(0.9 * tolerance).log()
    few, whole = (
        DenseCRF(spatial_compat=weight, bilateral_compat=weight, tolerance=value)(logits, image)
        for value in (tolerance, 0)
    )
    assert (few.amax((0, 2, 3)) > 0).sum() == 4
    assert 0.5 * classes * tolerance * 0.9 < (few - whole).abs().max() <= classes * (1 + 2 * weight) * tolerance


def test_autocast_does_not_change_the_result() -> None:
    logits, images = scene(11, 13)
    crf = DenseCRF(spatial_compat=ENERGIES)
    with torch.autocast("cpu", torch.bfloat16):
        found = crf(logits.float(), images)
    torch.testing.assert_close(found, crf(logits.float(), images), rtol=0, atol=0)


def test_a_kernel_of_weight_zero_is_not_computed() -> None:
    logits, images = scene(11, 13)
    # With standard deviations so small a lattice would raise an error.
    only = DenseCRF(bilateral_compat=0, bilateral_sxy=1e-9)(logits, images)
    torch.testing.assert_close(only, DenseCRF(bilateral_compat=1e-12)(logits, images), rtol=0, atol=1e-9)
    assert not torch.allclose(only, logits.softmax(1), atol=1e-2)


def test_nine_channels_of_noise() -> None:
    logits, _ = scene(20, 24)
    images = torch.randint(0, 256, (1, 9, 20, 24), generator=torch.Generator().manual_seed(0))
    crf = DenseCRF(2, 1, 20, 60, 3)
    found, exact = crf(logits, images)[0], exact_mean_field(logits[0], images[0], crf)
    # The more dimensions, the worse the approximation.
    assert (found - exact).abs().mean() < 0.06
    assert (logits[0].softmax(0) - exact).abs().mean() > 0.12


def test_memory_of_any_layout_is_read_and_never_written() -> None:
    logits, images = scene(11, 13)
    expected = DenseCRF()(logits, images)
    pixels = images[0].permute(1, 2, 0).contiguous().numpy()
    pixels.setflags(write=False)
    # Every other row and label of a larger array, and channels last, as pictures are read.
    wide = torch.full((1, 8, 22, 13), 7.0, dtype=torch.float64)
    wide[:, ::2, ::2] = logits
    before = wide.clone()
    with warnings.catch_warnings():
        # torch warns that it does not support read-only memory.
        warnings.simplefilter("ignore")
        picture = torch.from_numpy(pixels)
    found = DenseCRF()(wide[:, ::2, ::2], picture.permute(2, 0, 1)[None])
    assert torch.equal(found, expected)
    assert torch.equal(wide, before)
    assert torch.equal(picture, images[0].permute(1, 2, 0))


def test_a_volume_of_one_slice_is_an_image_and_slices_are_joined() -> None:
    logits, image = scene(9, 10)
    crf = DenseCRF(iterations=3)
    torch.testing.assert_close(
        crf(logits[:, :, None], image[:, :, None])[:, :, 0], crf(logits, image), rtol=0, atol=0.03
    )
    volume, stack = (torch.stack([tensor, tensor.flip(3)], 2) for tensor in (logits, image))
    exact = exact_mean_field(volume[0], stack[0], DenseCRF(2, 1, 8, 20, 3, iterations=3))
    found = DenseCRF(2, 1, 8, 20, 3, iterations=3)(volume, stack)[0]
    assert (found - exact).abs().mean() < 0.015
    apart = DenseCRF((2, 2, 0.01), 1, (8, 8, 0.01), 20, 3, iterations=3)(volume, stack)
    single = DenseCRF(2, 1, 8, 20, 3, iterations=3)(logits, image)
    torch.testing.assert_close(apart[:, :, 0], single, rtol=0, atol=0.05)
    assert (found - apart[0]).abs().max() > 0.1


def test_extra_features_are_channels_in_their_own_unit() -> None:
    logits, image = scene(9, 10)
    crf = DenseCRF(bilateral_srgb=13)
    extra = image[:, 2:].double() / 13
    torch.testing.assert_close(crf(logits, image[:, :2], extra), crf(logits, image))
    for wrong, message in (
        (extra[..., :5], "extra must have the shape"),
        (extra.long(), "int64"),
        (extra / 0, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            crf(logits, image[:, :2], wrong)


def test_infinite_logits_decide_the_label() -> None:
    logits, image = scene(8, 9)
    logits[0, 1, 2, 3] = -float("inf")
    logits[0, 2, 4, 5] = float("inf")
    logits[0, :, 6, 6] = -float("inf")
    marginals = DenseCRF(iterations=3)(logits, image)
    assert marginals.isfinite().all()
    assert marginals[0, 1, 2, 3] == 0
    assert marginals[0, 2, 4, 5] == 1
    torch.testing.assert_close(marginals.sum(1), torch.ones(1, 8, 9, dtype=torch.float64))


def test_three_hundred_classes() -> None:
    logits, image = scene(6, 8, classes=300)
    marginals = DenseCRF()(logits, image)
    torch.testing.assert_close(marginals.sum(1), torch.ones(1, 6, 8, dtype=torch.float64))


def test_gradients_of_everything_that_can_be_learned() -> None:
    logits, image = scene(3, 4, classes=3)
    depth = torch.rand(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    crf = DenseCRF(2.1, 1, (5.3, 4.1), 21, ENERGY3, iterations=2, learnable=True).double()
    assert {name for name, _ in crf.named_parameters()} == {
        "log_spatial_sxy", "spatial_compat", "log_bilateral_sxy", "log_bilateral_srgb", "bilateral_compat"
    }  # fmt: skip
    names, values = zip(*crf.named_parameters(), strict=True)

    def run(u: Tensor, image: Tensor, depth: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(crf, dict(zip(names, values, strict=True)), (u, image, depth))

    inputs = (logits.requires_grad_(), image.double().requires_grad_(), depth, *values)
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("normalization", ["symmetric", "before", "after", "none"])
@pytest.mark.parametrize("compat", [0.5, [-1.0, 0.5, -0.3], ENERGY3])
def test_merged_messages_are_those_of_the_kernels_one_by_one(normalization: Any, compat: Any) -> None:
    logits, image = scene(7, 9, classes=3)
    settings: dict[str, Any] = {"normalization": normalization, "iterations": 3}
    merged = DenseCRF(2, 0.2, 8, 20, compat, **settings)
    apart = DenseCRF(2, 0.2, 8, 20, compat, **settings, learnable=True)
    found, expected = (crf(logits.requires_grad_(), image) for crf in (merged, apart))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    cotangent = torch.randn(found.shape, dtype=found.dtype)
    gradients = [torch.autograd.grad((marginals * cotangent).sum(), logits) for marginals in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_crf_as_rnn_in_five_lines() -> None:
    logits, image = scene(16, 20, classes=2)
    truth = (torch.arange(20) * 2 >= 20).long().expand(1, 16, 20)
    crf = DenseCRF(3, 0.1, 10, 20, 0.1, iterations=3, learnable=True)
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.1)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.nll_loss(crf(logits, image).clamp(min=1e-8).log(), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_gradient_reaches_the_logits() -> None:
    logits, image = scene(3, 4, classes=3)
    crf = DenseCRF(iterations=3)
    assert torch.autograd.gradcheck(lambda u: crf(u, image), logits.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda u: crf(u, image), logits)


def replaced(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[0, 0, 1, 1] = value
    return tensor


LOGITS, IMAGE = torch.zeros(2, 4, 5, 6), torch.full((2, 3, 5, 6), 100.0)


@pytest.mark.parametrize(
    ("logits", "images", "message"),
    [
        (LOGITS[0], IMAGE, r"\[B, K, H, W\].*logits \[4, 5, 6\], images \[2, 3, 5, 6\]"),
        (LOGITS, IMAGE[0], r"\[B, C, H, W\].*images \[3, 5, 6\]"),
        (LOGITS, IMAGE[:1], r"same batch size.*\[2, 4, 5, 6\], images \[1, 3, 5, 6\]"),
        (LOGITS, IMAGE.mT, r"height and width.*\[2, 4, 5, 6\], images \[2, 3, 6, 5\]"),
        (LOGITS, IMAGE.permute(0, 2, 3, 1), r"height and width.*images \[2, 5, 6, 3\]"),
        (LOGITS[:0], IMAGE[:0], "empty"),
        (LOGITS.long(), IMAGE, "int64"),
        (LOGITS, IMAGE.bool(), "bool"),
        (LOGITS, IMAGE.to("meta"), "images on meta"),
        (replaced(LOGITS, float("nan")), IMAGE, "logits must not contain NaN"),
        (LOGITS, replaced(IMAGE, float("nan")), "images must not contain NaN or infinite values"),
        (LOGITS, replaced(IMAGE, 255.5), r"0\.\.255, but range from 100 to 255\.5"),
        (LOGITS, replaced(IMAGE, -2.0), r"0\.\.255.*normalization"),
        (LOGITS, replaced(IMAGE / 255, 0.5), "Multiply images by 255"),
    ],
)
def test_bad_input_is_refused(logits: Tensor, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseCRF()(logits, images)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spatial_sxy", 0),
        ("bilateral_sxy", -1),
        ("bilateral_srgb", float("nan")),
        ("bilateral_srgb", float("inf")),
        ("spatial_compat", float("nan")),
        ("bilateral_compat", float("inf")),
        ("spatial_sxy", (1, 0)),
        ("bilateral_srgb", [[1.0]]),
        ("bilateral_compat", [[1.0, 2.0]]),
        ("spatial_compat", [1.0, float("nan")]),
        ("normalization", "both"),
        ("tolerance", -1e-3),
        ("tolerance", 1),
        ("iterations", -1),
        ("iterations", 2.5),
        ("iterations", "3"),
        ("iterations", True),
        ("iterations", None),
    ],
)
def test_bad_parameters_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        DenseCRF(**{name: value})


@pytest.mark.parametrize(
    ("crf", "message"),
    [
        (DenseCRF(bilateral_compat=torch.eye(3)), r"bilateral_compat has the shape \[3, 3\], .* is 4"),
        (DenseCRF(spatial_compat=[1.0, 2.0]), r"spatial_compat has the shape \[2\]"),
        (DenseCRF(spatial_sxy=(1, 2, 3)), "spatial_sxy needs .* 2 axes of images, but has 3"),
        (DenseCRF(bilateral_srgb=(1, 2)), "bilateral_srgb needs .* 3 channels of images, but has 2"),
    ],
)
def test_parameters_that_do_not_fit_the_input_are_refused(crf: DenseCRF, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crf(LOGITS, IMAGE)


def test_tiny_standard_deviations_are_refused_not_crashed_on() -> None:
    with pytest.raises(ValueError, match="larger standard deviations"):
        DenseCRF(spatial_sxy=1e-9)(LOGITS, IMAGE)


@pytest.mark.parametrize("iterations", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_iterations_of_any_integral_type(iterations: Any) -> None:
    crf = DenseCRF(iterations=iterations)
    assert type(crf.iterations) is int
    assert torch.equal(crf(*scene(6, 7)), DenseCRF(iterations=3)(*scene(6, 7)))


def test_repr_shows_the_documented_defaults() -> None:
    assert repr(DenseCRF()) == (
        "DenseCRF(spatial_sxy=3, spatial_compat=3, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10, "
        "iterations=10, normalization='symmetric')"
    )


def test_log_marginals_are_the_logarithms_of_the_marginals_and_finite_where_these_underflow() -> None:
    logits, images = 3 * torch.randn(2, 4, 6, 7), 255 * torch.rand(2, 3, 6, 7)
    nothing = DenseCRF(spatial_compat=0, bilateral_compat=0, tolerance=0)
    some = [DenseCRF(iterations=count, tolerance=0) for count in (0, 1, 2, 10)]
    for crf in (*some, nothing):
        torch.testing.assert_close(crf.log_marginals(logits, images), crf(logits, images).log())
    sure = 500 * torch.nn.functional.one_hot(torch.zeros(1, 6, 7, dtype=torch.int64), 4).movedim(-1, 1).float()
    sure.requires_grad_()
    logs = DenseCRF().log_marginals(sure, images[:1])
    assert logs.isfinite().all()
    assert (logs[:, 1:] < -500).all()
    logs[:, 1].sum().backward()
    assert sure.grad is not None
    assert (sure.grad[:, 1] > 0.9).all()


def test_what_is_learned_is_not_the_callers_tensor() -> None:
    matrix = torch.eye(3)
    first, second = (DenseCRF(bilateral_compat=matrix, learnable=True) for _ in range(2))
    with torch.no_grad():
        first.bilateral_compat.add_(1)
    assert torch.equal(matrix, torch.eye(3))
    assert torch.equal(second.bilateral_compat, torch.eye(3))


@pytest.mark.cuda
def test_cuda_equals_cpu() -> None:
    logits, image = scene(24, 32)
    found = DenseCRF()(logits.cuda(), image.cuda())
    torch.testing.assert_close(found.cpu(), DenseCRF()(logits, image))
