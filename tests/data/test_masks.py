"""Masks of every form that tools write, read as class indices."""

import pickle

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageFilter

from contextcrf.data.classes import Classes, voc_palette
from contextcrf.data.classes_file import ClassesFile
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.masks import COLOR_TOLERANCE, MaskFormat, check_palettes
from contextcrf.data.validation import check_pairs, training_pairs
from contextcrf.utils.errors import DataError
from sources import gray_png, write_planes

COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
LABELS = np.repeat(np.repeat(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), 16, 0), 16, 1)
BY_COLOR = MaskFormat("color", colors=COLORS)


def colored(labels=LABELS, colors=COLORS):
    return Image.fromarray(np.array(colors, np.uint8)[labels])


def paletted(labels=LABELS, colors=COLORS):
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([part for color in colors for part in color])
    return image


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_index_masks_of_all_depths_have_their_stored_values(tmp_path, bits):
    largest = min(2**bits, 1000) - 1
    labels = np.array([[0, 1, largest], [largest, 0, 1]])
    gray_png(tmp_path / "mask.png", labels, bits)
    values = tuple((value,) for value in sorted({0, 1, largest}))
    found = MaskFormat(values=values).read(tmp_path / "mask.png")
    assert found.tolist() == np.minimum(labels, len(values) - 1).tolist()


def test_values_may_be_anything(tmp_path):
    Image.fromarray(np.array([[1, 7, 9, 250]], np.uint8)).save(tmp_path / "mask.png")
    masks = MaskFormat(values=((1, 9), (7,)), ignore_values=(250,))
    assert masks.read(tmp_path / "mask.png").tolist() == [[0, 1, 0, 255]]
    with pytest.raises(DataError, match=r"mask\.png contains the label 250 at 1 pixel, but 1, 7, 9 is expected"):
        MaskFormat(values=((1, 9), (7,))).read(tmp_path / "mask.png")
    Image.fromarray(np.array([[1, -5, 70000]], np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif contains the labels -5, 70000 at 2 pixels"):
        masks.read(tmp_path / "deep.tif")


def test_255_is_a_class_of_binary_masks(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "mask.png")
    masks = MaskFormat(values=((0,), (255,)))
    assert masks.read(tmp_path / "mask.png").tolist() == [[0, 1]]
    data = SegmentationDataset([], Classes(("a", "b"), COLORS[:2]), mask_format=masks)
    assert data.ignore_index is None
    assert data.with_pairs([]).mask_format == masks == pickle.loads(pickle.dumps(masks))


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".gif", ".png"])
@pytest.mark.parametrize("kind", ["gray", "palette"])
def test_lossless_formats_have_indices(tmp_path, suffix, kind):
    path = tmp_path / f"mask{suffix}"
    (Image.fromarray(LABELS) if kind == "gray" else paletted()).save(path)
    assert np.array_equal(MaskFormat.indices(3).read(path), LABELS)


