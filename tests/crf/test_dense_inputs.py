"""The forms in which the dense CRF takes its inputs: arrays, tensors, one image, a batch."""

import sys
from typing import Any

import numpy as np
import pytest
import torch

from contextcrf.crf import DenseCRF

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(2, 4, 8, 9, generator=GENERATOR)
IMAGES = torch.randint(0, 256, (2, 3, 8, 9), generator=GENERATOR, dtype=torch.uint8)
CRF = DenseCRF(iterations=3)
EXPECTED = CRF(LOGITS, IMAGES)


def same(found: Any, expected: torch.Tensor) -> None:
    assert type(found) is np.ndarray
    assert np.array_equal(found, expected.numpy())


def test_arrays_in_and_an_array_out() -> None:
    same(CRF(LOGITS.numpy(), IMAGES.numpy()), EXPECTED)
    same(CRF(LOGITS.numpy(), IMAGES), EXPECTED)
    assert torch.equal(CRF(LOGITS, IMAGES.numpy()), EXPECTED)
    assert CRF(LOGITS.double().numpy(), IMAGES.numpy()).dtype == np.float64
    extra = torch.randn(2, 1, 8, 9, generator=GENERATOR)
    same(CRF(LOGITS.numpy(), IMAGES.numpy(), extra.numpy()), CRF(LOGITS, IMAGES, extra))
    same(CRF.log_marginals(LOGITS.numpy(), IMAGES.numpy()), CRF.log_marginals(LOGITS, IMAGES))
    learned = DenseCRF(iterations=3, learnable=True)
    same(learned(LOGITS.numpy(), IMAGES.numpy()), learned(LOGITS, IMAGES).detach())


def test_arrays_of_any_memory_layout() -> None:
    flipped = np.ascontiguousarray(IMAGES.numpy()[..., ::-1])[..., ::-1]
    logits = LOGITS.numpy().astype(">f4")
    logits.flags.writeable = False
    before = logits.copy()
    same(CRF(logits, flipped), EXPECTED)
    assert np.array_equal(logits, before)


def test_one_image_without_the_axis_of_the_batch() -> None:
    assert torch.equal(CRF(LOGITS[0], IMAGES[0]), EXPECTED[0])
    same(CRF(LOGITS[0].numpy(), IMAGES[0].numpy()), EXPECTED[0])
    extra = torch.randn(1, 8, 9, generator=GENERATOR)
    torch.testing.assert_close(CRF(LOGITS[0], IMAGES[0], extra)[None], CRF(LOGITS[:1], IMAGES[:1], extra[None]))
    assert torch.equal(CRF.log_marginals(LOGITS[0], IMAGES[0]), CRF.log_marginals(LOGITS, IMAGES)[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_may_be_last_where_the_shape_says_so(dtype: Any) -> None:
    factor = 257 if dtype == np.uint16 else 1
    last = (IMAGES.permute(0, 2, 3, 1).int() * factor).numpy().astype(dtype)
    expected = EXPECTED if dtype == np.uint8 else CRF(LOGITS, IMAGES.float())
    np.testing.assert_allclose(CRF(LOGITS.numpy(), last), expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(CRF(LOGITS[0].numpy(), last[0]), expected[0].numpy(), atol=1e-4)


def test_a_shape_that_fits_the_documented_axes_has_them() -> None:
    """An image of 3 x 3 pixels is always [C, H, W]."""
    logits, image = LOGITS[0, :, :3, :3], IMAGES[0, :, :3, :3]
    assert torch.equal(CRF(logits, image), CRF(logits.clone()[None], image.clone()[None])[0])


@pytest.mark.parametrize(
    ("logits", "images", "message"),
    [
        (LOGITS[0], IMAGES[0].float().permute(1, 2, 0), r"Found logits \[4, 8, 9\], images \[8, 9, 3\].*Move the"),
        (LOGITS[0], IMAGES, r"\[K, H, W\] and \[C, H, W\] for one image"),
        (LOGITS[0], IMAGES[0, 0], r"images \[8, 9\]"),
        (LOGITS.tolist(), IMAGES, "logits must be a tensor or a NumPy array, but is of the type list"),
        (LOGITS.numpy(), IMAGES.numpy() > 9, "images of torch.bool"),
        (LOGITS.numpy().astype(object), IMAGES, "logits must have a numeric dtype of torch, but has the dtype object"),
        (LOGITS.numpy(), IMAGES.numpy() / 255, r"images\[0\] seem to be in 0\.\.1"),
    ],
)
def test_bad_inputs_are_named_as_they_were_given(logits: Any, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CRF(logits, images)


def test_parameters_from_numpy() -> None:
    matrix = np.eye(4)
    matrix.flags.writeable = False
    values: list[Any] = [np.float32(3), np.int64(3), np.array([80.0, 80.0]), [13, 13, 13], -matrix, np.int64(3)]
    crf = DenseCRF(*values)
    assert crf(LOGITS, IMAGES).shape == LOGITS.shape
    assert type(crf.iterations) is int


def test_numpy_is_not_imported_for_it() -> None:
    for name in ("checks", "colors", "dense", "dense_inputs", "unaries"):
        assert "np" not in vars(sys.modules[f"contextcrf.crf.{name}"])
        assert "numpy" not in vars(sys.modules[f"contextcrf.crf.{name}"])


@pytest.mark.cuda
def test_arrays_go_to_the_device_of_the_module() -> None:
    found = DenseCRF(iterations=3).cuda()(LOGITS.numpy(), IMAGES.numpy())
    np.testing.assert_allclose(found, EXPECTED.numpy(), atol=1e-4)
