"""The classes that `init` finds in masks."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from contextcrf.data.recognition import recognize_masks
from contextcrf.utils.errors import DataError

COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 142), (0, 0, 110))


def drawn(seed, classes=3, side=384):
    """Labels with ellipses, four times as large as the masks."""
    image, rng = Image.new("L", (side, side)), np.random.default_rng(seed)
    for label in range(1, classes):
        x, y = (int(value) for value in rng.integers(0, side * 2 // 3, 2))
        ImageDraw.Draw(image).ellipse([x, y, x + 150, y + 100], fill=label)
    return image


def colored(image):
    return Image.fromarray(np.array(COLORS, np.uint8)[np.array(image)])


def paletted(labels, colors):
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette([part for color in colors for part in color])
    return image


def recognized(folder, images, suffix=".png", ignore_index=None):
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"m{number}{suffix}")
        image.save(paths[-1])
    found = recognize_masks(paths, ignore_index)
    for path in paths:
        found.file.mask_format.read(path)  # Whatever is recognized can be read.
    return found


@pytest.mark.parametrize(
    ("values", "ignore_index", "classes", "ignored"),
    [
        ([0, 1], None, [0, 1], (255,)),
        ([0, 255], None, [0, 255], ()),
        ([0, 1, 2, 255], None, [0, 1, 2], (255,)),
        ([1, 2, 3], None, [1, 2, 3], (255,)),
        ([0, 7, 8, 33, 255], None, [0, 7, 8, 33], (255,)),
        ([0, 85, 170, 255], None, [0, 85, 170, 255], ()),
        ([0, 1, 9], 9, [0, 1], (9,)),
        ([0, 1, 9, 255], 9, [0, 1], (9, 255)),
        ([0, 1, 2], 0, [1, 2], (0,)),
        ([0, 300, 65535], None, [0, 300], (65535,)),
    ],
)
def test_values(tmp_path, values, ignore_index, classes, ignored):
    labels = np.repeat(np.array([values], np.uint16 if max(values) > 255 else np.uint8), 4, 0)
    found = recognized(tmp_path, [Image.fromarray(labels)], ignore_index=ignore_index)
    masks = found.file.mask_format
    assert ([value for part in masks.values for value in part], masks.ignore_values) == (classes, ignored)
    names = ("background", "foreground") if values == [0, 255] else tuple(f"class {value}" for value in classes)
    assert found.file.classes.names == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(900, dtype=np.uint16).reshape(30, 30), "899 different values, but at most 255 classes"),
        (np.array([[3, 255]], np.uint8), r"Without the unlabeled values \[255\], the masks contain the values \[3\]"),
    ],
)
def test_too_many_and_too_few_values(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        recognized(tmp_path, [Image.fromarray(labels)])


def test_colors_of_a_palette(tmp_path):
    found = recognized(tmp_path, [paletted([[0, 1]] * 2, COLORS), paletted([[1, 2]] * 2, COLORS)])
    assert (found.file.mask_format.kind, found.file.classes.palette) == ("index", COLORS[:3])


def test_palettes_in_another_order_are_read_by_color(tmp_path):
    labels = np.array(drawn(0).resize((96, 96), 0))
    found = recognized(tmp_path, [paletted(labels, COLORS[:3]), paletted(2 - labels, COLORS[2::-1])])
    masks = found.file.mask_format
    assert (masks.kind, {*masks.colors}) == ("color", {*COLORS[:3]})
    assert "The palettes of the masks list the same colors in another order" in " ".join(found.findings)
    assert np.array_equal(*(masks.read(tmp_path / f"m{i}.png") for i in range(2)))


def test_other_palettes_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"value 1 is .* in .*m0\.png and \[9, 9, 9\] in .*m1\.png"):
        recognized(tmp_path, [paletted([[0, 1]], COLORS[:2]), paletted([[0, 1]], (COLORS[0], (9, 9, 9)))])


@pytest.mark.parametrize("filter", [Image.Resampling.NEAREST, Image.Resampling.BOX, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_with_smoothed_borders(tmp_path, filter, mode):
    images = [colored(drawn(seed, 5)).resize((96, 96), filter).convert(mode) for seed in range(4)]
    found = recognized(tmp_path, images)
    assert {*found.file.mask_format.colors} == {*COLORS}
    assert any("are mixed colors" in text for text in found.findings) == (filter != Image.Resampling.NEAREST)


def test_blurred_and_compressed_colors(tmp_path):
    found = recognized(tmp_path, [colored(drawn(seed)).filter(ImageFilter.GaussianBlur(3)) for seed in range(4)])
    assert {*found.file.mask_format.colors} == {*COLORS[:3]}
    found = recognized(tmp_path, [colored(drawn(seed)) for seed in range(4)], ".jpg")
    assert len(found.file.mask_format.colors) == 3
    assert np.abs(np.array(sorted(found.file.mask_format.colors)) - sorted(COLORS[:3])).max() <= 2


def test_pixels_without_areas(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (16, 16))
    found = recognized(tmp_path, [Image.fromarray(np.array(COLORS, np.uint8)[labels])])
    assert {*found.file.mask_format.colors} == {*COLORS}


@pytest.mark.parametrize(("suffix", "filter"), [(".jpg", Image.Resampling.NEAREST), (".png", Image.Resampling.BOX)])
def test_smoothed_binary_masks(tmp_path, suffix, filter):
    images = [drawn(seed, 2).point(lambda value: 255 * value).resize((96, 96), filter) for seed in range(4)]
    found = recognized(tmp_path, images, suffix)
    assert found.file.classes.names == ("background", "foreground")
    assert found.file.mask_format.colors == ((0, 0, 0), (255, 255, 255))


def test_compressed_indices_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"m0\.jpg has lossy compression, .* PNG"):
        recognized(tmp_path, [drawn(0)], ".jpg")


def test_the_unlabeled_color_of_voc(tmp_path):
    labels = np.repeat([[0, 1, 2]], 3, 0)
    palette = np.array([*COLORS[:2], (224, 224, 192)], np.uint8)
    found = recognized(tmp_path, [Image.fromarray(palette[labels])])
    assert found.file.mask_format.ignore_colors == ((224, 224, 192),)
    with pytest.raises(DataError, match="--ignore-index is 255, but the masks show the classes as colors"):
        recognized(tmp_path, [Image.fromarray(palette[labels])], ignore_index=255)
