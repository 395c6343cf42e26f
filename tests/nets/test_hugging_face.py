"""Backbones of transformers, from small random models that the tests save."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, BertConfig, Dinov2Config, ResNetConfig, SwinConfig

from contextcrf import ContextCRF, ModelConfig, load
from contextcrf.data.classes import Classes
from contextcrf.modeling.serialization import save
from contextcrf.nets.backbones import create_backbone
from contextcrf.nets.weights import WeightsNotFoundError
from families import check

CONFIGS = {
    "dinov2": Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14),
    "swin": SwinConfig(embed_dim=16, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=7, image_size=64),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"),
}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    AutoBackbone.from_config(CONFIGS["dinov2"]).save_pretrained(tmp_path / "dinov2")
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "dinov2" / "preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path / "dinov2"


@pytest.mark.parametrize(("kind", "steps"), [("dinov2", [14]), ("swin", [4, 4, 8, 16]), ("resnet", [4, 4, 8, 16, 32])])
def test_the_contract_of_all_backbones_holds(kind, steps, tmp_path):
    CONFIGS[kind].save_pretrained(tmp_path)

    def create():
        return create_backbone(f"hf:{tmp_path}", 8, None, 16, pretrained=False)

    assert create().steps == steps
    assert check(create, 8).problems == []


def test_weights_and_normalization_are_those_of_the_model(folder, tmp_path):
    backbone = create_backbone(f"hf:{folder}", 8, None, 16, pretrained=True)
    torch.manual_seed(0)
    own = AutoBackbone.from_config(CONFIGS["dinov2"]).eval()
    images = torch.randn(1, 3, 28, 42)
    with torch.inference_mode():
        assert torch.equal(own(images).feature_maps[-1], backbone.body.eval()(images).feature_maps[-1])
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert {id(p) for p in backbone.pretrained_parameters()} == {id(p) for p in backbone.body.parameters()}
    random = create_backbone(f"hf:{folder}", 8, None, 16, pretrained=False)
    assert not torch.equal(next(random.body.parameters()), next(backbone.body.parameters()))
    assert random.pretrained_parameters() == []


def test_weights_of_another_model_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({"x": torch.zeros(1), **dict(list(weights.items())[:3])}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsNotFoundError, match=r"dinov2 do not belong to this model, because \d+ of its tensors"):
        create_backbone(f"hf:{folder}", 8, None, 16, pretrained=True)


def test_a_model_with_such_a_backbone_is_saved_and_loaded(folder, tmp_path):
    config = ModelConfig(backbone=f"hf:{folder}", channels=8, hidden=8, scales=(1.0, 0.5))
    model = ContextCRF(config, Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))).eval()
    save(model, tmp_path / "model")
    images = torch.rand(1, 3, 75, 50) * 255
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "model").eval()(images), model(images))


def test_what_is_missing_or_impossible_is_named(folder, tmp_path, monkeypatch):
    with pytest.raises(WeightsNotFoundError, match=r"nowhere is neither a folder .* nor available"):
        create_backbone(f"hf:{tmp_path / 'nowhere'}", 8, None, 16, pretrained=True)
    with pytest.raises(ValueError, match=r"output_stride must be null .* output_stride=32"):
        create_backbone(f"hf:{folder}", 8, 32, 16, pretrained=False)
    with pytest.raises(ValueError, match="depth=2 is not possible for hf:"):
        create_backbone(f"hf:{folder}", 8, None, 16, pretrained=False, depth=2)
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"type bert has no backbone in transformers"):
        create_backbone(f"hf:{tmp_path / 'bert'}", 8, None, 16, pretrained=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"contextcrf\[transformers\]"):
        create_backbone(f"hf:{folder}", 8, None, 16, pretrained=False)
