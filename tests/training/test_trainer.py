import copy
import logging
import re
import sys
from dataclasses import replace

import pytest
import torch

from contextcrf.data.dataset import open_dataset
from contextcrf.data.transforms import training_transform
from contextcrf.training import CachedHeads, Piecewise, SeededSampler, cache_features, class_weights, fit, fit_heads
from contextcrf.training.config import Recipe
from contextcrf.training.estimate import duration
from contextcrf.utils.resizing import downsample

QUICK = Recipe(epochs=3, batch_size=2, crop=(64, 96), scale=(0.8, 1.2), lr=0.01, max_edges=64, val_every=3)


def quick(**changes):
    return Recipe(**{**QUICK.to_dict(), **changes})


@pytest.fixture
def train(scenes):
    return open_dataset(scenes, "train", training_transform((64, 96), (0.8, 1.2), color=0.2))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


def metrics(folder):
    lines = (folder / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


def test_training_lowers_every_potentials_loss(tiny_model, train, scenes, tmp_path):
    batch = torch.utils.data.default_collate([open_dataset(scenes, "train")[i] for i in range(6)])
    with torch.no_grad():
        before = tiny_model.nll(tiny_model.features(batch[0].float()), batch[1])
    fit(tiny_model, train, open_dataset(scenes, "val"), quick(epochs=12, max_edges=512), tmp_path, progress=False)
    with torch.no_grad():
        after = tiny_model.nll(tiny_model.features(batch[0].float()), batch[1])
    assert set(before) == {"unary", "surrounding", "above"}
    for name in before:
        assert after[name] < 0.95 * before[name], name


@pytest.mark.parametrize(("objective", "silent"), [("piecewise", False), ("pseudo-likelihood", True)])
def test_silent_heads_start_at_random_only_where_potentials_are_trained_apart(tiny_model, objective, silent):
    above, surrounding = (tiny_model.pairwise[name].last for name in ("above", "surrounding"))
    above.silence()
    before = surrounding.weight.clone()
    recipe = Recipe(objective=objective)
    Piecewise(tiny_model, recipe, 4)
    assert above.silent == silent
    started = above.weight.clone()
    above.silence()
    torch.rand(3)  # what was drawn before does not matter, the recipe's seed does
    CachedHeads(tiny_model, ["above"], recipe, 4)
    assert above.silent == silent
    assert torch.equal(above.weight, started)
    assert torch.equal(surrounding.weight, before)
    above.silence()
    CachedHeads(tiny_model, ["above"], replace(recipe, seed=1), 4)
    assert torch.equal(above.weight, started) == silent


def test_logs_and_a_checkpoint_every_epoch(tiny_model, train, scenes, tmp_path):
    fit(tiny_model, train, open_dataset(scenes, "val"), QUICK, tmp_path, progress=False)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"]
    assert list((tmp_path / "tensorboard").glob("events*"))
    rows = metrics(tmp_path)
    assert {"val/unary", "val/crf"} <= set(rows[0])
    assert any(row["val/unary"] for row in rows)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tiny_model, train, tmp_path, ema):
    """Stopped after two of three epochs: data order, augmentation, edge sampling, optimizer and schedule go on."""
    recipe = quick(ema=ema)
    whole, halves = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    fit(whole, train, None, recipe, tmp_path / "whole", progress=False)

    class Stop(Exception):
        pass

    class StopsInTheThirdEpoch(type(train)):
        reads = 0

        def __getitem__(self, key):
            type(self).reads += 1
            if self.reads > 2 * 6 + 3:
                raise Stop
            return super().__getitem__(key)

    broken = StopsInTheThirdEpoch(train.pairs, train.classes, train.void, train.transform)
    with pytest.raises(Stop):
        fit(halves, broken, None, recipe, tmp_path / "halves", progress=False)
    fresh = copy.deepcopy(tiny_model)
    torch.rand(11)  # another state of the global generator, as in a new process
    fit(fresh, train, None, recipe, tmp_path / "halves", ckpt_path="last", progress=False)
    assert torch.equal(weights(fresh), weights(whole))
    assert not torch.equal(weights(whole), weights(tiny_model))


