"""The families of timm's models, and the contract of a backbone that holds for each of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from contextcrf.nets.backbones import TimmBackbone
from contextcrf.nets.pyramid import PyramidBackbone

# A small member of each family (a module of timm.models), from timm 1.0.
FAMILIES = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50_48w_2s",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_pcpvt_small",
    "vgg": "vgg11_bn",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41",
    "xcit": "xcit_nano_12_p16_224",
}

# The models that issue reports name.
NAMED = (
    "vit_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b0",
    "maxvit_tiny_tf_224",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "efficientvit_b0",
    "fastvit_t8",
    "edgenext_small",
    "resnet18",
    "convnext_tiny",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "regnety_004",
    "resnest14d",
)

# How much of the contract is checked.
Rules = Literal["shapes", "values", "places"]

SIZE = (111, 143)  # pixels, a multiple of no stride
ROW, COLUMN = 64, 96  # the place of an edge: nodes of each stride begin here
BAND = 15  # the number of last rows and columns that are inverted


@dataclass
class Contract:
    """What was found of a backbone.

    Attributes:
        problems: each rule that does not hold, in words.
        last: the change of the last row and of the last column of nodes, relative to the largest change.
        edge: the distance in pixels between an edge and the place where the map shows it, vertically and horizontally.
    """

    problems: list[str] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    edge: list[int] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


def check(
    create: Callable[[], PyramidBackbone],
    stride: int,
    sizes: tuple[tuple[int, int], ...] = (SIZE, (75, 50)),
    rules: Rules = "places",
) -> Contract:
    """Check the rules that hold for every backbone.

    Args:
        create: creates the backbone with random weights.
        stride: the number of pixels per node.
        sizes: the sizes of the images.
        rules: "places" also checks that changes of the image show at the right nodes, which takes most of the time.
            "shapes" checks no values, and is for the device "meta".
    """
    torch.manual_seed(0)
    found = Contract()
    backbone, again = create().eval(), create().eval()
    again.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        for height, width in sizes:
            images = torch.randn(1, 3, height, width)
            maps = backbone(images)
            expected = (1, backbone.out_channels, -(-height // stride), -(-width // stride))
            found.expect(maps.shape == expected, f"a map of {tuple(maps.shape)}, not {expected}")
            if rules != "shapes":
                found.expect(bool(maps.isfinite().all()), "values that are not finite")
                found.expect(torch.equal(again(images), maps), "another map after loading the weights")
        tiny = backbone(torch.randn(1, 3, 3, 5)).shape[-2:]
        found.expect(tiny == (1, -(-5 // stride)), f"a map of {tuple(tiny)} for 3 x 5 pixels")
    del again  # a few members are large
    if rules == "places":
        with torch.no_grad():
            _check_places(backbone.double(), stride, found)
    _check_gradients(backbone.float(), found)
    return found


def _check_places(backbone: PyramidBackbone, stride: int, found: Contract) -> None:
    """Check that the finest map shows changes of the image at the right nodes.

    Coarser maps of random weights depend on the whole image.
    """
    image = torch.randn(1, 3, *SIZE).double()
    base = backbone.levels(image)[stride]

    def change(axis: int, band: slice, by: Tensor) -> Tensor:
        """Return the squared change of the map in each row or column if a band of the image changes."""
        changed = image.clone()
        where = (..., band, slice(None)) if axis == -2 else (..., band)
        changed[where] += by[where]
        difference = backbone.levels(changed)[stride] - base
        return difference.square().sum((0, 1, -1 if axis == -2 else -2))

    for axis, place in ((-2, ROW), (-1, COLUMN)):
        side = SIZE[axis]
        last = change(axis, slice(side - BAND, side), -2 * image)
        found.last.append(float(last[-1] / last.max()))
        found.expect(found.last[-1] > 0.2, f"last nodes that change by {found.last[-1]:.2f} of the largest change")
        # A node before the edge depends more on the band before it, and a node after it on the band after it.
        small = 1e-3 * torch.randn_like(image)
        before = change(axis, slice(place - 32, place), small)
        after = change(axis, slice(place, place + 32), small)
        share = (before / (before + after)).nan_to_num(0.5)
        share = share - (share.max() + share.min()) / 2
        shown = max(range(len(share) + 1), key=lambda node: float(share[:node].sum() - share[node:].sum())) * stride
        found.edge.append(shown - place)
        found.expect(abs(shown - place) <= 16, f"an edge at pixel {shown} instead of {place}")


def _check_gradients(backbone: PyramidBackbone, found: Contract) -> None:
    """Check that the parameters of the body have gradients, unless they are frozen."""
    backbone.train()
    for frozen in (False, True):
        backbone.zero_grad()
        if frozen:
            backbone.freeze(1)
            if all(parameter.requires_grad for parameter in backbone.body.parameters()):
                backbone.freeze(2)  # the first stage of a few networks has no parameters
        backbone(torch.randn(2, 3, 75, 50)).square().mean().backward()
        trained = [parameter.grad is not None for parameter in backbone.body.parameters()]
        if not frozen:
            # A few networks have layers that only their classifier or maps of other strides use.
            share = sum(trained) / len(trained)
            found.expect(any(trained[: len(trained) // 10 + 1]), "no gradients of the first parameters")
            found.expect(share > 0.7, f"gradients of only {share:.0%} of the parameters")
        else:
            free = [parameter.requires_grad for parameter in backbone.body.parameters()]
            found.expect(0 < free.count(False) < len(free), f"{free.count(False)} of {len(free)} frozen parameters")
            found.expect(not any(t for t, f in zip(trained, free, strict=True) if not f), "gradients of frozen layers")


def create_member(name: str, stride: int = 8, output_stride: int | None = 32) -> PyramidBackbone:
    """Create a small backbone with random weights."""
    # Random weights of all blocks of these models mix the pixels of the whole image.
    depth = {"gemma4_vit_167m": 3, "efficientvim_m1": 2}.get(name) if stride < 32 else None
    return TimmBackbone(name, stride, output_stride, 16, pretrained=False, depth=depth)
