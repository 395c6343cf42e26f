"""The picture of a training run, from logs that were written by hand and by a training run."""

from dataclasses import replace

import pytest
from PIL import Image

from contextcrf.training.curve import draw_curve, read_curve
from contextcrf.training.jobs import run
from trainings import QUICK, fit_job


def write_log(folder, version, text):
    path = folder / "csv" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_steps_are_averaged_and_a_repeated_epoch_counts_once(tmp_path):
    write_log(tmp_path, 0, "epoch,lr,step,train/unary,val/unary\n,0.1,0,,\n0,,9,4,\n0,,19,2,\n0,,19,,0.25\n1,,29,9,\n")
    write_log(tmp_path, 1, "epoch,lr,step,train/unary,val/unary\n1,,29,1.5,\n1,,39,,0.5\n")
    assert read_curve(tmp_path) == {"train/unary": {1: 3.0, 2: 1.5}, "val/unary": {1: 0.25, 2: 0.5}}
    assert read_curve(tmp_path / "nothing") == {}


@pytest.mark.parametrize("names", [["train/unary"], ["val/unary"], ["train/unary", "train/above", "val/unary"]])
def test_losses_and_scores_have_a_panel_each(tmp_path, names):
    draw_curve({name: {1: 0.5, 2: 0.75} for name in names}, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.size == (600 * len({name[:4] for name in names}), 432)


def test_a_training_run_ends_with_its_curve(scenes, tmp_path):
    run(fit_job(scenes, tmp_path, training=replace(QUICK, epochs=2, val_every=1), val_split="val"))
    curve = read_curve(tmp_path)
    assert set(curve["val/unary"]) == {1, 2}
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.width >= 600
