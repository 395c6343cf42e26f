"""What holds for the import from every format."""

import sys
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from contextcrf.cli.main import main
from contextcrf.data.importers.importing import import_dataset
from contextcrf.data.importers.options import FormatName
from contextcrf.data.importers.registry import FORMATS
from contextcrf.data.importers.writing import Stems
from contextcrf.data.layouts import open_dataset
from contextcrf.utils.errors import DataError
from sources import imported, mask_of, write_image, write_json


def annotate(folder, name="a", width=6, height=4, label="cat", right=3, image=None):
    shape = {"label": label, "shape_type": "rectangle", "points": [[0, 0], [right, 4]]}
    content = {"imagePath": image or f"{name}.png", "imageWidth": width, "imageHeight": height, "shapes": [shape]}
    write_json(folder / f"{name}.json", content)
    return folder


@pytest.fixture
def tool(tmp_path):
    write_image(tmp_path / "tool" / "a.png")
    return annotate(tmp_path / "tool")


def test_every_format_has_a_reader():
    assert set(FORMATS) == set(get_args(FormatName))


def test_pixels_without_a_class(tool, tmp_path):
    annotate(tool, "b", label="dog", right=1)
    write_image(tool / "b.png")
    report = imported("labelme", tool, tmp_path / "out", unlabeled="ignore")
    assert mask_of(tmp_path / "out", "a") == ["000..."] * 4
    assert list(report.pixels) == ["cat", "dog"]
    assert report.ignored == 12 + 20


def test_a_class_that_is_the_background(tool, tmp_path):
    write_image(tool / "b.png")
    annotate(tool, "b", label="_background_", right=1)
    report = imported("labelme", tool, tmp_path / "out")
    assert report.pixels == {"_background_": 12 + 24, "cat": 12}


def test_chosen_classes_in_their_order(tool, tmp_path):
    write_image(tool / "b.png")
    annotate(tool, "b", label="dog")
    write_image(tool / "c.png")
    annotate(tool, "c", label="ant")
    report = imported("labelme", tool, tmp_path / "out", classes=["dog", "background", "ant"])
    assert report.pixels == {"dog": 12, "background": 48, "ant": 12}
    assert report.dropped == {"shapes of the class 'cat', which is not imported": ["a.png"]}
    with pytest.raises(DataError, match="Did you mean 'dog'"):
        import_dataset("labelme", tool, tmp_path / "other", classes=["dogs"])


