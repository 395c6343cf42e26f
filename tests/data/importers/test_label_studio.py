"""Label Studio's percentages and brush masks."""

import numpy as np
import pytest

from contextcrf.data.importers.importing import import_dataset
from contextcrf.data.importers.label_studio import decode_brush
from contextcrf.utils.errors import DataError
from sources import imported, mask_of, write_image, write_json


def packed(bits):
    """Bytes of a text of bits, in which spaces do not count."""
    bits = bits.replace(" ", "")
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def brush(mask):
    """A brush mask of single blocks: runs of up to 16 words, or the words themselves."""
    words = np.repeat(np.array(mask, np.uint8).ravel() * 255, 4).tolist()
    bits = f"{len(words):032b} {7:05b} {2:04b} {3:04b} {7:04b} {15:04b}"
    for i in range(0, len(words), 16):
        part = words[i : i + 16]
        flag = len(set(part)) == 1
        data = part[:1] if flag else part
        bits += f"{flag:01b} 01 {len(part) - 1:04b}" + "".join(f"{word:08b}" for word in data)
    return packed(bits)


def item(kind, value, **more):
    return {"id": f"{kind}{value}", "type": kind, "value": value, "original_width": 10, "original_height": 4, **more}


def task(result, image="/data/upload/1/0123abcd-a.png", **more):
    return {"id": 5, "data": {"image": image}, "annotations": [{"result": result}], **more}


def test_the_blocks_of_a_brush_mask_by_hand():
    # 9 words of 8 bits, sizes of 3, 4, 8 and 16 bits: 5 times 255, the words 1 and 2, and 2 times 0.
    header = f"{9:032b} 00111 0010 0011 0111 1111"
    blocks = f"1 00 100 11111111 | 0 01 0001 {1:08b} {2:08b} | 1 11 {1:016b} 00000000".replace("|", "")
    assert decode_brush(packed(header + blocks)).tolist() == [255] * 5 + [1, 2, 0, 0]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (packed(f"{9:032b} 00111 0010 0011 0111 1111 1 00 100 11111111"), "ends too early"),
        (packed(f"{3:032b} 00111 0010 0011 0111 1111 1 00 100 11111111"), "more than the 3 values"),
        (packed(f"{2**31:032b} 00111 0010 0011 0111 1111 1 00 100 11111111"), "in its header"),
        (packed(f"{9:032b} 00011 0010 0011 0111 1111 1 00 100 11111111"), "4 bits per word"),
        ([300, 1], "not a list of bytes"),
    ],
)
def test_damaged_brush_masks(values, match):
    with pytest.raises(DataError, match=match):
        decode_brush(values)


def test_all_kinds_of_shapes(tmp_path):
    write_image(tmp_path / "ls" / "images" / "a.png", 10, 4)
    mask = np.zeros((4, 10), int)
    mask[3, 2:9] = 1
    result = [
        item("polygonlabels", {"points": [[0, 0], [20, 0], [20, 50], [0, 50]], "polygonlabels": ["road"]}),
        item("brushlabels", {"format": "rle", "rle": brush(mask), "brushlabels": ["car"]}),
        item("rectanglelabels", {"x": 50, "y": 0, "width": 20, "height": 50, "rectanglelabels": ["car"]}),
        item("ellipselabels", {"x": 90, "y": 25, "radiusX": 10, "radiusY": 25, "ellipselabels": ["road"]}),
        item("keypointlabels", {"x": 90, "y": 25, "width": 1, "keypointlabels": ["road"]}, image_rotation=90),
        item("polygon", {"points": [[0, 0], [20, 0], [20, 50]]}),
        item("choices", {"choices": ["good"]}),
        item("brushlabels", {"format": "rle", "rle": [1, 2], "brushlabels": ["car"]}),
    ]
    path = write_json(tmp_path / "ls" / "export.json", [task(result)])
    report = imported("label-studio", path, tmp_path / "out")
    assert list(report.pixels) == ["background", "car", "road"]
    name = "0123abcd-a"
    assert mask_of(tmp_path / "out", name) == ["2200011022", "2200011022", "0000000000", "0011111110"]
    assert {reason: len(items) for reason, items in report.dropped.items()} == {
        "shapes that are not valid": 1,
        "shapes without a class": 1,
        "shapes that cannot be drawn": 1,
    }


def test_labels_that_are_apart_from_their_shapes(tmp_path):
    write_image(tmp_path / "ls" / "a.png", 10, 4)
    value = {"points": [[0, 0], [20, 0], [20, 50], [0, 50]]}
    result = [
        {"id": "x", "type": "polygon", "value": value, "original_width": 10, "original_height": 4},
        {
            "id": "x",
            "type": "labels",
            "value": {**value, "labels": ["road"]},
            "original_width": 10,
            "original_height": 4,
        },
    ]
    path = write_json(tmp_path / "ls" / "export.json", [task(result, "/data/local-files/?d=my%20files/a.png")])
    report = imported("label-studio", path, tmp_path / "out")
    assert report.pixels == {"background": 36, "road": 4}
    assert not report.dropped


def test_several_annotations_and_tasks_without_one(tmp_path):
    for name in "abcd":
        write_image(tmp_path / "ls" / f"{name}.png", 10, 4)
    full = [item("rectanglelabels", {"x": 0, "y": 0, "width": 100, "height": 100, "rectanglelabels": ["road"]})]
    half = [item("rectanglelabels", {"x": 0, "y": 0, "width": 50, "height": 100, "rectanglelabels": ["road"]})]
    tasks = [
        {"data": {"image": "a.png"}, "annotations": [{"result": full}, {"result": half, "ground_truth": True}]},
        {"data": {"image": "b.png"}, "annotations": [{"result": full, "was_cancelled": True}]},
        {"data": {"image": "c.png"}, "annotations": []},
        {"data": {"image": "d.png"}, "annotations": [{"result": []}]},
    ]
    report = imported("label-studio", write_json(tmp_path / "ls" / "export.json", tasks), tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["1111100000"] * 4
    assert mask_of(tmp_path / "out", "d") == ["0000000000"] * 4
    assert report.dropped == {"images without an annotation": ["b.png", "c.png"]}
    assert "images have several annotations, of which the ground truth or the first is used" in report.notes


def test_the_small_export_is_refused(tmp_path):
    path = write_json(tmp_path / "ls.json", [{"image": "a.png", "label": []}])
    with pytest.raises(DataError, match="not 'JSON-MIN'"):
        import_dataset("label-studio", path, tmp_path / "out")


def test_the_name_of_an_upload_has_underscores_for_spaces(tmp_path):
    write_image(tmp_path / "my photo 1.png", 10, 4)
    result = [item("rectanglelabels", {"x": 0, "y": 0, "width": 50, "height": 100, "rectanglelabels": ["cat"]})]
    path = write_json(tmp_path / "export.json", [task(result, "/data/upload/1/0123abcd-my_photo_1.png")])
    imported("label-studio", path, tmp_path / "out")
    assert mask_of(tmp_path / "out", "0123abcd-my_photo_1") == ["1111100000"] * 4
