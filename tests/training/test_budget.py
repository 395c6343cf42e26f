"""Trainings within a given time: what they keep and give up, and that they resume with the same decision."""

import json
import logging
from dataclasses import replace

import pytest

import trainings
from contextcrf import load
from contextcrf.data.synthetic import write_scenes
from contextcrf.training import budget, run
from contextcrf.training.budget import plan_within_budget, seconds_of


@pytest.fixture
def scenes(tmp_path):
    return write_scenes(tmp_path / "scenes", train=4, val=1, height=64, width=96)


@pytest.fixture
def slow(monkeypatch):
    """Steps of ten seconds."""
    monkeypatch.setattr(budget, "_seconds_of_losses", lambda *_: 10.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), ("1m5s", 65)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10", "", "0m", "10 m", "m", "-5m", "ten minutes", "5m1h"])
def test_other_durations_are_refused(text):
    with pytest.raises(ValueError, match=f"--budget is '{text}'.*expected"):
        seconds_of(text)


def test_a_config_that_fits_is_kept(scenes, tmp_path):
    job = trainings.fit_job(scenes, tmp_path / "out", val_split="val", budget="10h")
    assert plan_within_budget(job) == replace(job, budget=None)


def test_epochs_are_given_up_until_the_training_fits(scenes, tmp_path, slow, caplog):
    # Two steps per epoch are 20 seconds: 85 % of 100 seconds, less the measurement, are 3 to 4 epochs.
    config = replace(trainings.QUICK, epochs=30, val_every=1, ema=0.99)
    job = trainings.fit_job(scenes, tmp_path / "out", training=config, budget="100s")
    with caplog.at_level(logging.INFO):
        found = plan_within_budget(job).training
    assert found.epochs in (3, 4)
    assert found == replace(config, epochs=found.epochs, val_every=found.epochs, ema=0.9)
    assert f"{found.epochs} instead of 30 epochs" in caplog.text
    assert "Without --budget, the training takes about 10" in caplog.text


def test_validations_are_given_up_first(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "_cost_of_fit", lambda _: budget._Cost(0.0, 100, 0.1, validation=20.0))
    config = replace(trainings.QUICK, epochs=6, val_every=1, ema=0.99)
    job = trainings.fit_job(scenes, tmp_path / "out", training=config, budget="120s")
    # 60 seconds of steps and one validation fit into 102 seconds, six validations do not.
    assert plan_within_budget(job).training == replace(config, val_every=6)


def test_the_decision_is_kept_when_the_training_resumes(scenes, tmp_path, monkeypatch, slow):
    job = trainings.fit_job(scenes, tmp_path / "out", training=replace(trainings.QUICK, epochs=30), budget="70s")
    model = load(run(job))
    planned = json.loads((job.out / "budget.json").read_text())["changes"]["epochs"]
    assert model.metadata["fit"]["training"]["epochs"] == planned < 4
    monkeypatch.setattr(budget, "_cost_of_fit", None)  # not measured again
    assert run(job) == job.out / "model"


def test_another_budget_is_another_training(scenes, tmp_path, slow):
    job = trainings.fit_job(scenes, tmp_path / "out", training=replace(trainings.QUICK, epochs=30), budget="70s")
    run(job)
    with pytest.raises(ValueError, match="epochs"):
        run(replace(job, budget="200s"))


def test_a_budget_below_one_epoch_names_what_is_needed(scenes, tmp_path, slow):
    job = trainings.fit_job(scenes, tmp_path / "out", budget="10s")
    with pytest.raises(ValueError, match=r"one epoch takes 20\.\d s on this machine\. Use a budget of at least \d"):
        plan_within_budget(job)
    assert not job.out.exists()


def test_several_processes_are_refused(scenes, tmp_path):
    job = trainings.fit_job(scenes, tmp_path / "out", devices=2, budget="10m")
    with pytest.raises(ValueError, match="--devices is 2"):
        plan_within_budget(job)


def test_heads_have_a_budget_too(scenes, tmp_path, slow):
    model = run(trainings.fit_job(scenes, tmp_path / "unary"))
    job = trainings.heads_job(model, scenes, tmp_path / "heads", training=replace(trainings.QUICK, epochs=9), copies=1)
    # Two steps per epoch, as above.
    found = plan_within_budget(replace(job, budget="60s")).training
    assert found.epochs in (1, 2)


def test_a_step_is_measured(scenes, tmp_path):
    cost = budget._cost_of_fit(trainings.fit_job(scenes, tmp_path / "out", val_split="val"))
    assert cost.steps == 2
    assert 0 < cost.step < 10
    assert 0 < cost.validation < 10
