import json
from io import StringIO
from itertools import cycle

import pytest
import torch
from rich.console import Console

from contextcrf.data.dataset import open_dataset
from contextcrf.evaluation import tuning
from contextcrf.evaluation.evaluate import ConfusionMatrix, Results, Row, System, evaluate, predict, systems
from contextcrf.evaluation.report import draw
from contextcrf.evaluation.tuning import adopt, best_of, tune_dense, tune_strengths


def test_iou_is_intersection_over_union_of_sets_of_pixels():
    truth, prediction = torch.randint(0, 4, (3, 20, 20)), torch.randint(0, 4, (3, 20, 20))
    truth[:, :5] = 255
    matrix = ConfusionMatrix(5)
    for image in range(3):
        matrix.update(prediction[image : image + 1], truth[image : image + 1])
    known = truth != 255
    for k in range(4):
        a, b = (truth == k) & known, (prediction == k) & known
        assert matrix.iou()[k].item() == pytest.approx((a & b).sum().item() / (a | b).sum().item())
    assert matrix.iou()[4].isnan()
    assert matrix.mean_iou() == pytest.approx(matrix.iou()[:4].mean().item())
    assert matrix.pixel_accuracy() == pytest.approx((truth == prediction)[known].double().mean().item())
    matrix.reset()
    assert not matrix.seen


def test_rows_by_name(tiny_model):
    names = [(s.name, s.potentials, s.dense) for s in systems(tiny_model)]
    everything = ("unary", "surrounding", "above")
    assert names == [
        ("unary", ("unary",), False),
        ("pairwise-surrounding", ("surrounding",), False),
        ("pairwise-above", ("above",), False),
        ("1unary+2pair", everything, False),
    ]
    assert systems(tiny_model, ["full"]) == [System("full", everything, True)]
    assert systems(tiny_model, ["unary+above+dense"]) == [
        System("unary+above+dense", ("unary", "above"), True),
    ]
    with pytest.raises(ValueError, match="below"):
        systems(tiny_model, ["below"])


def test_evaluation_is_at_full_resolution_and_agrees_with_segment(tiny_model, scenes):
    data = open_dataset(scenes, "val")
    (row,) = evaluate(tiny_model, data, systems(tiny_model, ["crf"]), progress=False)
    by_hand = ConfusionMatrix(len(data.classes))
    for image, mask in data:
        by_hand.update(tiny_model.segment(torch.as_tensor(image)).labels[None], mask[None])
    assert torch.equal(row.matrix.counts, by_hand.counts)
    assert int(row.matrix.counts.sum()) == sum(int((mask != 255).sum()) for _, mask in data)
    assert row.seconds > 0


def test_the_full_row_is_the_dense_crf_behind_all_potentials(tiny_model, scenes):
    image, _ = open_dataset(scenes, "val")[0]
    tiny_model.config.dense = {"iterations": 0}
    wanted = systems(tiny_model, ["crf", "full"])
    (plain, _), (same, _) = predict(tiny_model.eval(), torch.as_tensor(image), wanted)
    torch.testing.assert_close(plain, same)
    tiny_model.config.dense = {"iterations": 3}
    (_, _), (refined, _) = predict(tiny_model, torch.as_tensor(image), wanted)
    assert not torch.allclose(plain, refined, atol=1e-3)
    torch.testing.assert_close(refined.sum(0), torch.ones_like(refined[0]))


def test_results_are_written_for_people_and_programs(tiny_model, scenes, tmp_path):
    data = open_dataset(scenes, "val")
    wanted = systems(tiny_model)
    results = Results(data.classes.names, evaluate(tiny_model, data, wanted, progress=False), {"data": "val"})
    results.write(tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in stored["rows"]] == [system.name for system in wanted]
    assert stored["rows"][0]["mean_iou"] == results.rows[0].matrix.mean_iou()
    assert stored["rows"][0]["confusion"] == results.rows[0].matrix.counts.tolist()
    table = (tmp_path / "results.md").read_text()
    assert f"| unary | {100 * results.rows[0].matrix.mean_iou():.1f} |" in table
    assert "- data: val" in table
    draw(tiny_model, data.spread(2), wanted, results, tmp_path)
    assert (tmp_path / "examples.png").stat().st_size > 1000
    assert (tmp_path / "iou.png").stat().st_size > 1000


