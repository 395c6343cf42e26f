"""What a training reports while it runs."""

import logging
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from contextcrf.data.layouts import open_dataset
from contextcrf.training import ModelModule, fit
from contextcrf.training.progress import ProgressCallback
from contextcrf.utils.progress import Task, reporting
from trainings import QUICK


class Recorder(Task):
    """A reporter that keeps what it is given."""

    def __init__(self):
        self.events = []

    def __call__(self, description, total, transient):
        self.events.append((description, total))
        return self

    def advance(self, steps=1):
        self.events.append(steps)

    def describe(self, description=None, total=None):
        self.events.append(description)

    def stop(self):
        self.events.append("stop")


@pytest.fixture
def recorder():
    with reporting(recorder := Recorder()):
        yield recorder


def epoch_lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "contextcrf.training.progress"]


def test_steps_are_reported_and_every_epoch_has_a_line(tiny_model, train, scenes, tmp_path, recorder, caplog):
    config = replace(QUICK, epochs=3, val_every=2)
    with caplog.at_level(logging.INFO, "contextcrf"):
        fit(tiny_model, train, open_dataset(scenes, "val"), config, tmp_path)
    # Six images in batches of two.
    steps = [event for number in (1, 2, 3) for event in (f"Epoch {number} of 3", 1, 1, 1)]
    assert recorder.events == [("Epoch 1 of 3", 9), 0, *steps, "stop"]
    loss, score, left = r"loss \d+\.\d{3}", r"\d+\.\d %", r"about \d+ s left"
    lines = epoch_lines(caplog)
    assert len(lines) == 3
    assert re.fullmatch(f"Epoch 1 of 3: {loss}, {left}", lines[0])
    assert re.fullmatch(f"Epoch 2 of 3: {loss}, val/unary {score}, val/unary\\+pairwise {score}, {left}", lines[1])
    # Without a validation there are no scores, not those of the epoch before.
    assert re.fullmatch(f"Epoch 3 of 3: {loss}", lines[2])


def test_the_loss_of_a_line_is_the_mean_of_the_epoch(tiny_model, train, tmp_path, monkeypatch, caplog):
    totals, step = [], ModelModule.training_step

    def recorded(module, batch, batch_idx):
        total = step(module, batch, batch_idx)
        totals.append(float(total.detach()))
        return total

    monkeypatch.setattr(ModelModule, "training_step", recorded)
    with caplog.at_level(logging.INFO, "contextcrf"):
        fit(tiny_model, train, None, replace(QUICK, epochs=1), tmp_path)
    assert epoch_lines(caplog) == [f"Epoch 1 of 1: loss {sum(totals) / 3:.3f}"]
    assert f"{totals[-1]:.3f}" != f"{sum(totals) / 3:.3f}"


def stop_in_the_third_epoch(module):
    if module.current_epoch == 2:
        raise InterruptedError


def test_a_resumed_training_goes_on_at_the_right_count(tiny_model, train, tmp_path, recorder, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ModelModule, "on_train_epoch_start", stop_in_the_third_epoch)
        with pytest.raises(InterruptedError):
            fit(tiny_model, train, None, QUICK, tmp_path)
    # An error ends the report too.
    assert recorder.events[-1] == "stop"
    recorder.events.clear()
    with caplog.at_level(logging.INFO, "contextcrf"):
        fit(tiny_model, train, None, QUICK, tmp_path, checkpoint="last")
    assert recorder.events == [("Epoch 3 of 3", 9), 6, "Epoch 3 of 3", 1, 1, 1, "stop"]
    [line] = epoch_lines(caplog)
    assert line.startswith("Epoch 3 of 3: loss ")
    recorder.events.clear()
    caplog.clear()
    with caplog.at_level(logging.INFO, "contextcrf"):
        fit(tiny_model, train, None, QUICK, tmp_path, checkpoint="last")
    assert recorder.events == []  # no step was left
    assert epoch_lines(caplog) == []


def test_only_the_first_process_reports(recorder, caplog):
    callback = ProgressCallback()
    trainer = SimpleNamespace(
        is_global_zero=False, max_epochs=2, current_epoch=0, num_training_batches=3, callback_metrics={}
    )
    with caplog.at_level(logging.INFO, "contextcrf"):
        callback.on_train_start(trainer, None)
        callback.on_train_epoch_start(trainer, None)
        callback.on_train_batch_end(trainer, None, None, None, 0)
        callback.on_validation_end(trainer, None)
        callback.on_train_epoch_end(trainer, None)
        callback.teardown(trainer, None, "fit")
    assert recorder.events == []
    assert caplog.records == []
