"""The networks to compare with: one contract for all of them, and the properties of each."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from contextcrf import ContextCRF, load
from contextcrf.cli.main import main
from contextcrf.data.layouts import VOC
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.serialization import save
from contextcrf.nets.backbones import create_backbone
from contextcrf.nets.baselines import BASELINES


def config(network, **values):
    shape = {"backbone": "resnet10t", "channels": 8, "hidden": 8, "scales": (1.0,)}
    return ModelConfig(network=network, stride=BASELINES[network].stride, **{**shape, **values})


@pytest.fixture(params=BASELINES)
def model(request, scenes):
    classes = replace(VOC, names=VOC.names[:5], palette=VOC.palette[:5])
    return ContextCRF(config(request.param), classes, pretrained=False)


@pytest.mark.parametrize("size", [(64, 96), (75, 50)])
def test_the_map_has_one_node_per_stride_pixels_rounded_up(model, size):
    model.eval()
    stride = model.config.stride
    with torch.inference_mode():
        features = model.features(torch.rand(1, 3, *size) * 255, ["unary"])["unary"]
        assert features.shape == (1, model.trunk("unary").out_channels, *(-(-side // stride) for side in size))
        assert model(torch.rand(1, 3, *size) * 255).shape == (1, 5, *size)


def test_every_parameter_of_the_network_is_trained(model):
    features = model.features(torch.rand(2, 3, 64, 96) * 255, ["unary"])
    model.unary(features["unary"]).square().sum().backward()
    trunk = model.trunk("unary")
    assert all(p.grad is not None for p in [*trunk.parameters(), *model.unary.parameters()] if p.requires_grad)
    # The parameters of the backbone are the pretrained ones; those of the network itself are new.
    trunk.backbone.pretrained = True
    old = {id(p) for p in trunk.pretrained_parameters()}
    assert old == {id(p) for p in trunk.backbone.backbone.parameters()}
    assert 0 < len(old) < len(list(trunk.parameters()))


def test_the_unary_is_linear(model):
    features = torch.randn(1, model.trunk("unary").out_channels, 3, 4)
    with torch.inference_mode():
        zero = model.unary(torch.zeros_like(features))
        torch.testing.assert_close(model.unary(2 * features) - zero, 2 * (model.unary(features) - zero))


def test_a_pretrained_body_keeps_its_statistics_and_the_network_updates_its_own(model):
    model.trunk("unary").backbone.pretrained = True
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model.train()
    model.features(torch.rand(2, 3, 64, 96) * 255)
    changed = {key for key, value in before.items() if not torch.equal(model.state_dict()[key], value)}
    assert all("decoder" in key for key in changed)
    assert bool(changed) == (model.config.network == "deeplabv3plus")


def test_it_is_saved_and_loaded(model, tmp_path):
    save(model, tmp_path)
    again, images = load(tmp_path), torch.rand(1, 3, 40, 56) * 255
    with torch.inference_mode():
        torch.testing.assert_close(again(images), model.eval()(images))


def test_it_works_with_vgg16_too():
    for network, kind in BASELINES.items():
        with torch.device("meta"):
            model = ContextCRF(config(network, backbone="vgg16-fc6"), VOC, pretrained=False).eval()
            features = model.features(torch.zeros(1, 3, 75, 50), ["unary"])["unary"]
        assert features.shape[-2:] == (-(-75 // kind.stride), -(-50 // kind.stride))


def test_fcn_8s_sums_the_scores_of_three_strides():
    model = ContextCRF(config("fcn-8s"), VOC, pretrained=False).eval()
    trunk, last = model.trunk("unary").backbone, model.unary.last
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        levels = trunk.levels(images)
        parts = [levels[8], levels[16], trunk.deep(levels[32])]
        weights = last.weight.split([part.shape[1] for part in parts], 1)
        scores = [F.conv2d(part, weight) for part, weight in zip(parts, weights, strict=True)]
        total = sum(F.interpolate(score, (8, 12), mode="bilinear") for score in scores) + last.bias[:, None, None]
        torch.testing.assert_close(model.unary(trunk(images)), total)


def test_largefov_has_a_large_receptive_field():
    """Its convolution of rate 12 at stride 8 spans 25 nodes, 200 pixels."""
    backbone = create_backbone("vgg16-fc6", 8, None, None, pretrained=False)
    network = BASELINES["deeplab-largefov"](backbone, 8).eval()
    for parameter in network.deep.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    network.levels = lambda maps: {8: maps}
    maps = torch.zeros(1, 512, 41, 41, requires_grad=True)
    network(maps)[0, :, 20, 20].sum().backward()
    places = maps.grad[0, 0].nonzero()
    assert places[:, 0].unique().tolist() == places[:, 1].unique().tolist() == [8, 20, 32]


def test_networks_without_such_maps_are_refused():
    with pytest.raises(ValueError, match="'fcn', but one of context, fcn-8s, deeplab-largefov"):
        ModelConfig(network="fcn")
    with pytest.raises(ValueError, match=r"stride=4, .* fcn-8s needs stride=8, output_stride=32 .* depth=null"):
        ModelConfig(network="fcn-8s", stride=4)
    with pytest.raises(ValueError, match="only one map"):
        ContextCRF(config("fcn-8s", backbone="plain"), VOC, pretrained=False)
    with pytest.raises(ValueError, match=r"FCN8s needs .* stride 32, but the stride is 16"):
        BASELINES["fcn-8s"](create_backbone("resnet10t", 16, None, None, pretrained=False))


def test_the_missing_library_of_the_decoder_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.deeplabv3.decoder", None)
    with pytest.raises(ValueError, match=r"contextcrf\[baselines\]"):
        ContextCRF(config("deeplabv3plus"), VOC, pretrained=False)


@pytest.mark.parametrize("budget", [[], ["--budget", "10m"]])
def test_a_step_with_too_few_images_is_refused_before_training(budget, scenes, tmp_path, capsys):
    shape = ["--model.network", "deeplabv3plus", "--model.backbone", "resnet10t", "--model.stride", "4"]
    shape += ["--model.channels", "8", "--model.hidden", "8", "--model.scales", "[1.0]", "--pretrained", "false"]
    settings = ["--training.batch-size", "1", "--training.crop", "[64,96]", "--val-split", "null"]
    with pytest.raises(SystemExit):
        main(["fit", "--data", str(scenes), "--out", str(tmp_path / "run"), *shape, *settings, *budget])
    message = capsys.readouterr().err
    assert "deeplabv3plus cannot be trained with 1 image per step" in message
    assert "Set --training.batch-size to 2 or more" in message


def test_the_same_commands_train_and_evaluate_it_and_add_pairwise_potentials(scenes, tmp_path, capsys):
    shape = ["--model.network", "deeplabv3plus", "--model.backbone", "resnet10t", "--model.stride", "4"]
    shape += ["--model.channels", "8", "--model.hidden", "8", "--model.scales", "[1.0]", "--pretrained", "false"]
    shape += ["--model.graph-stride", "16"]
    settings = ["--training.epochs", "1", "--training.crop", "[64,96]", "--training.max-edges", "64"]
    data = ["--data", str(scenes)]
    unary, heads, out = (tmp_path / name for name in ("unary", "heads", "results"))
    unary_only = ["--training.potentials", "[unary]", "--val-split", "null"]
    main(["fit", *data, "--out", str(unary), *shape, *settings, *unary_only])
    main(["fit-heads", str(unary / "model"), *data, "--out", str(heads), *settings, "--copies", "1"])
    systems = ["--systems", "[unary, unary+pairwise]", "--pictures", "1"]
    main(["evaluate", str(heads / "model"), *data, "--out", str(out), *systems])
    assert "unary+pairwise" in capsys.readouterr().out
    assert load(heads / "model").config.network == "deeplabv3plus"
