"""The two stages of training, from images or cached features to weights."""

import copy
import logging
import multiprocessing
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.model import ContextCRF, load
from contextcrf.modeling.serialization import save
from contextcrf.training import HeadsModule, augmentation, class_weights, fit, fit_heads
from contextcrf.training.trainer import make_trainer
from contextcrf.utils import runtime
from trainings import COUPLED, QUICK, logged, losses, weights

COUPLING = ["pseudo-likelihood", "mean-field", "unrolled"]


def test_training_lowers_the_loss_of_every_potential(tiny_model, train, scenes, tmp_path):
    before = losses(tiny_model, scenes)
    config = replace(QUICK, epochs=12, max_edges=512, val_every=12)
    fit(tiny_model, train, open_dataset(scenes, "val"), config, tmp_path)
    after = losses(tiny_model, scenes)
    assert set(before) == {"unary", "surrounding", "above"}
    for name in before:
        assert after[name] < 0.95 * before[name], name


def test_logs_and_the_checkpoints_of_the_last_two_epochs(tiny_model, train, scenes, tmp_path):
    config = replace(QUICK, epochs=4, val_every=4)
    fit(tiny_model, train, open_dataset(scenes, "val"), config, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["epoch=2.ckpt", "epoch=3.ckpt"]
    assert list((tmp_path / "tensorboard").glob("events*"))
    rows = logged(tmp_path)
    assert {"val/unary", "val/unary+pairwise"} <= set(rows[0])
    assert [bool(row["val/unary"]) for row in rows].count(True) == 1  # once in four epochs
    assert {"train/unary", "train/surrounding", "train/above", "lr-AdamW/new"} <= set(rows[0])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tiny_model, train, tmp_path, ema):
    """Stopped in the third of three epochs: data order, augmentation, edge sampling, optimizer and schedule go on."""
    config = replace(QUICK, ema=ema)
    whole, halves = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    fit(whole, train, None, config, tmp_path / "whole")

    class Stop(Exception):
        pass

    class StopsInTheThirdEpoch(SegmentationDataset):
        reads = 0

        def __getitem__(self, key):
            type(self).reads += 1
            if self.reads > 2 * 6 + 3:
                raise Stop
            return super().__getitem__(key)

    broken = StopsInTheThirdEpoch(train.pairs, train.classes, train.ignore_index, train.transform)
    with pytest.raises(Stop):
        fit(halves, broken, None, config, tmp_path / "halves")
    fresh = copy.deepcopy(tiny_model)
    torch.rand(11)  # another state of the global generator, as in a new process
    fit(fresh, train, None, config, tmp_path / "halves", checkpoint="last")
    assert torch.equal(weights(fresh), weights(whole))
    assert not torch.equal(weights(whole), weights(tiny_model))
    # The same from the path of a checkpoint.
    again = copy.deepcopy(tiny_model)
    fit(again, train, None, config, tmp_path / "again", checkpoint=tmp_path / "whole" / "checkpoints" / "epoch=1.ckpt")
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_goes_on_with_other_rates_and_more_epochs(tiny_model, train, tmp_path, optimizer):
    """Rates and schedule are those of a run that had these settings from the beginning."""
    first = replace(QUICK, optimizer=optimizer)
    other = replace(first, epochs=5, lr=0.02, weight_decay=0.01)
    fit(copy.deepcopy(tiny_model), train, None, first, tmp_path / "run")
    # A folder of its own for the logs of the second part.
    newest = tmp_path / "run" / "checkpoints" / "epoch=2.ckpt"
    fit(copy.deepcopy(tiny_model), train, None, other, tmp_path / "more", checkpoint=newest)
    fit(copy.deepcopy(tiny_model), train, None, other, tmp_path / "whole")
    states = [
        torch.load(tmp_path / name / "checkpoints" / "epoch=4.ckpt", weights_only=True) for name in ("more", "whole")
    ]
    groups = [state["optimizer_states"][0]["param_groups"] for state in states]
    assert groups[0] == groups[1]
    assert groups[0][0]["weight_decay"] == 0.01
    assert states[0]["lr_schedulers"][0]["last_epoch"] == (15 if optimizer == "adamw" else 5)


