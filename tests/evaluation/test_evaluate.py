"""Systems measured on a data set, and the files with the results."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console

from contextcrf import Predictor, System
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.comparison import Difference, Gain
from contextcrf.evaluation.evaluate import EvaluationResults, PackedLabels, SystemResult, default_systems, evaluate
from contextcrf.evaluation.metrics import ConfusionMatrix
from contextcrf.inference import FULL, UNARY_ONLY, UNARY_PAIRWISE
from models import count_trunk_runs, settings


@pytest.fixture
def data(scenes):
    return open_dataset(scenes, "val")


@pytest.fixture
def predictor(tiny_model):
    return Predictor(tiny_model.eval())


def test_evaluation_is_at_full_resolution_and_agrees_with_segment(predictor, data):
    systems = [UNARY_PAIRWISE, UNARY_ONLY, System(unary=False, relations=("above",)), FULL]
    results = evaluate(predictor, data, systems)
    assert [result.name for result in results] == [system.name for system in systems]
    for system, result in zip(systems, results, strict=True):
        by_hand = ConfusionMatrix(len(data.classes))
        for image, mask in data:
            by_hand.update(predictor.segment(torch.as_tensor(image), system).labels[None], mask[None])
        assert torch.equal(result.matrix.counts, by_hand.counts)
        assert int(result.matrix.counts.sum()) == sum(int((mask != 255).sum()) for _, mask in data)
        assert result.counts.shape == (len(data), len(data.classes), len(data.classes))
        assert torch.equal(result.counts.sum(0), result.matrix.counts)
        assert result.seconds > 0


def test_the_network_runs_once_per_image_for_all_systems(predictor, data):
    systems = [*default_systems(predictor.model), FULL]
    assert len(systems) == 5
    with count_trunk_runs(predictor.model) as count:
        evaluate(predictor, data, systems)
        assert count() == len(data)


def test_labels_are_kept_of_the_systems_that_are_asked_for(predictor, data):
    systems = [UNARY_ONLY, UNARY_PAIRWISE, FULL]
    assert [result.labels for result in evaluate(predictor, data, systems)] == [[], [], []]
    results = evaluate(predictor, data, systems, keep_labels={UNARY_ONLY, FULL, System(unary=False)})
    assert [len(result.labels) for result in results] == [len(data), 0, len(data)]
    for number, (image, _) in enumerate(data):
        for system, result in ((UNARY_ONLY, results[0]), (FULL, results[2])):
            assert torch.equal(result.labels[number].unpack(), predictor.segment(torch.as_tensor(image), system).labels)


def test_images_of_one_size_are_measured_in_batches(predictor, data, monkeypatch):
    alone = evaluate(predictor, data, [UNARY_ONLY, FULL], keep_labels=[FULL])
    monkeypatch.setattr(Predictor, "images_at_once", 2)
    with count_trunk_runs(predictor.model) as count:
        together = evaluate(predictor, data, [UNARY_ONLY, FULL], keep_labels=[FULL])
        assert count() == (len(data) + 1) // 2 < len(data)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.counts, other.counts)
        assert [kept.unpack().tolist() for kept in one.labels] == [kept.unpack().tolist() for kept in other.labels]


def test_seconds_are_the_mean_over_the_images(predictor, data, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(Predictor, "_clock", lambda self: float(next(ticks)))  # each step takes one second
    assert [result.seconds for result in evaluate(predictor, data, [UNARY_ONLY])] == [pytest.approx(4.0)]


def test_a_model_in_training_mode_is_measured_in_evaluation_mode_and_stays_as_it_was(tiny_model, data):
    [result] = evaluate(Predictor(tiny_model.train()), data, [UNARY_PAIRWISE])
    assert tiny_model.training
    [expected] = evaluate(Predictor(tiny_model.eval()), data, [UNARY_PAIRWISE])
    assert torch.equal(result.counts, expected.counts)


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (300, 200)])
def test_packed_labels_are_unpacked_as_they_were(shape):
    labels = torch.randint(0, 256, shape)
    packed = PackedLabels.pack(labels)
    assert torch.equal(packed.unpack(), labels)
    assert packed.unpack().dtype == torch.int64
    smooth = PackedLabels.pack(torch.zeros(1000, 1000, dtype=torch.int64))
    assert len(smooth.data) < 10_000
    # Also a part of a larger tensor.
    assert torch.equal(PackedLabels.pack(labels.expand(2, *shape)[0].T).unpack(), labels.T)


def test_results_are_written_for_people_and_programs(predictor, data, tmp_path):
    systems = default_systems(predictor.model)
    results = EvaluationResults(data.classes.names, evaluate(predictor, data, systems), {"data": "val"})
    results.write(tmp_path / "new")
    stored = json.loads((tmp_path / "new" / "results.json").read_text())
    assert set(stored) == {"metadata", "classes", "systems", "gains"}
    assert stored["metadata"] == {"data": "val"}
    assert stored["classes"] == list(data.classes.names)
    assert [system["name"] for system in stored["systems"]] == [system.name for system in systems]
    for found, system in zip(stored["systems"], results.systems, strict=True):
        assert found["mean_iou"] == system.matrix.mean_iou()
        assert found["pixel_accuracy"] == system.matrix.pixel_accuracy()
        assert found["confusion"] == system.matrix.counts.tolist()
        assert found["seconds_per_image"] == system.seconds
        assert list(found["iou"]) == list(data.classes.names)
    table = (tmp_path / "new" / "results.md").read_text()
    [row] = [line.split("|") for line in table.splitlines() if line.startswith("| unary ")]
    assert row[2].strip() == f"{100 * results.systems[0].matrix.mean_iou():.1f}"
    assert "- data: val" in table


def test_gains_and_settings_are_written(tmp_path):
    gain = Gain("unary", "unary+pairwise", Difference(0.5, 0.625, 0.05, 0.15), "The pairwise terms raise the mean IoU.")
    metadata = {"data": "val", "inference": {"scales": [1.0, 0.5], "relation_weights": {"above": None}}}
    systems = [SystemResult("unary", torch.tensor([[[4, 0], [0, 3]]]))]
    EvaluationResults(("a", "b"), systems, metadata, [gain]).write(tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["gains"] == [
        {
            "first": "unary",
            "second": "unary+pairwise",
            "gain": 0.125,
            "low": 0.05,
            "high": 0.15,
            "verdict": "The pairwise terms raise the mean IoU.",
        }
    ]
    page = (tmp_path / "results.md").read_text()
    assert "- inference: {scales: [1.0, 0.5], relation_weights: {above: null}}\n" in page
    assert page.endswith(f"\n\n- {gain}\n")
    assert "- inference: default\n" in EvaluationResults(("a", "b"), systems, {"inference": {}}).to_markdown()


def test_the_terminal_shows_every_system_and_class(predictor, data):
    systems = default_systems(predictor.model)
    results = EvaluationResults(data.classes.names, evaluate(predictor, data.spread(1), systems), {})
    console = Console(width=100, file=StringIO())
    console.print(results.to_rich())
    printed = console.file.getvalue()
    for word in (*data.classes.names, "mean IoU", "pixel acc.", "surrounding", "above", "unary+pairwise"):
        assert word in printed
    assert f"{100 * results.systems[0].matrix.pixel_accuracy():.1f}" in printed


def test_a_class_that_does_not_occur_is_null_in_json_and_a_dash_in_tables():
    counts = torch.tensor([[[4, 0], [0, 0]]])
    results = EvaluationResults(("a", "b"), [SystemResult("r", counts)], {})
    [system] = results.to_dict()["systems"]
    assert system["iou"] == {"a": 1.0, "b": None}
    assert system["seconds_per_image"] is None
    cells = [cell.strip() for cell in results.to_markdown().splitlines()[-1].split("|")[1:-1]]
    assert cells == ["r", "100.0", "100.0", "100.0", "-"]
    json.dumps(results.to_dict(), allow_nan=False)


def test_settings_change_a_measurement(tiny_model, data):
    heavy = settings(relation_weights=dict.fromkeys(tiny_model.pairwise, 50.0))
    [first], [second] = (evaluate(Predictor(tiny_model, own), data, [UNARY_PAIRWISE]) for own in (None, heavy))
    assert not torch.equal(first.counts, second.counts)
