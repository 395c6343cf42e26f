"""Image files that fit the names of several images, and masks that importers read as they are stored."""

import numpy as np
import pytest
from PIL import Image

from contextcrf.data.importers.importing import import_dataset
from contextcrf.utils.errors import DataError
from sources import gray_png, imported, mask_of, write_image, write_json, write_mask

DROPPED = "missing images, whose name fits only the file of another image"
TWICE = "images that are listed twice; their first entry is kept"
UNCLEAR = "images of which several fit the same file, so that it is unclear which one the file is"


def cvat(folder, names):
    images = "".join(
        f'<image name="{name}" width="6" height="4"><box label="car" xtl="0" ytl="0" xbr="{i + 1}" ybr="4"/></image>'
        for i, name in enumerate(names)
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotations.xml").write_text(f"<annotations>{images}</annotations>")
    return folder


@pytest.mark.parametrize("names", [["cam1/0.png", "cam2/0.png"], ["cam2/0.png", "cam1/0.png"]])
def test_a_file_belongs_to_the_image_whose_path_it_has(tmp_path, names):
    write_image(tmp_path / "cvat" / "images" / "cam1" / "0.png")
    report = imported("cvat", cvat(tmp_path / "cvat", names), tmp_path / "out")
    assert report.dropped == {DROPPED: ["cam2/0.png: 0.png"]}
    assert (
        mask_of(tmp_path / "out", "0")
        == ["1" * (names.index("cam1/0.png") + 1) + "0" * (5 - names.index("cam1/0.png"))] * 4
    )


def test_an_image_that_is_listed_twice_is_imported_once(tmp_path):
    write_image(tmp_path / "cvat" / "0.png")
    report = imported("cvat", cvat(tmp_path / "cvat", ["0.png", "0.png"]), tmp_path / "out")
    assert report.dropped == {TWICE: ["0.png: 0.png"]}
    assert mask_of(tmp_path / "out", "0") == ["100000"] * 4


def test_a_file_that_fits_two_other_names_is_not_used(tmp_path):
    write_image(tmp_path / "cvat" / "images" / "0.png")
    write_image(tmp_path / "cvat" / "images" / "1.png")
    names = ["cam1/0.png", "cam2/0.png", "1.png"]
    report = imported("cvat", cvat(tmp_path / "cvat", names), tmp_path / "out")
    assert report.dropped == {UNCLEAR: ["cam1/0.png: 0.png", "cam2/0.png: 0.png"]}
    assert report.images == 1


def test_an_image_in_another_folder_is_noted(tmp_path):
    write_image(tmp_path / "cvat" / "train" / "0.png")
    report = imported("cvat", cvat(tmp_path / "cvat", ["val/0.png"]), tmp_path / "out")
    [note] = report.notes["images were found in another folder than in the annotations"]
    assert note.startswith("val/0.png: ")
    assert note.endswith("0.png")


def test_uploads_of_the_same_name_do_not_share_a_file(tmp_path):
    write_image(tmp_path / "ls" / "photo.png", 10, 4)
    item = {
        "type": "rectanglelabels",
        "original_width": 10,
        "original_height": 4,
        "value": {"x": 0, "y": 0, "width": 50, "height": 100, "rectanglelabels": ["cat"]},
    }
    images = [f"/data/upload/1/{8 * digit}-photo.png" for digit in "12"]
    tasks = [{"id": 1, "data": {"image": image}, "annotations": [{"result": [item]}]} for image in images]
    with pytest.raises(DataError, match="unclear which one the file is"):
        import_dataset("label-studio", write_json(tmp_path / "ls" / "export.json", tasks), tmp_path / "out")


def test_shapes_on_two_images_of_one_task_are_not_mixed(tmp_path):
    for name in ("left", "right"):
        write_image(tmp_path / "ls" / f"{name}.png", 10, 4)
    result = [
        {
            "type": "rectanglelabels",
            "to_name": name,
            "original_width": 10,
            "original_height": 4,
            "value": {"x": 0, "y": 0, "width": 50, "height": 100, "rectanglelabels": ["cat"]},
        }
        for name in ("left", "right")
    ]
    task = {"id": 1, "data": {"left": "left.png", "right": "right.png"}, "annotations": [{"result": result}]}
    with pytest.raises(DataError, match="shapes on several images"):
        import_dataset("label-studio", write_json(tmp_path / "ls" / "export.json", [task]), tmp_path / "out")


def test_files_that_differ_only_in_the_suffix_are_reported(tmp_path):
    root = tmp_path / "tool"
    write_image(root / "images" / "a.png")
    write_image(root / "images" / "a.jpg")
    write_mask(root / "masks" / "cell" / "a.png", np.eye(4, 6))
    report = imported("class-masks", root, tmp_path / "out")
    assert report.dropped == {"files of the same name with another suffix": ["a.png: a.jpg is used"]}


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_gray_masks_have_their_stored_values(tmp_path, bits):
    labels = np.array([[0, 1, 2], [2, 1, 0]])
    for format, image, mask in (
        ("ade20k", "images/training/a.jpg", "annotations/training/a.png"),
        ("roboflow", "train/a.jpg", "train/a_mask.png"),
    ):
        write_image(tmp_path / format / image, 3, 2)
        (tmp_path / format / mask).parent.mkdir(parents=True, exist_ok=True)
        gray_png(tmp_path / format / mask, labels, bits)
    (tmp_path / "roboflow" / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, sky\n1, road\n2, car\n")
    imported("ade20k", tmp_path / "ade20k", tmp_path / "ade")
    assert mask_of(tmp_path / "ade", "a") == [".01", "10."]
    imported("roboflow", tmp_path / "roboflow", tmp_path / "robo", unlabeled="ignore")
    assert mask_of(tmp_path / "robo", "a") == ["012", "210"]


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("a.jpg", lambda image, path: image.save(path), "lossy compression"),
        ("a.tif", lambda image, path: image.save(path, save_all=True, append_images=[image]), "2 pages"),
        ("a.tif", lambda image, path: Image.fromarray(np.full((4, 6), 1.5, np.float32)).save(path), "fractions"),
    ],
)
def test_masks_that_cannot_have_labels_are_refused(tmp_path, name, change, match):
    write_image(tmp_path / "ade" / "images" / "training" / "a.png")
    path = tmp_path / "ade" / "annotations" / "training" / name
    path.parent.mkdir(parents=True)
    change(Image.fromarray(np.eye(4, 6, dtype=np.uint8)), path)
    with pytest.raises(DataError, match=match):
        import_dataset("ade20k", tmp_path / "ade", tmp_path / "out")