def test_the_checkpoint_of_another_optimizer_is_refused(tiny_model, train, tmp_path):
    fit(tiny_model, train, None, QUICK, tmp_path)
    with pytest.raises(ValueError, match="The optimizer is sgd, but the checkpoint was written with another optimizer"):
        fit(tiny_model, train, None, replace(QUICK, epochs=4, optimizer="sgd"), tmp_path, checkpoint="last")


def test_without_a_checkpoint_a_resumption_is_an_error(tiny_model, train, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"contains no checkpoint to resume from\. Start without --checkpoint last"
    ):
        fit(tiny_model, train, None, QUICK, tmp_path, checkpoint="last")


def test_resuming_a_finished_run_gives_the_averaged_weights_again(tiny_model, train, tmp_path):
    config, again = replace(QUICK, ema=0.9, epochs=2), copy.deepcopy(tiny_model)
    fit(tiny_model, train, None, config, tmp_path)
    fit(again, train, None, config, tmp_path, checkpoint="last")
    assert torch.equal(weights(again), weights(tiny_model))


def test_potentials_train_one_by_one(tiny_model, train, tmp_path):
    before = copy.deepcopy(tiny_model)
    fit(tiny_model, train, None, replace(QUICK, potentials=["above"], epochs=1), tmp_path)
    assert torch.equal(weights(tiny_model.unary), weights(before.unary))
    assert torch.equal(
        weights(tiny_model.pairwise_potential("surrounding")), weights(before.pairwise_potential("surrounding"))
    )
    assert not torch.equal(weights(tiny_model.pairwise_potential("above")), weights(before.pairwise_potential("above")))
    assert not torch.equal(weights(tiny_model.trunks), weights(before.trunks))


def test_the_second_stage_changes_pairwise_heads_alone(tiny_model, train, scenes, tmp_path):
    before, initial = copy.deepcopy(tiny_model), losses(tiny_model, scenes)
    fit_heads(tiny_model, train, replace(QUICK, epochs=15, max_edges=256), tmp_path, copies=2)
    for part in ("trunks", "unary"):
        assert torch.equal(weights(getattr(tiny_model, part)), weights(getattr(before, part)))
    trained = losses(tiny_model, scenes)
    for name in ("above", "surrounding"):
        assert trained[name] < 0.95 * initial[name], name
    fit_heads(tiny_model, train, replace(QUICK, epochs=1, potentials=["above"]), tmp_path / "above")
    again = losses(tiny_model, scenes)
    assert again["surrounding"] == trained["surrounding"]
    assert again["above"] != trained["above"]


def test_a_resumed_second_stage_ends_as_an_undisturbed_one(tiny_model, train, tmp_path, monkeypatch):
    whole, halves, fresh = (copy.deepcopy(tiny_model) for _ in range(3))
    fit_heads(whole, train, QUICK, tmp_path / "whole")

    def stop_after_one_epoch(module):
        if module.current_epoch == 1:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(HeadsModule, "on_train_epoch_start", stop_after_one_epoch)
        with pytest.raises(InterruptedError):
            fit_heads(halves, train, QUICK, tmp_path / "halves")
    fit_heads(fresh, train, QUICK, tmp_path / "halves", checkpoint="last")
    assert torch.equal(weights(fresh), weights(whole))
    assert not torch.equal(weights(halves), weights(whole))


def test_the_second_stage_refuses_what_it_cannot_train(tiny_model, train, tmp_path):
    with pytest.raises(ValueError, match="epochs is 0, but fit-heads needs 1 or more"):
        fit_heads(tiny_model, train, replace(QUICK, epochs=0), tmp_path)
    without = ContextCRF(replace(tiny_model.config, relations={}), tiny_model.classes, pretrained=False)
    with pytest.raises(ValueError, match="The model has no relations, so fit-heads has no heads to train"):
        fit_heads(without, train, QUICK, tmp_path)
    with pytest.raises(ValueError, match="copies is 0, but must be 1 or greater"):
        fit_heads(tiny_model, train, QUICK, tmp_path, copies=0)
    with pytest.raises(ValueError, match="needs images, but fit-heads trains on cached features"):
        fit_heads(tiny_model, train, replace(COUPLED, objective="crf-rnn"), tmp_path)
    apart = ContextCRF(replace(tiny_model.config, shared_trunk=False), tiny_model.classes, pretrained=False)
    with pytest.raises(ValueError, match="shared trunk"):
        fit_heads(apart, train, QUICK, tmp_path)
    assert not list(tmp_path.iterdir())