def test_nothing_to_resume_is_an_error(tiny_model, train, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        fit(tiny_model, train, None, QUICK, tmp_path, ckpt_path="last", progress=False)


def test_potentials_train_one_by_one(tiny_model, train, tmp_path):
    before = copy.deepcopy(tiny_model)
    fit(tiny_model, train, None, quick(potentials=["above"], epochs=1), tmp_path, progress=False)
    assert torch.equal(weights(tiny_model.unary), weights(before.unary))
    assert torch.equal(weights(tiny_model.pairwise["surrounding"]), weights(before.pairwise["surrounding"]))
    assert not torch.equal(weights(tiny_model.pairwise["above"]), weights(before.pairwise["above"]))
    assert not torch.equal(weights(tiny_model.trunks), weights(before.trunks))


def test_the_second_stage_moves_pairwise_heads_alone(tiny_model, train, scenes, tmp_path):
    before = copy.deepcopy(tiny_model)
    fit_heads(tiny_model, train, quick(epochs=15, max_edges=256), tmp_path, views=2, progress=False)
    for part in ("trunks", "unary"):
        assert torch.equal(weights(getattr(tiny_model, part)), weights(getattr(before, part)))
    batch = torch.utils.data.default_collate([open_dataset(scenes, "train")[i] for i in range(6)])
    with torch.no_grad():
        losses = [model.nll(model.features(batch[0].float()), batch[1]) for model in (before, tiny_model)]
    assert losses[1]["above"] < 0.95 * losses[0]["above"]
    assert losses[1]["surrounding"] < 0.95 * losses[0]["surrounding"]


def test_a_resumed_second_stage_ends_as_an_undisturbed_one(tiny_model, train, tmp_path):
    whole, halves, fresh = (copy.deepcopy(tiny_model) for _ in range(3))
    fit_heads(whole, train, QUICK, tmp_path / "whole", progress=False)
    # The same cycle, stopped after one epoch: as the first checkpoint of a run that was killed.
    for name, model in (("first", halves), ("rest", fresh)):
        with pytest.MonkeyPatch.context() as patch:
            if name == "first":
                patch.setattr(CachedHeads, "on_train_epoch_start", stop_after_one_epoch)
            last = "last" if name == "rest" else None
            try:
                fit_heads(model, train, QUICK, tmp_path / "halves", ckpt_path=last, progress=False)
            except InterruptedError:
                assert name == "first"
    assert torch.equal(weights(fresh), weights(whole))
    assert not torch.equal(weights(halves), weights(whole))


def stop_after_one_epoch(module):
    if module.current_epoch == 1:
        raise InterruptedError


def test_resuming_a_finished_run_gives_the_averaged_weights_again(tiny_model, train, tmp_path):
    recipe, again = quick(ema=0.9, epochs=2), copy.deepcopy(tiny_model)
    fit(tiny_model, train, None, recipe, tmp_path, progress=False)
    fit(again, train, None, recipe, tmp_path, ckpt_path="last", progress=False)
    assert torch.equal(weights(again), weights(tiny_model))


def test_the_estimate_comes_first_and_changes_nothing(tiny_model, train, tmp_path, capsys):
    recipe = quick(epochs=2, norm_eval=False)
    models = [copy.deepcopy(tiny_model) for _ in range(2)]
    for model, told in zip(models, (False, True), strict=True):
        fit(model, train, None, recipe, tmp_path / str(told), progress=told)
        if not told:
            assert "epochs of" not in capsys.readouterr().out
    printed = capsys.readouterr().out
    assert re.search(r"^2 epochs of 3 steps, \S+ s each \(cpu, \S+, batches of 2\): about \d+ s$", printed, re.M)
    assert torch.equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "about 1 s"), (89, "about 89 s"), (100, "about 2 min"), (9000, "about 2.5 h")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_cached_features_are_those_of_the_trunk(tiny_model, train):
    cached = cache_features(tiny_model, train, "above", 2, quick(precision="32-true"), progress=False)
    features, labels = cached.features, cached.labels
    assert features.shape == (12, 8, 8, 12)
    assert labels.shape == (12, 8, 12)
    for view in range(2):
        sampler = SeededSampler(6, QUICK.seed)
        sampler.set_epoch(view)
        for row, key in enumerate(sampler):
            image, mask = train[key]
            with torch.no_grad():
                maps = tiny_model.features(image[None].float(), ["above"])["above"]
                torch.testing.assert_close(cached.unary[6 * view + row], tiny_model.unary(maps)[0])
            torch.testing.assert_close(features[6 * view + row], maps[0].bfloat16())
            assert torch.equal(labels[6 * view + row], downsample(mask[None], (8, 12))[0])


