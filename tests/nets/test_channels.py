"""Backbones for images that do not have three channels."""

import pytest
import timm
import torch
from transformers import Dinov2Config

from contextcrf.nets.backbones import create_backbone
from contextcrf.nets.timm_body import create_body
from families import NAMED


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["plain", "vgg16-fc6", *NAMED])
def test_a_backbone_takes_any_number_of_channels(name, channels):
    torch.manual_seed(0)
    backbone = create_backbone(name, 8, None, 8, pretrained=False, in_chans=channels).eval()
    images = torch.randn(1, channels, 75, 50)
    with torch.inference_mode():
        before = backbone(images)
        images[:, -1] *= -1
        assert before.shape == (1, 8, 10, 7)
        # Every channel has an effect.
        assert not torch.equal(backbone(images), before)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_pretrained_weights_of_a_package_are_adapted_as_timm_does(channels):
    own = create_body("tf_efficientnet_lite0", 32, pretrained=True).state_dict()
    adapted = create_body("tf_efficientnet_lite0", 32, pretrained=True, in_chans=channels).state_dict()
    assert {key for key, value in own.items() if not torch.equal(adapted[key], value)} == {"conv_stem.weight"}
    first = own["conv_stem.weight"]
    expected = (
        first.sum(1, keepdim=True) if channels == 1 else first[:, [0, 1, 2, 0, 1, 2, 0][:channels]] * 3 / channels
    )
    assert torch.allclose(adapted["conv_stem.weight"], expected)


def test_pretrained_weights_of_a_file_are_adapted(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    body = create_body("resnet10t", 32, pretrained=tmp_path / "weights.pth", in_chans=4)
    first = model.state_dict()["conv1.0.weight"]
    assert torch.allclose(body.state_dict()["conv1.0.weight"], first[:, [0, 1, 2, 0]] * 3 / 4)


def test_pretrained_weights_of_transformers_need_three_channels(tmp_path):
    small = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    small.save_pretrained(tmp_path)
    backbone = create_backbone(f"hf:{tmp_path}", 8, None, 8, pretrained=False, in_chans=5)
    assert backbone(torch.randn(1, 5, 64, 96)).shape == (1, 8, 8, 12)
    with pytest.raises(ValueError, match=r"The images have 5 channels, but the pretrained weights .* for 3 channels"):
        create_backbone(f"hf:{tmp_path}", 8, None, 8, pretrained=True, in_chans=5)
