"""One mask file per class or per instance."""

import numpy as np
import pytest
from PIL import Image

from contextcrf.data.importers.importing import import_dataset
from contextcrf.utils.errors import DataError
from sources import imported, mask_of, write_image, write_mask


def test_a_folder_for_each_image(tmp_path):
    root = tmp_path / "tool"
    write_image(root / "images" / "a.png", 4, 2)
    write_mask(root / "masks" / "a" / "cell_001.png", [[255, 0, 0, 0], [0, 0, 0, 0]])
    write_mask(root / "masks" / "a" / "cell_002.png", [[0, 0, 0, 1], [0, 0, 0, 0]])
    write_mask(root / "masks" / "a" / "wall.png", [[0, 0, 0, 0], [7, 7, 7, 7]])
    write_mask(root / "masks" / "a" / "003.png", [[0, 0, 0, 0], [7, 7, 7, 7]])
    write_mask(root / "masks" / "other" / "wall.png", [[1]])
    report = imported("class-masks", root, tmp_path / "out")
    assert list(report.pixels) == ["background", "cell", "wall"]
    assert mask_of(tmp_path / "out", "a") == ["1001", "2222"]
    assert {reason: len(items) for reason, items in report.dropped.items()} == {
        "mask files whose name has no class (give --classes '[CLASS]')": 1,
        "masks without an image": 1,
    }
    report = imported("class-masks", root, tmp_path / "one", classes=["thing"])
    assert mask_of(tmp_path / "one", "a") == ["1001", "1111"]


def test_a_folder_for_each_class(tmp_path):
    root = tmp_path / "tool"
    write_image(root / "images" / "a.jpg", 4, 2)
    write_image(root / "images" / "b.jpg", 4, 2)
    pixels = np.zeros((2, 4, 4), np.uint8)
    pixels[0, 1:3] = [255, 0, 0, 255]
    pixels[1, 1:3] = [255, 0, 0, 0]
    write_mask(root / "masks" / "cell" / "a.png", pixels)
    # A palette whose entry 0 is white: the shown color decides.
    write_mask(root / "masks" / "wall" / "a.png", [[1, 1, 1, 0], [1, 1, 1, 1]], [(255, 255, 255), (0, 0, 0)])
    (root / "masks" / "rim").mkdir()
    Image.fromarray(np.array([[3, 3, 3, 3], [250, 3, 3, 3]], np.uint8)).save(
        root / "masks" / "rim" / "a.jpg", quality=100
    )
    report = imported("class-masks", root, tmp_path / "out")
    assert list(report.pixels) == ["background", "cell", "rim", "wall"]
    assert mask_of(tmp_path / "out", "a") == ["0113", "2000"]
    assert report.dropped == {"images without a mask": ["b.jpg"]}


def test_sizes_that_do_not_fit(tmp_path):
    root = tmp_path / "tool"
    write_image(root / "images" / "a.png", 4, 2)
    write_image(root / "images" / "b.png", 4, 2)
    write_image(root / "images" / "c.png", 4, 2)
    write_mask(root / "masks" / "cell" / "a.png", [[1, 1, 1, 1]] * 2)
    write_mask(root / "masks" / "cell" / "b.png", [[1, 1]])
    write_mask(root / "masks" / "wall" / "c.png", [[1, 1, 1, 1]] * 2)
    write_mask(root / "masks" / "cell" / "c.png", [[1, 1]])
    report = imported("class-masks", root, tmp_path / "out")
    assert report.dropped == {
        "images whose size differs from that of their annotations": ["b.png: 4 x 2, annotations 2 x 1"],
        "images whose masks have different sizes": ["c.png"],
    }


def test_names_that_fit_neither_layout(tmp_path):
    write_image(tmp_path / "tool" / "images" / "a.png")
    write_mask(tmp_path / "tool" / "masks" / "cell" / "a_mask.png", [[1]])
    with pytest.raises(DataError, match="neither the folders nor the files"):
        import_dataset("class-masks", tmp_path / "tool", tmp_path / "out")
    write_mask(tmp_path / "tool" / "masks" / "cell" / "a.png", [[1]])
    write_mask(tmp_path / "tool" / "masks" / "a" / "cell.png", [[1]])
    with pytest.raises(DataError, match="both the folders and the files"):
        import_dataset("class-masks", tmp_path / "tool", tmp_path / "out")
