"""Pictures of labels, pixel by pixel."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from contextcrf.data.classes import Classes
from contextcrf.data.visualization import IGNORED_COLOR, colorize, index_png, legend_strip, overlay, qualitative_grid

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
LABELS = torch.tensor([[0, 1], [2, 255]])


def solid(color, size=(40, 30)):
    return Image.new("RGB", size, color)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("labels", [LABELS, LABELS.numpy().astype(np.uint8)], ids=["tensor", "array"])
def test_colorize(labels):
    picture = colorize(labels, PALETTE)
    assert (picture.mode, picture.size) == ("RGB", (2, 2))
    assert np.asarray(picture).tolist() == [[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [224, 224, 192]]]


def test_index_png_keeps_the_labels(tmp_path):
    index_png(LABELS, PALETTE).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), LABELS.numpy())
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.asarray(colorize(LABELS, PALETTE)))


def test_ignored_pixels_have_their_color_beside_256_others():
    assert colorize(LABELS, [(9, 9, 9)] * 256).getpixel((1, 1)) == IGNORED_COLOR == (224, 224, 192)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([[3]]), r"the value 3, but 0 to 2 or 255 \(ignore_index\)"),
        (torch.tensor([[-1]]), "the value -1"),
        (torch.tensor([[256]]), "the value 256"),
        (torch.zeros(2, 2), "integer labels"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), r"\[H, W\]"),
    ],
)
def test_bad_labels(labels, message):
    for draw in (colorize, index_png, lambda *given: overlay(solid((0, 0, 0), (1, 1)), *given)):
        with pytest.raises(ValueError, match=message):
            draw(labels, PALETTE)


@pytest.mark.parametrize(("opacity", "red"), [(0.0, 100), (0.5, 150), (1.0, 200)])
def test_overlay(opacity, red):
    picture = overlay(solid((100, 100, 100), (2, 2)), LABELS, PALETTE, opacity)
    assert picture.getpixel((0, 0)) == (red, round(100 * (1 - opacity)), round(100 * (1 - opacity)))
    assert picture.getpixel((1, 1)) == (100, 100, 100)  # ignored


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.7, 1.0])
def test_overlay_blends_and_keeps_ignored_pixels_as_they_are(opacity):
    image, generator = noise(64, 48), np.random.default_rng(1)
    labels = generator.choice([0, 2, 255], (48, 64))
    found = np.asarray(overlay(image, labels, PALETTE, opacity)).astype(float)
    pixels, colors = np.asarray(image).astype(float), np.asarray(colorize(labels, PALETTE)).astype(float)
    ignored = labels == 255
    np.testing.assert_array_equal(found[ignored], pixels[ignored])
    blended = (1 - opacity) * pixels + opacity * colors
    assert np.abs(found - blended)[~ignored].max() <= 0.5 + 1e-3


def test_overlay_of_ignored_pixels_only_is_the_image():
    image = noise(5, 4)
    found = overlay(image, np.full((4, 5), 255), PALETTE)
    assert found is not image
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


def test_overlay_takes_images_of_other_modes():
    gray = noise(2, 2).convert("L")
    found = overlay(gray, LABELS, PALETTE, 0)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(gray.convert("RGB")))


def test_overlay_refuses_other_sizes_and_opacities():
    with pytest.raises(ValueError, match="have 2 x 2 pixels, but the image has 3 x 2 pixels"):
        overlay(solid((0, 0, 0), (3, 2)), LABELS, PALETTE)
    with pytest.raises(ValueError, match="opacity"):
        overlay(solid((0, 0, 0), (2, 2)), LABELS, PALETTE, 50)


def test_grid_places_pictures_without_scaling_them():
    colors = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]
    rows = [[solid(color) for color in row] for row in colors]
    grid = qualitative_grid(rows, ["Image", "Truth"])
    assert grid.mode == "RGB"
    assert grid.width == 2 * 40 + 3 * 6
    pixels = np.asarray(grid)
    assert (pixels[0] == 255).all()
    boxes = []
    for row in colors:
        for color in row:
            ys, xs = np.nonzero((pixels == color).all(axis=-1))
            assert len(ys) == 40 * 30
            boxes.append((ys.min(), xs.min()))
    (y0, x0), (y1, x1), (y2, x2), (y3, x3) = boxes
    assert (y0, y2) == (y1, y3)
    assert (x0, x1) == (x2, x3)
    assert (x1 - x0, y2 - y0) == (40 + 6, 30 + 6)
    # Each title is in the white above its column.
    for left in (x0, x1):
        assert pixels[:y0, left : left + 40].min() < 128


@given(sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4), legend=st.booleans())
def test_grid_shows_every_pixel_as_it_is(sizes, legend):
    rows = [[noise(width, height, seed)] for seed, (width, height) in enumerate(sizes)]
    classes = Classes(("sky", "grass", "sea"), PALETTE) if legend else None
    grid = np.asarray(qualitative_grid(rows, ["Image"], classes))
    widest = max(width for width, _ in sizes)
    assert grid.shape[1] == widest + 12
    top = 2 * 6 + 13
    for [picture] in rows:
        left = 6 + (widest - picture.width) // 2
        found = grid[top : top + picture.height, left : left + picture.width]
        np.testing.assert_array_equal(found, np.asarray(picture))
        top += picture.height + 6
    assert grid.shape[0] >= top if legend else grid.shape[0] == top


def test_grid_centers_smaller_pictures():
    rows = [[solid((255, 0, 0)), solid((0, 255, 0), (20, 10))], [solid((255, 0, 0)), solid((0, 0, 255))]]
    grid = np.asarray(qualitative_grid(rows, ["Image", "CRF"]))
    small_ys, small_xs = np.nonzero((grid == (0, 255, 0)).all(axis=-1))
    large_xs = np.nonzero((grid == (0, 0, 255)).all(axis=-1))[1]
    first_y = np.nonzero((grid == (255, 0, 0)).all(axis=-1))[0].min()
    assert (small_ys.min() - first_y, small_ys.max() - first_y) == (10, 19)
    assert (small_xs.min() - large_xs.min(), large_xs.max() - small_xs.max()) == (10, 10)


def test_grid_legend_shows_every_class():
    classes = Classes(("sky", "grass", "a class of a very long name"), PALETTE)
    rows = [[solid((9, 9, 9))]]
    plain, with_legend = qualitative_grid(rows, ["Image"]), qualitative_grid(rows, ["Image"], classes)
    assert with_legend.width == plain.width
    below = np.asarray(with_legend)[plain.height :]
    for color in PALETTE:
        assert (below == color).all(axis=-1).sum() >= 50


def test_grid_legend_has_the_classes_that_occur_in_labels():
    classes = Classes(("sky", "grass", "sea"), PALETTE)

    def colors(labels):
        grid = qualitative_grid([[Image.new("RGB", (300, 40))]], ["Image"], classes, labels)
        return {color for _, color in grid.getcolors(1 << 16)} & {*PALETTE, IGNORED_COLOR}

    assert colors(None) == {*PALETTE}
    assert colors([np.array([[0, 2]])]) == {PALETTE[0], PALETTE[2]}
    assert colors(iter([torch.tensor([[1]]), torch.tensor([[2, 255]])])) == {*PALETTE[1:], IGNORED_COLOR}


def test_grid_caption_is_below_the_legend():
    classes = Classes(("sky", "sea"), PALETTE[:2])
    rows = [[Image.new("RGB", (300, 40))]]
    plain = qualitative_grid(rows, ["Image"], classes)
    short, long = (
        qualitative_grid(rows, ["Image"], classes, caption=text) for text in ("one line", "many words " * 20)
    )
    assert plain.height < short.height < long.height
    # The picture and the legend do not move.
    top = np.asarray(plain)[: plain.height - 4]
    for other in (short, long):
        assert np.array_equal(np.asarray(other)[: len(top)], top)
        assert (np.asarray(other)[plain.height :] < 100).any()  # the text


@pytest.mark.parametrize("width", [30, 120, 2000])
def test_a_legend_strip_has_the_classes_that_occur(width):
    strip = legend_strip(width, Classes(("sky", "grass", "sea"), PALETTE), np.array([[0, 2, 255]]))
    colors = {color for _, color in strip.getcolors(1 << 20)}
    assert strip.width == width
    assert {PALETTE[0], PALETTE[2], IGNORED_COLOR} <= colors
    assert PALETTE[1] not in colors


def test_a_legend_strip_is_the_caller_s():
    classes, labels = Classes(("sky", "sea"), PALETTE[:2]), np.array([[0, 1]])
    first = legend_strip(90, classes, labels)
    expected = first.copy()
    first.paste((1, 2, 3), (0, 0, *first.size))
    assert legend_strip(90, classes, labels) == expected


def test_grid_legend_has_columns_where_they_fit():
    classes = Classes(("sky", "grass", "sea"), PALETTE)
    narrow, wide = (qualitative_grid([[solid((9, 9, 9), (width, 30))]], ["Image"], classes) for width in (60, 600))
    places = []
    for grid in (narrow, wide):
        pixels = np.asarray(grid)
        assert (pixels[-1] == 255).all()
        places.append([np.argwhere((pixels == color).all(axis=-1)).min(0) for color in PALETTE])
    assert len({x for _, x in places[0]}) == 1
    assert len({y for y, _ in places[1]}) == 1


def test_grid_draws_names_as_they_are():
    """matplotlib would leave out labels that begin with an underscore and typeset text between dollars."""

    def dark(title, name):
        """Dark pixels of the title, and of the legend."""
        grid = qualitative_grid([[solid((255, 255, 255), (600, 30))]], [title], Classes((name, "b"), PALETTE[:2]))
        pixels = np.asarray(grid).max(axis=2) < 100
        return pixels[:44].sum(), pixels[74:].sum()

    title, legend = dark("x", "x")
    dollars = dark("$x$", "$x$")
    assert dollars[0] > 2 * title
    assert dollars[1] > legend + title
    assert dark("_x", "_x")[1] > legend


def test_grid_shrinks_long_titles():
    grid = qualitative_grid([[solid((9, 9, 9)), solid((9, 9, 9))]], ["surrounding", "x"])
    # The titles do not run into each other: the gap between the columns stays white.
    assert (np.asarray(grid)[:, 46:52] == 255).all()


def test_grid_refuses_ragged_rows():
    with pytest.raises(ValueError, match="pictures in row 1 is 1, but the number of titles is 2"):
        qualitative_grid([[solid((0, 0, 0))] * 2, [solid((0, 0, 0))]], ["Image", "Truth"])
    with pytest.raises(ValueError, match="at least one row"):
        qualitative_grid([], ["Image"])


def test_matplotlib_is_imported_by_grids_only():
    program = "import sys, contextcrf.data.visualization; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
