"""The maps of a backbone as features, without new layers (`channels` 0)."""

import pytest
import torch

from contextcrf.nets.backbones import create_backbone

BACKBONES = ["resnet10t", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "vgg16-fc6"]


def create(name, stride, output_stride=None):
    torch.manual_seed(0)
    return create_backbone(name, stride, output_stride, 0, pretrained=False).eval()


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", BACKBONES)
def test_the_features_are_the_maps_of_the_body(name, stride):
    backbone = create(name, stride)
    images = torch.randn(2, 3, 111, 143)
    with torch.no_grad():
        maps = backbone(images)
    assert maps.shape == (2, backbone.out_channels, -(-111 // stride), -(-143 // stride))
    body = {id(parameter) for parameter in backbone.body.parameters()}
    new = [parameter for parameter in backbone.parameters() if id(parameter) not in body]
    # A vision transformer has a normalization, which is the identity at first.
    assert sum(parameter.numel() for parameter in new) <= 2 * maps.shape[1]


def test_a_map_of_the_right_stride_is_not_changed():
    backbone = create("resnet10t", 32)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(backbone(images), backbone.outputs(images)[-1])


def test_coarser_maps_are_resampled_to_the_places_of_finer_ones(monkeypatch):
    backbone = create("convnext_atto", 16, 32)
    assert backbone.taps == [16, 32]

    def places(images):
        """Maps whose values are the columns of the pixels in the middle of each node."""
        height, width = images.shape[-2:]
        return [
            (step * torch.arange(width // step) + step / 2).expand(1, channels, height // step, -1)
            for step, channels in zip(backbone.own_steps, (40, 80, 160, 320), strict=True)
        ]

    monkeypatch.setattr(backbone, "outputs", places)
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert maps.shape[1] == 480
    assert (maps[:, :160] == 16 * torch.arange(6) + 8).all()
    # Outside of the first and the last coarse node there is nothing to interpolate.
    assert torch.allclose(maps[:, 160:, :, 1:-1], 16.0 * torch.arange(1, 5) + 8)


def test_the_plain_backbone_has_no_maps_without_its_layers():
    with pytest.raises(ValueError, match="The plain backbone has only one map"):
        create_backbone("plain", 8, None, 0, pretrained=False)
