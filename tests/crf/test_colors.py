"""The range of colors: what is refused as a wrong unit, and what is a dark image."""

from typing import Any

import pytest
import torch
from torch import Tensor

from contextcrf.crf import DenseCRF
from contextcrf.crf.colors import almost_black, to_colors

GENERATOR = torch.Generator().manual_seed(0)
UNIT = torch.rand(3, 8, 9, generator=GENERATOR)


def bytes_up_to(high: int) -> Tensor:
    image = torch.randint(0, high + 1, (3, 8, 9), generator=GENERATOR, dtype=torch.uint8)
    image[0, 0, 0], image[0, 0, 1] = 0, high
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (UNIT, r"seem to be in 0\.\.1.*Multiply images by 255, or pass image_range=\(0, 1\)"),
        (UNIT.half(), r"seem to be in 0\.\.1"),
        (2 * UNIT, r"fractions from .* to 1\.9.*image_range=\(low, high\).*image_range=\(0, 255\)"),
        (15.9 * UNIT, r"fractions from .* to 15\.\d+"),
        (UNIT.round().to(torch.uint8), r"whole numbers from 0 to 1, .*multiply the fractions by 255.*\(0, 255\)"),
        (UNIT.round().long(), "whole numbers from 0 to 1"),
        (bytes_up_to(2), "whole numbers from 0 to 2"),
        (bytes_up_to(2).float(), "whole numbers from 0 to 2"),
        ((UNIT - 0.45) / 0.22, r"0\.\.255, but range from -.*normalization.*images \* std \+ mean.*image_range"),
        (1000 * UNIT, r"0\.\.255, but range from .*image_range=\(low, high\)"),
        ((4000 * UNIT).to(torch.uint16), r"uint16, but range only .*12 bits, pass image_range=\(0, 4095\)"),
        ((300 * UNIT).to(torch.uint16), r"10 bits, pass image_range=\(0, 1023\)"),
        (bytes_up_to(255).to(torch.uint16), r"8 bits, pass image_range=\(0, 255\).*dark, .*\(0, 65535\)"),
        (UNIT * float("nan"), "range from nan"),
    ],
)
def test_an_image_in_another_unit_is_refused_even_in_a_batch(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"The values of images .*{message}"):
        to_colors(image[None])
    good = torch.full_like(image.float(), 7)
    good[:, 2] = 40_000 if image.dtype == torch.uint16 else 200
    with pytest.raises(ValueError, match=rf"The values of images\[1\] .*{message}"):
        to_colors(torch.stack([good.to(image.dtype), image]))


@pytest.mark.parametrize(
    "image",
    [
        bytes_up_to(3),  # the noise of a camera in the dark
        bytes_up_to(3).float(),
        bytes_up_to(10),
        (bytes_up_to(12).half() / 255 * 255),  # whole numbers but for the rounding
        bytes_up_to(40).float() * 0.5 + 0.25,  # a dark image that was resized
        torch.zeros(3, 8, 9),
        torch.zeros(3, 8, 9, dtype=torch.uint8),
        torch.ones(3, 8, 9, dtype=torch.uint8),
        torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(3, 8, 9),
        bytes_up_to(255),
        bytes_up_to(255).to(torch.uint32),
        torch.cat([bytes_up_to(255).float(), UNIT[:1]]),  # one channel in 0..1 beside colors
    ],
)
def test_dark_images_and_images_without_contrast_are_taken_as_they_are(image: Tensor) -> None:
    assert torch.equal(to_colors(image[None]).double(), image[None].double())


def test_sixteen_bits_are_scaled() -> None:
    eight = bytes_up_to(255)
    sixteen = (eight.int() * 257).to(torch.uint16)[None]
    torch.testing.assert_close(to_colors(sixteen), eight[None].float())
    logits = torch.randn(1, 4, 8, 9, generator=GENERATOR)
    torch.testing.assert_close(DenseCRF()(logits, sixteen), DenseCRF()(logits, eight[None]), rtol=0, atol=1e-4)
    dark = torch.zeros(1, 1, 2, 2, dtype=torch.uint16)
    assert (to_colors(dark) == 0).all()


@pytest.mark.parametrize(
    ("image", "image_range", "scale"),
    [
        (UNIT, (0, 1), 255),
        (UNIT.double(), (0, 1), 255),
        (2 * UNIT, (0, 2), 127.5),
        (UNIT.round().to(torch.uint8), (0, 1), 255),
        (UNIT.round().to(torch.uint8), (0, 255), 1),
        (UNIT, (0, 255), 1),
        ((4000 * UNIT).to(torch.uint16), (0, 4095), 255 / 4095),
        (bytes_up_to(255).to(torch.uint16), (0, 255), 1),
        ((4000 * UNIT).to(torch.uint16), [0, 65535], 255 / 65535),
    ],
)
def test_whoever_knows_the_range_gives_it(image: Tensor, image_range: Any, scale: float) -> None:
    torch.testing.assert_close(to_colors(image[None], image_range).double(), image[None].double() * scale)


def test_normalized_images_are_mapped_with_their_range() -> None:
    colors = 255 * UNIT[None]
    torch.testing.assert_close(to_colors(2 * UNIT[None] - 1, (-1, 1)), colors)
    logits = torch.randn(1, 4, 8, 9, generator=GENERATOR)
    expected = DenseCRF()(logits, colors)
    torch.testing.assert_close(DenseCRF()(logits, UNIT[None], image_range=(0, 1)), expected)
    found = DenseCRF().log_marginals(logits, UNIT[None], image_range=(0, 1)).exp()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("image_range", [(1, 0), (0, 0), (0, float("inf")), 255, (0, 1, 2), "ab"])
def test_a_bad_range_is_refused(image_range: Any) -> None:
    with pytest.raises(ValueError, match="image_range must be two finite numbers"):
        to_colors(UNIT[None], image_range)


def test_values_outside_of_the_given_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images\[1\] must be in image_range=\(0, 1\), but range from 0 to 1\.5"):
        to_colors(torch.stack([UNIT, 1.5 * UNIT.round()]), (0, 1))
    with pytest.raises(ValueError, match="range from nan"):
        to_colors(UNIT[None] * float("nan"), (0, 1))
    to_colors(UNIT[None] * 1.0005, (0, 1))  # an overshoot of interpolation


def test_gradients_pass_the_range() -> None:
    images = UNIT[None].clone().requires_grad_()
    to_colors(images, (0, 1)).sum().backward()
    assert images.grad is not None
    assert (images.grad == 255).all()


def test_almost_black_is_the_rule_for_files() -> None:
    assert almost_black(bytes_up_to(2))
    assert not almost_black(bytes_up_to(3))
    assert not almost_black(torch.ones(3, 4, 5, dtype=torch.uint8))