def test_gray_gifs_keep_their_values(tmp_path):
    """GIF has no gray images: Pillow writes a palette of the gray values that occur."""
    Image.fromarray(LABELS // 2 * 2).save(tmp_path / "mask.gif")
    assert np.array_equal(MaskFormat.indices(3).read(tmp_path / "mask.gif"), LABELS // 2 * 2)


def test_a_gif_with_only_the_gray_colors_of_a_palette_has_indices(tmp_path):
    """Class 7 of VOC is gray, so the palette decides and not the colors that occur."""
    palette = voc_palette(21)
    for name, labels in (("a", LABELS // 2 * 7), ("b", LABELS // 2 * 4 + LABELS // 2 * 3)):
        paletted(labels, palette).save(tmp_path / f"{name}.gif", optimize=False)
        assert np.array_equal(MaskFormat.indices(21).read(tmp_path / f"{name}.gif"), LABELS // 2 * 7)


@pytest.mark.parametrize("channels", [4, 5, 6])
def test_tiff_masks_with_more_channels_than_colors_are_refused(tmp_path, channels):
    tifffile.imwrite(
        tmp_path / "mask.tif",
        np.zeros((8, 9, channels), np.uint8),
        photometric="rgb",
        extrasamples=["unspecified"] * (channels - 3),
    )
    with pytest.raises(DataError, match=rf"mask\.tif has {channels} channels, but a mask with one channel"):
        MaskFormat.indices(2).read(tmp_path / "mask.tif")


def test_tiff_masks_that_pillow_cannot_decode_are_refused_with_a_way_out(tmp_path):
    """GDAL writes PlanarConfiguration 2 for a single channel too, with INTERLEAVE=BAND."""
    write_planes(tmp_path / "mask.tif", np.ones((8, 9), np.uint16))
    with pytest.raises(DataError, match="INTERLEAVE=PIXEL"):
        MaskFormat.indices(2).read(tmp_path / "mask.tif")


def test_indices_in_equal_channels(tmp_path):
    Image.fromarray(np.repeat(LABELS[..., None], 3, 2)).save(tmp_path / "mask.png")
    Image.fromarray(LABELS).convert("LA").save(tmp_path / "alpha.png")
    for name in ("mask.png", "alpha.png"):
        assert np.array_equal(MaskFormat.indices(3).read(tmp_path / name), LABELS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colors(tmp_path, mode):
    (paletted() if mode == "P" else colored().convert(mode)).save(tmp_path / "mask.png")
    assert np.array_equal(BY_COLOR.read(tmp_path / "mask.png"), LABELS)
    ignoring = MaskFormat("color", colors=COLORS[1:], ignore_colors=COLORS[:1])
    assert np.array_equal(ignoring.read(tmp_path / "mask.png"), np.where(LABELS == 0, 255, LABELS.astype(int) - 1))


def test_transparent_pixels_are_black_unless_black_is_a_class(tmp_path):
    pixels = np.array(colored().convert("RGBA"))
    pixels[LABELS == 0] = (9, 200, 31, 0)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert np.array_equal(BY_COLOR.read(tmp_path / "mask.png"), LABELS)
    pixels[0, 0] = (0, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png has transparent pixels and opaque black pixels"):
        BY_COLOR.read(tmp_path / "mask.png")


def test_stray_colors_get_the_nearest_class_or_none(tmp_path):
    pixels = np.array(colored())
    pixels[0, 0] = (128 - COLOR_TOLERANCE, 5, 3)
    pixels[0, 1] = (128 - COLOR_TOLERANCE - 1, 60, 3)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    found = BY_COLOR.read(tmp_path / "mask.png")
    assert found[0, :3].tolist() == [1, 255, 0]
    # One color in an area is no accident.
    pixels[:8, :8] = (250, 250, 0)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png has the color \[250, 250, 0\] at 64 pixels, .* class colors"):
        BY_COLOR.read(tmp_path / "mask.png")
    pixels[:] = np.random.default_rng(0).integers(100, 256, pixels.shape)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    with pytest.raises(DataError, match=r"noise\.png has other colors than the class colors at \d+ %"):
        BY_COLOR.read(tmp_path / "noise.png")


def test_jpeg_masks_are_read_by_color_only(tmp_path):
    colored().save(tmp_path / "mask.jpg", quality=90)
    found = BY_COLOR.read(tmp_path / "mask.jpg")
    known = found != 255
    assert known.float().mean() > 0.9
    assert torch.equal(found[known], torch.from_numpy(LABELS.astype(np.int64))[known])
    Image.fromarray(LABELS).save(tmp_path / "index.jpg")
    with pytest.raises(DataError, match=r"index\.jpg has lossy compression"):
        MaskFormat.indices(3).read(tmp_path / "index.jpg")


def test_animations_are_refused(tmp_path):
    paletted().save(tmp_path / "mask.gif", save_all=True, append_images=[paletted(2 - LABELS)])
    with pytest.raises(DataError, match=r"mask\.gif has 2 pages or frames"):
        MaskFormat.indices(3).read(tmp_path / "mask.gif")


def pair(folder, name, mask):
    Image.new("RGB", mask.size).save(folder / f"{name}.jpg")
    mask.save(folder / f"{name}.png")
    return folder / f"{name}.jpg", folder / f"{name}.png"


def test_palettes_in_another_order_are_found_before_a_training(tmp_path, caplog):
    other = paletted(2 - LABELS, COLORS[::-1])  # the same colors
    pairs = [pair(tmp_path, "a", paletted()), pair(tmp_path, "b", other)]
    message = r"value 0 is \[0, 0, 0\] in .*a\.png and \[0, 128, 0\] in .*b\.png.*masks: color"
    with pytest.raises(DataError, match=message):
        check_pairs(pairs, 3, 255)
    data = SegmentationDataset(pairs, Classes(("a", "b", "c"), COLORS), skip_broken=True)
    with pytest.raises(DataError, match=message):
        training_pairs(data)
    check_pairs(pairs, 3, None, BY_COLOR)
    assert np.array_equal(BY_COLOR.read(pairs[1][1]), LABELS)
    # Colors of values that do not occur may differ.
    pairs[1] = pair(tmp_path, "b", paletted(LABELS // 2, (*COLORS[:2], (7, 7, 7))))
    check_palettes([mask for _, mask in pairs], MaskFormat.indices(3))


def test_pixels_without_a_class_color_are_counted(tmp_path, caplog):
    smooth = colored().resize((96, 64)).filter(ImageFilter.BoxBlur(1))
    check_pairs([pair(tmp_path, "a", smooth)], 3, None, BY_COLOR)
    [message] = caplog.messages
    assert "have no class color and are unlabeled" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{masks: colour, classes: [{name: a}, {name: b}]}", "'colour' under the key 'masks'"),
        ("{masks: color, classes: [{name: a}, {name: b}]}", "Entry 0 .* has no color"),
        ("{classes: [{name: a, value: 1}, {name: b}]}", "Entry 1 .* has no value, but other classes"),
        ("{classes: [{name: a, value: null}, {name: b, value: 1}]}", "Entry 0 .* has no value, but other classes"),
        ("{classes: [{name: a, value: 1, value: 2}, {name: b, value: 3}]}", "the key 'value' twice"),
        ("classes: [{name: a}, {name: b}]\nclasses: [{name: c}, {name: d}]", "the key 'classes' twice"),
        ("{classes: [{name: a, value: 1}, {name: b, value: 1}]}", "value 1 occurs more than once"),
        ("{classes: [{name: a, value: x}, {name: b, value: 1}]}", "Entry 0 .* as its value"),
        ("{ignore_colors: [], classes: [{name: a}, {name: b}]}", "only for color masks"),
        ("{mask_suffix: 3, classes: [{name: a}, {name: b}]}", "3 under the key 'mask_suffix'"),
        (
            "{masks: color, ignore_index: 9, classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [1, 1, 1]}]}",
            "'ignore_index', which is only for index masks",
        ),
        (
            "{masks: color, ignore_colors: [red], classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [9, 9, 9]}]}",
            r"\['red'\] under the key 'ignore_colors'",
        ),
    ],
)
def test_errors_of_classes_yaml_name_the_key(tmp_path, text, message):
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        ClassesFile.read(tmp_path / "classes.yaml")
    assert str(tmp_path / "classes.yaml") in str(caught.value)


@pytest.mark.parametrize(
    "masks",
    [
        MaskFormat.indices(3, 9),
        MaskFormat.indices(3, None),
        MaskFormat(values=((1, 4), (2,), (3,)), ignore_values=(0, 65535)),
        MaskFormat("color", colors=COLORS, ignore_colors=((1, 2, 3),)),
    ],
)
def test_classes_yaml_round_trip(tmp_path, masks):
    file = ClassesFile(Classes(("a", "b", "c"), COLORS), masks, "_mask")
    file.write(tmp_path / "classes.yaml")
    assert ClassesFile.read(tmp_path / "classes.yaml") == file
    # Windows programs begin text files with a byte order mark.
    (tmp_path / "classes.yaml").write_text(file.text(), encoding="utf-16")
    assert ClassesFile.read(tmp_path / "classes.yaml") == file


def test_too_many_classes_are_refused(tmp_path):
    names = ", ".join(f"{{name: c{index}}}" for index in range(256))
    (tmp_path / "classes.yaml").write_text(f"classes: [{names}]")
    with pytest.raises(DataError, match="has 256 classes, but at most 255 are possible"):
        ClassesFile.read(tmp_path / "classes.yaml")
