"""Trainings from data to a model on disk: asked for again, stopped, resumed, refused."""

import logging
import shutil
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

from contextcrf.data.layouts import open_dataset
from contextcrf.modeling.config import InferenceConfig
from contextcrf.modeling.model import load
from contextcrf.modeling.serialization import CONFIG, save
from contextcrf.training import HeadsModule, ModelModule, jobs, run
from contextcrf.training.jobs import BusyError, OtherSettingsError, check_finished, provenance_of
from contextcrf.utils.provenance import Provenance
from trainings import COUPLED, MODEL, QUICK, fit_job, heads_job, weights


class StoppedError(Exception):
    pass


def stop_in_the_second_epoch(module):
    if module.current_epoch == 1:
        raise StoppedError


def stopped(job, monkeypatch):
    """Run a job until its second epoch starts."""
    with monkeypatch.context() as patch:
        for module in (ModelModule, HeadsModule):
            patch.setattr(module, "on_train_epoch_start", stop_in_the_second_epoch)
        with pytest.raises(StoppedError):
            run(job)
    assert not (job.out / "model" / CONFIG).exists()


def without_training(patch):
    """Make a training that begins an error."""
    patch.setattr(jobs, "_train", None)


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory):
    """A finished training, which no test changes."""
    job = fit_job(scenes, tmp_path_factory.mktemp("finished"))
    assert run(job) == job.out / "model"
    return job


@pytest.fixture
def begun(scenes, tmp_path, monkeypatch):
    """A training of three epochs that was stopped after the first."""
    job = fit_job(scenes, tmp_path / "begun")
    stopped(job, monkeypatch)
    return job


def test_a_job_writes_a_model_with_its_settings_and_their_record(finished, scenes):
    model = load(finished.out / "model")
    assert (model.config, model.inference) == (finished.model, finished.inference)
    assert model.metadata["fit"]["data"] == scenes.name
    assert model.metadata["fit"]["split"] == "train"
    assert model.metadata["fit"]["training"]["epochs"] == 3
    assert Provenance.read(finished.out) == provenance_of(finished)


def test_the_same_job_again_trains_nothing(finished, monkeypatch, caplog):
    files = {path: path.stat().st_mtime_ns for path in finished.out.rglob("*") if path.is_file()}
    without_training(monkeypatch)
    with caplog.at_level(logging.INFO, "contextcrf"):
        assert run(finished) == finished.out / "model"
    assert [record.getMessage() for record in caplog.records] == [f"{finished.out}: The model is already trained."]
    assert {path: path.stat().st_mtime_ns for path in finished.out.rglob("*") if path.is_file()} == files
    check_finished(finished)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": replace(QUICK, lr=0.02)}, r"was trained with training\.lr 0\.01, not 0\.02"),
        ({"training": replace(QUICK, crop=(32, 32))}, r"was trained with training\.crop \[64, 96\], not \[32, 32\]"),
        ({"model": replace(MODEL, hidden=16)}, r"was trained with model\.hidden 8, not 16"),
        ({"train_split": "val"}, r"was trained with images 6 images \w{16}, not 3 images \w{16}"),
        ({"pretrained": True}, r"was trained with pretrained False, not True"),
        ({"init": "camvid"}, r"was trained with init None, not \w{64}"),
    ],
)
def test_another_setting_is_named(finished, monkeypatch, change, message):
    without_training(monkeypatch)
    with pytest.raises(
        OtherSettingsError, match=rf"finished\d+ {message}\. Move the folder away, or choose another --out"
    ):
        run(replace(finished, **change))
    with pytest.raises(OtherSettingsError, match=message):
        check_finished(replace(finished, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"training": replace(QUICK, workers=3)},
        {"training": replace(QUICK, val_every=1)},
        {"val_split": "val"},
        {"inference": InferenceConfig(iterations=5, relation_weights={"above": 0.0}, dense={"iterations": 3})},
    ],
    ids=["workers", "val_every", "val_split", "inference"],
)
def test_settings_that_change_no_weights_do_not_count(finished, monkeypatch, change):
    without_training(monkeypatch)
    run(replace(finished, **change))


def test_inference_settings_count_where_the_training_goes_through_inference(scenes, tmp_path):
    through = fit_job(scenes, tmp_path, training=replace(COUPLED, objective="crf-rnn"))
    other = replace(through, inference=replace(through.inference, iterations=5))
    assert provenance_of(through).difference(provenance_of(other)) == ("inference.iterations", 2, 5)
    # A learned dense CRF that another objective does not train still starts with the parameters of the settings.
    untrained = fit_job(scenes, tmp_path, model=replace(MODEL, learned_dense=True))
    other = replace(untrained, inference=replace(untrained.inference, dense={"bilateral_sxy": 20}))
    assert provenance_of(untrained).difference(provenance_of(other)) == ("inference.dense.bilateral_sxy", None, 20)


