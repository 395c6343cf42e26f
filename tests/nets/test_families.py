"""Many families of timm's models keep the contract of a backbone. `benchmarks/backbones.py` checks all families."""

from pathlib import Path

import pytest
import timm
import torch

from contextcrf.nets.backbones import TimmBackbone, create_backbone
from contextcrf.nets.baselines import BASELINES
from families import FAMILIES, NAMED, SIZE, check, create_member

# The families that take about a second each. `python benchmarks/backbones.py` checks all of them.
FAST = [
    "byobnet",
    "convnext",
    "cpubone",
    "cspnet",
    "cspnext",
    "deit",
    "dla",
    "edgenext",
    "efficientnet",
    "eva",
    "fasternet",
    "ghostnet",
    "hgnet",
    "levit",
    "mambaout",
    "maxxvit",
    "mobilenetv3",
    "mobilevit",
    "nfnet",
    "pit",
    "regnet",
    "repghost",
    "resnet",
    "resnetv2",
    "rexnet",
    "senet",
    "starnet",
    "vision_transformer",
    "vision_transformer_relpos",
    "vovnet",
    "xcit",
]
# The places of their nodes are checked by the benchmark only.
SLOW = ("maxvit_tiny_tf_224", "hiera_tiny_224", "convnext_tiny", "swin_tiny_patch4_window7_224")


def test_the_list_and_the_table_have_all_families():
    assert set(FAMILIES) == set(timm.list_modules())
    assert all(member in timm.list_models(module=family) for family, member in FAMILIES.items())
    table = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
    assert all(f"| {family} | {member} |" in table for family, member in FAMILIES.items())


@pytest.mark.parametrize("family", FAST)
def test_a_family_keeps_the_contract(family):
    assert check(lambda: create_member(FAMILIES[family]), 8, (SIZE,)).problems == []


@pytest.mark.parametrize("name", NAMED)
def test_the_backbones_that_people_use_keep_the_contract(name):
    rules = "values" if name in SLOW else "places"
    assert check(lambda: create_member(name), 8, ((75, 50),), rules).problems == []


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "hrnet_w18_small", "test_vit3"]
)
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_all_strides_work_with_and_without_a_coarser_output_stride(name, stride):
    with torch.device("meta"):
        for output_stride in {32} if stride == 4 else {None, 32}:
            maps = TimmBackbone(name, stride, output_stride, 16, pretrained=False)(torch.zeros(1, 3, *SIZE))
            assert maps.shape == (1, 16, -(-SIZE[0] // stride), -(-SIZE[1] // stride))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "test_vit_relpos"])
def test_weights_of_a_file_are_loaded_into_every_kind_of_body(name, tmp_path):
    classifier = timm.create_model(name)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    backbone = TimmBackbone(name, 8, None, 16, tmp_path / "weights.pth")
    own = {key.replace(".", "_"): value for key, value in classifier.state_dict().items()}
    for key, value in backbone.body.state_dict().items():
        assert torch.equal(value, own[key.removeprefix("model.").replace(".", "_")])
    assert {id(p) for p in backbone.pretrained_parameters()} == {id(p) for p in backbone.body.parameters()}


def test_blocks_are_the_stages_of_a_vision_transformer():
    part = TimmBackbone("vit_tiny_patch16_224", 8, None, 16, pretrained=False, depth=2)
    assert len(part.body.model.blocks) == 2
    with pytest.raises(ValueError, match="depth=13 is not valid, because vit_tiny_patch16_224 has fewer stages"):
        TimmBackbone("vit_tiny_patch16_224", 8, None, 16, pretrained=False, depth=13)
    whole = TimmBackbone("vit_tiny_patch16_224", 8, None, 16, pretrained=False)
    whole.freeze(12)
    assert not any(parameter.requires_grad for parameter in whole.body.parameters())
    assert all(parameter.requires_grad for parameter in [*whole.neck.parameters(), *whole.block6.parameters()])


@pytest.mark.parametrize("network", BASELINES)
def test_baselines_work_on_a_vision_transformer(network):
    kind = BASELINES[network]
    with torch.device("meta"):
        backbone = create_backbone("vit_tiny_patch16_224", kind.output_stride, None, None, pretrained=False)
        maps = kind(backbone, 16).eval()(torch.zeros(1, 3, 75, 50))
    assert maps.shape[-2:] == (-(-75 // kind.stride), -(-50 // kind.stride))
