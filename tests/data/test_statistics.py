"""Statistics of masks, pairs of files, and classes guessed from labels."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from contextcrf.data.classes import voc_palette
from contextcrf.data.statistics import MaskStatistics, guess_classes, mask_statistics, pair_files
from contextcrf.utils.errors import DataError


def write(folder, name, values, suffix=".jpg"):
    """An image and its mask."""
    values = np.asarray(values, np.uint8)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", values.shape[::-1]).save(folder / "images" / f"{name}{suffix}")
    Image.fromarray(values).save(folder / "masks" / f"{name}.png")


@pytest.fixture
def folder(tmp_path):
    """Five images of 6 x 4."""
    for number in range(5):
        write(tmp_path, f"p{number}", [[0, 0, 0, 1, 1, 9]] * 4)
    return tmp_path


def test_labels_and_sizes_are_counted(folder):
    write(folder, "p5", [[2, 9]])
    found = mask_statistics([mask for _, mask in pair_files(folder / "images", folder / "masks")])
    assert found.pixels == {0: 60, 1: 40, 2: 1, 9: 21}
    assert [*found.sizes] == [*[(4, 6)] * 5, (1, 2)]
    assert found.size == (4, 6)
    assert found.shares(9) == {0: 60 / 101, 1: 40 / 101, 2: 1 / 101}
    assert MaskStatistics([], Counter({9: 3})).shares(9) == {}


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
    write(folder, "p0", np.zeros((4, 4)), ".png")
    with pytest.raises(DataError, match="more than one file with the same stem: p0"):
        pair_files(folder / "images", folder / "masks")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty contains no images. Expected files"):
        pair_files(folder / "empty", folder / "masks")


def test_masks_that_lose_labels_are_refused(folder):
    victim = folder / "masks" / "p1.png"
    victim.rename(victim.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"p1\.jpg is not a PNG file, .*number of masks in other formats is 1"):
        pair_files(folder / "images", folder / "masks")


def test_masks_that_are_none_are_named(folder):
    mask = folder / "masks" / "p3.png"
    Image.new("RGB", (96, 64)).save(mask)
    with pytest.raises(DataError, match=r"p3\.png has 3 channels, .*shows the classes as colors"):
        mask_statistics([mask])
    mask.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"p3\.png cannot be read as a mask: "):
        mask_statistics([mask])


def test_classes_are_numbered(folder):
    found = mask_statistics([folder / "masks" / "p0.png"])
    classes = guess_classes(found, 9)
    assert classes.names == ("class 0", "class 1")
    assert classes.palette == voc_palette(2)
    assert len(guess_classes(found)) == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 255]], "two or more labels from 0 to 254"),
        ([[0, 100], [100, 200]], "Renumber the labels"),
        ([[1, 1]], "two or more labels"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, values, message):
    write(tmp_path, "a", values)
    found = mask_statistics([tmp_path / "masks" / "a.png"])
    with pytest.raises(DataError, match=message):
        guess_classes(found)