def test_other_data_of_the_same_name_are_not_taken_for_the_old_ones(finished, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / scenes.name)
    check_finished(replace(finished, data=data))  # the same data in another place
    lines = (data / "splits" / "train.txt").read_text().splitlines()
    (data / "splits" / "train.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(OtherSettingsError, match=r"images 6 images \w{16}, not 5 images"):
        check_finished(replace(finished, data=data))


def test_a_stopped_job_goes_on_exactly(finished, begun, caplog):
    with caplog.at_level(logging.INFO, "contextcrf.training.jobs"):
        run(begun)
    assert [record.getMessage() for record in caplog.records] == [
        f"{begun.out}: The training resumes from epoch=0.ckpt."
    ]
    assert torch.equal(weights(load(begun.out / "model")), weights(load(finished.out / "model")))


def test_a_stopped_job_is_not_finished_and_is_refused_with_other_settings(begun, monkeypatch):
    with pytest.raises(BusyError, match="Another process is running this training"):
        check_finished(begun)
    with monkeypatch.context() as patch:
        without_training(patch)
        with pytest.raises(OtherSettingsError, match=r"begun was started with training\.epochs 3, not 4"):
            run(replace(begun, training=replace(QUICK, epochs=4)))
    (begun.out / "provenance.json").unlink()
    with pytest.raises(OtherSettingsError, match="begun was started with settings that were not recorded"):
        run(begun)


def test_a_job_that_was_stopped_in_its_first_epoch_starts_again(begun, finished):
    shutil.rmtree(begun.out / "checkpoints")
    (begun.out / "checkpoints").mkdir()
    (begun.out / "checkpoints" / "epoch=0.ckpt").write_bytes(b"cut short")
    # There is nothing to mix with, so that other settings are no error.
    run(replace(begun, training=replace(QUICK, epochs=1)))
    assert load(begun.out / "model").metadata["fit"]["training"]["epochs"] == 1


def test_a_lost_model_is_written_again_from_the_last_checkpoint(begun, finished, monkeypatch):
    run(begun)
    shutil.rmtree(begun.out / "model")
    monkeypatch.setattr(ModelModule, "losses", None)  # no step is left
    run(begun)
    assert torch.equal(weights(load(begun.out / "model")), weights(load(finished.out / "model")))


def test_a_job_with_a_checkpoint_goes_on_whatever_the_settings(begun):
    longer = replace(begun, training=replace(QUICK, epochs=4, lr=0.02), checkpoint="last")
    run(longer)
    assert {path.name for path in (begun.out / "checkpoints").iterdir()} >= {"epoch=2.ckpt", "epoch=3.ckpt"}
    assert load(begun.out / "model").metadata["fit"]["training"]["lr"] == 0.02
    # The record is that of the new settings.
    check_finished(replace(longer, checkpoint=None))
    with pytest.raises(OtherSettingsError, match=r"was trained with training\.epochs 4, not 3"):
        check_finished(begun)


def test_a_job_goes_on_from_the_checkpoint_of_another(begun, finished, scenes, tmp_path):
    checkpoint = begun.out / "checkpoints" / "epoch=0.ckpt"
    other = fit_job(scenes, tmp_path / "other", checkpoint=str(checkpoint))
    run(other)
    assert torch.equal(weights(load(other.out / "model")), weights(load(finished.out / "model")))


def test_a_job_of_another_process_is_left_alone(scenes, tmp_path, monkeypatch):
    job = fit_job(scenes, tmp_path)
    (tmp_path / "model").mkdir()
    without_training(monkeypatch)
    with FileLock(tmp_path / ".model.lock"), pytest.raises(BusyError, match="Another process"):
        run(job)


def test_a_training_starts_from_a_model(finished, scenes, tmp_path):
    job = fit_job(
        scenes,
        tmp_path / "on",
        model=replace(MODEL, channels=99),  # the configuration of the model that it starts from counts
        training=replace(QUICK, epochs=1, potentials=["above"]),
        init=str(finished.out),
    )
    run(job)
    before, after = load(finished.out), load(job.out)
    assert after.config == before.config
    assert torch.equal(weights(after.unary), weights(before.unary))
    assert not torch.equal(weights(after.pairwise_potential("above")), weights(before.pairwise_potential("above")))
    # The model that it starts from counts by its weights.
    assert provenance_of(job).difference(provenance_of(replace(job, init=str(finished.out / "model")))) is None
    changed = load(finished.out)
    torch.nn.init.zeros_(changed.unary.last.bias)
    save(changed, tmp_path / "changed")
    with pytest.raises(OtherSettingsError, match=r"was trained with init \w{64}, not \w{64}"):
        run(replace(job, init=str(tmp_path / "changed")))


def test_a_dense_crf_to_be_learned_is_added_to_the_model_that_a_training_starts_from(finished, scenes, tmp_path):
    job = fit_job(
        scenes,
        tmp_path,
        model=replace(MODEL, learned_dense=True),
        training=replace(COUPLED, epochs=1, batch_size=6, lr=1e-4, objective="crf-rnn", potentials=["unary"]),
        inference=InferenceConfig(iterations=9, dense={"bilateral_sxy": 20, "iterations": 2}),
        init=str(finished.out),
    )
    run(job)
    model = load(job.out)
    assert model.config == replace(finished.model, learned_dense=True)
    assert model.inference == replace(finished.inference, dense={"bilateral_sxy": 20, "iterations": 2})
    torch.testing.assert_close(model.dense.log_bilateral_sxy.exp(), torch.tensor(20.0), rtol=1e-2, atol=0)


def test_heads_are_trained_on_a_model(finished, scenes, tmp_path):
    job = heads_job(finished.out, scenes, tmp_path, copies=1)
    assert run(job) == tmp_path / "model"
    before, after = load(finished.out), load(tmp_path)
    assert torch.equal(weights(after.trunks), weights(before.trunks))
    assert not torch.equal(weights(after.pairwise_potential("above")), weights(before.pairwise_potential("above")))
    assert (after.config, after.inference) == (before.config, before.inference)
    assert after.metadata["fit"] == before.metadata["fit"]
    assert after.metadata["fit-heads"]["training"]["epochs"] == 3


def test_heads_are_asked_for_again_stopped_and_refused_like_other_trainings(finished, scenes, tmp_path, monkeypatch):
    whole, parts = (heads_job(finished.out, scenes, tmp_path / name) for name in ("whole", "parts"))
    run(whole)
    stopped(parts, monkeypatch)
    with pytest.raises(OtherSettingsError, match=r"parts was started with copies 2, not 3"):
        run(replace(parts, copies=3))
    run(parts)
    assert torch.equal(weights(load(parts.out)), weights(load(whole.out)))
    without_training(monkeypatch)
    run(parts)
    for change, message in [
        ({"copies": 3}, "copies 2, not 3"),
        ({"graph_stride": 16}, "graph_stride None, not 16"),
        ({"model": "camvid"}, r"model \w{64}, not \w{64}"),
        ({"training": replace(QUICK, potentials=["above"])}, r"training\.potentials None, not \['above'\]"),
    ]:
        with pytest.raises(OtherSettingsError, match=f"parts was trained with {message}"):
            run(replace(parts, **change))


def test_new_heads_reset_tuned_relation_weights(finished, scenes, tmp_path):
    tuned = load(finished.out)
    inference = replace(tuned.inference, relation_weights={"above": 4.0}, iterations=3)
    save(tuned, tmp_path / "tuned", {**tuned.metadata, "tune": {"split": "train"}}, inference=inference)
    run(heads_job(tmp_path / "tuned", scenes, tmp_path / "heads", training=replace(QUICK, epochs=1)))
    found = load(tmp_path / "heads")
    assert found.inference == replace(inference, relation_weights={})
    assert set(found.metadata) == {"fit", "fit-heads"}


def test_new_heads_keep_relation_weights_that_were_not_tuned(finished, scenes, tmp_path):
    model = load(finished.out)
    inference = replace(model.inference, relation_weights={"above": 4.0})
    save(model, tmp_path / "model", inference=inference)
    run(heads_job(tmp_path / "model", scenes, tmp_path / "heads", training=replace(QUICK, epochs=1)))
    assert load(tmp_path / "heads").inference == inference


def test_heads_on_another_graph(finished, scenes, tmp_path):
    model = load(finished.out)
    inference = replace(model.inference, relation_weights={"above": 4.0})
    save(model, tmp_path / "model", inference=inference)
    job = heads_job(tmp_path / "model", scenes, tmp_path / "heads", training=replace(QUICK, epochs=1), graph_stride=16)
    run(job)
    found = load(tmp_path / "heads")
    assert found.config == replace(model.config, graph_stride=16)
    # Weights for the other graph are reset.
    assert found.inference.relation_weights == {}
    image, _ = open_dataset(scenes, "val")[0]
    assert found.segment(image).labels.shape == image.shape[1:]
    with pytest.raises(ValueError, match="graph_stride=12 is not valid, because it must be a multiple of stride=8"):
        run(replace(job, out=tmp_path / "other", graph_stride=12))


def test_other_classes_than_those_of_the_model_are_refused(scenes, tmp_path):
    for job in (
        fit_job(scenes, tmp_path / "fit", init="camvid"),
        heads_job("camvid", scenes, tmp_path / "heads"),
    ):
        with pytest.raises(ValueError, match=r"the classes sky, .*, but the data set has the classes"):
            run(job)
        assert not (job.out / "model" / CONFIG).exists()
