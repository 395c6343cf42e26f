"""Statistics of masks."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from contextcrf.data.pairing import pair_files
from contextcrf.data.statistics import MaskStatistics, mask_statistics
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


def test_masks_that_are_none_are_named(folder):
    mask = folder / "masks" / "p3.png"
    Image.new("RGB", (96, 64), (9, 0, 0)).save(mask)
    with pytest.raises(DataError, match=r"p3\.png has several channels with colors, .*`masks: color`"):
        mask_statistics([mask])
    mask.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"p3\.png cannot be read as a mask: "):
        mask_statistics([mask])
