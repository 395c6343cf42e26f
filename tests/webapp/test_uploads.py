"""The files that the page accepts, and the time that a computation may take."""

import math
import time

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.webapp.limits import Deadline, Limits, Refusal
from contextcrf.webapp.uploads import FORMATS, read_upload
from pictures import bomb, encoded

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", FORMATS)
def test_images_are_read(kind):
    exact = {"lossless": True} if kind == "WEBP" else {}
    pixels, size = read_upload(encoded(NOISE, kind, **exact), Limits())
    assert size == (60, 40)
    expected = torch.from_numpy(np.array(NOISE)).permute(2, 0, 1)
    if kind == "JPEG":
        assert pixels.shape == expected.shape
    else:
        assert torch.equal(pixels, expected)


def test_large_images_are_shrunk_and_keep_their_shape():
    pixels, size = read_upload(encoded(NOISE.resize((600, 300))), Limits(side=200))
    assert size == (600, 300)
    assert pixels.shape == (3, 100, 200)


def test_images_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, size = read_upload(encoded(NOISE, "JPEG", exif=exif), Limits())
    assert size == (40, 60)
    assert pixels.shape == (3, 60, 40)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA"])
def test_images_of_eight_bits_and_any_mode_are_read(mode):
    pixels, _ = read_upload(encoded(NOISE.convert(mode)), Limits())
    assert pixels.shape == (3, 40, 60)


# For the first, Pillow raises an error, for the second a warning; the third exceeds only the page's limit.
@pytest.mark.parametrize("side", [50_000, 10_000, 8_000])
def test_a_decompression_bomb_is_refused_undecoded(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    file = bomb(side, side)
    assert len(file) < 1000
    with pytest.raises(Refusal, match=r"the page accepts at most 50 megapixels\. It was not decoded"):
        read_upload(file, Limits())


def test_an_image_at_the_limit_is_read_and_a_larger_one_is_not():
    file = encoded(Image.new("RGB", (40, 30)))
    assert read_upload(file, Limits(pixels=1200))[1] == (40, 30)
    with pytest.raises(Refusal, match=r"header, the image has 40 x 30 pixels, .* at most 0.001199 megapixels"):
        read_upload(file, Limits(pixels=1199))


def test_a_large_file_is_refused_before_it_is_opened(monkeypatch):
    file = encoded(NOISE)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(Refusal, match=r"has 0.0 MB, but the page accepts at most 0.001 MB"):
        read_upload(file, Limits(megabytes=0.001))


@pytest.mark.parametrize(
    "file", [b"", b"hello", b"%PDF-1.7 ...", b"<svg xmlns='http://www.w3.org/2000/svg'/>", encoded(NOISE, "TIFF")]
)
def test_files_of_other_formats_are_refused_by_their_content(file):
    with pytest.raises(Refusal, match="JPEG, PNG, WebP and BMP"):
        read_upload(file, Limits())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_broken_image_is_refused(kind):
    file = encoded(NOISE, kind)
    with pytest.raises(Refusal):
        read_upload(file[: len(file) // 2], Limits())


def test_sixteen_bits_per_channel_are_scaled_and_not_clipped():
    deep = Image.fromarray(np.full((80, 90), 40_000, np.uint16))
    assert read_upload(encoded(deep), Limits(side=50))[0].unique().tolist() == [156]
    with pytest.raises(Refusal, match="its range may be"):
        read_upload(encoded(Image.fromarray(np.full((80, 90), 4_000, np.uint16))), Limits())


@pytest.mark.parametrize("limit", ["megabytes", "pixels", "side", "seconds"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_limits_are_positive(limit, value):
    with pytest.raises(ValueError, match=f"limit {limit} is {value}, but a positive number"):
        Limits(**{limit: value})


def test_pillows_own_limit_stays():
    with pytest.raises(ValueError, match="Pillow treats larger images as an attack"):
        Limits(pixels=Image.MAX_IMAGE_PIXELS + 1)


def test_work_is_stopped_when_its_time_is_over():
    start, rounds = time.monotonic(), 0

    def work():
        nonlocal rounds
        with Deadline(0.1):
            while time.monotonic() < start + 20:
                torch.ones(8).sum()
                rounds += 1

    with pytest.raises(Refusal, match=r"longer than 0.1 seconds"):
        work()
    assert rounds > 0
    assert time.monotonic() - start < 10
    torch.ones(8).sum()  # The deadline ends with the block.


def test_work_in_time_gives_the_same_result_as_without_a_deadline():
    with Deadline(100) as deadline:
        assert torch.arange(4).sum() == 6
        deadline.check()
