"""Data sets of Hugging Face that are saved on the disk."""

import numpy as np
import pytest
from PIL import Image

from contextcrf.data.importers.importing import import_dataset
from contextcrf.utils.errors import DataError
from sources import imported, mask_of, write_image

datasets = pytest.importorskip("datasets")


def saved(path, columns, splits=("train", "validation")):
    features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    data = datasets.Dataset.from_dict(columns, features=features)
    found = datasets.DatasetDict(dict.fromkeys(splits, data)) if splits else data
    found.save_to_disk(path)
    return path


def image(values):
    return Image.fromarray(np.array(values, np.uint8))


@pytest.fixture
def columns(tmp_path):
    path = write_image(tmp_path / "pictures" / "a.jpg", 3, 2)
    return {"image": [str(path)], "annotation": [image([[0, 1, 2], [255, 2, 1]])]}


def test_two_splits(tmp_path, columns):
    report = imported("huggingface", saved(tmp_path / "hf", columns), tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["012", ".21"]
    assert list(report.pixels) == ["class 0", "class 1", "class 2"]
    assert report.splits == {"train": 1, "val": 1}
    # The content of the file is unchanged.
    original = (tmp_path / "pictures" / "a.jpg").read_bytes()
    assert (tmp_path / "out" / "images" / "a.jpg").read_bytes() == original
    assert (tmp_path / "out" / "images" / "validation_a.jpg").read_bytes() == original


def test_names_another_ignore_index_and_no_splits(tmp_path, columns):
    source = saved(tmp_path / "hf", columns, splits=())
    report = imported("huggingface", source, tmp_path / "out", classes=["no", "sky", "sea"], ignore_index=0)
    assert mask_of(tmp_path / "out", "a") == [".12", ".21"]
    assert report.pixels == {"no": 0, "sky": 2, "sea": 2}
    assert "255 at 1 of 6 pixels" in report.text()


def test_columns_of_other_names(tmp_path, columns):
    columns = {"photo": columns["image"], "truth": columns["annotation"]}
    source = saved(tmp_path / "hf", columns)
    with pytest.raises(DataError, match="--image-column"):
        import_dataset("huggingface", source, tmp_path / "out")
    imported("huggingface", source, tmp_path / "out", image_column="photo")
    assert mask_of(tmp_path / "out", "a") == ["012", ".21"]
    with pytest.raises(DataError, match="but not 'mask'"):
        import_dataset("huggingface", source, tmp_path / "none", image_column="photo", label_column="mask")


def test_masks_in_colors_and_other_folders(tmp_path, columns):
    colors = {**columns, "annotation": [image(np.arange(18).reshape(2, 3, 3))]}
    with pytest.raises(DataError, match="one value per pixel"):
        import_dataset("huggingface", saved(tmp_path / "hf", colors), tmp_path / "out")
    texts = datasets.Dataset.from_dict({"image": columns["image"], "label": ["sky"]})
    texts.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "texts")
    with pytest.raises(DataError, match="does not have a mask of integers"):
        import_dataset("huggingface", tmp_path / "texts", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be opened as a data set"):
        import_dataset("huggingface", tmp_path / "empty", tmp_path / "out")
