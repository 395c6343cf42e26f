"""Relation weights and the dense CRF, chosen on held-out images."""

import json
from dataclasses import replace
from itertools import cycle

import pytest
import torch

from contextcrf import InferenceConfig, Predictor
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation import tuning
from contextcrf.evaluation.evaluate import evaluate
from contextcrf.evaluation.metrics import ConfusionMatrix
from contextcrf.evaluation.tuning import FACTORS, best_of, tune_dense, tune_relation_weights, warn_about_split
from contextcrf.inference import FULL, UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.modeling.serialization import fingerprint
from contextcrf.utils.progress import Task, reporting
from models import settings, tiny


@pytest.fixture
def data(scenes):
    return open_dataset(scenes, "val")


def measured(model, data, system, inference=None):
    [result] = evaluate(Predictor(model, inference), data, [system])
    return result.matrix.mean_iou()


def test_trials_of_weights_measure_as_evaluation_does(tiny_model, data):
    data = data.spread(2)
    trials = tune_relation_weights(tiny_model, data, grid=(0.0, 2.0))
    assert trials[0].label == "current settings"
    assert trials[0].settings == {}
    assert trials[0].inference == tiny_model.inference
    assert trials[1].settings == {"surrounding": None, "above": None}
    assert trials[2].settings == {"surrounding": 0.0, "above": 0.0}
    assert trials[3].settings == {"surrounding": 2.0, "above": 2.0}
    for trial in trials:
        assert isinstance(trial.inference, InferenceConfig)
        assert trial.inference == replace(tiny_model.inference, relation_weights=trial.settings)
    for trial in trials[:5]:
        # Half-precision features may change the labels of single pixels.
        assert trial.mean_iou == pytest.approx(measured(tiny_model, data, UNARY_PAIRWISE, trial.inference), abs=2e-3)
    # Weights of 0 leave the unary alone.
    assert trials[2].mean_iou == pytest.approx(measured(tiny_model, data, UNARY_ONLY), abs=2e-3)
    assert len({str(trial.settings) for trial in trials}) == len(trials)
    assert len({trial.mean_iou for trial in trials}) > 1


@pytest.mark.parametrize("tune", [tune_relation_weights, tune_dense])
def test_the_model_is_not_changed(tune, tiny_model, data):
    before = fingerprint(tiny_model), tiny_model.inference
    tune(tiny_model, data.spread(1), {"bilateral_compat": (2.0,)} if tune is tune_dense else (1.0,))
    assert (fingerprint(tiny_model), tiny_model.inference) == before
    assert tiny_model.inference == settings()


@pytest.mark.parametrize("tune", [tune_relation_weights, tune_dense])
def test_other_settings_are_those_to_begin_with(tune, tiny_model, data):
    begin = settings(iterations=4, relation_weights={"above": 3.0}, dense={"iterations": 1, "bilateral_sxy": 33.0})
    grid = {"bilateral_compat": (2.0,)} if tune is tune_dense else (1.0,)
    trials = tune(tiny_model, data.spread(1), grid, inference=begin)
    assert trials[0].label == "current settings"
    assert trials[0].inference.iterations == 4
    if tune is tune_dense:
        assert all(trial.inference.relation_weights == {"above": 3.0} for trial in trials)
        assert all(trial.inference.dense["bilateral_sxy"] == 33.0 for trial in trials)
        assert trials[0].mean_iou == measured(tiny_model, data.spread(1), FULL, begin)
    else:
        assert trials[0].settings == {"above": 3.0}
        assert all(trial.inference.dense == begin.dense for trial in trials)


@pytest.mark.parametrize("tune", [tune_relation_weights, tune_dense])
def test_tuning_runs_in_the_precision_of_the_settings(tune, tiny_model, data):
    grid = {"bilateral_compat": (2.0,)} if tune is tune_dense else (1.0,)
    mixed = tune(tiny_model, data, grid, inference=InferenceConfig(precision="bf16-mixed"))
    exact = tune(tiny_model, data, grid)
    assert all(trial.inference.precision == "bf16-mixed" for trial in mixed)
    assert [trial.settings for trial in mixed[:2]] == [trial.settings for trial in exact[:2]]
    for one, other in zip(mixed[:2], exact[:2], strict=True):
        assert one.mean_iou == pytest.approx(other.mean_iou, abs=0.02)