def test_class_weights_balance_and_have_a_mean_of_one(scenes):
    data = open_dataset(scenes, "train")
    counts = torch.zeros(256)
    for _, mask in data:
        counts += torch.bincount(mask.flatten(), minlength=256)
    frequency = (counts[: len(data.classes)] / counts[: len(data.classes)].sum()).double()
    seen = frequency > 0
    balanced = class_weights(data, 1.0).double()
    torch.testing.assert_close((balanced * frequency)[seen], torch.full_like(frequency[seen], 1 / int(seen.sum())))
    assert class_weights(data, 0.0)[seen].unique().tolist() == [1.0]


def test_balanced_classes_change_the_training(tiny_model, train, tmp_path):
    models = [copy.deepcopy(tiny_model) for _ in range(2)]
    for model, balance in zip(models, (0.0, 1.0), strict=True):
        fit(model, train, None, replace(QUICK, epochs=1, class_balance=balance), tmp_path / str(balance))
    assert not torch.equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("objective", COUPLING)
def test_coupled_objectives_train_end_to_end_and_on_cached_features(tiny_model, train, scenes, tmp_path, objective):
    config = replace(COUPLED, objective=objective, epochs=6)

    def loss():
        [value] = losses(tiny_model, scenes, config).values()
        return value

    before = loss()
    fit(tiny_model, train, None, config, tmp_path / "whole")
    between = loss()
    assert between < 0.95 * before
    assert f"train/{objective}" in logged(tmp_path / "whole")[0]
    unary = weights(tiny_model.unary)
    fit_heads(tiny_model, train, config, tmp_path / "heads")
    assert loss() < between
    assert torch.equal(weights(tiny_model.unary), unary)


