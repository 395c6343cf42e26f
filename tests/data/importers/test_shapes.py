"""Shapes are drawn on exactly the pixels whose centers they contain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from contextcrf.data.decoding import turned
from contextcrf.data.importers.drawing import draw
from contextcrf.data.importers.records import IGNORED, UNLABELED, Findings
from contextcrf.data.importers.shapes import Bitmap, Ellipse, PixelPolygon, Polygon, Shape
from contextcrf.utils.errors import DataError


def rows(mask):
    return ["".join("#" if value else "." for value in row) for row in mask.tolist()]


def test_a_box_covers_the_pixels_between_its_edges():
    assert rows(Polygon.box(1, 1, 4, 3).mask(6, 4)) == ["......", ".###..", ".###..", "......"]
    assert rows(Polygon.box(0.4, 0.4, 2.6, 1.4).mask(4, 2)) == ["###.", "...."]


def test_a_triangle_a_hole_and_crossing_lines():
    assert rows(Polygon([(0, 0), (4, 0), (0, 4)]).mask(4, 4)) == ["###.", "##..", "#...", "...."]
    ring, hole = [(0, 0), (5, 0), (5, 5), (0, 5)], [(1, 1), (4, 1), (4, 4), (1, 4)]
    assert rows(Polygon(ring, (hole,)).mask(5, 5)) == ["#####", "#...#", "#...#", "#...#", "#####"]
    bow_tie = Polygon([(0, 0), (6, 5), (6, 0), (0, 5)])
    assert rows(bow_tie.mask(6, 5)) == ["#....#", "##..##", "######", "##..##", "#....#"]


def test_a_rectangle_is_rotated_clockwise_around_its_center():
    assert rows(Polygon.box(1, 2, 5, 4, 90).mask(6, 6)) == ["......", "..##..", "..##..", "..##..", "..##..", "......"]


@given(
    st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 12)), min_size=3, max_size=3),
    st.integers(1, 10),
    st.integers(1, 8),
)
def test_triangles_agree_with_matplotlib(ring, width, height):
    y, x = np.mgrid[:height, :width] + 0.5
    centers = np.stack([x.ravel(), y.ravel()], 1)
    path = Outline([*ring, ring[0]], closed=True)
    # Centers on the outline may be on either side.
    inside, near = (path.contains_points(centers, radius=radius) for radius in (-1e-6, 1e-6))
    certain = (inside == near).reshape(height, width)
    mask = Polygon(ring).mask(width, height)
    assert (mask == inside.reshape(height, width))[certain].all()


def test_a_polygon_of_pixels_contains_its_outline():
    assert rows(PixelPolygon([(1, 0), (3, 0), (3, 2), (1, 2)]).mask(5, 4)) == [".###.", ".###.", ".###.", "....."]
    ring, hole = [(0, 0), (4, 0), (4, 4), (0, 4)], [(1, 1), (3, 1), (3, 3), (1, 3)]
    drawn = rows(PixelPolygon(ring, (hole,)).mask(5, 5))
    assert drawn == ["#####", "#####", "##.##", "#####", "#####"]


def test_a_circle_and_an_ellipse():
    assert rows(Ellipse((2, 2), (1.6, 1.6)).mask(4, 4)) == [".##.", "####", "####", ".##."]
    flat, turned = Ellipse((3, 3), (3, 1)), Ellipse((3, 3), (3, 1), 90)
    assert flat.bounds() == (0, 2, 6, 4)
    assert turned.bounds() == pytest.approx((2, 0, 4, 6))
    assert np.array_equal(turned.mask(6, 6), flat.mask(6, 6).T)


def test_a_bitmap_is_cut_off_at_all_edges():
    pixels = np.array([[1, 1, 0], [0, 1, 1]], bool)
    assert rows(Bitmap(pixels, 1, 1).mask(5, 4)) == [".....", ".##..", "..##.", "....."]
    assert rows(Bitmap(pixels, -1, -1).mask(3, 2)) == ["##.", "..."]
    assert rows(Bitmap(pixels, 2, 1).mask(3, 2)) == ["...", "..#"]
    for left, top in ((9, 0), (0, 9), (-9, 0), (0, -9)):
        assert not Bitmap(pixels, left, top).mask(3, 2).any()


def test_invalid_shapes_are_refused():
    with pytest.raises(DataError, match="2 points"):
        Polygon([(0, 0), (1, 1)])
    with pytest.raises(DataError, match="finite"):
        Polygon([(0, 0), (1, float("nan")), (2, 2)])
    with pytest.raises(DataError, match="radius of 0"):
        Ellipse((1, 1), (0, 0))


def test_the_order_of_overlapping_shapes():
    large, small = Polygon.box(0, 0, 4, 1), Polygon.box(1, 0, 2, 1)
    classes = {"a": 0, "b": 1}

    def drawn(shapes, order="listed"):
        return draw(shapes, (4, 1), classes, order, "x", Findings())[0].tolist()

    assert drawn([Shape("a", large), Shape("b", small)]) == [[0, 1, 0, 0]]
    assert drawn([Shape("b", small), Shape("a", large)]) == [[0, 0, 0, 0]]
    assert drawn([Shape("b", small), Shape("a", large)], "area") == [[0, 1, 0, 0]]
    assert drawn([Shape("b", small, 2), Shape("a", large, 1)]) == [[0, 1, 0, 0]]
    assert drawn([Shape("a", large), Shape(None, small)]) == [[0, IGNORED, 0, 0]]
    assert drawn([Shape("b", small)]) == [[UNLABELED, 1, UNLABELED, UNLABELED]]


def test_what_is_not_drawn_is_counted():
    findings = Findings()
    shapes = [
        Shape("other", Polygon.box(0, 0, 2, 2)),
        Shape("a", Polygon.box(9, 0, 12, 2)),
        Shape("a", Polygon.box(1.1, 0.1, 1.4, 0.4)),
        Shape("a", Polygon.box(0.1, 0.1, 0.4, 0.4)),
        Shape("a", Polygon.box(2, 0, 9, 2)),
    ]
    labels, number = draw(shapes, (4, 2), {"a": 0}, "listed", "x", findings)
    assert number == 1
    assert labels.tolist() == [[-1, -1, 0, 0]] * 2
    assert findings.dropped == {
        "shapes of the class 'other', which is not imported": ["x"],
        "shapes outside the image": ["x"],
        "shapes that cover no pixel": ["x"],
        "shapes with all coordinates in 0..1, which may be fractions of the size of the image": ["x"],
    }
    assert findings.notes == {"shapes that are partly outside the image were cut off at its edge": ["x"]}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_turn_as_pillow_turns_images(orientation):
    from PIL import Image, ImageOps

    labels = np.arange(6, dtype=np.int32).reshape(2, 3)
    image = Image.fromarray(labels.astype(np.uint8))
    image.getexif()[274] = orientation
    assert np.array_equal(turned(labels, orientation), np.asarray(ImageOps.exif_transpose(image)))
