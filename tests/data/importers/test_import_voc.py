"""VOC's layout with other classes than VOC's."""

import pytest

from contextcrf.data.importers.importing import import_dataset
from contextcrf.utils.errors import DataError
from sources import imported, mask_of, write_image, write_mask

LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ncar:0,0,255::\n"
BLACK, ROAD, CAR, VOID = (0, 0, 0), (128, 64, 128), (0, 0, 255), (224, 224, 192)


@pytest.fixture
def kit(tmp_path):
    root = tmp_path / "kit"
    (root / "SegmentationClass").mkdir(parents=True)
    write_image(root / "JPEGImages" / "a.jpg", 3, 2)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "default.txt").write_text("a\n")
    (root / "labelmap.txt").write_text(LABEL_MAP)
    return root


def test_colors(kit, tmp_path):
    write_mask(kit / "SegmentationClass" / "a.png", [[BLACK, ROAD, CAR], [VOID, CAR, (1, 2, 3)]])
    report = imported("voc", kit, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["012", ".2."]
    assert list(report.pixels) == ["background", "road", "car"]
    assert report.splits == {"default": 1, "train": 1}
    assert report.notes["masks have pixels with an unknown color, which got the ignore_index"] == [
        "a.png: (1, 2, 3) at 1 of 6 pixels"
    ]


def test_palettes_in_any_order_are_read_by_color(kit, tmp_path):
    write_mask(kit / "SegmentationClass" / "a.png", [[0, 1, 2], [3, 2, 1]], [CAR, BLACK, ROAD, VOID])
    imported("voc", kit, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["201", ".10"]


def test_a_palette_with_a_stray_color_is_not_read_by_index(kit, tmp_path):
    write_mask(kit / "SegmentationClass" / "a.png", [[0, 1, 2], [2, 1, 0]], [CAR, BLACK, (9, 9, 9)])
    report = imported("voc", kit, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["20.", ".02"]
    assert report.ignored == 2


def test_gray_values_are_positions(kit, tmp_path):
    write_mask(kit / "SegmentationClass" / "a.png", [[0, 1, 2], [255, 2, 7]])
    report = imported("voc", kit, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["012", ".2."]
    assert report.notes["masks have pixels with an unknown value, which got the ignore_index"] == [
        "a.png: 7 at 1 of 6 pixels"
    ]


def test_a_gray_label_map(kit, tmp_path):
    (kit / "labelmap.txt").write_text("background:0,0,0::\ncell:255,255,255::\n")
    write_mask(kit / "SegmentationClass" / "a.png", [[0, 255, 255], [0, 0, 255]])
    imported("voc", kit, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["011", "001"]


def test_ambiguous_gray_values_are_refused(kit, tmp_path):
    (kit / "labelmap.txt").write_text("a:1,1,1::\nb:0,0,0::\nc:1,0,0::\n")
    write_mask(kit / "SegmentationClass" / "a.png", [[0, 1, 1], [0, 0, 1]])
    with pytest.raises(DataError, match="has gray values that are both"):
        import_dataset("voc", kit, tmp_path / "out")


def test_a_label_map_of_an_option_with_ignored_labels(kit, tmp_path):
    (kit / "labelmap.txt").rename(tmp_path / "map.txt")
    with pytest.raises(DataError, match="--label-map FILE"):
        import_dataset("voc", kit, tmp_path / "out")
    with (tmp_path / "map.txt").open("a") as file:
        file.write("void:9,9,9::\n")
    write_mask(kit / "SegmentationClass" / "a.png", [[BLACK, ROAD, CAR], [(9, 9, 9), CAR, CAR]])
    report = imported("voc", kit, tmp_path / "out", label_map=tmp_path / "map.txt")
    assert mask_of(tmp_path / "out", "a") == ["012", ".22"]
    assert list(report.pixels) == ["background", "road", "car"]


def test_images_and_masks_without_partner_are_counted(kit, tmp_path):
    write_mask(kit / "SegmentationClass" / "a.png", [[ROAD] * 3] * 2)
    write_mask(kit / "SegmentationClass" / "b.png", [[ROAD] * 3] * 2)
    write_image(kit / "JPEGImages" / "c.jpg")
    with (kit / "ImageSets" / "Segmentation" / "default.txt").open("a") as file:
        file.write("d\n")
    report = imported("voc", kit, tmp_path / "out")
    assert report.dropped == {
        "images of a split without a mask": ["d"],
        "images without a mask": ["c"],
        "masks without an image": ["b"],
    }


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("road:1,2:3\n", "Line 1 of"),
        ("road:0,0,0::\nroad:1,1,1::\n", "repeats the name"),
        ("road:0,0,0::\ncar:0,0,0::\n", "to two classes"),
        ("road:0,0,0::\ncar:::\n", "no color to car"),
        ("# nothing\n", "is empty"),
    ],
)
def test_label_maps_that_are_not_valid(kit, tmp_path, text, match):
    (kit / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=match):
        import_dataset("voc", kit, tmp_path / "out")
