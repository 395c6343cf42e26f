"""The entries of several training runs in the metadata of one model."""

from dataclasses import replace

import pytest

from contextcrf import load
from contextcrf.data.layouts import open_dataset
from contextcrf.data.synthetic import write_scenes
from contextcrf.evaluation.tuning import warn_about_split
from contextcrf.training.held_out import HELD_OUT, divide
from contextcrf.training.history import last_training
from contextcrf.training.jobs import run
from trainings import COUPLED, QUICK, fit_job


@pytest.fixture
def first(scenes, tmp_path):
    return run(fit_job(scenes, tmp_path / "first", training=replace(QUICK, potentials=["unary"])))


def test_a_further_training_keeps_the_entries_of_the_earlier_ones(first, scenes, tmp_path):
    second = run(fit_job(scenes, tmp_path / "second", init=str(first), train_split="val"))
    whole = replace(COUPLED, objective="end-to-end", epochs=1)
    third = load(run(fit_job(scenes, tmp_path / "third", init=str(second), training=whole)))
    assert list(third.metadata) == ["fit", "fit 2", "end-to-end"]
    assert third.metadata["fit"] == load(first).metadata["fit"]
    assert [entry["split"] for entry in third.metadata.values()] == ["train", "val", "train"]
    assert last_training(third.metadata) == third.metadata["end-to-end"]


def test_tuning_warns_of_the_split_of_every_training(first, scenes, tmp_path, caplog):
    second = load(run(fit_job(scenes, tmp_path / "second", init=str(first), train_split="val")))
    assert warn_about_split(second, scenes.name, "train")
    assert warn_about_split(second, scenes.name, "val")
    assert not warn_about_split(second, scenes.name, "other")


def test_images_are_held_out_only_if_the_last_training_left_them_out(tmp_path):
    many = write_scenes(tmp_path / "many", train=16, val=1, height=64, width=96)
    config = replace(QUICK, potentials=["unary"], epochs=3, held_out=0.25)
    first = run(fit_job(many, tmp_path / "first", training=config))
    network, train = load(first), open_dataset(many, "train")
    kept, held_out = divide(network, train, QUICK)
    assert [image.name for image, _ in held_out.pairs] == network.metadata["fit"][HELD_OUT]
    assert (len(kept), len(held_out)) == (12, 4)
    second = load(run(fit_job(many, tmp_path / "second", init=str(first))))
    assert divide(second, train, QUICK)[1] is None