def test_the_terminal_shows_every_system_and_class(tiny_model, scenes):
    data = open_dataset(scenes, "val").spread(1)
    results = Results(data.classes.names, evaluate(tiny_model, data, systems(tiny_model), progress=False), {})
    console = Console(width=100, file=StringIO())
    console.print(results.to_rich())
    printed = console.file.getvalue()
    for word in (*data.classes.names, "mean IoU", "pixel acc.", "pairwise-surrounding", "1unary+2pair"):
        assert word in printed
    assert f"{100 * results.rows[0].matrix.pixel_accuracy():.1f}" in printed


def test_a_class_that_does_not_occur_is_null_in_json_and_a_dash_in_tables():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64))
    results = Results(("a", "b"), [Row("r", matrix)], {})
    assert results.to_dict()["rows"][0]["iou"] == {"a": 1.0, "b": None}
    assert "| r | 100.0 | 100.0 | 100.0 | - |" in results.to_markdown()


def test_tuning_measures_what_evaluation_measures(tiny_model, scenes):
    data = open_dataset(scenes, "val")
    trials = tune_strengths(tiny_model, data, grid=(0.0, 2.0), progress=False)
    assert trials[0].settings == {}
    assert trials[1].settings == {"surrounding": None, "above": None}
    assert trials[2].settings == {"surrounding": 0.0, "above": 0.0}
    assert tiny_model.config.strengths == {}
    (crf,) = evaluate(tiny_model, data, systems(tiny_model, ["crf"]), progress=False)
    (unary,) = evaluate(tiny_model, data, systems(tiny_model, ["unary"]), progress=False)
    # Half-precision features may turn single pixels.
    assert trials[0].mean_iou == pytest.approx(crf.matrix.mean_iou(), abs=2e-3)
    assert trials[2].mean_iou == pytest.approx(unary.matrix.mean_iou(), abs=2e-3)
    assert len({str(trial.settings) for trial in trials}) == len(trials)


def test_strengths_are_moved_from_where_they_are(tiny_model, scenes, monkeypatch):
    """Relations that are not named share one vote; a plain sum is no number that a factor could move."""
    data = open_dataset(scenes, "val").spread(1)
    for number, begin in ((0, 0.5), (1, 1.0)):
        monkeypatch.setattr(tuning, "best_of", lambda trials, number=number: trials[number])
        trials = tune_strengths(tiny_model, data, grid=(), progress=False)
        moved = [trial.settings for trial in trials[2 : 2 + len(tuning.FACTORS)]]
        assert moved == [{"surrounding": factor * begin, "above": begin} for factor in tuning.FACTORS]


def test_tuning_the_dense_crf_finds_what_helps(tiny_model, scenes):
    data = open_dataset(scenes, "val")
    grid = {"spatial_compat": (1.0,), "bilateral_compat": (2.0, 8.0), "bilateral_srgb": (20.0,)}
    trials = tune_dense(tiny_model, data, grid, rounds=1, progress=False)
    silent = {"spatial_compat": 0, "bilateral_compat": 0, "bilateral_srgb": 20.0}
    assert trials[0].settings == silent
    [unrefined] = evaluate(tiny_model, data, systems(tiny_model, ["crf"]), progress=False)
    assert trials[0].mean_iou == unrefined.matrix.mean_iou()
    assert [trial.settings["bilateral_compat"] for trial in trials] == [0, 2.0, 8.0]
    tiny_model.config.dense = trials[2].settings
    [refined] = evaluate(tiny_model, data, systems(tiny_model, ["full"]), progress=False)
    assert trials[2].mean_iou == refined.matrix.mean_iou()
    assert trials[2].mean_iou != trials[0].mean_iou


