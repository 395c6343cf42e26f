"""The images that the last epochs leave out, and the relation weights that are chosen on them."""

import json
from dataclasses import replace

import pytest
import torch

from contextcrf import load
from contextcrf.data.layouts import open_dataset
from contextcrf.data.synthetic import write_scenes
from contextcrf.evaluation.tuning import Trial, reliable_trial, tune_relation_weights
from contextcrf.modeling.config import InferenceConfig
from contextcrf.training import SeededSampler
from contextcrf.training.budget import plan_within_budget
from contextcrf.training.held_out import HELD_OUT, choose_relation_weights, divide, held_out_positions
from contextcrf.training.jobs import run
from trainings import QUICK, fit_job, heads_job

SCENES = 16


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), train=SCENES, val=2, height=64, width=96)


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """A network whose last epoch has left out a quarter of the images."""
    out = tmp_path_factory.mktemp("runs") / "unary"
    return run(fit_job(scenes, out, training=replace(QUICK, potentials=["unary"], epochs=6, held_out=0.25)))


def test_held_out_images_are_evenly_spaced_and_at_most_a_quarter():
    assert held_out_positions(60, 0.2) == [2, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57]
    assert held_out_positions(1000, 0.1)[:3] == [5, 15, 25]
    assert len(held_out_positions(16, 0.05)) == 4
    assert held_out_positions(15, 0.25) == held_out_positions(100, 0.0) == []


def test_the_last_epochs_draw_other_images_twice():
    sampler = SeededSampler(20, 0, left_out=[3, 7, 11, 15], left_out_from=2)
    plain = SeededSampler(20, 0)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        plain.set_epoch(epoch)
        drawn = [index for index, _ in sampler]
        if epoch < 2:
            assert list(sampler) == list(plain)
            continue
        assert len(drawn) == len(sampler) == 20
        assert set(drawn) == {*range(20)} - {3, 7, 11, 15}
        # The seeds of an image that is drawn twice differ.
        assert len({seed for _, seed in sampler}) == 20


def test_several_processes_draw_the_images_of_one():
    one = SeededSampler(20, 0, left_out=[1, 2], left_out_from=0)
    parts = [list(SeededSampler(20, 0, rank, 2, [1, 2], 0)) for rank in range(2)]
    assert [pair for pairs in zip(*parts, strict=True) for pair in pairs] == list(one)


def test_the_model_names_the_images_and_the_heads_leave_them_out(trained, scenes, tmp_path):
    model, train = load(trained), open_dataset(scenes, "train")
    names = model.metadata["fit"][HELD_OUT]
    assert names == [train.pairs[i][0].name for i in (2, 6, 10, 14)]
    kept, held_out = divide(model, train, QUICK)
    assert [image.name for image, _ in held_out.pairs] == names
    assert {*kept.pairs} | {*held_out.pairs} == {*train.pairs}
    assert len(kept) == 12
    heads = load(run(heads_job(trained, scenes, tmp_path / "heads")))
    entry = heads.metadata["tune"]
    assert entry["images"] == 4
    # The weights are those of a reliable trial, or all 0.
    weights = heads.inference.weights(heads.pairwise)
    default = replace(heads.inference, relation_weights={})
    chosen, difference = reliable_trial(tune_relation_weights(heads, held_out, inference=default))
    assert chosen.inference.weights(heads.pairwise) == weights
    assert entry["mean_iou"] == pytest.approx(difference.second)
    assert entry["interval"][0] > 0 or set(weights.values()) == {0.0}


def test_a_network_that_saw_all_images_keeps_the_default_weights(scenes, tmp_path):
    model = run(fit_job(scenes, tmp_path / "unary", training=replace(QUICK, potentials=["unary"])))
    heads = load(run(heads_job(model, scenes, tmp_path / "heads")))
    assert "tune" not in heads.metadata
    assert heads.inference.relation_weights == {}


def test_on_a_frozen_backbone_the_heads_hold_out_images_of_their_own(trained, scenes, tmp_path):
    model, train = load(trained), open_dataset(scenes, "train")
    config = replace(QUICK, potentials=["unary", "above"], held_out=0.25)
    _, held_out = divide(model, train, config)
    assert len(held_out) == 4
    assert divide(model, train, replace(config, held_out=0.0)) == (train, None)


def trial(weight, right):
    """A trial on nine images, `right` of which have all labels right."""
    wrong, counts = torch.tensor([[2, 2], [2, 2]]), torch.tensor([[4, 0], [0, 4]])
    images = torch.stack([counts if i < right else wrong for i in range(9)])
    return Trial(f"weight {weight}", {"above": weight}, InferenceConfig(), 0.1 * right, images, off=weight == 0)


def test_only_a_reliable_gain_is_chosen():
    zero, one = trial(0.0, 4), trial(1.0, 5)
    assert reliable_trial([one, zero])[0] is zero  # one image of nine may be chance
    best, difference = reliable_trial([trial(1.0, 8), zero, trial(2.0, 9), trial(4.0, 9)])
    assert best.settings == {"above": 2.0}
    assert difference.low > 0
    with pytest.raises(ValueError, match="No trial has the weight 0"):
        reliable_trial([one, trial(None, 9)])


def test_pairwise_terms_that_harm_get_the_weight_0(trained, scenes, caplog):
    model = load(trained)
    for name in model.pairwise:
        # Random potentials, far from a training.
        torch.nn.init.normal_(model.pairwise_potential(name).last.weight, std=3.0)
    caplog.set_level("INFO")
    held_out = divide(model, open_dataset(scenes, "train"), QUICK)[1]
    entry = choose_relation_weights(model, held_out)
    assert set(model.inference.weights(model.pairwise).values()) == {0.0}
    assert "The relation weights are 0" in caplog.text
    assert entry["mean_iou"] == entry["without"]
    assert json.dumps(entry)


def test_a_budget_includes_the_tuning(trained, scenes, tmp_path):
    job = heads_job(trained, scenes, tmp_path / "heads", budget="1h")
    assert plan_within_budget(job).training.epochs == QUICK.epochs