def test_masks_are_turned_by_their_own_orientation(tmp_path):
    write_image(tmp_path / "ade" / "images" / "training" / "a.png", 3, 2)
    path = tmp_path / "ade" / "annotations" / "training" / "a.png"
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(np.array([[1, 2, 3], [1, 1, 1]], np.uint8)).save(path, exif=exif)
    imported("ade20k", tmp_path / "ade", tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["000", "210"]


def test_mask_files_of_classes_have_the_values_of_the_file(tmp_path):
    """White is 0 in the first file. The second one has lossy compression."""
    root = tmp_path / "tool"
    write_image(root / "images" / "a.png", 64, 48)
    disk = np.hypot(*(np.mgrid[:48, :64] - np.array([24, 32])[:, None, None])) < 15
    for name in ("white", "lossy"):
        (root / "masks" / name).mkdir(parents=True)
    Image.fromarray(~disk).convert("1").save(root / "masks" / "white" / "a.tif", tiffinfo={262: 0})
    Image.fromarray(disk.astype(np.uint8) * 255).convert("RGB").save(root / "masks" / "lossy" / "a.webp", quality=60)
    report = imported("class-masks", root, tmp_path / "out", classes=["white"])
    assert report.pixels["white"] == disk.sum()
    report = imported("class-masks", root, tmp_path / "other", classes=["lossy"])
    assert abs(report.pixels["lossy"] - disk.sum()) < 20


def test_links_to_one_file_are_different_images(tmp_path):
    """As in the caches of DVC, git-annex and Hugging Face, where equal files are stored once."""
    blob = write_image(tmp_path / "blobs" / "1234.png")
    for name in ("x.png", "y.png"):
        (tmp_path / "cvat").mkdir(exist_ok=True)
        (tmp_path / "cvat" / name).symlink_to(blob)
    report = imported("cvat", cvat(tmp_path / "cvat", ["x.png", "y.png"]), tmp_path / "out")
    assert report.images == 2
    assert not report.dropped


def test_lossless_webp_masks_have_their_values(tmp_path):
    root = tmp_path / "tool"
    write_image(root / "images" / "a.png", 6, 4)
    (root / "masks" / "cell").mkdir(parents=True)
    mask = Image.fromarray(np.eye(4, 6, dtype=np.uint8)).convert("RGB")
    mask.save(root / "masks" / "cell" / "a.webp", lossless=True)
    assert imported("class-masks", root, tmp_path / "out").pixels["cell"] == 4
    write_image(tmp_path / "ade" / "images" / "training" / "a.png", 6, 4)
    (tmp_path / "ade" / "annotations" / "training").mkdir(parents=True)
    mask.save(tmp_path / "ade" / "annotations" / "training" / "a.webp", lossless=True, exif=Image.Exif())
    imported("ade20k", tmp_path / "ade", tmp_path / "ade-out")
    assert mask_of(tmp_path / "ade-out", "a")[0] == "0....."
