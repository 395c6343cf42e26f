"""Images of every depth, mode and color space become 8 bits per channel and sRGB."""

import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from contextcrf.data import conversion
from contextcrf.data.images import as_pixels, hidden_turns, read_image
from contextcrf.data.validation import check_pairs
from contextcrf.utils.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def deep_png(path, values):
    """An RGB PNG of 16 bits, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled(tmp_path, suffix):
    values = PIXELS[..., 0].astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    expected = as_pixels(PIXELS[..., 0])
    assert torch.equal(read_image(tmp_path / f"a{suffix}"), expected)
    assert torch.equal(as_pixels(values), expected)
    assert torch.equal(as_pixels(torch.from_numpy(PIXELS.astype(np.uint16) * 257).permute(2, 0, 1)), as_pixels(PIXELS))


def test_16_bits_in_three_channels(tmp_path):
    deep_png(tmp_path / "a.png", PIXELS.astype(np.uint16) * 257)
    assert torch.equal(read_image(tmp_path / "a.png"), as_pixels(PIXELS))
    deep_png(tmp_path / "a.png", PIXELS.astype(np.uint16) * 16)
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image: .* camera with 8, 10, 12 or 14 bits"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (1023, 10), (4095, 12), (9000, 14)])
def test_the_range_of_a_camera_is_refused(tmp_path, largest, bits):
    values = np.full((4, 4), largest, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"largest value is {largest}, .*\({bits} bits\)"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"\({bits} bits\)"):
        as_pixels(values)
    Image.new("L", (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=rf"a\.png cannot be read as an image: .*\({bits} bits\)"):
        check_pairs([(tmp_path / "a.png", tmp_path / "mask.png")], 2, 255)


def test_fractions_from_0_to_1(tmp_path):
    Image.fromarray((PIXELS[..., 0] / 255).astype(np.float32)).save(tmp_path / "a.tif")
    assert torch.equal(read_image(tmp_path / "a.tif"), as_pixels(PIXELS[..., 0]))
    for wrong in (PIXELS[..., 0] / 100, np.full((3, 3), np.nan)):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match=r"a\.tif cannot be read as an image: .*but 0 to 1 is expected"):
            read_image(tmp_path / "a.tif")
    Image.fromarray(np.full((3, 3), 70000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif cannot .* 32-bit or signed 16-bit integers"):
        read_image(tmp_path / "a.tif")


def test_transparent_pixels_are_composed_over_black_and_said_once(tmp_path, caplog):
    conversion._say_composed.cache_clear()
    rgba = np.dstack([PIXELS, np.full((5, 7), 255, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "opaque.png")
    assert torch.equal(read_image(tmp_path / "opaque.png"), as_pixels(PIXELS))
    assert not caplog.messages
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    with caplog.at_level(logging.INFO):
        found = read_image(tmp_path / "a.png").permute(1, 2, 0).numpy()
        read_image(tmp_path / "a.png")
    assert caplog.messages == ["Some images have transparent pixels. They are composited over black."]
    assert not found[0, 0].any()
    assert np.abs(found[0, 1] - PIXELS[0, 1] * (128 / 255)).max() <= 1
    assert np.array_equal(found[1:], PIXELS[1:])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "1"])
def test_modes(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    suffix = ".tif" if mode == "CMYK" else ".png"
    image.save(tmp_path / f"a{suffix}")
    expected = np.asarray(image.convert("L" if mode == "LA" else mode).convert("RGB"))
    assert torch.equal(read_image(tmp_path / f"a{suffix}"), as_pixels(expected.copy()))


def test_color_profiles_are_converted_to_srgb(tmp_path, caplog):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "a.png", icc_profile=srgb)
    assert torch.equal(read_image(tmp_path / "a.png"), as_pixels(PIXELS))
    image.save(tmp_path / "a.png", icc_profile=swapped(srgb))
    found = read_image(tmp_path / "a.png")
    expected = as_pixels(PIXELS[..., ::-1].copy()).int()
    assert (found.int() - expected).abs().float().mean() < 3
    image.save(tmp_path / "a.png", icc_profile=b"no profile")
    assert torch.equal(read_image(tmp_path / "a.png"), as_pixels(PIXELS))
    assert any("color profile of an image cannot be used" in message for message in caplog.messages)


def swapped(profile):
    """The profile with red and blue exchanged, under another name."""
    return (
        profile.replace(b"rXYZ", b"tXYZ")
        .replace(b"bXYZ", b"rXYZ")
        .replace(b"tXYZ", b"bXYZ")
        .replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    )


def test_turned_images_whose_size_does_not_show_it(tmp_path):
    paths = []
    for name, size, orientation in (("a", (6, 6), 6), ("b", (6, 4), 6), ("c", (6, 4), 3), ("d", (6, 6), 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(tmp_path / f"{name}.jpg")
        Image.new("RGB", size).save(paths[-1], exif=exif)
    assert hidden_turns(paths) == [paths[0], paths[2]]
