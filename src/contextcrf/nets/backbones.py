"""Network Part-1 for one scale: networks that compute a feature map from an image."""

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
    """Any timm backbone (the body), followed by a block 6 like the one that the paper adds to the five of VGG-16.

    The last map of the body has stride `output_stride`; stages that would be coarser are dilated. If `stride` is
    finer than that, the maps of earlier stages down to `stride` are added: each map passes through a 1 x 1 convolution,
    is upsampled bilinearly and summed, and a 3 x 3 convolution is applied to the sum. If `stride == output_stride`,
    only the last map is used.

    Args:
        name: a timm model that supports `features_only`.
        stride: pixels per node of the feature map: 4, 8, 16 or 32.
        output_stride: stride of the body's last map; `stride` if None.
        channels: number of channels of the feature map; None leaves out all layers after the body, for networks that
            use its `levels`.
        pretrained: True loads ImageNet weights, a path loads a file of timm's weights, False initializes randomly.
            Unavailable weights are an error, never replaced by random ones.
        depth: use only the first `depth` stages of the body, which have a smaller receptive field; None uses all.
            Block 6 then normalizes each node separately, since statistics of a whole map would give every node
            information about the whole image.

    Attributes:
        pretrained: whether the weights of the body are pretrained; loading a model sets it.
        norm_eval: keep the BatchNorm layers of a pretrained body in evaluation mode during training. With three scales
            and few images per step, the statistics of a batch are noisy and differ from those used in prediction.

    Raises:
        ValueError: the model does not exist or cannot have feature maps of these strides.
        WeightsNotFoundError: pretrained weights are requested and not available.
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
        # Of several maps of one stride the last one is used, which is the deepest.
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
        """The parameters of the body, if they are pretrained."""
        return list(self.body.parameters()) if self.pretrained else []

    def freeze(self, stages: int, filters: bool = False) -> None:
        """Freeze parts of the body (see `Backbone.freeze`): they are the most expensive to train and change least."""
        if not 0 <= stages <= len(self.body.feature_info):
            raise ValueError(f"frozen_stages={stages}: expected 0 to {len(self.body.feature_info)} for this backbone")
        for module in self.body.modules() if filters else ():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.weight.requires_grad_(False)
        if stages == 0:
            return
        # The modules are in the order of the forward pass; timm writes their paths with dots or underscores.
        last = self.body.feature_info.module_name(stages - 1).replace(".", "_")
        modules = [(name.replace(".", "_") + "_", module) for name, module in self.body.named_modules()]
        within = [i for i, (name, _) in enumerate(modules) if name.startswith(f"{last}_")]
        if not within:
            raise ValueError(f"frozen_stages={stages}: this backbone has no module {last!r}; set frozen_stages to 0")
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
        """Compute the input of block 6, which has the size of the feature map, from images [B, 3, H, W]."""
        maps = self.levels(images)
        total = self.lateral[0](maps[self.taps[0]])
        for tap, lateral in zip(self.taps[1:], self.lateral[1:], strict=True):
            total = total + upsample(lateral(maps[tap]), total.shape[-2:])
        return total

    def forward(self, images: Tensor) -> Tensor:
        """Compute a feature map [B, channels, ceil(H / stride), ceil(W / stride)] from images [B, 3, H, W]."""
        return self.block6(self.maps(images))


class PlainBackbone(Backbone):
    """A small convolutional network with a known receptive field and without pretrained weights.

    Three 3 x 3 convolutions of stride 2 and one 1 x 1 convolution have a receptive field of 15 x 15 pixels. Each
    additional 3 x 3 convolution on the map adds 16 pixels. Features of a small receptive field cannot distinguish
    classes of the same local appearance, so this backbone shows the effect of context on the context scenes.

    Args:
        stride: pixels per node of the feature map: 8.
        channels: number of channels of the feature map.
        receptive_field: size in pixels: 15, 31, 47, ...

    Raises:
        ValueError: another stride or receptive field.
    """

    def __init__(self, stride: int = 8, channels: int = 64, receptive_field: int = 15) -> None:
        super().__init__()
        if stride != 8:
            raise ValueError(f"stride={stride}: expected 8 for the plain backbone")
        further, rest = divmod(receptive_field - 15, 16)
        if further < 0 or rest:
            raise ValueError(f"receptive_field={receptive_field}: expected 15 plus a multiple of 16")
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
        """Refuse to freeze anything, since no weights are pretrained."""
        if stages or filters:
            raise ValueError("frozen_stages, frozen_filters: the plain backbone has no pretrained weights to freeze")

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """An empty list."""
        return []

    def forward(self, images: Tensor) -> Tensor:
        """Compute a feature map [B, channels, ceil(H / 8), ceil(W / 8)] from images [B, 3, H, W].

        Images are padded to multiples of 8 by replication of their border. Zero padding would change the features of
        the nodes at the border, and training on crops of whole nodes has no such padding.
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
            raise ValueError(f"depth={depth}: {name} has fewer stages") from error
        # The errors of timm for networks without dilation or without feature maps, and of torch for weights.
        raise ValueError(f"backbone {name!r} with feature maps of stride {output_stride}: {error}") from error
    if depth is not None and hasattr(body, "blocks"):
        # timm would compute the stages after the last requested map, too.
        last = body.feature_info.module_name(depth - 1)  # "blocks.3.2" for a stage, "bn1" for the stem
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
    """Create a backbone by its name in a `ModelConfig`.

    Args:
        name: "vgg16-fc6" for `VGG16Backbone`, "plain" for `PlainBackbone`, "plain-47" for one with a receptive field of
            47 pixels, or the name of a timm model.
        stride, output_stride, channels, pretrained, depth: as for `TimmBackbone`.

    Raises:
        ValueError: an unknown name, or a value that this backbone does not support.
        WeightsNotFoundError: pretrained weights are requested and not available.
    """
    plain = re.fullmatch(r"plain(?:-(\d+))?", name)
    if (plain or name == VGG16) and depth is not None:
        raise ValueError(f"depth={depth}: expected none for {name}; only timm models can be cut after a stage")
    if plain:
        if pretrained:
            raise ValueError("pretrained: the plain backbone has no pretrained weights; set pretrained to false")
        if channels is None:
            raise ValueError("the plain backbone has one map only; this network needs a timm model or vgg16-fc6")
        return PlainBackbone(stride, channels, int(plain[1] or 15))
    if name == VGG16:
        if output_stride not in (None, stride):
            raise ValueError(f"output_stride={output_stride}: expected {stride}, the stride of {name}'s only map")
        return VGG16Backbone(stride, channels, pretrained)
    if not timm.is_model(name):
        found = timm.list_models(f"*{name}*")[:5] or get_close_matches(name, timm.list_models(), n=3)
        near = ", ".join(found) or "none; timm.list_models() lists all models"
        raise ValueError(f"backbone {name!r}: timm has no such model; similar names: {near}")
    return TimmBackbone(name, stride, output_stride, channels, pretrained, depth)
