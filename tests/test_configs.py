"""The files in `configs/`: all can be read, and those of the paper and its later versions follow their texts."""

from pathlib import Path

import pytest
import torch
import yaml

from contextcrf import ContextCRF, RangeBox
from contextcrf.cli.main import read_command
from contextcrf.data.layouts import CAMVID, VOC
from contextcrf.training import ModelModule

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))


def of_heads(name):
    """Whether a configuration is of the command fit-heads. One with a model has all stages."""
    content = yaml.safe_load((FOLDER / name).read_text())
    return "copies" in content and "model" not in content


def read(name):
    """The job of a configuration."""
    command = ["fit-heads", "model"] if of_heads(name) else ["fit"]
    [_, values] = read_command([*command, "--config", str(FOLDER / name), "--data", "d", "--out", "o"])
    return values


def test_there_are_configurations_of_both_stages():
    assert {of_heads(name) for name in CONFIGS} == {True, False}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_read_with_its_values(name):
    values = read(name)
    for key, value in yaml.safe_load((FOLDER / name).read_text()).items():
        if not isinstance(value, dict):
            assert values[key] == value
            continue
        for setting, wanted in value.items():
            if setting != "relations":  # boxes, which are compared below
                found = getattr(values[key], setting)
                assert (list(found) if isinstance(found, tuple) else found) == wanted, setting
    # A precision that is slow on other machines is asked for nowhere.
    assert values["training"].precision != "bf16-mixed"


@pytest.mark.parametrize("name", [name for name in CONFIGS if "model" in yaml.safe_load((FOLDER / name).read_text())])
def test_a_model_can_be_built_from_a_configuration(name):
    values = read(name)
    with torch.device("meta"):
        model = ContextCRF(values["model"], CAMVID, pretrained=False, inference=values["inference"])
    assert model.select(values["training"].potentials)


@pytest.fixture(params=["lin2015", "cvpr2016", "pami2018"])
def preset(request):
    """The name, a model without values, and the training."""
    values = read(f"paper/{request.param}.yaml")
    assert values["train_split"] == "train_aug"
    with torch.device("meta"):
        model = ContextCRF(values["model"], VOC, pretrained=False, inference=values["inference"])
    return request.param, model, values["training"]


def test_shapes(preset):
    name, model, _ = preset
    with torch.device("meta"):
        features = model.features(torch.zeros(1, 3, 375, 500))
    shape, networks = {"lin2015": ((1, 1536, 15, 19), 3)}.get(name, ((1, 3 * 3 * 512, 29, 38), 1))
    assert {part.shape for part in features.values()} == {shape}
    assert list(features) == ["unary", "surrounding", "above"]
    assert len(model.trunks) == networks
    assert model.config.hidden == 512
    assert model.inference.iterations == (2 if name == "lin2015" else 3)
    assert model.inference.weights(model.pairwise) == {"surrounding": None, "above": None}


def test_relations(preset):
    name, model, _ = preset
    boxes = model.config.relations
    if name == "lin2015":
        assert boxes == {"surrounding": RangeBox.surrounding(0.4), "above": RangeBox.above(0.3, 0.4)}
    if name == "cvpr2016":
        assert boxes == {"surrounding": RangeBox.surrounding(0.4), "above": RangeBox.above(0.4, 0.4)}
    if name == "pami2018":
        assert len(boxes["surrounding"].offsets(29, 38)) == 24
        assert boxes["surrounding"].offsets(29, 38).abs().max() == int(0.2 * 29)


def test_rates(preset):
    name, model, training = preset
    model.pairwise.to_empty(device="cpu")  # the module looks for potentials that are zero
    module = ModelModule(model, training, 10)
    for trunk in model.trunks.values():
        trunk.backbone.pretrained = True
    [optimizer], [schedule] = module.configure_optimizers()
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in optimizer.param_groups}
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"new": 1e-3, "pretrained": 1e-4}
    fc6 = 4096 * (512 * 49 + 1)
    assert sizes["pretrained"] == (3 * (14_714_688 + fc6) if name == "lin2015" else 14_714_688 + 3 * fc6)
    assert all((group["momentum"], group["weight_decay"]) == (0.9, 5e-4) for group in optimizer.param_groups)
    assert schedule["interval"] == "epoch"
    assert schedule["scheduler"].gamma == 0.97


def test_augmentation(preset):
    name, _, training = preset
    assert training.scale == ((1, 1) if name == "lin2015" else (0.7, 1.2))
    assert training.flip == (name != "lin2015")
    assert training.color == training.class_balance == training.ema == 0
    assert (training.objective, training.loss_at) == ("piecewise", "graph")
