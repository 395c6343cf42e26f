"""The dense CRF against pydensecrf, exact kernel matrices and what must hold of any of them."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contextcrf.crf.dense import DenseCRF

# The script that made the reference also has the formula of its inputs.
REFERENCE = runpy.run_path(str(Path(__file__).parent / "data" / "make_dense_reference.py"))


def scene(height: int, width: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy logits, float64 [1, K, H, W], of a vertical boundary between two textures, uint8 [1, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    side = (torch.arange(width) * 2 >= width).long().expand(height, width)
    colours = torch.tensor([[70, 120, 90], [150, 100, 60]])[side].permute(2, 0, 1)
    image = colours + torch.randint(0, 40, (3, height, width), generator=generator)
    logits = 1.5 * torch.randn(classes, height, width, generator=generator, dtype=torch.float64)
    logits[:2] += 1.5 * torch.stack([1 - side, side])[:classes]
    return logits[None], image.to(torch.uint8)[None]


def exact_mean_field(logits: Tensor, image: Tensor, crf: DenseCRF) -> Tensor:
    """The same mean field with the full N x N kernel matrices; [K, H, W] and [C, H, W] to [K, H, W]."""
    classes, height, width = logits.shape
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(logits)
    colour = image.flatten(1).T.to(logits)

    def kernel(*features: Tensor) -> Tensor:
        matrix = torch.exp(-0.5 * torch.cdist(torch.cat(features, 1), torch.cat(features, 1)) ** 2)
        scale = matrix.sum(1).rsqrt()
        return scale[:, None] * matrix * scale

    potts = crf.spatial_compat * kernel(place / crf.spatial_sxy) + crf.bilateral_compat * kernel(
        place / crf.bilateral_sxy, colour / crf.bilateral_srgb
    )
    unary = logits.flatten(1).T
    q = unary.softmax(1)
    for _ in range(crf.iterations):
        q = (unary + potts @ q).softmax(1)
    return q.T.reshape(classes, height, width)


def test_equals_pydensecrf() -> None:
    logits, image = (torch.from_numpy(array) for array in REFERENCE["inputs"]())
    stored = torch.from_numpy(np.load(REFERENCE["PATH"])["marginals"])
    reference = torch.cat([stored, 1 - stored.sum(0, keepdim=True)])
    found = DenseCRF(**REFERENCE["PARAMETERS"])(logits[None], image.permute(2, 0, 1)[None])[0]
    # Measured: mean 2e-8, maximum 7e-7, every label the same, where the CRF changes half of the labels.
    assert (found - reference).abs().mean() < 1e-6
    assert (found - reference).abs().max() < 1e-4
    assert (found.argmax(0) == reference.argmax(0)).double().mean() >= 0.9999
    assert (reference.argmax(0) != logits.argmax(0)).double().mean() > 0.3


@pytest.mark.parametrize(
    "crf",
    [DenseCRF(), DenseCRF(3, 1, 30, 5, 2), DenseCRF(2, 1, 20, 20, 3, iterations=5)],
    ids=["default", "weak", "soft"],
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
    grey = image[:, :1]
    crf = DenseCRF()
    # Copies of one channel act as one channel with a smaller standard deviation, except for the approximation.
    copies = DenseCRF(bilateral_srgb=13 * channels**0.5)(logits, grey.expand(-1, channels, -1, -1))
    torch.testing.assert_close(copies, crf(logits, grey), rtol=0, atol=0.05)


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


def test_gradient_reaches_the_logits() -> None:
    logits, image = scene(3, 4, classes=3)
    crf = DenseCRF(iterations=3)
    assert torch.autograd.gradcheck(lambda u: crf(u, image), logits.requires_grad_())


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
        (LOGITS, IMAGE[:1], r"agree in batch size.*\[2, 4, 5, 6\], images \[1, 3, 5, 6\]"),
        (LOGITS, IMAGE.mT, r"height and width.*\[2, 4, 5, 6\], images \[2, 3, 6, 5\]"),
        (LOGITS, IMAGE.permute(0, 2, 3, 1), r"height and width.*images \[2, 5, 6, 3\]"),
        (LOGITS[:0], IMAGE[:0], "empty"),
        (LOGITS.long(), IMAGE, "int64"),
        (LOGITS, IMAGE.bool(), "bool"),
        (LOGITS, IMAGE.to("meta"), "images on meta"),
        (replaced(LOGITS, float("nan")), IMAGE, "logits must be finite"),
        (replaced(LOGITS, -float("inf")), IMAGE, "clamp probabilities"),
        (LOGITS, replaced(IMAGE, float("nan")), r"0\.\.255"),
        (LOGITS, replaced(IMAGE, 255.5), r"0\.\.255, got 100 to 255\.5"),
        (LOGITS, replaced(IMAGE, -2.0), r"0\.\.255.*normalisation"),
        (LOGITS, replaced(IMAGE / 255, 0.5), "multiply them by 255"),
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
        ("iterations", -1),
        ("iterations", 2.5),
    ],
)
def test_bad_parameters_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        DenseCRF(**{name: value})


def test_tiny_standard_deviations_are_refused_not_crashed_on() -> None:
    with pytest.raises(ValueError, match="larger standard deviations"):
        DenseCRF(spatial_sxy=1e-9)(LOGITS, IMAGE)


def test_repr_shows_the_documented_defaults() -> None:
    assert repr(DenseCRF()) == (
        "DenseCRF(spatial_sxy=3, spatial_compat=3, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10, "
        "iterations=10)"
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    logits, image = scene(24, 32)
    found = DenseCRF()(logits.cuda(), image.cuda())
    torch.testing.assert_close(found.cpu(), DenseCRF()(logits, image))