def test_the_first_of_the_best_is_chosen():
    trials = [tuning.Trial(name, {}, settings(), score) for name, score in (("a", 0.1), ("b", 0.5), ("c", 0.5))]
    assert best_of(trials).label == "b"


@pytest.mark.parametrize(("number", "begin"), [(0, 0.5), (1, 1.0)])
def test_weights_are_varied_around_the_best(number, begin, tiny_model, data, monkeypatch):
    """Relations that are not named share a weight of 1; a plain sum has no number that a factor could change."""
    monkeypatch.setattr(tuning, "best_of", lambda trials: trials[number])
    trials = tune_relation_weights(tiny_model, data.spread(1), grid=())
    varied = [trial.settings for trial in trials[2 : 2 + len(FACTORS)]]
    assert varied == [{"surrounding": factor * begin, "above": begin} for factor in FACTORS]


def test_a_relation_is_varied_around_its_own_weight(tiny_model, data, monkeypatch):
    monkeypatch.setattr(ConfusionMatrix, "mean_iou", lambda matrix: 0.5)  # the first trial stays the best
    varied = [trial.settings for trial in tune_relation_weights(tiny_model, data.spread(1), grid=())[2:]]
    assert varied == [
        {"surrounding": 0.0, "above": 0.5},
        {"surrounding": 0.25, "above": 0.5},
        {"surrounding": 1.0, "above": 0.5},
        {"surrounding": 0.5, "above": 0.0},
        {"surrounding": 0.5, "above": 0.25},
        {"surrounding": 0.5, "above": 1.0},
    ]
    begin = settings(relation_weights={"surrounding": None, "above": 3.0})
    trials = tune_relation_weights(tiny_model, data.spread(1), grid=(), inference=begin)
    varied = [trial.settings for trial in trials[2:]]
    assert varied[:2] == [{"surrounding": 0.0, "above": 3.0}, {"surrounding": 0.5, "above": 3.0}]
    assert varied[3] == {"surrounding": 1.0, "above": 0.0}


def test_trials_of_the_dense_crf_measure_as_evaluation_does(tiny_model, data):
    grid = {"spatial_compat": (1.0,), "bilateral_compat": (2.0, 8.0), "bilateral_srgb": (20.0,)}
    trials = tune_dense(tiny_model, data, grid, rounds=1)
    assert trials[0].label == "no dense CRF"
    assert trials[0].settings == {"spatial_compat": 0, "bilateral_compat": 0, "bilateral_srgb": 20.0}
    assert trials[0].mean_iou == measured(tiny_model, data, UNARY_PAIRWISE)
    assert [trial.settings["bilateral_compat"] for trial in trials] == [0, 2.0, 8.0]
    for trial in trials:
        assert trial.inference == replace(tiny_model.inference, dense=trial.settings)
        assert trial.mean_iou == measured(tiny_model, data, FULL, trial.inference)
    assert trials[2].mean_iou != trials[0].mean_iou


