"""Network Part-1 for one scale: an image to a feature map."""

import re
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.nets.base import Backbone
from contextcrf.nets.depthwise import float32_depthwise
from contextcrf.nets.vgg import VGG16Backbone
from contextcrf.nets.weights import hub_arguments, load_package_weights
from contextcrf.utils.resizing import upsample

VGG16 = "vgg16-fc6"


class TimmBackbone(Backbone):
    """Any timm backbone, followed by a block of its own ("block 6", as the paper puts one behind VGG's five).

    The backbone runs at `output_stride`, its last stages dilated where they would go coarser. Where `stride` is finer
    than that, the maps of the earlier stages down to `stride` join in: each goes through a 1 x 1 convolution, is
    enlarged bilinearly and added, and a 3 x 3 convolution mixes the sum. With `stride == output_stride` only the last
    map is used.

    Args:
        name: a timm model with `features_only`.
        stride: pixels per node of the feature map: 4, 8, 16 or 32.
        output_stride: stride of the backbone's last map; `stride` if None.
        channels: channels of the result; None leaves out what follows the body, for networks that use its `levels`.
        pretrained: ImageNet weights, those in a file of timm's, or random ones. Weights that cannot be had are an
            error, never random instead.
        depth: use the first `depth` stages of the backbone alone, which see less of the image; None is all. Block 6
            then normalizes each node by itself, since the statistics of a map tell every node of the whole image.

    Attributes:
        pretrained: whether the body has been trained; a loaded model sets it.
        norm_eval: keep the BatchNorm of a pretrained body at its statistics while training: with three scales and a few
            images a step, the batch's own are noise, and unlike those at prediction.

    Raises:
        WeightsNotFoundError: `pretrained`, and no weights can be had.
    """

    def __init__(
        self,
        name: str,
        stride: int = 8,
        output_stride: int | None = None,
        channels: int | None = 256,
        pretrained: bool | str | Path = True,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        output_stride = output_stride or stride
        if stride not in (4, 8, 16, 32) or output_stride not in (8, 16, 32) or output_stride < stride:
            raise ValueError(
                f"stride={stride}, output_stride={output_stride}: expected 4, 8, 16 or 32, "
                "output_stride at least 8 and not finer than stride"
            )
        self.body: Any = _create(name, output_stride, pretrained, depth)
        float32_depthwise(self.body)
        reductions, widths = self.body.feature_info.reduction(), self.body.feature_info.channels()
        if reductions[-1] < stride:
            raise ValueError(f"depth={depth}: {name}'s map has stride {reductions[-1]}; expected at least {stride}")
        # Of several maps of one stride the last is the richest.
        self.widths = dict(zip(reductions, widths, strict=True))
        self.taps = [reduction for reduction in self.widths if reduction >= stride]
        if channels is None:
            self.out_channels = widths[-1]
        else:
            self._join(channels, local=depth is not None)
        self.pretrained = bool(pretrained)
        self.norm_eval = True
        self.mean = tuple(float(v) for v in self.body.default_cfg["mean"])
        self.std = tuple(float(v) for v in self.body.default_cfg["std"])

    def _join(self, channels: int, local: bool) -> None:
        self.lateral = nn.ModuleList(nn.Conv2d(self.widths[tap], channels, 1) for tap in self.taps)
        self.block6 = nn.Sequential(
            _norm(channels, local),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(channels, local),
            nn.ReLU(),
        )
        self.out_channels = channels

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The body's."""
        return list(self.body.parameters()) if self.pretrained else []

    def freeze(self, stages: int, filters: bool = False) -> None:
        """As `Backbone.freeze`: these parts cost most and change least."""
        if not 0 <= stages <= len(self.body.feature_info):
            raise ValueError(f"{stages} frozen stages: the backbone has {len(self.body.feature_info)}")
        for module in self.body.modules() if filters else ():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.weight.requires_grad_(False)
        if stages == 0:
            return
        # Modules stand in the order of the forward pass; timm writes a path with dots or underscores.
        last = self.body.feature_info.module_name(stages - 1).replace(".", "_")
        modules = [(name.replace(".", "_") + "_", module) for name, module in self.body.named_modules()]
        within = [i for i, (name, _) in enumerate(modules) if name.startswith(f"{last}_")]
        if not within:
            raise ValueError(f"{stages} frozen stages: no module {last!r} in this backbone; leave frozen_stages at 0")
        for _, module in modules[: within[-1] + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "TimmBackbone":
        super().train(mode)
        if self.norm_eval and self.pretrained:
            for module in self.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        return dict(zip(self.body.feature_info.reduction(), self.body(images), strict=True))

    def maps(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] to what block 6 takes, of the size of the feature map."""
        maps = self.levels(images)
        total = self.lateral[0](maps[self.taps[0]])
        for tap, lateral in zip(self.taps[1:], self.lateral[1:], strict=True):
            total = total + upsample(lateral(maps[tap]), total.shape[-2:])
        return total

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] to a feature map [B, channels, ceil(H / stride), ceil(W / stride)]."""
        return self.block6(self.maps(images))


class PlainBackbone(Backbone):
    """A small convolutional network with a known receptive field, trained from nothing.

    Three 3 x 3 convolutions of stride 2 and one 1 x 1: every node sees 15 x 15 pixels. Every further 3 x 3 convolution
    on its map adds 16. Where local appearance is ambiguous it cannot know the label, and context must: the embedded
    context scenes use it.

    Args:
        stride: 8.
        channels: of the result.
        receptive_field: pixels: 15, 31, 47, ...
    """

    def __init__(self, stride: int = 8, channels: int = 64, receptive_field: int = 15) -> None:
        super().__init__()
        if stride != 8:
            raise ValueError(f"stride={stride}: the plain backbone has stride 8")
        further, rest = divmod(receptive_field - 15, 16)
        if further < 0 or rest:
            raise ValueError(f"receptive_field={receptive_field}: expected 15 and a multiple of 16")
        widths = (3, 16, 32, channels)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        for _ in range(further):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, channels, 1), nn.ReLU())
        self.out_channels = channels
        self.mean, self.std = (0.5,) * 3, (0.25,) * 3
        self.pretrained = self.norm_eval = False

    def freeze(self, stages: int, filters: bool = False) -> None:
        """Nothing here comes from ImageNet, so there is nothing to keep."""
        if stages or filters:
            raise ValueError("frozen_stages, frozen_filters: the plain backbone is random and must be trained")

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """None: all of it is new."""
        return []

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] to a feature map [B, channels, ceil(H / 8), ceil(W / 8)].

        Images are continued to whole nodes by their border: a node of which a part lies outside would see zeros there,
        which training on crops of whole nodes never shows.
        """
        height, width = images.shape[-2:]
        return self.layers(F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate"))


def _norm(channels: int, local: bool) -> nn.Module:
    if local:
        return LayerNorm2d(channels)
    return nn.GroupNorm(32 if channels % 32 == 0 else 1, channels)


def _create(name: str, output_stride: int, pretrained: bool | str | Path, depth: int | None = None) -> Any:
    file = Path(pretrained) if isinstance(pretrained, str | Path) else None
    arguments = hub_arguments(name, file) if pretrained else {}
    options: dict[str, Any] = dict(arguments or {})
    if depth is not None and depth < 1:
        raise ValueError(f"depth={depth}: expected 1 or more stages of {name}")
    if depth is not None:
        options["out_indices"] = tuple(range(depth))
    body: Any
    try:
        body = timm.create_model(name, features_only=True, output_stride=output_stride, **options)
    except (AssertionError, IndexError, TypeError, RuntimeError) as error:
        if depth is not None and isinstance(error, IndexError):
            raise ValueError(f"depth={depth}: {name} has not so many stages") from error
        # timm's words for networks that cannot be dilated or have no feature maps at all, and torch's for weights.
        raise ValueError(f"backbone {name!r} with feature maps of stride {output_stride}: {error}") from error
    if depth is not None and hasattr(body, "blocks"):
        # timm would run the stages behind the last map that is asked for, for nothing.
        last = body.feature_info.module_name(depth - 1)  # as in "blocks.3.2", or the stem's "bn1"
        body.blocks = body.blocks[: int(last.split(".")[1]) + 1] if "." in last else nn.Sequential()
    if pretrained and arguments is None:
        classifier = timm.create_model(name)
        load_package_weights(name, classifier)
        # The features-only network is the classifier without its last layers, under the same names.
        state = classifier.state_dict()
        body.load_state_dict({key: state[key] for key in body.state_dict()})
    return body


def create_backbone(
    name: str,
    stride: int,
    output_stride: int | None,
    channels: int | None,
    pretrained: bool | str | Path,
    depth: int | None = None,
) -> Backbone:
    """By the name in a `ModelConfig`.

    "vgg16-fc6" is `VGG16Backbone`, "plain" is `PlainBackbone`, "plain-47" the one that sees 47 pixels; the others are
    timm's.
    """
    plain = re.fullmatch(r"plain(?:-(\d+))?", name)
    if (plain or name == VGG16) and depth is not None:
        raise ValueError(f"depth={depth}: expected none; {name} is used whole, stages are those of timm's networks")
    if plain:
        if pretrained:
            raise ValueError("the plain backbone has no pretrained weights; set pretrained to false")
        if channels is None:
            raise ValueError("the plain backbone has one map alone; expected a timm network or VGG-16")
        return PlainBackbone(stride, channels, int(plain[1] or 15))
    if name == VGG16:
        if output_stride not in (None, stride):
            raise ValueError(f"output_stride={output_stride}: expected that of {name}'s only map, {stride}")
        return VGG16Backbone(stride, channels, pretrained)
    if not timm.is_model(name):
        found = timm.list_models(f"*{name}*")[:5] or get_close_matches(name, timm.list_models(), n=3)
        near = ", ".join(found) or "nothing, see timm.list_models()"
        raise ValueError(f"backbone {name!r}: timm knows no such model; near it: {near}")
    return TimmBackbone(name, stride, output_stride, channels, pretrained, depth)
