"""labelme's shapes."""

import base64
import io

import numpy as np
from PIL import Image

from sources import imported, mask_of, write_image, write_json


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, bool)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def content(shapes, width=6, height=4, **more):
    return {"imagePath": "a.png", "imageWidth": width, "imageHeight": height, "shapes": shapes, **more}


def shape(label, kind, points, **more):
    return {"label": label, "shape_type": kind, "points": points, **more}


def test_all_kinds_of_shapes(tmp_path):
    write_image(tmp_path / "tool" / "a.png", 8, 6)
    shapes = [
        shape("box", "rectangle", [[8, 2], [5, 0]]),
        shape("circle", "circle", [[2, 2], [2, 3.6]]),
        shape("cut", "mask", [[4, 4], [6, 5]], mask=png([[1, 0, 1], [0, 1, 0]])),
        {"label": "tri", "points": [[0, 5], [4, 5], [4, 6], [0, 6]]},
        shape("__ignore__", "polygon", [[7, 5], [8, 5], [8, 6], [7, 6]]),
        shape("line", "line", [[0, 0], [4, 4]]),
        shape("bad", "polygon", [[0, 0], [4, 4]]),
    ]
    write_json(tmp_path / "tool" / "a.json", content(shapes, 8, 6))
    report = imported("labelme", tmp_path / "tool", tmp_path / "out")
    assert list(report.pixels) == ["background", "box", "circle", "cut", "tri"]
    assert mask_of(tmp_path / "out", "a") == [
        "02200111",
        "22220111",
        "22220000",
        "02200000",
        "00003030",
        "4444030.",
    ]
    assert {reason: len(items) for reason, items in report.dropped.items()} == {
        "shapes of the type 'line', which cannot be drawn as an area": 1,
        "shapes that are not valid": 1,
    }


def test_an_embedded_image_is_used_where_the_file_is_missing(tmp_path):
    image = write_image(tmp_path / "elsewhere" / "a.png")
    data = base64.b64encode(image.read_bytes()).decode()
    shapes = [shape("cat", "rectangle", [[0, 0], [3, 4]])]
    write_json(tmp_path / "tool" / "first.json", content(shapes, imageData=data, imagePath="..\\x\\a.png"))
    imported("labelme", tmp_path / "tool", tmp_path / "out")
    assert (tmp_path / "out" / "images" / "first.png").read_bytes() == image.read_bytes()
    assert mask_of(tmp_path / "out", "first") == ["111000"] * 4


def test_folders_of_splits_and_files_of_others(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / "tool" / split / "a.png")
        write_json(tmp_path / "tool" / split / "a.json", content([shape("cat", "rectangle", [[0, 0], [3, 4]])]))
    write_json(tmp_path / "tool" / "val" / "none.json", content([], imagePath="none.png"))
    write_json(tmp_path / "tool" / "settings.json", {"a": 1})
    (tmp_path / "tool" / "broken.json").write_text("{")
    report = imported("labelme", tmp_path / "tool", tmp_path / "out")
    assert report.splits == {"train": 1, "val": 1}
    assert (tmp_path / "out" / "splits" / "val.txt").read_text() == "val_a\n"
    assert {reason: len(items) for reason, items in report.dropped.items()} == {
        "JSON files that cannot be read": 1,
        "JSON files that labelme has not written": 1,
        "missing images": 1,
    }


def test_images_without_a_json_file_are_reported(tmp_path):
    for name in ("a.png", "more/b.png"):
        write_image(tmp_path / "tool" / name)
    write_json(tmp_path / "tool" / "a.json", content([shape("box", "rectangle", [[0, 0], [3, 4]])]))
    report = imported("labelme", tmp_path / "tool", tmp_path / "out")
    assert report.dropped == {"images without a JSON file": ["more/b.png"]}


def test_a_shape_without_a_name_is_reported(tmp_path):
    write_image(tmp_path / "tool" / "a.png")
    shapes = [shape(" ", "rectangle", [[0, 0], [6, 4]]), shape("box", "rectangle", [[0, 0], [3, 4]])]
    write_json(tmp_path / "tool" / "a.json", content(shapes))
    report = imported("labelme", tmp_path / "tool", tmp_path / "out")
    assert report.dropped == {"shapes without a class": ["a.json"]}
    assert list(report.pixels) == ["background", "box"]