def test_a_learned_dense_crf_is_trained_with_the_network(tiny_model, train, scenes, tmp_path):
    inference = replace(tiny_model.inference, dense={"bilateral_sxy": 20, "bilateral_compat": 3, "iterations": 3})
    model = with_config(tiny_model, replace(tiny_model.config, learned_dense=True), inference)
    config = replace(COUPLED, potentials=["unary"], objective="crf-rnn", batch_size=3, epochs=4, lr=0.02, val_every=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = losses(model, scenes, config)["crf-rnn"]
    fit(model, train, open_dataset(scenes, "val"), config, tmp_path)
    assert losses(model, scenes, config)["crf-rnn"] < first
    changed = {key for key, value in before.items() if not torch.equal(model.state_dict()[key], value)}
    assert {"dense.spatial_compat", "dense.log_bilateral_sxy", "unary.last.weight"} <= changed
    assert not any(key.startswith("pairwise") for key in changed)
    assert "val/unary+dense" in logged(tmp_path)[0]
    # Labels learn to differ: the matrix is not of the Potts model any more.
    compat = model.dense.spatial_compat
    assert compat.diagonal().std() > 0
    save(model, tmp_path / "model")
    torch.testing.assert_close(load(tmp_path / "model").dense.spatial_compat, compat)


def test_lovasz_is_trained(tiny_model, train, scenes, tmp_path):
    config = replace(QUICK, epochs=24, lovasz=1.0, loss_at="pixels")
    before = losses(tiny_model, scenes, config)["lovasz"]
    fit(tiny_model, train, None, config, tmp_path)
    assert losses(tiny_model, scenes, config)["lovasz"] < 0.95 * before
    assert "train/lovasz" in logged(tmp_path)[0]


def test_frozen_parts_of_the_backbone_stay_as_they_are(train, tmp_path):
    config = ModelConfig("mobilenetv3_small_050", stride=32, channels=8, hidden=8, scales=(1.0,))
    model = ContextCRF(config, train.classes, pretrained=False)
    model.trunk("unary").backbone.pretrained = True
    before = {key: value.clone() for key, value in model.trunks.state_dict().items()}
    settings = replace(QUICK, epochs=1, batch_size=3, frozen_stages=2, potentials=["unary"])
    fit(model, train, None, settings, tmp_path)
    changed = {key for key, value in model.trunks.state_dict().items() if not torch.equal(before[key], value)}
    assert any("body.blocks.3" in key for key in changed)
    assert not any("body.blocks.0" in key for key in changed)
    # BatchNorm keeps the statistics that came with the weights.
    assert not any("running" in key for key in changed if ".body." in key)


def test_processes_that_load_data_change_nothing_under_any_start_method(tiny_model, train, tmp_path, monkeypatch):
    """On macOS and Windows they are spawned: all that they need is pickled."""
    models = [copy.deepcopy(tiny_model) for _ in range(2)]
    config = replace(QUICK, epochs=2)
    fit(models[0], train, None, config, tmp_path / "none")
    started, spawn = [], multiprocessing.get_context("spawn")
    start = spawn.Process.start

    def recorded(process):
        started.append(process)
        start(process)

    monkeypatch.setattr(spawn.Process, "start", recorded)
    initialize = DataLoader.__init__

    def spawning(self, *args, **kwargs):
        context = spawn if kwargs.get("num_workers") else None
        initialize(self, *args, **kwargs, multiprocessing_context=context)

    monkeypatch.setattr(DataLoader, "__init__", spawning)
    fit(models[1], train, None, replace(config, workers=2), tmp_path / "two")
    assert len(started) == 2  # once for both epochs
    assert torch.equal(weights(models[1]), weights(models[0]))


@pytest.mark.parametrize("precision", ["auto", "bf16-mixed", "32-true"])
def test_slow_bfloat16_is_used_with_one_warning(tiny_model, train, scenes, tmp_path, caplog, monkeypatch, precision):
    monkeypatch.setattr(runtime, "has_bfloat16", lambda *_: False)
    config = replace(QUICK, epochs=1, val_every=1, precision=precision)
    with caplog.at_level(logging.WARNING):
        fit(tiny_model, train, open_dataset(scenes, "val"), config, tmp_path / "fit")
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == (precision == "bf16-mixed")
        assert all("no bfloat16 hardware" in text for text in warnings)
        caplog.clear()
        fit_heads(tiny_model, train, config, tmp_path / "heads")
        assert len(caplog.records) == (precision == "bf16-mixed")


def test_automatic_precision_is_that_of_the_machine(tmp_path, monkeypatch):
    for fast in (True, False):
        monkeypatch.setattr(runtime, "has_bfloat16", lambda *_, fast=fast: fast)
        trainer = make_trainer(replace(QUICK, precision="auto"), tmp_path)
        assert trainer.precision == ("bf16-mixed" if fast else "32-true")


def test_devices_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"devices 0 and num_nodes 1: .*not a valid input"):
        make_trainer(QUICK, tmp_path, devices=0)


def test_lightning_is_silent_about_itself(tiny_model, train, tmp_path, caplog):
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit(tiny_model, train, None, replace(QUICK, epochs=1), tmp_path)
        assert logger.level == logging.INFO  # as it was before
    assert [record.message for record in caplog.records if record.name.startswith("lightning")] == []
    assert logger.level == before


def test_the_augmentation_is_that_of_the_configuration(scenes):
    plain = open_dataset(scenes, "train")
    data = open_dataset(scenes, "train", augmentation(replace(QUICK, scale=(1.0, 1.0), flip=False)))
    assert all(torch.equal(a, b) for a, b in zip(data[0, 7], plain[0], strict=True))
    data = open_dataset(scenes, "train", augmentation(replace(QUICK, crop=(32, 48))))
    assert data[0, 7][0].shape == (3, 32, 48)


def test_all_heads_on_a_frozen_backbone_are_trained_and_nothing_else(train, scenes, tmp_path):
    config = ModelConfig(
        backbone="vit_tiny_patch16_224", stride=8, channels=0, hidden=8, scales=(1.0,), graph_stride=16
    )
    model = ContextCRF(config, train.classes, pretrained=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, train, None, replace(QUICK, epochs=0), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    names = ["unary", "surrounding", "above"]
    fit_heads(model, train, replace(QUICK, potentials=names, class_balance=0.5), tmp_path / "heads", copies=1)
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"unary", "pairwise"}
    assert model.trained_relations == ["surrounding", "above"]
