"""Logits from probabilities and labels."""

import math

import numpy as np
import pytest
import torch

from contextcrf.crf import DenseCRF, logits_from_labels, logits_from_probabilities


def test_probabilities_come_back_from_their_logits() -> None:
    probabilities = torch.rand(2, 4, 3, 5).softmax(1)
    torch.testing.assert_close(logits_from_probabilities(probabilities).softmax(1), probabilities)
    sure = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(logits_from_probabilities(sure, floor=1e-3).flatten().exp(), torch.tensor([1, 1e-3]))
    half = logits_from_probabilities(sure, scale=0.6).flatten().exp()
    torch.testing.assert_close(half, torch.tensor([0.8, 0.2]))


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 1, 7), (1, 4, 5), (4, 5)])
def test_foreground_probabilities_become_background_and_foreground(shape: tuple[int, ...]) -> None:
    foreground = torch.rand(shape) * 0.9 + 0.05
    logits = logits_from_probabilities(foreground)
    axis = 1 if shape[0] == 2 else 0
    plain = foreground.squeeze(axis) if foreground.ndim > 2 else foreground
    assert logits.shape == (*shape[:axis], 2, *plain.shape[axis:])
    torch.testing.assert_close(logits.softmax(axis).select(axis, 1), plain)
    torch.testing.assert_close(logits.softmax(axis).select(axis, 0), 1 - plain)


def test_a_sure_foreground_has_two_classes_too() -> None:
    logits = logits_from_probabilities(torch.ones(1, 1, 2, 3))
    assert logits.shape == (1, 2, 2, 3)
    assert (logits.argmax(1) == 1).all()


def test_three_axes_are_one_image_if_the_sums_say_so() -> None:
    one = torch.rand(4, 5, 6).softmax(0)
    torch.testing.assert_close(logits_from_probabilities(one), one.log())
    rows = torch.rand(4, 5, 6).softmax(1)  # [B, K, N]
    torch.testing.assert_close(logits_from_probabilities(rows), rows.log())
    with pytest.raises(ValueError, match=r"insert an axis for the classes: \[B, 1, H, W\]"):
        logits_from_probabilities(torch.rand(4, 5, 6))


def test_arrays_come_back_as_arrays() -> None:
    probabilities = torch.rand(1, 3, 4, 5).softmax(1)
    logits = logits_from_probabilities(probabilities.numpy())
    assert isinstance(logits, np.ndarray)
    assert np.array_equal(logits, logits_from_probabilities(probabilities).numpy())
    labels = np.array([[[0, 2, 255]]], np.uint8)
    found = logits_from_labels(labels, 3)
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, logits_from_labels(torch.from_numpy(labels), 3).numpy())


def test_labels_have_their_confidence_and_unknown_ones_are_uniform() -> None:
    labels = torch.tensor([[[0, 2, 255]]], dtype=torch.uint8)
    logits = logits_from_labels(labels, 3, confidence=0.8)
    expected = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]]).T.view(1, 3, 1, 3)
    torch.testing.assert_close(logits.exp(), expected)
    assert (logits_from_labels(labels[..., :1], 1) == 0).all()


def test_the_dense_crf_fills_in_unknown_labels() -> None:
    labels = torch.zeros(1, 12, 16, dtype=torch.long)
    labels[..., 8:] = 1
    image = (100 * labels[:, None] + 50).expand(-1, 3, -1, -1)
    holed = labels.clone()
    holed[:, 3:9, 2:14] = 255
    filled = DenseCRF()(logits_from_labels(holed, 2), image).argmax(1)
    assert torch.equal(filled, labels)


@pytest.mark.parametrize(
    ("probabilities", "options", "message"),
    [
        (torch.randn(1, 3, 2, 2), {}, r"in 0\.\.1.* logits, use them without conversion"),
        (torch.full((1, 3, 2, 2), math.nan), {}, "nan"),
        (torch.rand(1, 2, 2, 3).softmax(3), {}, "classes to axis 1"),
        (torch.ones(1, 1, 2, 2).long(), {}, "int64"),
        (torch.randn(1, 1, 2, 2) * 4, {}, r"in 0\.\.1.* logits, use them without conversion"),
        (torch.ones(0, 2), {}, "not empty"),
        ([[0.5]], {}, "probabilities must be a tensor or a NumPy array, but is of the type list"),
        (torch.ones(3), {}, r"\[B, K, ...\]"),
        (torch.ones(1, 1, 2, 2), {"floor": 0}, "floor .* is 0"),
        (torch.ones(1, 1, 2, 2), {"scale": 1.5}, "scale .* is 1.5"),
    ],
)
def test_bad_probabilities_are_refused(probabilities, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        logits_from_probabilities(probabilities, **options)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (torch.tensor([[[3]]]), {}, r"contain 3, .*\(0 to 2\).*ignore_index \(255\)"),
        (torch.tensor([[[-1]]]), {}, "contain -1"),
        (torch.rand(1, 2, 2), {}, "float32"),
        (torch.tensor([[[1]]]), {"confidence": 1}, "confidence .* is 1"),
        (torch.tensor([[[1]]]), {"num_classes": 0}, "num_classes .* is 0"),
    ],
)
def test_bad_labels_are_refused(labels, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        logits_from_labels(labels, **{"num_classes": 3, **options})


def test_labels_of_0_and_255_with_two_classes_are_unclear() -> None:
    labels = torch.tensor([[0, 255, 0]])
    with pytest.raises(ValueError, match=r"no label is 1.*pass ignore_index=255"):
        logits_from_labels(labels, 2)
    assert logits_from_labels(labels, 2, ignore_index=255)[0, :, 1].exp().tolist() == pytest.approx([0.5, 0.5])
    assert logits_from_labels(labels, 3).shape == (1, 3, 3)
    assert logits_from_labels(torch.tensor([[0, 255, 1]]), 2).shape == (1, 2, 3)
