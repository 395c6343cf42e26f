"""Figures of results, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.evaluation.figures import explanation_picture, iou_bars, save_figure


def solid(color, size=(40, 30)):
    return Image.new("RGB", size, color)


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


def test_the_legend_of_iou_bars_has_the_given_means():
    """Classes that are only predicted have bars of 0, which the mean IoU leaves out."""
    figure = iou_bars(["sky", "grass"], {"unary": [0.5, 0.0]}, {"unary": 0.5})
    assert figure.legends[0].get_texts()[0].get_text() == "unary (mean 50.0)"


def test_iou_bars_with_nothing_present():
    figure = iou_bars(["sky"], {"unary": [float("nan")]})
    assert figure.legends[0].get_texts()[0].get_text() == "unary (no class present)"


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "at least one of each"),
        ({"CRF": [0.5]}, "'CRF' has values of shape .*, but 2 values are expected"),
        ({"CRF": [50.0, 60.0]}, "fraction of 0 to 1"),
        ({"CRF": [0.1, float("inf")]}, "fraction of 0 to 1"),
    ],
)
def test_iou_bars_refuses(series, message):
    with pytest.raises(ValueError, match=message):
        iou_bars(["sky", "grass"], series)


def test_pushes_are_red_and_blue_over_gray_and_the_node_is_ringed():
    push = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    picture = np.asarray(explanation_picture(solid((90, 90, 90), (80, 60)), push, (45, 60))).astype(int)
    assert picture.shape == (60, 80, 3)
    red, plain, blue = picture[15, 20], picture[15, 60], picture[45, 20]
    assert red[0] > red[2] + 100
    assert (plain == 90).all()
    assert blue[2] > blue[0] + 30
    assert (picture[45, 57:64] == (255, 255, 0)).all(1).any()
    with pytest.raises(ValueError, match="h, w"):
        explanation_picture(solid((90, 90, 90)), push[None], (0, 0))


def test_the_scale_of_pushes_can_be_given():
    push, image = torch.tensor([[1.0, -0.5]]), solid((90, 90, 90), (80, 60))
    own, half = (np.asarray(explanation_picture(image, push, (59, 0), scale)).astype(int) for scale in (None, 2.0))
    assert (own[5, 20] - 90).tolist() == pytest.approx((2 * (half[5, 20] - 90)).tolist(), abs=2)
    assert abs(own[5, 20] - 90).max() > 50
    # A map of zeros has no largest value.
    assert (np.asarray(explanation_picture(image, 0 * push, (59, 0)))[5, 20] == 90).all()


def test_save_figure(tmp_path):
    figure = iou_bars(["sky"], {"unary": [0.5]})
    save_figure(figure, tmp_path / "new" / "bars.png")
    width, height = figure.get_size_inches()
    with Image.open(tmp_path / "new" / "bars.png") as picture:
        assert picture.size == (round(150 * width), round(150 * height))


def test_the_legend_of_bars_lies_within_the_picture():
    rows = {name: [0.5, 0.6] for name in ("unary", "surrounding", "above", "unary+pairwise", "unary+pairwise+dense")}
    figure = iou_bars(["a", "b"], rows)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
