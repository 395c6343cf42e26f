"""The networks of a study: trained once, resumed, and not mixed with those of another study."""

import logging
import shutil
from dataclasses import replace

import pytest
import torch

from contextcrf import load
from contextcrf.reproduction import Runner, open_study, runner
from contextcrf.training import ModelModule, jobs
from contextcrf.training.jobs import OtherSettingsError


def folders(path):
    return {part.name for part in path.iterdir()}


def test_networks_are_trained_once_and_named_in_the_log(scenes, tmp_path, write_study, monkeypatch, caplog):
    found = Runner(open_study(write_study()), scenes, tmp_path / "out")
    with caplog.at_level(logging.INFO, "contextcrf.reproduction"):
        found.pairwise("above")
    lines = [record.getMessage().strip() for record in caplog.records]
    assert lines == ["Training the network unary-3scales", "Training the network unary-3scales-heads"]
    caplog.clear()
    monkeypatch.setattr(jobs, "_train", None)
    with caplog.at_level(logging.INFO, "contextcrf.reproduction"):
        model = found.pairwise("surrounding")
    assert caplog.records == []
    assert model.trained_relations == ["surrounding", "above"]
    assert folders(tmp_path / "out" / "networks") == {"unary-3scales", "unary-3scales-heads"}


def test_the_unary_has_all_scales_or_one(scenes, tmp_path, write_study):
    study = open_study(write_study())
    found = Runner(study, scenes, tmp_path)
    assert found.unary().config.scales == study.model.scales == (1.2, 0.8, 0.4)
    assert found.unary(scales=1).config.scales == (1.0,)


def test_networks_of_their_own_and_relation_weights_that_the_study_names(scenes, tmp_path, write_study):
    weights = {"surrounding": None, "above": None}
    study = open_study(write_study(shared=False, inference={"relation_weights": weights}))
    found = Runner(study, scenes, tmp_path / "out")
    model = found.together()
    assert folders(tmp_path / "out" / "networks") == {"unary-3scales", "pairwise-surrounding", "pairwise-above"}
    assert not model.config.shared_trunk
    assert model.inference.relation_weights == weights
    assert not (tmp_path / "out" / "tuned").exists()
    whole = found.end_to_end()
    assert set(whole.trunks) == {"unary", "surrounding", "above"}
    assert whole.inference.relation_weights == weights
    assert whole.trained_relations == ["surrounding", "above"]


def test_relation_weights_are_tuned_unless_the_study_names_them(scenes, tmp_path, write_study, monkeypatch):
    study = open_study(write_study())
    found = Runner(study, scenes, tmp_path / "out")
    model = found.together()
    [folder] = (tmp_path / "out" / "tuned").iterdir()
    assert folder.name.startswith("1unary+2pair-")
    tuned = load(folder)
    assert tuned.metadata["tune"]["images"] == 2
    assert tuned.metadata["tune"]["split"] == "train"
    assert model.inference == tuned.inference
    assert set(tuned.metadata["tune"]["settings"]) <= {"surrounding", "above"}
    # The same again is found, not tuned.
    monkeypatch.setattr(runner, "tune_relation_weights", None)
    assert found.together().inference == tuned.inference


def test_the_precision_of_the_training_is_that_of_prediction(scenes, tmp_path, write_study):
    study = open_study(write_study(precision="32-true"))
    assert Runner(study, scenes, tmp_path).inference.precision == "32-true"
    assert Runner(study, scenes, tmp_path).unary().inference.precision == "32-true"


def test_a_changed_study_is_not_mixed_with_the_old_one(scenes, tmp_path, write_study):
    Runner(open_study(write_study("a.yaml")), scenes, tmp_path / "out").unary()
    changed = Runner(open_study(write_study("b.yaml", epochs=2)), scenes, tmp_path / "out")
    with pytest.raises(OtherSettingsError, match=r"unary-3scales was trained with training\.epochs 1, not 2"):
        changed.unary()


def test_another_trunk_is_not_taken_for_the_old_one(scenes, tmp_path, write_study):
    study, out = open_study(write_study()), tmp_path / "out"
    Runner(study, scenes, out).pairwise("above")
    # The unary is trained again: heads on the old one do not fit it any more.
    shutil.rmtree(out / "networks" / "unary-3scales")
    other = replace(study, training=replace(study.training, seed=7))
    with pytest.raises(OtherSettingsError, match=r"unary-3scales-heads was trained with model \w{64}, not \w{64}"):
        Runner(other, scenes, out).pairwise("above")
    with pytest.raises(OtherSettingsError, match="pretrained False, not True"):
        Runner(replace(other, pretrained=True), scenes, out).unary()


def test_a_stopped_network_goes_on_exactly(scenes, tmp_path, write_study, monkeypatch):
    study = open_study(write_study(epochs=2))
    whole = Runner(study, scenes, tmp_path / "whole").unary(scales=1).state_dict()
    parts = Runner(study, scenes, tmp_path / "parts")

    def stop(module):
        if module.current_epoch == 1:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(ModelModule, "on_train_epoch_start", stop)
        with pytest.raises(InterruptedError):
            parts.unary(scales=1)
    found = parts.unary(scales=1).state_dict()
    assert all(torch.equal(found[key], value) for key, value in whole.items())
