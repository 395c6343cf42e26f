"""One contract for all backbones, and the properties of each."""

import logging

import pytest
import timm
import torch

from contextcrf.nets import weights
from contextcrf.nets.backbones import PlainBackbone, TimmBackbone, create_backbone
from contextcrf.nets.depthwise import float32_depthwise
from contextcrf.nets.multiscale import MultiScale
from contextcrf.nets.vgg import VGG16Backbone
from contextcrf.nets.weights import WeightsNotFoundError

SHAPES = [
    ("tf_efficientnet_lite0", 4, 16),
    ("tf_efficientnet_lite0", 8, None),
    ("tf_efficientnet_lite0", 16, 32),
    ("resnet10t", 16, None),
    ("mobilenetv3_small_050", 32, None),
    ("plain", 8, None),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}-{shape[1]}")
def network(request):
    name, stride, output_stride = request.param
    return create_backbone(name, stride, output_stride, 32, pretrained=False).eval(), stride


@pytest.mark.parametrize("size", [(64, 96), (75, 50)])
def test_the_map_has_one_node_per_stride_pixels_rounded_up(network, size):
    backbone, stride = network
    with torch.inference_mode():
        maps = backbone(torch.randn(1, 3, *size))
    assert maps.shape == (1, backbone.out_channels, *(-(-side // stride) for side in size))


def test_every_trained_parameter_has_a_gradient(network):
    backbone, _ = network
    backbone(torch.randn(1, 3, 64, 64)).square().sum().backward()
    used = [p for p in backbone.parameters() if p.grad is not None]
    assert len(used) / len(list(backbone.parameters())) > 0.9
    assert any(p.grad.abs().sum() > 0 for p in used)


@pytest.mark.parametrize(("name", "pixels"), [("plain", 15), ("plain-31", 31), ("plain-63", 63)])
def test_the_receptive_field_of_the_plain_backbone_is_as_named(name, pixels):
    backbone = create_backbone(name, 8, None, 8, pretrained=False).eval()
    images = torch.zeros(1, 3, 128, 128, requires_grad=True)
    images.data.normal_()
    backbone(images)[0, :, 8, 8].abs().sum().backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == pixels


@pytest.mark.parametrize("pixels", [0, 14, 16])
def test_a_receptive_field_that_no_number_of_layers_gives_is_refused(pixels):
    with pytest.raises(ValueError, match=f"receptive_field={pixels}"):
        create_backbone(f"plain-{pixels}", 8, None, 8, pretrained=False)


@pytest.mark.parametrize(("trained_before", "norm_eval"), [(True, True), (True, False), (False, True)])
def test_batch_norm_keeps_the_statistics_of_a_pretrained_body_while_training(trained_before, norm_eval):
    backbone = TimmBackbone("mobilenetv3_small_050", 16, pretrained=False, channels=32)
    backbone.pretrained, backbone.norm_eval = trained_before, norm_eval
    before = {k: v.clone() for k, v in backbone.body.state_dict().items() if "running" in k}
    backbone.train()(torch.randn(2, 3, 32, 32))
    kept = all(torch.equal(backbone.body.state_dict()[key], value) for key, value in before.items())
    assert before
    assert kept == (trained_before and norm_eval)


def test_freezing_stages_keeps_the_first_ones_only():
    backbone = TimmBackbone("tf_efficientnet_lite0", 8, pretrained=False, channels=32)
    backbone.freeze(2)
    frozen = {
        name.split(".")[0] + name.split(".")[1] for name, p in backbone.body.named_parameters() if not p.requires_grad
    }
    assert frozen == {"conv_stemweight", "bn1weight", "bn1bias", "blocks0", "blocks1"}
    assert all(p.requires_grad for p in backbone.block6.parameters())


def test_freezing_filters_keeps_depthwise_weights_only():
    backbone = TimmBackbone("tf_efficientnet_lite0", 8, pretrained=False, channels=32)
    backbone.freeze(0, filters=True)
    frozen = [p for p in backbone.parameters() if not p.requires_grad]
    assert len(frozen) == 16
    assert all(p.shape[1] == 1 and p.ndim == 4 for p in frozen)


def test_depthwise_convolutions_are_exact_under_autocast():
    backbone = TimmBackbone("tf_efficientnet_lite0", 8, pretrained=False, channels=32).eval()
    depthwise = backbone.body.blocks[1][0].conv_dw
    x = torch.randn(1, depthwise.in_channels, 9, 9)
    plain = torch.nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1, groups=x.shape[1], bias=False)
    with torch.inference_mode():
        exact = depthwise(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(depthwise(x), exact)
            assert plain(x).dtype == torch.bfloat16
    float32_depthwise(plain)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert plain(x).dtype == torch.float32


@pytest.mark.parametrize(("name", "stages"), [("resnet10t", 1), ("resnet10t", 2), ("convnext_femto", 1)])
def test_stages_of_other_families_freeze_too(name, stages):
    backbone = TimmBackbone(name, 32, pretrained=False, channels=32)
    backbone.freeze(stages)
    frozen = [parameter.requires_grad for parameter in backbone.body.parameters()]
    assert frozen == sorted(frozen)
    assert 0 < frozen.count(False) < len(frozen)


@pytest.mark.parametrize("strides", [(2, None), (8, 4), (32, 16), (5, None)])
def test_impossible_strides_are_refused(strides):
    with pytest.raises(ValueError, match="stride="):
        TimmBackbone("mobilenetv3_small_050", *strides, pretrained=False)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t"])
def test_with_fewer_stages_a_backbone_has_its_first_weights_only(name):
    whole, part = (TimmBackbone(name, 8, 8, 32, pretrained=False, depth=depth) for depth in (None, 3))
    assert set(part.body.state_dict()) < set(whole.body.state_dict())
    assert part.taps == [8]


def test_with_fewer_stages_the_receptive_field_is_smaller():
    part = TimmBackbone("tf_efficientnet_lite0", 8, 8, 32, pretrained=False, depth=3)
    images = torch.rand(1, 3, 256, 256, requires_grad=True)
    part.eval()(images)[0, :, 16, 16].square().sum().backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    # 67 pixels for the three stages, and 16 for the 3 x 3 convolution at stride 8.
    assert int(rows.max() - rows.min()) + 1 == 83


def test_too_few_stages_are_refused():
    with pytest.raises(ValueError, match=r"depth=2, .* tf_efficientnet_lite0 has stride 4, .* than stride=8"):
        TimmBackbone("tf_efficientnet_lite0", 8, 8, 32, pretrained=False, depth=2)
    for depth, message in ((0, "Expected at least 1"), (9, "because tf_efficientnet_lite0 has fewer stages")):
        with pytest.raises(ValueError, match=f"depth={depth} is not valid.*{message}"):
            TimmBackbone("tf_efficientnet_lite0", 8, 8, 32, pretrained=False, depth=depth)
    with pytest.raises(ValueError, match="depth=2 is not possible for plain"):
        create_backbone("plain", 8, None, 8, pretrained=False, depth=2)


def test_an_unknown_backbone_is_refused_with_similar_names():
    with pytest.raises(ValueError, match="efficientnet_lite0"):
        create_backbone("efficientnet_lite", 8, None, 32, pretrained=False)


def test_the_plain_backbone_has_nothing_to_load_or_freeze():
    with pytest.raises(ValueError, match="no pretrained weights"):
        create_backbone("plain", 8, None, 32, pretrained=True)
    with pytest.raises(ValueError, match="frozen_stages"):
        PlainBackbone().freeze(1)


def install(tmp_path, monkeypatch, tensors):
    """A package of weights, as pip would leave it."""
    package = tmp_path / "some_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    torch.save(tensors, package / "models" / "some.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(weights.PACKAGES, "tf_efficientnet_lite0", "some_weights")


def test_without_a_connection_weights_are_those_of_an_installed_package(tmp_path, monkeypatch, caplog):
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    # The names of tensors in such packages differ from timm's; only their order is the same.
    install(tmp_path, monkeypatch, {f"renamed.{i}.{key}": value for i, (key, value) in enumerate(state.items())})
    with caplog.at_level(logging.WARNING):
        backbone = TimmBackbone("tf_efficientnet_lite0", 8, pretrained=True, channels=32)
    assert "some_weights" in caplog.text
    loaded = backbone.body.state_dict()
    assert len(loaded) > 200
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_the_offline_extra_installs_trained_weights():
    body = TimmBackbone("tf_efficientnet_lite0", 8, pretrained=True, channels=32).body
    assert body.bn1.running_var.std() > 0.1  # all ones in a network that was not trained


def test_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, {"weight": torch.zeros(3)})
    with pytest.raises(WeightsNotFoundError, match=r"some\.pth"):
        TimmBackbone("tf_efficientnet_lite0", 8, pretrained=True)


def test_neither_hub_nor_package_is_an_error_that_names_what_to_install(monkeypatch):
    monkeypatch.setitem(weights.PACKAGES, "tf_efficientnet_lite0", "a_package_that_nobody_installed")
    with pytest.raises(WeightsNotFoundError, match=r"contextcrf\[offline\]"):
        TimmBackbone("tf_efficientnet_lite0", 8, pretrained=True)
    with pytest.raises(WeightsNotFoundError, match="tf_efficientnet_lite1"):
        TimmBackbone("resnet18", 8, pretrained=True)
    with pytest.raises(WeightsNotFoundError, match="no pretrained weights"):
        weights.hub_arguments("resnet10t_of_nobody")


def test_if_the_hub_can_be_reached_timm_loads_from_it(monkeypatch):
    monkeypatch.setattr(weights, "hub_reachable", lambda: True)
    assert weights.hub_arguments("tf_efficientnet_lite0") == {"pretrained": True}


def test_scales_are_upsampled_by_nearest_neighbor_and_concatenated():
    backbone = PlainBackbone(channels=4).eval()
    images = torch.randn(1, 3, 80, 120)
    with torch.inference_mode():
        maps = MultiScale(backbone, [0.5, 1.0])(images)
        assert maps.shape == (1, 8, 10, 15)
        torch.testing.assert_close(maps[:, :4], backbone(images))
        half = torch.nn.functional.interpolate(images, (40, 60), mode="bilinear", antialias=True)
        small = backbone(half)
    for y, x in [(0, 0), (9, 14), (4, 7)]:
        torch.testing.assert_close(maps[0, 4:, y, x], small[0, :, y * 5 // 10, x * 8 // 15])


@pytest.mark.parametrize("scales", [[], [1.0, 0.0], [-1.0]])
def test_impossible_scales_are_refused(scales):
    with pytest.raises(ValueError, match="scales="):
        MultiScale(PlainBackbone(), scales)


def random(backbone):
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return backbone.eval()


def test_each_scale_may_have_its_own_block_6():
    backbone = random(TimmBackbone("mobilenetv3_small_050", 32, pretrained=False, channels=32))
    images = torch.randn(1, 3, 64, 96)
    shared = MultiScale(backbone, (1.0, 0.5)).eval()
    own = MultiScale(backbone, (0.5, 1.0), block6_per_scale=True).eval()
    with torch.inference_mode():
        expected = shared(images)
        torch.testing.assert_close(own(images), expected)
        for parameter in own.block6s[0].parameters():
            parameter.zero_()
        found = own(images)
    torch.testing.assert_close(found[:, :32], expected[:, :32])
    assert not found[:, 32:].any()
    assert expected[:, 32:].any()


def test_all_copies_of_a_pretrained_layer_are_among_the_pretrained_parameters():
    with torch.device("meta"):
        backbone = VGG16Backbone(32, 8, pretrained=False)
        backbone.pretrained = True
        trunk = MultiScale(backbone, block6_per_scale=True)
    old = {id(parameter) for parameter in trunk.pretrained_parameters()}
    assert len(old) == 26 + 3 * 2
    assert [id(block6[0].weight) in old for block6 in (backbone.block6, *trunk.block6s)] == [True] * 3
    assert not any(id(block6[2].weight) in old for block6 in (backbone.block6, *trunk.block6s))
    backbone.pretrained = False
    assert trunk.pretrained_parameters() == []


def test_sliding_pyramid_pooling_is_concatenated_to_the_map():
    backbone = random(PlainBackbone(channels=4))
    images = torch.randn(1, 3, 80, 96)
    trunk = MultiScale(backbone, (1.0,), pyramid=(3, 5)).eval()
    with torch.inference_mode():
        plain, found = backbone(images), trunk(images)
    assert found.shape[1] == trunk.out_channels == 12
    torch.testing.assert_close(found[:, :4], plain)
    for first, size in ((4, 3), (8, 5)):
        window = plain[..., 5 - size // 2 : 6 + size // 2, 6 - size // 2 : 7 + size // 2]
        torch.testing.assert_close(found[:, first : first + 4, 5, 6], window.amax((-1, -2)))
    torch.testing.assert_close(found[:, 8:, 0, 0], plain[..., :3, :3].amax((-1, -2)))


def test_smaller_maps_are_upsampled_as_configured():
    backbone = random(PlainBackbone(channels=4))
    images = torch.randn(1, 3, 64, 64)
    maps = {
        mode: MultiScale(backbone, (1.0, 0.5), upsampling=mode).eval()(images)[:, 4:]
        for mode in ("nearest", "bilinear")
    }
    assert torch.equal(maps["nearest"][..., ::2, :], maps["nearest"][..., 1::2, :])
    assert not torch.equal(maps["bilinear"][..., ::2, :], maps["bilinear"][..., 1::2, :])


def test_what_a_multi_scale_network_cannot_do_is_refused():
    with pytest.raises(ValueError, match="pyramid=\\(4,\\)"):
        MultiScale(PlainBackbone(), pyramid=(4,))
    with pytest.raises(ValueError, match="has no block 6"):
        MultiScale(PlainBackbone(), block6_per_scale=True)


def test_weights_of_a_file_are_loaded_into_timms_networks(tmp_path):
    classifier = timm.create_model("resnet10t")
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    backbone = create_backbone("resnet10t", 16, None, 32, tmp_path / "weights.pth")
    own = classifier.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in backbone.body.state_dict().items())
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsNotFoundError, match=r"other\.pth does not contain .* timm's 'resnet10t'\. Expected conv1.*none"
    ):
        create_backbone("resnet10t", 16, None, 32, tmp_path / "other.pth")
    torch.save({**own, "layer1.0.conv1.weight": torch.zeros(3)}, tmp_path / "shape.pth")
    with pytest.raises(WeightsNotFoundError, match=r"layer1\.0\.conv1\.weight of shape \[.*found \[3\]"):
        create_backbone("resnet10t", 16, None, 32, tmp_path / "shape.pth")
    (tmp_path / "junk.pth").write_text("nothing")
    with pytest.raises(WeightsNotFoundError, match=r"junk\.pth cannot be read as weights of timm's 'resnet10t'"):
        create_backbone("resnet10t", 16, None, 32, tmp_path / "junk.pth")
    with pytest.raises(WeightsNotFoundError, match=r"none\.pth does not exist"):
        create_backbone("resnet10t", 16, None, 32, tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("name", "stride"), [("resnet10t", 32), ("tf_efficientnet_lite0", 16), ("vgg16-fc6", 32), ("vgg16-fc6", 8)]
)
def test_levels_are_the_last_maps_of_each_stride(name, stride):
    with torch.device("meta"):
        backbone = create_backbone(name, stride, None, None, pretrained=False)
        levels = backbone.levels(torch.zeros(1, 3, 75, 50))
    assert list(levels) == [step for step in (2, 4, 8, 16, 32) if step <= stride]
    for step, level in levels.items():
        assert level.shape == (1, backbone.widths[step], -(-75 // step), -(-50 // step))
    assert backbone.out_channels == backbone.widths[stride]
    # The layers after the body are left out.
    assert not [key for key in backbone.state_dict() if not key.startswith("body")]


def test_the_feature_map_is_made_of_the_levels():
    backbone = random(TimmBackbone("resnet10t", 8, 32, 16, pretrained=False))
    vgg = VGG16Backbone(32, None, pretrained=False).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        levels = backbone.levels(images)
        total = sum(
            torch.nn.functional.interpolate(lateral(levels[tap]), (8, 12), mode="bilinear")
            for tap, lateral in zip((8, 16, 32), backbone.lateral, strict=True)
        )
        torch.testing.assert_close(backbone(images), backbone.block6(total))
        assert torch.equal(vgg.levels(images)[32], vgg(images))


@pytest.mark.parametrize("size", [(48, 66), (50, 64), (41, 79)])
def test_the_plain_backbone_pads_images_to_whole_nodes(size):
    """Zero padding at the right and lower border would change features, and no training crop has it."""
    network, images = PlainBackbone(channels=8), torch.randn(1, 3, *size)
    height, width = (-(-side // 8) * 8 for side in size)
    whole = images[..., torch.arange(height).clamp(max=size[0] - 1), :]
    whole = whole[..., torch.arange(width).clamp(max=size[1] - 1)]
    torch.testing.assert_close(network(images), network(whole))
    flat = network(torch.ones(1, 3, *size))
    torch.testing.assert_close(flat[..., 2:, 2:], flat[..., 2:3, 2:3].expand_as(flat[..., 2:, 2:]))


def test_a_misspelled_name_has_similar_ones():
    with pytest.raises(ValueError, match=r"Similar names are .*tf_efficientnet_lite0"):
        create_backbone("tf_efficientnet_lte0", 8, 32, 8, pretrained=False)