def test_tuning_the_dense_crf_goes_on_from_the_best_so_far(tiny_model, data, monkeypatch):
    truths = cycle([mask for _, mask in data])

    def refine(predictor, marginals, images):
        # A third of the image is right, and another for each parameter that has its best value.
        dense = predictor.inference.dense
        right = 1 + (dense["bilateral_sxy"] == 10) + (dense["bilateral_compat"] == 8)
        mask = next(truths)
        rows = torch.arange(mask.shape[0])[:, None]
        labels = torch.where(rows < len(rows) * right // 3, mask, 1 - mask.clamp(0, 1))
        return torch.stack([labels == label for label in range(marginals.shape[1])])[None].float()

    monkeypatch.setattr(Predictor, "refine", refine)
    grid = {"spatial_compat": (1.0,), "bilateral_sxy": (20.0, 10.0), "bilateral_compat": (2.0, 4.0, 8.0)}
    trials = tune_dense(tiny_model, data, grid, rounds=1)
    assert best_of(trials).settings == {"spatial_compat": 1.0, "bilateral_sxy": 10.0, "bilateral_compat": 8.0}
    assert best_of(trials).inference.dense == best_of(trials).settings
    assert len(trials) == 5


def test_the_model_s_own_dense_crf_is_tried_and_kept_where_nothing_is_better(tiny_model, data, monkeypatch):
    data = data.spread(1)
    own = {"bilateral_sxy": 33.0, "spatial_compat": 7.0, "iterations": 1}
    begin = settings(dense=own)
    grid = {"spatial_compat": (1.0,), "bilateral_sxy": (20.0, 10.0), "bilateral_compat": (2.0,)}
    trials = tune_dense(tiny_model, data, grid, rounds=1, inference=begin)
    assert trials[0].label == "current settings"
    assert trials[0].settings == {"spatial_compat": 7.0, "bilateral_sxy": 33.0, "bilateral_compat": 10}
    assert trials[0].mean_iou == measured(tiny_model, data, FULL, begin)
    monkeypatch.setattr(ConfusionMatrix, "mean_iou", lambda matrix: 0.5)
    trials = tune_dense(tiny_model, data, grid, rounds=1, inference=begin)
    assert {"spatial_compat": 7.0, "bilateral_sxy": 20.0, "bilateral_compat": 10} in [t.settings for t in trials]
    assert best_of(trials).inference.dense == {**own, "bilateral_compat": 10}


def test_the_dense_crf_of_a_model_without_relations_can_be_tuned(data):
    alone = tiny(data.classes, relations={}, scales=(1.0,))
    trials = tune_dense(alone, data.spread(1), {"bilateral_compat": (2.0,)}, rounds=1)
    assert trials[0].mean_iou == measured(alone, data.spread(1), UNARY_ONLY)


def test_a_split_that_the_model_was_trained_or_evaluated_on_is_warned_about(tiny_model, tmp_path, caplog):
    def warnings(split, folder=None):
        caplog.clear()
        return warn_about_split(tiny_model, "scenes", split, folder), [line.getMessage() for line in caplog.records]

    assert warnings("train") == (False, [])
    tiny_model.metadata = {"unary": {"fit": {"data": "scenes", "split": "train"}}, "tune": {"split": "held"}}
    trained, [line] = warnings("train")
    assert trained
    assert line.startswith("The model was trained on the split train, and is overconfident on its training images.")
    assert warnings("held") == (False, [])
    # The results of a published model, and those beside the folder of a model.
    tiny_model.metadata["measured"] = [{"data": "scenes val, 3 images", "systems": []}]
    trained, [line] = warnings("val")
    assert not trained
    assert line.startswith("The model was evaluated on the split val of scenes. ")
    assert warnings("va") == (False, [])
    entry = {"metadata": {"data": "scenes test, 3 images", "model": fingerprint(tiny_model)}}
    for name, text in (("a", json.dumps(entry)), ("b", "{}"), ("c", "no JSON"), ("d", '{"metadata": 3}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    assert warnings("test") == (False, [])
    assert len(warnings("test", tmp_path / "model")[1]) == 1
    entry["metadata"]["model"] = "another"
    (tmp_path / "a" / "results.json").write_text(json.dumps(entry))
    assert warnings("test", tmp_path / "model") == (False, [])


class Step(Task):
    """A step that counts its parts and keeps its descriptions."""

    def __init__(self, total):
        self.total, self.done, self.words = total, 0, []

    def advance(self, steps=1):
        self.done += steps

    def describe(self, description=None, total=None):
        self.total = self.total if total is None else total
        self.words += [] if description is None else [description]


@pytest.mark.parametrize("tune", [tune_relation_weights, tune_dense])
def test_progress_ends_at_its_total(tune, tiny_model, data):
    # Some of the settings come twice and are tried once.
    grid = {"bilateral_compat": (2.0, 0), "spatial_compat": (0,)} if tune is tune_dense else (0.0, 1.0, 1.0)
    steps, data = {}, data.spread(2)
    with reporting(lambda description, total, transient: steps.setdefault(description, Step(total))):
        trials = tune(tiny_model, data, grid)
    step = steps["Trials"]
    assert step.done == step.total == len(trials) * len(data)
    assert len(step.words) == len(trials)
    for number, (words, trial) in enumerate(zip(step.words, trials, strict=True), 1):
        assert words.startswith(f"Trial {number} of at most ")
        assert words.endswith(f": {trial.label}")
    # Those that come again were not tried, and the total was corrected.
    assert not step.words[0].startswith(f"Trial 1 of at most {len(trials)}:")
