"""Readers of images and masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.data.images import DECODING_ERRORS, as_pixels, orientation, read_image, read_mask
from contextcrf.utils.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(PIXELS), PIXELS, torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())],
    ids=["PIL", "array", "tensor"],
)
def test_usual_forms_of_an_image(image):
    pixels = as_pixels(image)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 5, 7))
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(PIXELS))


@pytest.mark.parametrize("image", [Image.fromarray(PIXELS[..., 0]), PIXELS[..., 0]], ids=["PIL", "array"])
def test_gray_images_become_rgb(image):
    assert (as_pixels(image) == torch.from_numpy(PIXELS[..., 0])).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("I", (3, 2)), "32-bit or signed 16-bit integers"),
        (PIXELS.astype(float), r"dtype float64 and shape \(5, 7, 3\), but a uint8 array \[H, W, 3\]"),
        (PIXELS[..., :2], r"array has dtype uint8 and shape \(5, 7, 2\)"),
        (torch.zeros(5, 7, 3, dtype=torch.uint8), r"shape \(5, 7, 3\), but a uint8 tensor \[3, H, W\]"),
        ("a.png", "type str, but a PIL image"),
    ],
)
def test_unclear_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        as_pixels(image)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_image_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS).save(path)
    assert torch.equal(read_image(path), as_pixels(PIXELS))
    assert orientation(path) == 1


@pytest.mark.parametrize(
    ("turn", "upright"),
    [(1, PIXELS), (2, PIXELS[:, ::-1]), (3, PIXELS[::-1, ::-1]), (6, np.rot90(PIXELS, -1)), (8, np.rot90(PIXELS))],
)
def test_images_are_read_upright(tmp_path, turn, upright):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.png"), as_pixels(upright.copy()))
    assert orientation(tmp_path / "a.png") == turn


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "Pillow cannot identify its format"), (b"text", "its format"), (60, "")],
    ids=["missing", "empty", "text", "truncated"],
)
@pytest.mark.parametrize("read", [read_image, lambda path: read_mask(path, 255)], ids=["image", "mask"])
def test_files_that_cannot_be_read_are_named_once(tmp_path, content, reason, read):
    path = tmp_path / "damaged.png"
    if isinstance(content, int):
        Image.fromarray(PIXELS).save(path)
        content = path.read_bytes()[:content]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DECODING_ERRORS) as caught:
        read(path)
    assert isinstance(caught.value, DataError)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as ")
    assert reason in message
    assert message.count("damaged") == 1
    assert not message.endswith(": .")


def test_deep_images_are_refused_and_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png cannot be read as an image: .*value is 4000, .* \(12 bits\) or"):
        read_image(tmp_path / "deep.png")


def test_large_images_are_read_without_a_warning_and_huge_ones_refused(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5 * 7 - 1)
    assert read_image(tmp_path / "large.png").shape == (3, 5, 7)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5 * 7 // 2 - 1)
    with pytest.raises(DataError, match=r"large\.png cannot be read as an image: .*exceeds limit"):
        read_image(tmp_path / "large.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_map_their_ignore_index(tmp_path, dtype):
    labels = np.array([[0, 1, 9], [255, 9, 2]], dtype)
    Image.fromarray(labels).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", 9)
    assert mask.dtype == torch.int64
    assert mask.tolist() == [[0, 1, 255], [255, 255, 2]]


def test_palette_masks_hold_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", 255).tolist() == [[0, 1]]


def test_masks_with_colors_are_refused(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png has several channels with colors, but a mask with one channel"):
        read_mask(tmp_path / "mask.png", 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_an_opened_image_is_applied_as_for_its_file(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    with Image.open(tmp_path / "phone.png") as image:
        assert torch.equal(as_pixels(image), read_image(tmp_path / "phone.png"))
        assert image.size == (6, 4)  # the image of the caller is unchanged
