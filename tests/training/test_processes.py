"""One training on two processes is that of one."""

import os
import subprocess
import sys

import pytest
import torch

from contextcrf.cli.main import main
from contextcrf.data.dataset import open_dataset
from contextcrf.modeling.serialization import load
from contextcrf.training import SeededSampler, augmentation, fit, processes, runs
from contextcrf.training.config import Recipe

FIT = ["--model.backbone", "plain", "--pretrained", "false", "--model.channels", "8", "--model.hidden", "8"]
FIT += ["--model.scales", "[1.0]", "--recipe.epochs", "2", "--recipe.crop", "[64,96]", "--recipe.scale", "[1.0,1.0]"]
FIT += ["--recipe.batch_size", "2", "--recipe.precision", "32-true", "--val_split", "null"]


def test_samplers_of_two_processes_deal_the_batches_of_one():
    whole = list(SeededSampler(11, seed=3))
    parts = [list(SeededSampler(11, 3, rank, 2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [len(SeededSampler(11, 3, 0, 2))] * 2 == [5, 5]
    for step in range(2):  # of four images, two each
        together = [sample for part in parts for sample in part[2 * step : 2 * step + 2]]
        assert sorted(together) == sorted(whole[4 * step : 4 * step + 4])


def test_a_step_must_be_dealt_evenly(tiny_model, scenes, tmp_path):
    recipe = Recipe(batch_size=3)
    with pytest.raises(ValueError, match="batch_size 3: expected a multiple of the 2"):
        fit(tiny_model, open_dataset(scenes, "train", augmentation(recipe)), None, recipe, tmp_path, devices=2)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "1"}, 1),
        ({"RANK": "9", "LOCAL_RANK": "1"}, 9),
        ({"SLURM_PROCID": "3"}, 3),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, 0),
    ],
)
def test_the_rank_is_what_the_launcher_says(environment, expected, monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.rank(2) == expected
    assert processes.rank(1) == 0


def test_another_machines_first_process_is_not_the_first(monkeypatch):
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes.rank(2) > 0


def test_a_training_of_one_process_is_its_own_first_wherever_it_is_started(scenes, tmp_path, monkeypatch, capsys):
    """Under one `srun`, say, that starts many of them."""
    monkeypatch.setenv("SLURM_PROCID", "3")
    main(["fit", "--data", str(scenes), "--out", str(tmp_path), *FIT, "--recipe.epochs", "1"])
    load(tmp_path / "model")
    main(["fit", "--data", str(scenes), "--out", str(tmp_path), *FIT, "--recipe.epochs", "1"])
    assert "nothing was left to do" in capsys.readouterr().out


def test_other_processes_have_nothing_to_do_where_a_training_has_ended(scenes, tmp_path, monkeypatch):
    main(["fit", "--data", str(scenes), "--out", str(tmp_path), *FIT, "--recipe.epochs", "1"])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setitem(runs.TRAINING, "fit", None)
    main(["fit", "--data", str(scenes), "--out", str(tmp_path), *FIT, "--recipe.epochs", "1", "--devices", "2"])


def test_every_process_needs_an_image(tiny_model, scenes, tmp_path):
    recipe = Recipe(batch_size=2)
    data = open_dataset(scenes, "train", augmentation(recipe)).spread(1)
    with pytest.raises(ValueError, match="1 images for 2 processes"):
        fit(tiny_model, data, None, recipe, tmp_path, devices=2)


def test_two_processes_train_to_the_loss_of_one(scenes, tmp_path):
    for devices in ("1", "2"):
        command = [sys.executable, "-m", "contextcrf", "fit", "--data", scenes, "--out", tmp_path / devices]
        done = subprocess.run(
            [*map(str, command), *FIT, "--devices", devices],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    batch = torch.utils.data.default_collate([open_dataset(scenes, "train")[i] for i in range(6)])
    losses = []
    for devices in ("1", "2"):
        model = load(tmp_path / devices / "model")
        with torch.no_grad():
            losses.append(model.nll(model.features(batch[0].float()), batch[1]))
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=2e-5, atol=0)
