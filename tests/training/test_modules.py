"""The Lightning modules: which parameters are trained, from where, and at which rates."""

from dataclasses import replace

import pytest
import torch

from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.system import UNARY_ONLY, UNARY_PAIRWISE, System
from contextcrf.training import HeadsModule, ModelModule
from trainings import COUPLED, QUICK, training_batch


@pytest.mark.parametrize(("objective", "stays_zero"), [("piecewise", False), ("pseudo-likelihood", True)])
def test_zero_heads_start_at_random_only_where_potentials_are_trained_apart(tiny_model, objective, stays_zero):
    above, surrounding = (tiny_model.pairwise_potential(name).last for name in ("above", "surrounding"))
    above.zero_()
    before = surrounding.weight.clone()
    config = replace(COUPLED, objective=objective)
    ModelModule(tiny_model, config, 4)
    assert above.is_zero == stays_zero
    started = above.weight.clone()
    above.zero_()
    torch.rand(3)  # the seed of the configuration decides, not the numbers that were drawn before
    HeadsModule(tiny_model, ["above"], config, 4)
    assert above.is_zero == stays_zero
    assert torch.equal(above.weight, started)
    assert torch.equal(surrounding.weight, before)
    above.zero_()
    HeadsModule(tiny_model, ["above"], replace(config, seed=1), 4)
    assert torch.equal(above.weight, started) == stays_zero


def test_pretrained_layers_take_a_tenth_of_the_rate(train):
    config = ModelConfig(backbone="mobilenetv3_small_050", stride=32, channels=32, hidden=8, scales=(1.0,))
    model = ContextCRF(config, train.classes, pretrained=False)
    model.trunk("unary").backbone.pretrained = True
    for optimizer in ("adamw", "sgd"):
        module = ModelModule(model, replace(QUICK, optimizer=optimizer, lr=0.5), steps=10)
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


def test_a_learned_dense_crf_is_trained_by_its_objective_alone_and_without_decay(tiny_model):
    model = with_config(tiny_model, replace(tiny_model.config, learned_dense=True))
    config = replace(COUPLED, potentials=["unary"], objective="crf-rnn", weight_decay=0.1)
    module = ModelModule(model, config, 4)
    groups = {group["name"]: group for group in module.configure_optimizers()[0][0].param_groups}
    assert groups["dense"]["weight_decay"] == 0
    assert {id(p) for p in groups["dense"]["params"]} == {id(p) for p in model.dense.parameters()}
    assert groups["new"]["weight_decay"] == 0.1
    others = ModelModule(model, replace(QUICK, potentials=["unary"]), 4).parameter_groups()
    assert not {id(p) for group in others for p in group["params"]} & {id(p) for p in model.dense.parameters()}
    assert not any(p.requires_grad for p in model.dense.parameters())


@pytest.mark.parametrize(
    ("potentials", "systems"),
    [
        (None, [UNARY_ONLY, UNARY_PAIRWISE]),
        (["unary"], [UNARY_ONLY]),
        (["unary", "above"], [UNARY_ONLY, System(relations=("above",))]),
        (["above"], [System(unary=False, relations=("above",))]),
        (["above", "surrounding"], [System(unary=False)]),
    ],
)
def test_the_trained_potentials_are_validated(tiny_model, potentials, systems):
    module = ModelModule(tiny_model, replace(QUICK, potentials=potentials), 4)
    assert module.systems == systems
    assert list(module.matrices) == [system.name for system in systems]


def test_the_validation_of_crf_rnn_has_its_dense_crf(tiny_model):
    model = with_config(tiny_model, replace(tiny_model.config, learned_dense=True))
    config = replace(COUPLED, objective="crf-rnn")
    assert [system.name for system in ModelModule(model, config, 4).systems] == [
        "unary",
        "unary+pairwise",
        "unary+pairwise+dense",
    ]
    config = replace(config, potentials=["unary"])
    assert [system.name for system in ModelModule(model, config, 4).systems] == ["unary", "unary+dense"]


def test_validation_has_the_models_settings_in_the_precision_of_the_training(tiny_model):
    inference = InferenceConfig(iterations=1, relation_weights={"above": 2.0}, precision="bf16-mixed")
    model = with_config(tiny_model, tiny_model.config, inference)
    assert ModelModule(model, QUICK, 4).predictor.inference == replace(inference, precision="32-true")


@pytest.mark.parametrize("changes", [{}, {"loss_at": "pixels", "lovasz": 1.0}, {"objective": "unrolled"}])
def test_heads_on_cached_features_have_the_losses_of_the_whole_model(tiny_model, scenes, changes):
    model = with_config(tiny_model, replace(tiny_model.config, graph_stride=16))
    images, masks = training_batch(scenes)
    config = replace(COUPLED, **changes)
    weights = torch.tensor([0.5, 1.5] * 5) if "objective" not in changes else None
    whole = ModelModule(model, config, 4, weights).losses((images, masks))
    names = ["unary", "surrounding", "above"]
    with torch.no_grad():
        features = model.features(images, ["unary"])["unary"]
    cached = HeadsModule(model, names, config, 4, weights).losses((features, masks.byte(), torch.empty(0)))
    assert cached.keys() == whole.keys()
    for name, loss in whole.items():
        torch.testing.assert_close(cached[name], loss)
