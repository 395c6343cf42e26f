"""The network of the paper: every layer compared with Fig. 5, and its weights."""

import pytest
import torch
from torch import nn
from torchvision.models import VGG16_Weights

from contextcrf.data.classes import Classes
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.nets.backbones import create_backbone
from contextcrf.nets.vgg import VGG16Backbone
from contextcrf.nets.weights import WeightsNotFoundError

# Fig. 5: block, kernel, channels; each block but the sixth ends with a 2 x 2 pooling.
FIGURE_5 = [
    *[(1, 3, 64)] * 2,
    *[(2, 3, 128)] * 2,
    *[(3, 3, 256)] * 3,
    *[(4, 3, 512)] * 3,
    *[(5, 3, 512)] * 3,
    (6, 7, 4096),
    *[(6, 3, 512)] * 2,
]


def convolutions(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def outputs(backbone, images):
    """The shapes of the outputs of all convolutions, in order."""
    shapes = []
    hooks = [
        layer.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
        for layer in convolutions(backbone)
    ]
    backbone(images)
    for hook in hooks:
        hook.remove()
    return shapes


def test_every_layer_is_that_of_the_papers_figure_5():
    with torch.device("meta"):
        backbone = VGG16Backbone(pretrained=False)
        # A picture of VOC, 500 x 375, at the scale 1.2.
        shapes = outputs(backbone, torch.zeros(1, 3, 450, 600))
    inputs, found = 3, []
    for layer, (_, kernel, channels) in zip(convolutions(backbone), FIGURE_5, strict=True):
        found.append((layer.in_channels, layer.kernel_size, layer.out_channels))
        assert found[-1] == (inputs, (kernel, kernel), channels)
        assert layer.weight.numel() + layer.bias.numel() == channels * (inputs * kernel * kernel + 1)
        inputs = channels
    heights, widths = (450, 225, 113, 57, 29, 15), (600, 300, 150, 75, 38, 19)
    assert shapes == [(1, channels, heights[block - 1], widths[block - 1]) for block, _, channels in FIGURE_5]


@pytest.mark.parametrize(("classes", "pairwise"), [(21, 441), (11, 121)])
def test_part_2_is_two_fully_connected_layers_on_the_features_of_three_scales(classes, pairwise):
    named = Classes(tuple(map(str, range(classes))), ((0, 0, 0),) * classes)
    config = ModelConfig(backbone="vgg16-fc6", stride=32, channels=512, shared_trunk=False)
    with torch.device("meta"):
        model = ContextCRF(config, named, pretrained=False)
    unary, surrounding = model.unary, model.pairwise["surrounding"]
    assert sum(p.numel() for p in unary.parameters()) == 512 * (3 * 512 + 1) + classes * (512 + 1)
    # The features of an edge are the concatenated features of its nodes.
    hidden = [*surrounding.owner.parameters(), *surrounding.neighbor.parameters()]
    assert sum(p.numel() for p in hidden) == 512 * (2 * 3 * 512 + 1)
    assert (surrounding.last.weight.shape, surrounding.last.bias.shape) == ((pairwise, 512), (pairwise,))
    # One network per potential: VGG-16's 14.7 M, fc6 as a convolution 102.8 M, and two more.
    one = 14_714_688 + 4096 * (512 * 49 + 1) + 512 * (4096 * 9 + 1) + 512 * (512 * 9 + 1)
    assert [sum(p.numel() for p in model.trunk(name).parameters()) for name in model.potentials] == [one] * 3


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_finer_maps_have_as_large_a_receptive_field(stride):
    with torch.device("meta"):
        backbone = VGG16Backbone(stride, pretrained=False)
        assert backbone(torch.zeros(1, 3, 75, 50)).shape == (1, 512, -(-75 // stride), -(-50 // stride))
    field, step = 1, 1
    for layer in [*backbone.body, backbone.block6[0]]:
        if not isinstance(layer, nn.ReLU):
            kernel, stride_of, dilation = (
                value if isinstance(value, int) else value[0]
                for value in (layer.kernel_size, layer.stride, layer.dilation)
            )
            field += step * dilation * (kernel - 1)
            step *= stride_of
    assert step == stride
    # The receptive field of VGG-16's fc6 is 404 pixels; a pooling that keeps the size is one node wider.
    assert 404 <= field <= 404 + 16 + 8


@pytest.fixture
def weights(tmp_path):
    """torchvision's file, of full shape: every tensor is one small storage, repeated."""
    features = {}
    with torch.device("meta"):
        body = VGG16Backbone(pretrained=False).body
    for number, (key, value) in enumerate(body.state_dict().items()):
        features[f"features.{key}"] = torch.tensor(float(number)).expand(value.shape)
    fc6 = {"classifier.0.weight": torch.arange(25088.0).expand(4096, 25088), "classifier.0.bias": torch.ones(4096)}
    rest = {"classifier.3.weight": torch.zeros(1).expand(4096, 4096), "classifier.3.bias": torch.zeros(4096)}
    path = tmp_path / "vgg16.pth"
    torch.save({**features, **fc6, **rest}, path)
    return path


def test_weights_of_a_file_are_loaded_into_their_layers(weights):
    backbone = create_backbone("vgg16-fc6", 32, None, 8, weights)
    assert [float(value.flatten()[0]) for value in backbone.body.state_dict().values()] == list(range(26))
    # A fully connected layer on the 512 maps of 7 x 7 nodes is a convolution of that size.
    fc6 = backbone.block6[0].weight
    assert fc6[7, 3, 2, 5] == fc6[0, 3, 2, 5] == 3 * 49 + 2 * 7 + 5
    old = {id(parameter) for parameter in backbone.pretrained_parameters()}
    assert [id(p) in old for p in backbone.block6.parameters()] == [True, True, False, False, False, False]
    assert {id(p) for p in backbone.body.parameters()} < old


def test_files_that_are_not_vgg16_are_refused(tmp_path, weights):
    state = torch.load(weights, weights_only=True)
    (tmp_path / "text").write_text("no weights")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other")
    torch.save({k: v for k, v in state.items() if not k.startswith("classifier")}, tmp_path / "features")
    for name in ("text", "other", "features", "nowhere"):
        with pytest.raises(WeightsNotFoundError, match=f"{name} .*vgg16"):
            create_backbone("vgg16-fc6", 32, None, 8, tmp_path / name)


def test_torchvisions_weights_are_downloaded_or_the_error_names_what_to_do(monkeypatch, weights):
    asked = []

    def fetch(self, **options):
        asked.append((self.url, options))
        if len(asked) == 1:
            raise OSError("no route")
        return torch.load(weights, weights_only=True)

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", fetch)
    with pytest.raises(
        WeightsNotFoundError, match=r"vgg16-397923af.pth cannot be read .*no route\. Download this file .*--pretrained"
    ):
        VGG16Backbone(channels=8)
    assert VGG16Backbone(channels=8).body[2].bias[0] == 3
    assert asked[0] == asked[1] == (VGG16_Weights.IMAGENET1K_V1.url, {"check_hash": True})


@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_whole_blocks_freeze(stages):
    with torch.device("meta"):
        backbone = VGG16Backbone(pretrained=False)
    backbone.freeze(stages)
    trained = [layer.weight.requires_grad for layer in convolutions(backbone)]
    assert trained == [block > stages for block, _, _ in FIGURE_5]
    with pytest.raises(ValueError, match="frozen_stages=6"):
        backbone.freeze(6)


def test_unsupported_settings_of_vgg16_are_refused():
    with pytest.raises(ValueError, match="stride=4 is not valid"):
        create_backbone("vgg16-fc6", 4, None, 8, False)
    with pytest.raises(ValueError, match=r"stride=16, but output_stride=32"):
        create_backbone("vgg16-fc6", 16, 32, 8, False)
    with pytest.raises(ValueError, match="depth=2"):
        create_backbone("vgg16-fc6", 16, None, 8, False, depth=2)
