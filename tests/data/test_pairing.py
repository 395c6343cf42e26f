"""Which image and which mask belong together."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from contextcrf.data.layouts import open_dataset
from contextcrf.data.pairing import common_suffix, pair_files
from contextcrf.utils.errors import DataError


def write(folder, name, mask=".png", image=".jpg"):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(folder / "images" / f"{name}{image}")
    kind = {".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF"}[f".{mask.rsplit('.', 1)[1].lower()}"]
    Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(folder / "masks" / f"{name}{mask}", kind)


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        write(tmp_path, f"p{number}")
    return tmp_path


def test_pairs_are_sorted_and_hidden_files_ignored(folder):
    (folder / "images" / "._p0.jpg").write_bytes(b"written by macOS")
    pairs = pair_files(folder / "images", folder / "masks")
    assert [(image.name, mask.name) for image, mask in pairs] == [(f"p{i}.jpg", f"p{i}.png") for i in range(5)]


def test_files_without_a_partner_are_named(folder):
    (folder / "masks" / "p4.png").unlink()
    (folder / "images" / "p2.jpg").unlink()
    with pytest.raises(DataError, match=r"p2 \(no image\), p4 \(no mask\)"):
        pair_files(folder / "images", folder / "masks")
    with pytest.raises(DataError, match=r"nothing does not exist, but it is expected to contain the masks"):
        pair_files(folder / "images", folder / "nothing")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty contains no images. Expected files"):
        pair_files(folder / "empty", folder / "masks")


def test_two_images_of_one_stem_are_refused_everywhere(folder):
    write(folder, "p0", image=".png")
    message = r"more than one file with the same stem: p0 \(p0\.jpg, p0\.png\)"
    with pytest.raises(DataError, match=message):
        pair_files(folder / "images", folder / "masks")
    (folder / "classes.yaml").write_text("classes: [{name: a}, {name: b}]")
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_text("p1\n")
    with pytest.raises(DataError, match=message):
        open_dataset(folder, "train")


@pytest.mark.parametrize("suffix", [".PNG", ".bmp", ".TIF", ".gif"])
def test_masks_have_any_lossless_suffix_in_any_case(tmp_path, suffix):
    write(tmp_path, "a", suffix, ".JPG")
    (tmp_path / "classes.yaml").write_text("classes: [{name: a}, {name: b}]")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a\n")
    data = open_dataset(tmp_path, "train")
    assert data.pairs == pair_files(tmp_path / "images", tmp_path / "masks")
    assert data[0][1].sum() == 4


@pytest.mark.parametrize(
    ("images", "masks", "suffix"),
    [
        ("a b", "a_mask b_mask", "_mask"),
        ("x x_1", "x_L x_1_L", "_L"),
        ("a b", "a b", ""),
        ("a b", "c d", ""),
        ("a b", "a_mask b", ""),
    ],
)
def test_common_suffixes(images, masks, suffix):
    assert common_suffix(images.split(), masks.split()) == suffix


def test_a_suffix_is_used_by_pairs_and_splits(tmp_path):
    for name in "ab":
        write(tmp_path, name, "_mask.png")
    pairs = pair_files(tmp_path / "images", tmp_path / "masks")
    assert [mask.name for _, mask in pairs] == ["a_mask.png", "b_mask.png"]
    (tmp_path / "classes.yaml").write_text("{mask_suffix: _mask, classes: [{name: a}, {name: b}]}")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a\nb\n")
    assert open_dataset(tmp_path, "train").pairs == pairs
    (tmp_path / "masks" / "b_mask.png").rename(tmp_path / "masks" / "b.png")
    with pytest.raises(DataError, match=r"b \(no mask\)"):
        pair_files(tmp_path / "images", tmp_path / "masks", "_mask")


@pytest.mark.parametrize(
    "content",
    [
        b"images\\p1.jpg\r\nimages\\p2.jpg\r\n",
        b"\xef\xbb\xbfp1\r\np2\r\n",
        b"images/p1.jpg\nC:\\data\\images\\p2.JPG\n",
        "p1\r\np2\r\n".encode("utf-16"),
    ],
)
def test_split_lists_of_windows(folder, content):
    (folder / "classes.yaml").write_text("classes: [{name: a}, {name: b}]")
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_bytes(content)
    assert open_dataset(folder, "train").pairs == pair_files(folder / "images", folder / "masks")[1:3]


def test_names_that_differ_only_in_the_form_of_accents_are_refused(folder):
    for form in ("NFC", "NFD"):
        write(folder, unicodedata.normalize(form, "Z\u00fcrich"))
    with pytest.raises(DataError, match="more than one file with the same stem"):
        pair_files(folder / "images", folder / "masks")


@pytest.mark.parametrize(
    ("lines", "match"),
    [("p0\np1\np0\n", "the line 'p0' twice"), ("a/p0.jpg\nb/p0.jpg\n", "the lines 'a/p0.jpg' and 'b/p0.jpg'")],
)
def test_a_split_that_lists_an_image_twice_is_refused(folder, lines, match):
    (folder / "classes.yaml").write_text("classes: [{name: a}, {name: b}]")
    (folder / "splits").mkdir()
    (folder / "splits" / "val.txt").write_text(lines)
    with pytest.raises(DataError, match=match):
        open_dataset(folder, "val")


def test_the_suffix_of_most_masks_is_found_although_some_have_no_partner(folder):
    """The error then names the files without a partner, and not all files."""
    for path in (folder / "masks").iterdir():
        if path.stem != "p1":
            path.rename(path.with_name(f"{path.stem}_mask.png"))
    Image.new("L", (6, 4)).save(folder / "masks" / "x_mask.png")
    with pytest.raises(DataError, match=r"no partner: p1 \(no mask\), x \(no image\)\."):
        pair_files(folder / "images", folder / "masks")