def test_the_second_stage_needs_a_shared_trunk_and_a_relation(tiny_model, train, tmp_path):
    with pytest.raises(ValueError, match="at least one relation"):
        fit_heads(tiny_model, train, quick(potentials=["unary"]), tmp_path, progress=False)
    tiny_model.config.shared_trunk = False
    with pytest.raises(ValueError, match="shared trunk"):
        fit_heads(tiny_model, train, QUICK, tmp_path, progress=False)


def test_pretrained_layers_take_a_tenth_of_the_rate(train):
    from contextcrf.modeling.config import ModelConfig
    from contextcrf.modeling.model import ContextCRF

    config = ModelConfig(backbone="mobilenetv3_small_050", stride=32, channels=32, hidden=8, scales=(1.0,))
    model = ContextCRF(config, train.classes, pretrained=False)
    model.trunk("unary").backbone.pretrained = True
    for optimizer in ("adamw", "sgd"):
        module = Piecewise(model, quick(optimizer=optimizer, lr=0.5), steps=10)
        (chosen,), (schedule,) = module.configure_optimizers()
        new, old = chosen.param_groups
        assert (new["name"], old["name"]) == ("new", "pretrained")
        assert new["lr"] == pytest.approx(10 * old["lr"])
        assert {id(p) for p in old["params"]} == {id(p) for p in model.trunks["shared"].backbone.body.parameters()}
        assert all(group["weight_decay"] == QUICK.weight_decay for group in chosen.param_groups)
        if optimizer == "sgd":
            assert new["momentum"] == 0.9
            chosen.step()
            schedule["scheduler"].step()
            assert new["lr"] == pytest.approx(0.5 * 0.97)
            assert schedule["interval"] == "epoch"


def test_class_weights_balance_and_keep_the_mean_at_one(scenes):
    data = open_dataset(scenes, "train")
    counts = torch.zeros(256)
    for _, mask in data:
        counts += torch.bincount(mask.flatten(), minlength=256)
    frequency = (counts[: len(data.classes)] / counts[: len(data.classes)].sum()).double()
    seen = frequency > 0
    balanced = class_weights(data, 1.0).double()
    torch.testing.assert_close((balanced * frequency)[seen], torch.full_like(frequency[seen], 1 / int(seen.sum())))
    assert class_weights(data, 0.0)[seen].unique().tolist() == [1.0]


@pytest.mark.parametrize("objective", ["pseudo-likelihood", "mean-field", "unrolled"])
def test_coupled_objectives_train_end_to_end_and_on_cached_features(tiny_model, train, scenes, tmp_path, objective):
    batch = torch.utils.data.default_collate([open_dataset(scenes, "train")[i] for i in range(6)])

    def loss():
        with torch.no_grad():
            return tiny_model.coupled_nll(tiny_model.features(batch[0].float()), batch[1], objective)

    recipe, before = quick(objective=objective, max_edges=None, epochs=6), loss()
    fit(tiny_model, train, None, recipe, tmp_path / "whole", progress=False)
    between = loss()
    assert between < 0.95 * before
    assert f"train/{objective}" in metrics(tmp_path / "whole")[0]
    unary = weights(tiny_model.unary)
    fit_heads(tiny_model, train, recipe, tmp_path / "heads", progress=False)
    assert loss() < between
    assert torch.equal(weights(tiny_model.unary), unary)


