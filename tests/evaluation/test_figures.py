"""Pictures, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.data.classes import Classes
from contextcrf.evaluation.figures import (
    colorize,
    index_png,
    iou_bars,
    overlay,
    push_picture,
    qualitative_grid,
    save_figure,
)

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
LABELS = torch.tensor([[0, 1], [2, 255]])


def solid(color, size=(40, 30)):
    return Image.new("RGB", size, color)


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


def test_void_has_its_color_beside_256_others():
    assert colorize(LABELS, [(9, 9, 9)] * 256).getpixel((1, 1)) == (224, 224, 192)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([[3]]), r"0\.\.2 or 255 \(void\), got 3"),
        (torch.tensor([[-1]]), "got -1"),
        (torch.tensor([[256]]), "got 256"),
        (torch.zeros(2, 2), "integer labels"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), r"\[H, W\]"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        colorize(labels, PALETTE)


@pytest.mark.parametrize(("opacity", "red"), [(0.0, 100), (0.5, 150), (1.0, 200)])
def test_overlay(opacity, red):
    picture = overlay(solid((100, 100, 100), (2, 2)), LABELS, PALETTE, opacity)
    assert picture.getpixel((0, 0)) == (red, round(100 * (1 - opacity)), round(100 * (1 - opacity)))
    assert picture.getpixel((1, 1)) == (100, 100, 100)  # void


def test_overlay_refuses_other_sizes_and_opacities():
    with pytest.raises(ValueError, match="size 3 x 2, got 2 x 2"):
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


def test_grid_centres_smaller_pictures():
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


def test_grid_shrinks_long_titles():
    grid = qualitative_grid([[solid((9, 9, 9)), solid((9, 9, 9))]], ["surrounding", "x"])
    # The titles do not run into each other: the gap between the columns stays white.
    assert (np.asarray(grid)[:, 46:52] == 255).all()


def test_grid_refuses_ragged_rows():
    with pytest.raises(ValueError, match="row 1: expected 2 pictures, one per title, got 1"):
        qualitative_grid([[solid((0, 0, 0))] * 2, [solid((0, 0, 0))]], ["Image", "Truth"])
    with pytest.raises(ValueError, match="at least one row"):
        qualitative_grid([], ["Image"])


def test_iou_bars():
    figure = iou_bars(["sky", "grass", "cow"], {"unary": [0.5, 0.25, float("nan")], "CRF": [0.75, 0.5, 0.25]})
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in container] for container in axes.containers]
    assert heights == [[50, 25], [75, 50, 25]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["sky", "grass", "cow"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["unary (mean 37.5)", "CRF (mean 50.0)"]
    assert [text.get_text() for text in axes.texts] == ["-"]
    unary, crf = axes.containers
    assert unary[0].get_x() + unary[0].get_width() <= crf[0].get_x()


def test_iou_bars_with_nothing_present():
    figure = iou_bars(["sky"], {"unary": [float("nan")]})
    assert figure.legends[0].get_texts()[0].get_text() == "unary (no class present)"


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "at least one"),
        ({"CRF": [0.5]}, "'CRF': expected 2 values"),
        ({"CRF": [50.0, 60.0]}, "of 0 to 1"),
        ({"CRF": [0.1, float("inf")]}, "of 0 to 1"),
    ],
)
def test_iou_bars_refuses(series, message):
    with pytest.raises(ValueError, match=message):
        iou_bars(["sky", "grass"], series)


def test_pushes_are_red_and_blue_over_grey_and_the_node_is_ringed():
    push = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    picture = np.asarray(push_picture(solid((90, 90, 90), (80, 60)), push, (45, 60))).astype(int)
    assert picture.shape == (60, 80, 3)
    red, plain, blue = picture[15, 20], picture[15, 60], picture[45, 20]
    assert red[0] > red[2] + 100
    assert (plain == 90).all()
    assert blue[2] > blue[0] + 30
    assert (picture[45, 57:64] == (255, 255, 0)).all(1).any()
    with pytest.raises(ValueError, match="h, w"):
        push_picture(solid((90, 90, 90)), push[None], (0, 0))


def test_save_figure(tmp_path):
    figure = iou_bars(["sky"], {"unary": [0.5]})
    save_figure(figure, tmp_path / "new" / "bars.png")
    width, height = figure.get_size_inches()
    with Image.open(tmp_path / "new" / "bars.png") as picture:
        assert picture.size == (round(150 * width), round(150 * height))


def test_the_legend_of_bars_lies_within_the_picture():
    rows = {name: [0.5, 0.6] for name in ("unary", "pairwise-surrounding", "pairwise-above", "1unary+2pair", "full")}
    figure = iou_bars(["a", "b"], rows)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
