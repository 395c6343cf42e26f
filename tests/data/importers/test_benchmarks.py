"""Formats whose masks have a label at every pixel: Roboflow, Cityscapes, ADE20K, CamVid."""

import pytest

from contextcrf.data.importers.importing import import_dataset
from contextcrf.utils.errors import DataError
from sources import imported, mask_of, write_image, write_mask


def test_roboflow(tmp_path):
    for split in ("train", "valid"):
        folder = tmp_path / "robo" / split
        write_image(folder / "a.jpg", 3, 2)
        write_mask(folder / "a_mask.png", [[0, 1, 2], [7, 1, 0]])
        (folder / "_classes.csv").write_text("Pixel Value, Class\n0, unlabeled\n1, road\n2, car\n")
    write_image(folder / "b.jpg", 3, 2)
    report = imported("roboflow", tmp_path / "robo", tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["012", ".10"]
    assert list(report.pixels) == ["background", "road", "car"]
    assert report.splits == {"train": 1, "val": 1}
    assert report.dropped == {"images without a mask": ["b.jpg"]}
    imported("roboflow", tmp_path / "robo", tmp_path / "ignored", unlabeled="ignore")
    assert mask_of(tmp_path / "ignored", "a") == [".01", ".0."]
    (folder / "_classes.csv").write_text("Pixel Value, Class\n0, unlabeled\n1, car\n2, road\n")
    with pytest.raises(DataError, match="have different classes"):
        import_dataset("roboflow", tmp_path / "robo", tmp_path / "other")


def test_cityscapes(tmp_path):
    root = tmp_path / "city"
    for split in ("train", "val"):
        write_image(root / "leftImg8bit" / split / "ulm" / "ulm_0_leftImg8bit.png", 3, 2)
        stem = root / "gtFine" / split / "ulm" / "ulm_0_gtFine"
        write_mask(stem.with_name("ulm_0_gtFine_labelIds.png"), [[0, 7, 8], [1, 33, 99]])
        write_mask(stem.with_name("ulm_0_gtFine_labelTrainIds.png"), [[255, 0, 1], [255, 18, 3]])
    write_image(root / "leftImg8bit" / "test" / "x" / "x_leftImg8bit.png")
    report = imported("cityscapes", root, tmp_path / "out")
    name = "ulm_0_leftImg8bit"
    assert mask_of(tmp_path / "out", name) == [".01", ".18."]
    assert list(report.pixels)[-1] == "bicycle"
    assert report.splits == {"train": 1, "val": 1}
    assert report.dropped == {"images without a mask": ["x_leftImg8bit.png"]}
    assert "99 at 1 of 6 pixels" in report.text()
    imported("cityscapes", root, tmp_path / "ids", ids="trainIds")
    assert mask_of(tmp_path / "ids", name) == [".01", ".183"]
    for path in root.rglob("*labelIds.png"):
        path.unlink()
    with pytest.raises(DataError, match="--ids trainIds"):
        import_dataset("cityscapes", root, tmp_path / "none")


def test_ade20k(tmp_path):
    root = tmp_path / "ade"
    for split in ("training", "validation"):
        write_image(root / "images" / split / f"{split}.jpg", 3, 2)
        write_mask(root / "annotations" / split / f"{split}.png", [[0, 1, 2], [2, 3, 0]])
    report = imported("ade20k", root, tmp_path / "numbers")
    assert list(report.pixels)[:2] == ["class 1", "class 2"]
    assert len(report.pixels) == 150
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t1\t1\t1\twall\n2\t0.1\t1\t1\t1\tbuilding, edifice\n"
    )
    report = imported("ade20k", root, tmp_path / "out")
    assert list(report.pixels) == ["wall", "building"]
    assert mask_of(tmp_path / "out", "validation") == [".01", "1.."]
    assert report.splits == {"train": 1, "val": 1}
    assert "unknown value" in report.text()
    report = imported("ade20k", root, tmp_path / "background", unlabeled="background")
    assert mask_of(tmp_path / "background", "validation") == ["012", "2.0"]


@pytest.mark.parametrize("table", ["label_colors.txt", "class_dict.csv"])
def test_camvid(tmp_path, table):
    root = tmp_path / "camvid"
    for split in ("train", "val"):
        write_image(root / split / f"{split}.png", 3, 2)
        colors = [[(128, 64, 128), (64, 0, 128), (0, 0, 0)], [(64, 0, 128), (1, 1, 1), (128, 64, 128)]]
        write_mask(root / f"{split}_labels" / f"{split}_L.png", colors)
    texts = {
        "label_colors.txt": "64 0 128\tCar\n128 64 128\tRoad\n0 0 0\t\tVoid\n192 0 64\tLane Markings\n",
        "class_dict.csv": "name,r,g,b\nCar,64,0,128\nRoad,128,64,128\nVoid,0,0,0\nLane Markings,192,0,64\n",
    }
    (root / table).write_text(texts[table])
    write_mask(root / "train_labels" / "other_L.png", colors)
    report = imported("camvid32", root, tmp_path / "out")
    assert list(report.pixels) == ["Car", "Road", "Lane Markings"]
    assert mask_of(tmp_path / "out", "val") == ["10.", "0.1"]
    assert report.splits == {"train": 1, "val": 1}
    assert report.dropped == {"masks without an image": ["other_L.png"]}
    (root / table).unlink()
    with pytest.raises(DataError, match="--label-map FILE"):
        import_dataset("camvid32", root, tmp_path / "none")
