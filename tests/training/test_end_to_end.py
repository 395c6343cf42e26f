"""The third stage: training through mean field, with learned relation weights, and the best weights kept."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from contextcrf import InferenceConfig, Predictor, load
from contextcrf.crf import PairwisePotential, RangeBox, mean_field
from contextcrf.data.layouts import open_dataset
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.serialization import save
from contextcrf.modeling.system import UNARY_PAIRWISE
from contextcrf.training import ModelModule, fit
from contextcrf.training.jobs import run
from contextcrf.training.objectives import end_to_end
from contextcrf.utils.resizing import upsample
from trainings import COUPLED, QUICK, fit_job, heads_job, training_batch

END_TO_END = replace(COUPLED, objective="end-to-end")


@pytest.fixture
def learned(tiny_model):
    """A model whose relation weights have a learned number for each class."""
    return with_config(tiny_model, replace(tiny_model.config, learned_weights=True))


def test_a_factor_for_each_class_multiplies_the_messages_to_this_class():
    above = PairwisePotential(in_channels=4, num_classes=3, box=RangeBox.above())
    above.last.reset_parameters()
    features, logits = torch.randn(1, 4, 6, 9), torch.randn(1, 3, 6, 9)
    factors = torch.tensor([0.0, 0.5, 2.0])
    found = mean_field(logits, [(above, features)], 1, [factors])
    messages = above.messages(features, logits.softmax(1))
    torch.testing.assert_close(found, (logits + factors.view(1, 3, 1, 1) * messages).softmax(1))
    equal = mean_field(logits, [(above, features)], 2, [torch.full((3,), 0.7)])
    torch.testing.assert_close(equal, mean_field(logits, [(above, features)], 2, [0.7]))
    nodes = torch.rand(1, 1, 6, 9)
    found = mean_field(logits, [(above, features)], 1, [nodes])
    torch.testing.assert_close(found, (logits + nodes * messages).softmax(1))


def test_new_numbers_change_nothing_and_trained_ones_are_added_to_the_weight(learned, tiny_model, scenes):
    images, _ = training_batch(scenes)
    features = tiny_model.features(images[:1])
    with torch.no_grad():
        before = Predictor(tiny_model).mean_field(features, UNARY_PAIRWISE)
        assert torch.equal(Predictor(learned).mean_field(features, UNARY_PAIRWISE), before)
        for offsets in learned.weight_offsets.values():
            offsets.fill_(0.25)
        weights = dict.fromkeys(tiny_model.pairwise, 0.75)
        more = Predictor(tiny_model, replace(tiny_model.inference, relation_weights=weights))
        found = Predictor(learned).mean_field(features, UNARY_PAIRWISE)
        torch.testing.assert_close(found, more.mean_field(features, UNARY_PAIRWISE))
        # A weight of 0 does not switch off what was learned.
        zero = replace(learned.inference, relation_weights=dict.fromkeys(tiny_model.pairwise, 0.0))
        quarter = replace(zero, relation_weights=dict.fromkeys(tiny_model.pairwise, 0.25))
        found = Predictor(learned, zero).mean_field(features, UNARY_PAIRWISE)
        torch.testing.assert_close(found, Predictor(tiny_model, quarter).mean_field(features, UNARY_PAIRWISE))


def test_learned_numbers_are_saved_explained_and_left_out_by_new_heads(learned, scenes, tmp_path):
    with torch.no_grad():
        learned.weight_offsets["above"].copy_(torch.arange(10.0))
    save(learned, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert torch.equal(loaded.weight_offsets["above"], torch.arange(10.0))
    image, _ = open_dataset(scenes, "val")[0]
    with_numbers = loaded.explain(torch.as_tensor(image), (30, 40))["above"].messages
    without = with_config(loaded, replace(loaded.config, learned_weights=False))
    assert without.weight_offsets is None
    plain = without.explain(torch.as_tensor(image), (30, 40))["above"].messages
    assert with_numbers.shape == plain.shape
    heads = load(run(heads_job(tmp_path / "model", scenes, tmp_path / "heads")))
    assert heads.weight_offsets is None


def test_the_objective_is_the_cross_entropy_of_the_marginals_at_the_pixels(learned, scenes):
    images, masks = training_batch(scenes)
    module = ModelModule(learned, END_TO_END, 4)
    loss = module.losses((images, masks))["end-to-end"]
    with torch.no_grad():
        marginals = upsample(Predictor(learned)(images), masks.shape[-2:])
        expected = F.nll_loss((marginals / marginals.sum(1, keepdim=True)).log(), masks, ignore_index=255)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    for name in learned.pairwise:
        assert learned.weight_offsets[name].grad.abs().sum() > 0
        assert all(p.grad.abs().sum() > 0 for p in learned.pairwise_potential(name).last.parameters())


@pytest.fixture
def gated(tiny_model):
    """A model whose messages have a learned factor at each node, of a graph that is coarser than the unary."""
    return with_config(tiny_model, replace(tiny_model.config, learned_gate=True, graph_stride=16))


def test_a_new_gate_changes_nothing_and_a_trained_one_multiplies_the_messages(gated, scenes):
    images, _ = training_batch(scenes)
    plain = with_config(gated, replace(gated.config, learned_gate=False))
    assert plain.gate is None
    with torch.no_grad():
        features = gated.features(images[:1])
        before = Predictor(plain).mean_field(features, UNARY_PAIRWISE)
        torch.testing.assert_close(Predictor(gated).mean_field(features, UNARY_PAIRWISE), before)
        gated.gate.bias[:] = torch.tensor([-100.0, 100.0])
        twice = replace(gated.inference, relation_weights={"surrounding": 0.0, "above": 1.0})
        expected = Predictor(plain, twice).mean_field(features, UNARY_PAIRWISE)
        torch.testing.assert_close(Predictor(gated).mean_field(features, UNARY_PAIRWISE), expected)
        gated.gate.bias.zero_()
        gated.gate.weight.normal_()
        above = gated.gates(features["unary"])["above"]
        assert above.shape == (1, 1, *features["unary"].shape[2:])
        assert 0 <= above.min() < above.max() <= 2


def test_a_gate_is_saved_and_explained_at_the_node_of_the_pixel(gated, scenes, tmp_path):
    with torch.no_grad():
        gated.gate.weight.normal_()
    save(gated, tmp_path / "model")
    loaded = load(tmp_path / "model")
    image, _ = open_dataset(scenes, "val")[0]
    pixels, pixel = torch.as_tensor(image), (21, 43)
    plain = with_config(loaded, replace(loaded.config, learned_gate=False))
    # With no iteration, the marginals do not depend on the gate.
    still = replace(loaded.inference, iterations=0)
    found = Predictor(loaded, still).explain(pixels, pixel)["above"].messages
    without = Predictor(plain, still).explain(pixels, pixel)["above"].messages
    factor = loaded.gates(loaded.features(pixels[None].float())["unary"])["above"][0, 0, 21 // 8, 43 // 8]
    torch.testing.assert_close(found, factor.detach() * without)
    assert without.abs().sum() > 0
    heads = load(run(heads_job(tmp_path / "model", scenes, tmp_path / "heads")))
    assert heads.gate is None


def test_the_objective_trains_the_gate_at_its_own_rate(gated, scenes):
    module = ModelModule(gated, replace(END_TO_END, part_lr={"weights": 5.0}), 4)
    module.losses(training_batch(scenes))["end-to-end"].backward()
    assert gated.gate.weight.grad.abs().sum() > 0
    [group] = [group for group in module.parameter_groups() if group["name"] == "weights"]
    assert {id(p) for p in group["params"]} == {id(p) for p in gated.gate.parameters()}
    assert group["lr"] == 5 * END_TO_END.lr


def test_the_objective_has_class_weights_and_the_lovasz_loss(learned, scenes):
    images, masks = training_batch(scenes)
    weights = torch.linspace(0.5, 1.5, learned.num_classes)
    module = ModelModule(learned, replace(END_TO_END, lovasz=2.0), 4, weights)
    found = module.losses((images, masks))
    with torch.no_grad():
        marginals = upsample(Predictor(learned)(images), masks.shape[-2:])
        logs = (marginals / marginals.sum(1, keepdim=True)).log()
        summed = F.nll_loss(logs, masks, weights, ignore_index=255, reduction="sum") / (masks != 255).sum()
    torch.testing.assert_close(found["end-to-end"].detach(), summed, rtol=1e-4, atol=1e-4)
    once = ModelModule(learned, replace(END_TO_END, lovasz=1.0), 4, weights).losses((images, masks))["lovasz"]
    torch.testing.assert_close(found["lovasz"], 2 * once, rtol=0.05, atol=0.01)  # of random pixels
    assert once > 0


def test_weights_start_to_learn_from_0(tiny_model, scenes):
    zero = InferenceConfig(relation_weights=dict.fromkeys(tiny_model.pairwise, 0.0), precision="32-true")
    model = with_config(tiny_model, replace(tiny_model.config, learned_weights=True), zero)
    images, masks = training_batch(scenes)
    ModelModule(model, END_TO_END, 4).losses((images, masks))["end-to-end"].backward()
    assert all(offsets.grad.abs().sum() > 0 for offsets in model.weight_offsets.values())


def test_the_parts_have_their_own_rates(learned):
    rates = {"new": 0.5, "pairwise": 2.0, "weights": 100.0}
    module = ModelModule(learned, replace(END_TO_END, part_lr=rates), 4)
    groups = {group["name"]: group for group in module.parameter_groups()}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "new": 0.5 * END_TO_END.lr,
        "pairwise": 2 * END_TO_END.lr,
        "weights": 100 * END_TO_END.lr,
    }
    assert groups["weights"]["weight_decay"] == 0
    parts = [id(p) for group in groups.values() for p in group["params"]]
    assert len(parts) == len(set(parts)) == sum(1 for p in learned.parameters() if p.requires_grad)
    plain = ModelModule(learned, QUICK, 4)
    assert [group["name"] for group in plain.parameter_groups()] == ["new"]
    with pytest.raises(ValueError, match="part_lr names 'heads', but the parts are new, pretrained"):
        replace(QUICK, part_lr={"heads": 1.0})


def best_of(caplog):
    """The scores before the training and of the best weights, in percent."""
    [line] = [record for record in caplog.records if record.msg.startswith("The best weights")]
    return line.args[1], line.args[0]


def test_a_harmful_training_ends_with_the_initial_weights(tiny_model, train, scenes, tmp_path, caplog):
    caplog.set_level("INFO")
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    # The first steps at such a rate destroy the network.
    config = replace(END_TO_END, epochs=6, lr=1.0, patience=2, val_every=1)
    val = open_dataset(scenes, "train")
    fit(tiny_model, train, None, replace(QUICK, epochs=12, val_every=12), tmp_path / "first")
    trained = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    assert not torch.equal(trained["unary.last.weight"], before["unary.last.weight"])
    fit(tiny_model, train, val, config, tmp_path / "second")
    assert all(torch.equal(value, trained[name]) for name, value in tiny_model.state_dict().items())
    first, best = best_of(caplog)
    assert first == best
    # It ends after two validations that are not better.
    assert sorted(path.name for path in (tmp_path / "second" / "checkpoints").iterdir())[-1] == "epoch=1.ckpt"


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_weights_are_those_that_were_validated(tiny_model, train, scenes, tmp_path, caplog, ema):
    caplog.set_level("INFO")
    val = open_dataset(scenes, "train")
    fit(tiny_model, train, val, replace(END_TO_END, epochs=5, patience=5, val_every=1, ema=ema), tmp_path)
    first, best = best_of(caplog)
    assert best > first
    module = ModelModule(tiny_model, END_TO_END, 4)
    for image, mask in val.without_transform():
        [*_, prediction] = module.predictor.predict(torch.as_tensor(image), module.systems)
        module.matrices[prediction.system.name].update(prediction.labels[None], torch.as_tensor(mask)[None])
    score = module.matrices[module.systems[-1].name]
    assert 100 * float(score.mean_iou()) == pytest.approx(best, abs=0.01)


def test_a_resumed_training_keeps_the_best_weights(tiny_model, scenes, tmp_path, monkeypatch):
    save(tiny_model, tmp_path / "start")
    config = replace(END_TO_END, epochs=4, patience=4, val_every=1)
    changes = {"init": str(tmp_path / "start"), "val_split": "val", "training": config}
    whole = load(run(fit_job(scenes, tmp_path / "whole", **changes)))

    def stop(module):
        if module.current_epoch == 2:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(ModelModule, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(InterruptedError):
            run(fit_job(scenes, tmp_path / "halves", **changes))
    halves = load(run(fit_job(scenes, tmp_path / "halves", **changes)))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in halves.state_dict().items())


def test_what_the_third_stage_needs_is_named(tiny_model, train, tmp_path, scenes):
    with pytest.raises(ValueError, match="patience is 2, but there is no validation split"):
        fit(tiny_model, train, None, replace(END_TO_END, patience=2), tmp_path)
    images, masks = training_batch(scenes)
    module = ModelModule(tiny_model, replace(END_TO_END, potentials=["above"]), 4)
    with pytest.raises(ValueError, match="needs images and the unary"):
        module.losses((images, masks))
    assert end_to_end.__doc__ is not None


def test_one_command_adds_learned_weights_to_a_trained_model(tiny_model, scenes, tmp_path):
    save(tiny_model, tmp_path / "start")
    added = {"learned_weights": True, "learned_gate": True, "message_upsampling": "bilinear"}
    model = replace(fit_job(scenes, tmp_path).model, **added)
    job = fit_job(scenes, tmp_path / "out", init=str(tmp_path / "start"), model=model, training=END_TO_END)
    found = load(run(job))
    assert found.config.learned_weights
    assert found.config.message_upsampling == "bilinear"
    assert any(offsets.abs().sum() > 0 for offsets in found.weight_offsets.values())
    assert found.gate.weight.abs().sum() > 0
    # A further training without these settings keeps them.
    again = fit_job(scenes, tmp_path / "again", init=str(tmp_path / "out"), training=END_TO_END)
    assert load(run(again)).config == found.config
