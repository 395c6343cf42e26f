"""The configurations of the paper and of its later versions, against their texts."""

from pathlib import Path

import pytest
import torch

from contextcrf import ContextCRF, RangeBox
from contextcrf.cli.main import build_parser
from contextcrf.data.dataset import VOC
from contextcrf.training import Piecewise

FOLDER = Path(__file__).parent.parent / "configs" / "paper"


@pytest.fixture(params=["lin2015", "cvpr2016", "pami2018"])
def preset(request):
    """Name, model without values, recipe."""
    parser = build_parser()
    arguments = ["fit", "--config", str(FOLDER / f"{request.param}.yaml"), "--data", "d", "--out", "o"]
    fit = parser.instantiate(parser.parse_args(arguments))["fit"]
    assert fit.train_split == "train_aug"
    with torch.device("meta"):
        return request.param, ContextCRF(fit.model, VOC, pretrained=False), fit.recipe


def test_shapes(preset):
    name, model, _ = preset
    with torch.device("meta"):
        features = model.features(torch.zeros(1, 3, 375, 500))
    shape, networks = {"lin2015": ((1, 1536, 15, 19), 3)}.get(name, ((1, 3 * 3 * 512, 29, 38), 1))
    assert {part.shape for part in features.values()} == {shape}
    assert list(features) == ["unary", "surrounding", "above"]
    assert len(model.trunks) == networks
    assert model.config.hidden == 512
    assert model.config.iterations == (2 if name == "lin2015" else 3)
    assert model.config.strengths == {"surrounding": None, "above": None}


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
    name, model, recipe = preset
    model.pairwise.to_empty(device="cpu")  # which of them are still silent is looked at
    module = Piecewise(model, recipe, 10)
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
    name, _, recipe = preset
    assert recipe.scale == ((1, 1) if name == "lin2015" else (0.7, 1.2))
    assert recipe.flip == (name != "lin2015")
    assert recipe.color == recipe.class_balance == recipe.ema == 0
    assert recipe.objective == "piecewise"
