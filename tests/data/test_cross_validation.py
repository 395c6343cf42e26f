"""Folds of a data set: every image is tested once and never trained on in its own fold."""

import pytest
import torch

from contextcrf.cli.main import main
from contextcrf.data.cross_validation import write_folds
from contextcrf.data.dataset import CAMVID, CAMVID_VOID, open_dataset
from contextcrf.utils.errors import DataError


def stems(data, split):
    return [image.stem for image, _ in open_dataset(data, split).pairs]


def test_every_image_is_tested_once_and_not_seen_in_its_own_training(scenes, tmp_path):
    out = write_folds(scenes, tmp_path / "folds", 4)
    tests = [stems(out, f"fold{k}-test") for k in range(4)]
    everything = sorted(stems(scenes, "train") + stems(scenes, "val"))
    assert sorted(stem for test in tests for stem in test) == everything
    for k, test in enumerate(tests):
        assert sorted(test + stems(out, f"fold{k}-train")) == everything
    # In turn by name: neighbors go to different folds.
    assert tests[0] == everything[0::4]


def test_images_masks_and_classes_are_those_of_the_data(scenes, tmp_path):
    out = write_folds(scenes, tmp_path / "folds", 2, ["val"])
    ours, theirs = open_dataset(out, "fold0-test"), open_dataset(scenes, "val")
    assert ours.classes == theirs.classes
    image, mask = ours[0]
    torch.testing.assert_close(image, theirs[0][0])
    torch.testing.assert_close(mask, theirs[0][1])


def test_void_and_the_classes_of_another_layout_are_kept(tmp_path, scenes):
    camvid = tmp_path / "camvid"
    for folder, source in (("train", "images"), ("trainannot", "masks")):
        (camvid / folder).mkdir(parents=True)
        for name in ("train_0000.png", "train_0001.png"):
            (camvid / folder / name).write_bytes((scenes / source / name).read_bytes())
    lines = [f"train/{name}.png trainannot/{name}.png\n" for name in ("train_0000", "train_0001")]
    (camvid / "train.txt").write_text("".join(lines))
    out = write_folds(camvid, tmp_path / "folds", 2, ["train"])
    data = open_dataset(out, "fold1-train")
    assert (data.classes, data.void, len(data)) == (CAMVID, CAMVID_VOID, 1)


@pytest.mark.parametrize(
    ("folds", "splits", "message"),
    [(1, ["train"], "expected two or more"), (4, ["val"], "3 images for 4 folds"), (2, ["val", "val"], "occurs twice")],
)
def test_bad_input_is_named(scenes, tmp_path, folds, splits, message):
    with pytest.raises((ValueError, DataError), match=message):
        write_folds(scenes, tmp_path / "folds", folds, splits)
    assert not (tmp_path / "folds").exists()


def test_nothing_is_written_over(scenes, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_folds(scenes, tmp_path, 2)


def test_the_command(scenes, tmp_path, capsys):
    main(["folds", str(scenes), "--out", str(tmp_path / "folds"), "--folds", "3", "--splits", '["train"]'])
    assert "3 folds of 6 images" in capsys.readouterr().out
    assert len(open_dataset(tmp_path / "folds", "fold2-train")) == 4