def test_coupled_objectives_refuse_what_only_pieces_have():
    with pytest.raises(ValueError, match="max_edges"):
        quick(objective="mean-field")
    with pytest.raises(ValueError, match="class_balance"):
        quick(objective="pseudo-likelihood", max_edges=None, class_balance=0.5)
    with pytest.raises(ValueError, match="loss_at"):
        quick(objective="unrolled", max_edges=None, loss_at="pixels")
    with pytest.raises(ValueError, match="lovasz"):
        quick(objective="mean-field", max_edges=None, lovasz=1.0)


def test_the_recipe_says_where_the_loss_is(tiny_model, scenes):
    batch = torch.utils.data.default_collate([open_dataset(scenes, "train")[i] for i in range(2)])
    found = [Piecewise(tiny_model, quick(loss_at=place), 4).losses(batch)["unary"] for place in ("nodes", "pixels")]
    features = tiny_model.features(batch[0].float(), ["unary"])
    expected = [tiny_model.nll(features, batch[1], loss_at=place)["unary"] for place in ("nodes", "pixels")]
    torch.testing.assert_close(found, expected)


def test_lightning_says_nothing_of_itself(tiny_model, train, tmp_path, caplog):
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit(tiny_model, train, None, quick(epochs=1), tmp_path, progress=False)
        assert logger.level == logging.INFO  # put back
    assert [record.message for record in caplog.records if record.name.startswith("lightning")] == []
    assert logger.level == before


def test_lovasz_is_one_minus_the_mean_iou_of_sure_predictions(tiny_model):
    """At the corners of the simplex the Lovász extension is the Jaccard loss itself."""
    module = Piecewise(tiny_model, quick(lovasz=0.5), 4)
    truth = torch.tensor([[[0, 0, 1, 1, 2, 255]]])
    said = torch.tensor([[[0, 1, 1, 1, 2, 0]]])
    logits = 50.0 * torch.nn.functional.one_hot(said, tiny_model.num_classes).movedim(-1, 1)
    expected = 0.5 * (1 - (1 / 2 + 2 / 3 + 1) / 3)  # of the classes that are there
    torch.testing.assert_close(module._lovasz(logits, truth), torch.tensor(expected))
    logits.requires_grad_(True)
    nothing = module._lovasz(logits, torch.full_like(truth, 255))
    nothing.backward()
    assert nothing == 0
    assert logits.grad.abs().max() == 0


def test_lovasz_is_trained(tiny_model, train, scenes, tmp_path, monkeypatch):
    recipe = quick(epochs=24, lovasz=1.0, loss_at="pixels")
    batch = torch.utils.data.default_collate([open_dataset(scenes, "train")[i] for i in range(6)])

    def losses():
        with torch.no_grad():
            return Piecewise(tiny_model, recipe, 4).losses(batch)

    before = losses()
    fit(tiny_model, train, None, recipe, tmp_path, progress=False)
    after = losses()["iou"]
    assert after < 0.95 * before["iou"]
    assert "train/iou" in metrics(tmp_path)[0]
    # The same of a part of the pixels, but for chance.
    monkeypatch.setattr("contextcrf.training.objectives.LOVASZ_PIXELS", 20_000)
    assert losses()["iou"] == pytest.approx(float(after), rel=0.2)
    assert losses()["iou"] != losses()["iou"]
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.losses", None)
    with pytest.raises(ValueError, match=r"lovasz needs segmentation_models_pytorch: pip install"):
        fit(tiny_model, train, None, recipe, tmp_path / "without", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "SGD"}, "optimizer 'SGD': expected one of adamw, sgd"),
        ({"loss_at": "pixel"}, "loss_at 'pixel'"),
        ({"broken_images": "skp"}, "broken_images 'skp'"),
        ({"precision": "bf16"}, "precision 'bf16'"),
        ({"max_edges": 0}, "max_edges 0: expected 1 or more"),
        ({"ema": 1.0}, "ema 1.0"),
        ({"color": -1}, "color -1"),
        ({"scale": (2.0, 1.0)}, "scale"),
    ],
)
def test_values_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_features_without_a_view_are_refused(tiny_model, train, tmp_path):
    with pytest.raises(ValueError, match="views 0: expected 1 or more"):
        fit_heads(tiny_model, train, QUICK, tmp_path, views=0, progress=False)
