"""The two configurations: what defines weights, and how they are used."""

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace

import numpy as np
import pytest
import torch

from contextcrf import DenseCRF, InferenceConfig, ModelConfig, RangeBox


def test_no_setting_belongs_to_both_configurations():
    weights, inference = ({field.name for field in fields(kind)} for kind in (ModelConfig, InferenceConfig))
    # Two names are shared and mean different things: the scales of the network, and those of test-time augmentation.
    assert weights & inference == {"scales"}
    assert not {"relation_weights", "iterations", "dense", "system", "flip", "tile", "precision"} & weights
    assert {"relation_weights", "iterations", "dense", "system", "flip", "tile", "precision"} <= inference


def test_relations_without_a_weight_share_a_weight_of_1():
    assert InferenceConfig().weights(["surrounding", "above"]) == {"surrounding": 0.5, "above": 0.5}
    assert InferenceConfig().weights(["above"]) == {"above": 1.0}
    assert InferenceConfig().weights([]) == {}


def test_weights_are_those_that_were_set_in_the_order_of_the_relations():
    config = InferenceConfig(relation_weights={"b": None, "a": 0.0})
    weights = config.weights(iter(["a", "b", "c"]))
    assert list(weights.items()) == [("a", 0.0), ("b", None), ("c", pytest.approx(1 / 3))]


def test_a_weight_of_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match=r"names \['below'\], but the relations .* \['surrounding', 'above'\]"):
        InferenceConfig(relation_weights={"below": 1.0, "above": 2.0}).weights(["surrounding", "above"])


def test_an_inference_configuration_cannot_be_changed():
    config = InferenceConfig()
    for field in fields(config):
        with pytest.raises(FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))


def test_an_inference_configuration_copies_its_arguments():
    weights, dense, scales = {"above": 2.0}, {"bilateral_sxy": 20}, [1.0, 0.5]
    config = InferenceConfig(relation_weights=weights, dense=dense, scales=scales)
    weights["above"], dense["bilateral_sxy"] = 0.0, 99
    scales.append(2.0)
    assert (config.relation_weights, config.dense, config.scales) == ({"above": 2.0}, {"bilateral_sxy": 20}, (1.0, 0.5))
    # A replacement does not share them with the original either.
    assert replace(config, flip=True).dense is not config.dense


def test_counts_may_be_numbers_of_numpy_and_are_kept_as_plain_ones():
    config = InferenceConfig(iterations=np.int64(3), tile=np.int32(64))
    assert json.loads(json.dumps(asdict(config)))["iterations"] == 3
    assert type(config.tile) is int


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": -1}, "iterations must be .* but is -1"),
        ({"iterations": 1.5}, r"iterations must be .* but is 1\.5"),
        ({"iterations": True}, "iterations must be .* but is True"),
        ({"relation_weights": {"above": float("nan")}}, "relation weight of above is nan"),
        ({"relation_weights": {"above": float("inf")}}, "relation weight of above is inf"),
        ({"dense": {"sxy": 3}}, "setting dense is not valid: .*sxy"),
        ({"dense": {"bilateral_sxy": 0}}, "bilateral_sxy"),
        ({"scales": ()}, "at least one is expected, each > 0 and finite"),
        ({"scales": (0.0,)}, "at least one is expected, each > 0 and finite"),
        ({"scales": (1.0, -1.0)}, "at least one is expected, each > 0 and finite"),
        ({"scales": (float("nan"),)}, "at least one is expected, each > 0 and finite"),
        ({"scales": (float("inf"),)}, "at least one is expected, each > 0 and finite"),
        ({"flip": "yes"}, "setting flip is 'yes', but true or false"),
        ({"tile": 8}, "tile must be a whole number >= 32, but is 8"),
        ({"overlap": -1}, "overlap must be .* but is -1"),
        ({"tile_above": -1}, "tile_above must be .* but is -1"),
        ({"precision": "bf16"}, "precision is 'bf16', but must be one of auto, bf16-mixed, 32-true"),
    ],
)
def test_impossible_settings_of_inference_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InferenceConfig(**settings)


def test_changes_are_the_settings_that_are_not_the_defaults():
    assert InferenceConfig().changes() == {}
    config = InferenceConfig(system="unary", relation_weights={"above": None}, scales=(0.5,), precision="auto")
    assert config.changes() == {"system": "unary", "relation_weights": {"above": None}, "scales": [0.5]}
    json.dumps(config.changes())


def test_the_dense_crf_has_the_settings_and_the_defaults_of_the_others():
    crf = InferenceConfig(dense={"bilateral_sxy": 20, "iterations": 3}).dense_crf()
    assert (crf.bilateral_sxy, crf.spatial_sxy, crf.iterations) == (20, DenseCRF().spatial_sxy, 3)
    assert not crf.learnable


def test_a_learnable_dense_crf_starts_as_the_fixed_one():
    config = InferenceConfig(dense={"bilateral_sxy": 7, "spatial_compat": 2, "iterations": 3})
    learnable = config.dense_crf(learnable=True, num_classes=3)
    assert {name for name, _ in learnable.named_parameters()} >= {"spatial_compat", "bilateral_compat"}
    torch.testing.assert_close(learnable.spatial_compat, -2.0 * torch.eye(3))
    logits, image = torch.randn(1, 3, 12, 16), torch.randint(0, 256, (1, 3, 12, 16), dtype=torch.uint8)
    torch.testing.assert_close(learnable(logits, image).detach(), config.dense_crf()(logits, image))
    # The values are there even where a model without memory is made.
    with torch.device("meta"):
        assert config.dense_crf(learnable=True, num_classes=3).spatial_compat.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relations": {"unary": RangeBox.above()}}, "unary"),
        ({"relations": {"above": ()}}, "relation 'above' has no box"),
        ({"scales": ()}, "at least one is expected, each > 0 and finite"),
        ({"scales": (1.0, 0.0)}, "at least one is expected, each > 0 and finite"),
        ({"scales": (float("nan"),)}, "at least one is expected, each > 0 and finite"),
        ({"graph_stride": 12}, "graph_stride=12"),
        ({"graph_stride": 4}, "graph_stride=4"),
        ({"channels": -1}, "setting channels is -1, but 0 or more"),
        ({"hidden": -1}, "hidden is -1"),
        ({"pairwise_hidden": 0}, "pairwise_hidden is 0"),
        ({"upsampling": "cubic"}, "upsampling is 'cubic', but one of nearest, bilinear"),
        ({"network": "unet"}, "network is 'unet', but one of context, fcn-8s"),
        ({"network": "fcn-8s", "stride": 4}, "stride=4.*fcn-8s needs stride=8"),
    ],
)
def test_impossible_settings_of_weights_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize("name", ["a.b", "keys", "a+b", "unary", "pairwise", "dense", "lovasz", "two words", "1st", ""])
def test_relations_have_names_that_systems_and_modules_can_have(name):
    with pytest.raises(ValueError, match=r"name .* of a relation is not valid. Expected a word"):
        ModelConfig(relations={name: RangeBox.above()})


@pytest.mark.parametrize(("stride", "graph_stride", "factor"), [(8, None, 1), (8, 8, 1), (4, 32, 8)])
def test_the_coarse_factor_is_the_ratio_of_the_strides(stride, graph_stride, factor):
    assert ModelConfig(backbone="plain", stride=stride, graph_stride=graph_stride).coarse_factor == factor