def test_an_import_that_drops_everything_is_an_error(tool, tmp_path):
    (tool / "a.png").unlink()
    with pytest.raises(DataError, match=r"The source has no classes|no labeled pixels"):
        import_dataset("labelme", tool, tmp_path / "out")
    write_image(tool / "a.png")
    annotate(tool, right=0.1)
    with pytest.raises(DataError, match=r"Dropped: shapes that cover no pixel \(1, such as a\.png\)"):
        import_dataset("labelme", tool, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tool"]


def test_sources_and_results_are_not_overwritten(tool, tmp_path):
    before = {path: path.read_bytes() for path in tool.iterdir()}
    (tmp_path / "out").mkdir()
    imported("labelme", tool, tmp_path / "out")
    with pytest.raises(FileExistsError, match="not empty"):
        import_dataset("labelme", tool, tmp_path / "out")
    for inside in (tool / "out", tool):
        with pytest.raises((ValueError, FileExistsError), match=r"is inside|not empty"):
            import_dataset("labelme", tool, inside)
    assert {path: path.read_bytes() for path in tool.iterdir()} == before
    assert not (tool / "a.png").samefile(tmp_path / "out" / "images" / "a.png")
    imported("labelme", tool, tmp_path / "linked", link=True)
    assert (tool / "a.png").samefile(tmp_path / "linked" / "images" / "a.png")


def test_options_of_other_formats_are_refused(tool, tmp_path):
    with pytest.raises(ValueError, match="labelme has no option --label-map"):
        import_dataset("labelme", tool, tmp_path / "out", label_map=tool)
    with pytest.raises(DataError, match="does not exist"):
        import_dataset("labelme", tmp_path / "none", tmp_path / "out")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match="Unpack it"):
        import_dataset("coco", tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(ValueError, match="one of coco"):
        import_dataset("yolo", tool, tmp_path / "out")


def test_splits_are_made_where_the_source_has_none(tmp_path):
    for number in range(10):
        write_image(tmp_path / "tool" / f"{number}.png")
        annotate(tmp_path / "tool", str(number))
    report = imported("labelme", tmp_path / "tool", tmp_path / "out")
    assert report.splits == {"train": 8, "val": 2}
    assert (tmp_path / "out" / "splits" / "val.txt").read_text() == "2\n7\n"


def test_names_that_occur_twice_get_their_folder(tmp_path):
    for folder in ("one", "two"):
        write_image(tmp_path / "tool" / folder / "A.png" if folder == "two" else tmp_path / "tool" / folder / "a.png")
        annotate(tmp_path / "tool" / folder, "A" if folder == "two" else "a", right=1 if folder == "one" else 2)
    report = imported("labelme", tmp_path / "tool", tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["100000"] * 4
    assert mask_of(tmp_path / "out", "two_A") == ["110000"] * 4
    assert report.notes["images were renamed, because their name is used or not possible"] == ["two/A.png: two_A"]


def test_names_are_free_and_possible():
    stems = Stems()
    chosen = [stems.choose(name)[0] for name in ("x/a.jpg", "x/a.png", "x/a.tif", " .b .jpg", "c:d.png", "1.5")]
    assert chosen == ["a", "x_a", "x_a_2", "b", "c_d", "1.5"]


@pytest.mark.parametrize(("orientation", "top"), [(6, "111111"), (8, "000000"), (3, "0001"), (1, "1110")])
def test_exif_rotations_with_annotations_of_the_stored_image(tmp_path, orientation, top):
    sideways = orientation in (6, 8)
    width, height = (4, 6) if sideways else (4, 4)
    tool = annotate(tmp_path / "tool", width=width, height=height)
    write_image(tool / "a.png", width, height, orientation)
    report = imported("labelme", tool, tmp_path / "out")
    if sideways:
        # The left columns of the stored image are the top rows after a quarter turn clockwise.
        assert mask_of(tmp_path / "out", "a")[0] == ("001111" if orientation == 6 else top)
        assert any("were turned" in remark for remark in report.notes)
    elif orientation == 3:
        # Both fit: the annotations are taken as upright.
        assert mask_of(tmp_path / "out", "a")[0] == "1110"
        assert any("taken as upright" in remark for remark in report.notes)
    else:
        assert not any("EXIF" in remark for remark in report.notes)


def test_exif_rotations_with_annotations_of_the_upright_image(tmp_path):
    tool = annotate(tmp_path / "tool", width=6, height=4)
    write_image(tool / "a.png", 4, 6, 6)
    report = imported("labelme", tool, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["111000"] * 4
    assert report.notes["images are rotated by their EXIF data; their annotations are upright"] == ["a.png"]
    # The copy keeps its EXIF data.
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == (tool / "a.png").read_bytes()


def test_sizes_that_fit_neither_way_and_broken_images(tool, tmp_path):
    write_image(tool / "b.png", 5, 5)
    annotate(tool, "b")
    (tool / "c.png").write_bytes(b"none")
    annotate(tool, "c")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tool / "d.gif")
    annotate(tool, "d", image="d.gif")
    report = imported("labelme", tool, tmp_path / "out")
    assert report.dropped == {
        "images whose size differs from that of their annotations": ["b.png: 5 x 5, annotations 6 x 4"],
        "images that cannot be read": [
            "c.png: Pillow cannot identify its format",
            "d.gif: the format GIF is not supported; convert the image to PNG",
        ],
    }


def test_more_classes_than_a_mask_can_have(tmp_path):
    write_image(tmp_path / "coco" / "a.png")
    categories = [{"id": i, "name": f"class {i}"} for i in range(255)]
    images = [{"id": 1, "file_name": "a.png", "width": 6, "height": 4}]
    ring = [[0, 0, 3, 0, 3, 4, 0, 4]]
    annotations = [{"id": 1, "image_id": 1, "category_id": 254, "segmentation": ring}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = write_json(tmp_path / "coco" / "ann.json", content)
    with pytest.raises(DataError, match="256, but at most 255"):
        import_dataset("coco", path, tmp_path / "out")
    report = imported("coco", path, tmp_path / "out", unlabeled="ignore")
    assert report.pixels["class 254"] == 12
    # All colors differ.
    assert len(set(open_dataset(tmp_path / "out", "train").classes.palette)) == 255


def test_the_other_formats_need_no_extra(tool, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    imported("labelme", tool, tmp_path / "out")
    for format, extra in (("coco", "import"), ("huggingface", "datasets")):
        with pytest.raises(ValueError, match=rf"contextcrf\[{extra}\]"):
            import_dataset(format, tool, tmp_path / format)


def test_the_command_prints_the_report(tool, tmp_path, capsys):
    write_image(tool / "b.png")
    annotate(tool, "b", label="dog")
    options = ["--unlabeled", "ignore", "--classes", "[dog, cat]"]
    main(["import", "labelme", str(tool), str(tmp_path / "out"), *options])
    printed = capsys.readouterr().out
    assert "  50.00 % of the labeled pixels  dog\n   50.00 % of the labeled pixels  cat\n" in printed
    assert f"next: contextcrf init {tmp_path / 'out'}" in printed
    main(["init", str(tmp_path / "out"), "--out", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit, match="2"):
        main(["import", "labelme", str(tool), str(tmp_path / "out")])
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["import", "yolo", str(tool), str(tmp_path / "other")])
    assert "labelme" in capsys.readouterr().err
