"""Supervisely's polygons and bitmaps."""

import base64
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from contextcrf.data.importers.importing import import_dataset
from contextcrf.utils.errors import DataError
from sources import imported, mask_of, write_image, write_json


def bitmap(pixels, mode="1"):
    buffer = io.BytesIO()
    pixels = np.array(pixels, np.uint8) * 255
    image = Image.fromarray(pixels).convert("1")
    if mode == "RGBA":
        image = Image.merge("RGBA", [Image.new("L", image.size, 255)] * 3 + [Image.fromarray(pixels)])
    image.save(buffer, "PNG")
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def annotation(objects, width=6, height=4):
    return {"size": {"height": height, "width": width}, "objects": objects}


def item(title, kind, **more):
    return {"classTitle": title, "geometryType": kind, **more}


def ring(*points, holes=()):
    return {"exterior": [list(point) for point in points], "interior": [list(hole) for hole in holes]}


def test_all_kinds_of_shapes(tmp_path):
    root = tmp_path / "project"
    write_image(root / "train" / "img" / "a.png", 8, 5)
    objects = [
        item("road", "polygon", points=ring((0, 0), (2, 0), (2, 2), (0, 2), holes=[[[0, 0], [2, 0], [2, 2], [0, 2]]])),
        item("car", "bitmap", bitmap={"data": bitmap([[1, 0, 1], [0, 1, 0]]), "origin": [4, 1]}),
        item("car", "bitmap", bitmap={"data": bitmap([[1, 1], [0, 1]], "RGBA"), "origin": [0, 3]}),
        item("road", "rectangle", points=ring((6, 3), (7, 4))),
        item("car", "line", points=ring((0, 0), (2, 0))),
        item("car", "bitmap", bitmap={"data": "AAAA", "origin": [4, 1]}),
    ]
    write_json(root / "train" / "ann" / "a.png.json", annotation(objects, 8, 5))
    classes = [{"title": "car", "color": "#0000FF"}, {"title": "road", "color": "#804080"}]
    write_json(root / "meta.json", {"classes": classes})
    report = imported("supervisely", root, tmp_path / "out")
    assert list(report.pixels) == ["background", "car", "road"]
    # The pixels of the outlines belong to polygons, also those of their holes.
    assert mask_of(tmp_path / "out", "a") == ["22200000", "20201010", "22200100", "11000022", "01000022"]
    assert {reason: len(items) for reason, items in report.dropped.items()} == {
        "shapes of the type 'line', which cannot be drawn as an area": 1,
        "shapes that are not valid": 1,
    }
    assert "color: [0, 0, 255]" in (tmp_path / "out" / "classes.yaml").read_text()


def test_data_sets_are_splits_if_they_have_such_names(tmp_path):
    root = tmp_path / "project"
    for folder in ("train", "val"):
        write_image(root / folder / "img" / "a.png")
        objects = [item("car", "rectangle", points=ring((0, 0), (2, 3)))]
        write_json(root / folder / "ann" / "a.json", annotation(objects))
    write_image(root / "val" / "img" / "b.png")
    write_json(root / "val" / "ann" / "c.png.json", annotation([]))
    report = imported("supervisely", root, tmp_path / "out")
    assert report.splits == {"train": 1, "val": 1}
    assert mask_of(tmp_path / "out", "val_a") == ["111000"] * 4
    assert report.dropped == {"images without an annotation": ["val/b.png"], "missing images": ["val/c.png"]}


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "project").mkdir()
    with pytest.raises(DataError, match="contains no folder ann"):
        import_dataset("supervisely", tmp_path / "project", tmp_path / "out")