def test_tuning_the_dense_crf_goes_on_from_the_best_so_far(tiny_model, scenes, monkeypatch):
    data = open_dataset(scenes, "val")
    truths = cycle([mask for _, mask in data])

    def refine(marginals, images, settings):
        # A third of the picture is right, and another for each parameter that has its best value.
        right = 1 + (settings["bilateral_sxy"] == 10) + (settings["bilateral_compat"] == 8)
        mask = next(truths)
        rows = torch.arange(mask.shape[0])[:, None]
        labels = torch.where(rows < len(rows) * right // 3, mask, 1 - mask.clamp(0, 1))
        return torch.stack([labels == label for label in range(marginals.shape[1])])[None].float()

    monkeypatch.setattr(tiny_model, "refine", refine)
    grid = {"spatial_compat": (1.0,), "bilateral_sxy": (20.0, 10.0), "bilateral_compat": (2.0, 4.0, 8.0)}
    trials = tune_dense(tiny_model, data, grid, rounds=1, progress=False)
    assert best_of(trials).settings == {"spatial_compat": 1.0, "bilateral_sxy": 10.0, "bilateral_compat": 8.0}
    assert len(trials) == 5


def test_a_relation_is_moved_from_what_it_has_where_it_is_not_named(tiny_model, scenes, monkeypatch):
    data = open_dataset(scenes, "val").spread(1)
    monkeypatch.setattr(ConfusionMatrix, "mean_iou", lambda matrix: 0.5)  # the first trial stays the best
    moved = [trial.settings for trial in tune_strengths(tiny_model, data, grid=(), progress=False)[2:]]
    assert moved == [
        {"surrounding": 0.0, "above": 0.5},
        {"surrounding": 0.25, "above": 0.5},
        {"surrounding": 1.0, "above": 0.5},
        {"surrounding": 0.5, "above": 0.0},
        {"surrounding": 0.5, "above": 0.25},
        {"surrounding": 0.5, "above": 1.0},
    ]
    tiny_model.config.strengths = {"surrounding": None, "above": 3.0}
    moved = [trial.settings for trial in tune_strengths(tiny_model, data, grid=(), progress=False)[2:]]
    assert moved[:2] == [{"surrounding": 0.0, "above": 3.0}, {"surrounding": 0.5, "above": 3.0}]
    assert moved[3] == {"surrounding": 1.0, "above": 0.0}


def test_the_models_own_dense_crf_is_tried_and_kept_where_nothing_is_better(tiny_model, scenes, monkeypatch):
    data = open_dataset(scenes, "val").spread(1)
    own = {"bilateral_sxy": 33.0, "spatial_compat": 7.0, "iterations": 1}
    tiny_model.config.dense = dict(own)
    [as_it_is] = evaluate(tiny_model, data, systems(tiny_model, ["full"]), progress=False)
    grid = {"spatial_compat": (1.0,), "bilateral_sxy": (20.0, 10.0), "bilateral_compat": (2.0,)}
    trials = tune_dense(tiny_model, data, grid, rounds=1, progress=False)
    assert trials[0].settings == {"spatial_compat": 7.0, "bilateral_sxy": 33.0, "bilateral_compat": 10}
    assert trials[0].mean_iou == as_it_is.matrix.mean_iou()
    monkeypatch.setattr(ConfusionMatrix, "mean_iou", lambda matrix: 0.5)
    trials = tune_dense(tiny_model, data, grid, rounds=1, progress=False)
    assert {"spatial_compat": 7.0, "bilateral_sxy": 20.0, "bilateral_compat": 10} in [t.settings for t in trials]
    adopt(tiny_model, best_of(trials), dense=True)
    assert tiny_model.config.dense == {**own, "bilateral_compat": 10}


@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_an_unknown_precision_is_refused(tiny_model, scenes, precision):
    data = open_dataset(scenes, "val").spread(1)
    image, wanted = data[0][0], systems(tiny_model, ["unary"])
    message = f"precision '{precision}': expected bf16-mixed or 32-true"
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_model, data, wanted, precision, progress=False)
    with pytest.raises(ValueError, match=message):
        predict(tiny_model, torch.as_tensor(image), wanted, precision)
    with pytest.raises(ValueError, match=message):
        tune_strengths(tiny_model, data, precision=precision, progress=False)


def test_what_is_drawn_and_measured_is_of_a_model_in_evaluation_mode(tiny_model, scenes, tmp_path):
    data, wanted = open_dataset(scenes, "val").spread(1), systems(tiny_model, ["unary"])
    results = Results(data.classes.names, evaluate(tiny_model.train(), data, wanted, progress=False), {})
    assert not tiny_model.training
    draw(tiny_model.train(), data, wanted, results, tmp_path, progress=False)
    assert not tiny_model.training
    predict(tiny_model.train(), torch.as_tensor(data[0][0]), wanted)
    assert not tiny_model.training
