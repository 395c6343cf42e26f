"""Folds of a data set: every image is tested once and never trained on in its own fold."""

import logging
from pathlib import Path

import pytest
import torch

from contextcrf.data.cross_validation import make_folds
from contextcrf.data.layouts import CAMVID, CAMVID_IGNORE_INDEX, open_dataset
from contextcrf.utils.errors import DataError


def stems(data, split):
    return [image.stem for image, _ in open_dataset(data, split).pairs]


def test_every_image_is_tested_once_and_not_seen_in_its_own_training(scenes, tmp_path):
    out = make_folds(scenes, tmp_path / "folds", 4)
    tests = [stems(out, f"fold{k}-test") for k in range(4)]
    everything = sorted(stems(scenes, "train") + stems(scenes, "val"))
    assert sorted(stem for test in tests for stem in test) == everything
    for k, test in enumerate(tests):
        assert sorted(test + stems(out, f"fold{k}-train")) == everything
    assert sorted(stems(out, "all")) == everything
    # In turn by name: neighbors go to different folds.
    assert tests[0] == everything[0::4]


def test_images_masks_and_classes_are_those_of_the_data(scenes, tmp_path):
    out = make_folds(scenes, tmp_path / "folds", 2, ["val"])
    ours, theirs = open_dataset(out, "fold0-test"), open_dataset(scenes, "val")
    assert ours.classes == theirs.classes
    image, mask = ours[0]
    torch.testing.assert_close(image, theirs[0][0])
    torch.testing.assert_close(mask, theirs[0][1])


def test_ignore_index_and_classes_of_another_layout_are_kept(tmp_path, scenes):
    camvid = tmp_path / "camvid"
    for folder, source in (("train", "images"), ("trainannot", "masks")):
        (camvid / folder).mkdir(parents=True)
        for name in ("train_0000.png", "train_0001.png"):
            (camvid / folder / name).write_bytes((scenes / source / name).read_bytes())
    lines = [f"train/{name}.png trainannot/{name}.png\n" for name in ("train_0000", "train_0001")]
    (camvid / "train.txt").write_text("".join(lines))
    out = make_folds(camvid, tmp_path / "folds", 2, ["train"])
    data = open_dataset(out, "fold1-train")
    assert (data.classes, data.ignore_index, len(data)) == (CAMVID, CAMVID_IGNORE_INDEX, 1)


@pytest.mark.parametrize(
    ("folds", "splits", "message"),
    [
        (1, ["train"], "at least 2 are expected"),
        (4, ["val"], "is 3, but 4 folds need at least 4 images"),
        (2, ["val", "val"], "occurs more than once"),
    ],
)
def test_bad_input_is_named(scenes, tmp_path, folds, splits, message):
    with pytest.raises((ValueError, DataError), match=message):
        make_folds(scenes, tmp_path / "folds", folds, splits)
    assert not [*tmp_path.iterdir()]


def test_nothing_is_written_over(scenes, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        make_folds(scenes, tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_files_are_links(scenes, tmp_path, caplog):
    out = make_folds(scenes, tmp_path / "folds", 2)
    files = [path for folder in ("images", "masks") for path in (out / folder).iterdir()]
    assert len(files) == 2 * 9
    assert all(path.is_symlink() and path.resolve().parent.parent == scenes.resolve() for path in files)
    assert not caplog.messages


def test_where_links_cannot_be_made_files_are_copied(scenes, tmp_path, monkeypatch, caplog):
    def refuse(*args, **options):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (tmp_path / "folds").mkdir()  # an empty folder may be there
    with caplog.at_level(logging.WARNING):
        out = make_folds(scenes, tmp_path / "folds", 2)
    assert caplog.messages == ["Copied 18 files, because this system does not allow symbolic links."]
    copies = [path for folder in ("images", "masks") for path in (out / folder).iterdir()]
    assert len(copies) == 18
    for path in copies:
        assert not path.is_symlink()
        assert path.read_bytes() == (scenes / path.parent.name / path.name).read_bytes()


def test_what_fails_leaves_nothing(scenes, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError

    monkeypatch.setattr("contextcrf.data.cross_validation.write_text", fail)
    with pytest.raises(RuntimeError):
        make_folds(scenes, tmp_path / "new" / "folds", 2)
    assert not [*(tmp_path / "new").iterdir()]
