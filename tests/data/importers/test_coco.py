"""COCO's polygons and masks."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from contextcrf.data.importers.importing import import_dataset
from contextcrf.utils.errors import DataError
from sources import imported, mask_of, write_image, write_json

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
# Columns 0 and 1, from top to bottom.
LEFT = [0, 8, 16]


def content(annotations, images=None, categories=CATEGORIES):
    images = images or [{"id": 1, "file_name": "a.png", "width": 6, "height": 4}]
    annotations = [{"id": i, "image_id": 1, **item} for i, item in enumerate(annotations)]
    return {"images": images, "annotations": annotations, "categories": categories}


def box(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def test_polygons_and_both_run_lengths(tmp_path):
    write_image(tmp_path / "coco" / "images" / "a.png")
    pixels = np.zeros((4, 6), np.uint8, order="F")
    pixels[3, 4:] = 1
    compressed = coco.encode(pixels)
    annotations = [
        {"category_id": 3, "segmentation": {"size": [4, 6], "counts": LEFT}},
        {"category_id": 7, "segmentation": [box(3, 0, 5, 1), box(1, 3, 3, 4)]},
        {"category_id": 7, "segmentation": {"size": [4, 6], "counts": compressed["counts"].decode()}},
    ]
    path = write_json(tmp_path / "coco" / "annotations" / "instances.json", content(annotations))
    report = imported("coco", path, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["110220", "110000", "110000", "122022"]
    assert report.pixels == {"background": 11, "cat": 7, "dog": 6}
    assert report.shapes == 3
    assert not report.dropped


def test_crowds_are_ignored_unless_the_option_says_otherwise(tmp_path):
    write_image(tmp_path / "coco" / "a.png")
    annotations = [
        {"category_id": 3, "segmentation": [box(4, 0, 6, 4)]},
        {"category_id": 3, "iscrowd": 1, "segmentation": {"size": [4, 6], "counts": LEFT}},
    ]
    path = write_json(tmp_path / "coco" / "ann.json", content(annotations))
    report = imported("coco", path, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["..0011"] * 4
    assert report.notes["crowd regions (iscrowd) got the ignore_index"] == ["a.png"]
    imported("coco", path, tmp_path / "class", crowd="class")
    assert mask_of(tmp_path / "class", "a") == ["110011"] * 4


def test_splits_come_from_the_names_of_the_files(tmp_path):
    root = tmp_path / "coco"
    for split, name in (("train", "a"), ("val", "b")):
        write_image(root / f"{split}2017" / f"{name}.png")
        images = [{"id": 1, "file_name": f"{name}.png", "width": 6, "height": 4}]
        annotations = [{"category_id": 3, "segmentation": [box(0, 0, 2, 2)]}]
        write_json(root / "annotations" / f"instances_{split}2017.json", content(annotations, images))
    write_json(root / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    report = imported("coco", root, tmp_path / "out")
    assert report.splits == {"train": 1, "val": 1}
    assert (tmp_path / "out" / "splits" / "val.txt").read_text() == "b\n"


def test_the_export_of_roboflow(tmp_path):
    root = tmp_path / "coco"
    for split in ("train", "valid"):
        write_image(root / split / "a.png")
        annotations = [{"category_id": 3, "segmentation": [box(0, 0, 2, 2)]}]
        write_json(root / split / "_annotations.coco.json", content(annotations))
    report = imported("coco", root, tmp_path / "out")
    assert report.splits == {"train": 1, "val": 1}
    # The images are found beside their annotations, although they have the same name.
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"a.png", "valid_a.png"}


def test_what_cannot_be_imported_is_counted(tmp_path):
    write_image(tmp_path / "coco" / "a.png")
    images = [
        {"id": 1, "file_name": "a.png", "width": 6, "height": 4},
        {"id": 2, "file_name": "missing.png", "width": 6, "height": 4},
        {"id": 3, "file_name": "a.png", "width": 6, "height": 4},
    ]
    good = coco.encode(np.ones((4, 6), np.uint8, order="F"))["counts"].decode()
    annotations = [
        {"category_id": 3, "segmentation": [box(0, 0, 2, 2)]},
        {"category_id": 99, "segmentation": [box(0, 0, 2, 2)]},
        {"category_id": 3, "bbox": [0, 0, 2, 2]},
        {"category_id": 3, "segmentation": [[0, 0, 2, 2]]},
        {"category_id": 3, "segmentation": {"size": [5, 5], "counts": [0, 25]}},
        {"category_id": 3, "segmentation": {"size": [4, 6], "counts": [0, 23]}},
        {"category_id": 3, "segmentation": {"size": [4, 6], "counts": f"{good}{good}"}},
        {"category_id": 3, "segmentation": {"size": [4, 6], "counts": "~~"}},
        {"category_id": 3, "segmentation": [box(9, 9, 12, 12)]},
        {"category_id": 3, "segmentation": [box(0, 0, 2, 2)], "image_id": 8},
    ]
    path = write_json(tmp_path / "coco" / "ann.json", content(annotations, images))
    report = imported("coco", path, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["110000", "110000", "000000", "000000"]
    assert {reason: len(items) for reason, items in report.dropped.items()} == {
        "annotations with the unknown category_id 99": 1,
        "annotations without a valid segmentation (boxes, key points, fewer than 3 points)": 2,
        "annotations of an image that is not listed": 1,
        "missing images": 1,
        "images that are listed twice; their first entry is kept": 1,
        "shapes that cannot be drawn": 4,
        "shapes outside the image": 1,
    }
    assert "missing images: 1 (missing.png)" in report.text()


def test_long_compressed_runs_are_checked_as_pycocotools_writes_them(tmp_path):
    write_image(tmp_path / "coco" / "a.png", 600, 400)
    rng = np.random.default_rng(0)
    pixels = np.asfortranarray(np.kron(rng.integers(0, 2, (4, 6)), np.ones((100, 100))).astype(np.uint8))
    pixels[::7, ::3] = 1
    segmentation = {"size": [400, 600], "counts": coco.encode(pixels)["counts"].decode()}
    images = [{"id": 1, "file_name": "a.png", "width": 600, "height": 400}]
    path = write_json(
        tmp_path / "coco" / "ann.json", content([{"category_id": 3, "segmentation": segmentation}], images)
    )
    report = imported("coco", path, tmp_path / "out")
    assert report.pixels["cat"] == pixels.sum()


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"'categories' is not|under the key 'categories'"):
        import_dataset("coco", write_json(tmp_path / "a.json", {"images": []}), tmp_path / "out")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json cannot be read as a JSON file"):
        import_dataset("coco", tmp_path / "b.json", tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="contains no COCO annotations"):
        import_dataset("coco", tmp_path / "none", tmp_path / "out")
    panoptic = content([{"segments_info": [], "file_name": "a.png"}])
    with pytest.raises(DataError, match="panoptic"):
        import_dataset("coco", write_json(tmp_path / "p.json", panoptic), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert json.loads((tmp_path / "a.json").read_text()) == {"images": []}


def test_a_ring_that_is_not_valid_is_reported(tmp_path):
    write_image(tmp_path / "coco" / "a.png")
    annotations = [{"category_id": 3, "segmentation": [box(4, 0, 6, 4), [0, 0, 1, 1]]}]
    report = imported("coco", write_json(tmp_path / "coco" / "c.json", content(annotations)), tmp_path / "out")
    assert report.dropped == {"parts of polygons that are not valid (fewer than 3 points)": ["a.png"]}
    assert mask_of(tmp_path / "out", "a") == ["000011"] * 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]},
            "id 1 for the two categories 'cat' and 'dog'",
        ),
        ({"categories": [{"id": 1, "name": " "}]}, "no name for the category 1"),
        ({"annotations": [None]}, "has the annotation None"),
        ({"annotations": [{"image_id": 1, "category_id": 3, "iscrowd": "no"}]}, "'no' under the key 'iscrowd'"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": "abc", "height": 4}]}, "'abc' under the key 'width'"),
    ],
)
def test_damaged_entries_are_named(tmp_path, change, match):
    write_image(tmp_path / "coco" / "a.png")
    path = write_json(tmp_path / "coco" / "c.json", {**content([]), **change})
    with pytest.raises(DataError, match=match):
        import_dataset("coco", path, tmp_path / "out")


def test_numbers_may_be_given_as_text(tmp_path):
    write_image(tmp_path / "coco" / "a.png")
    annotations = [
        {"category_id": 3, "iscrowd": "0", "segmentation": [box(4, 0, 6, 4)]},
        {"category_id": 3, "iscrowd": "1", "segmentation": [box(0, 0, 2, 4)]},
        {"category_id": 3, "iscrowd": None, "segmentation": [box(3, 0, 4, 4)]},
    ]
    images = [{"id": 1, "file_name": "a.png", "width": "6", "height": "4"}]
    imported("coco", write_json(tmp_path / "coco" / "c.json", content(annotations, images)), tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["..0111"] * 4
