"""Backbones: networks that compute a feature map from an image at one scale (the paper's "Network Part-1")."""

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
    """A timm model (the body) followed by a block 6, which corresponds to block 6 of the paper's VGG-16 network.

    The last map of the body has the stride `output_stride`. Stages that would have a coarser map are dilated. If
    `stride == output_stride`, block 6 uses only the last map. If `stride` is finer, it uses all maps from `stride` to
    `output_stride`. Each of them passes through a 1 x 1 convolution and is upsampled bilinearly. A 3 x 3 convolution
    is then applied to their sum.

    Args:
        name: the name of a timm model that supports `features_only`.
        stride: the number of pixels per node of the feature map: 4, 8, 16 or 32.
        output_stride: the stride of the last map of the body: 8, 16 or 32. None uses `stride`.
        channels: the number of channels of the feature map. None omits all layers after the body, for networks that use
            its `levels`.
        pretrained: True loads ImageNet weights. A path loads a file with weights of the timm model. False initializes
            all weights randomly. If weights are requested but not available, an error is raised.
        depth: the number of stages of the body to use. Fewer stages have a smaller receptive field. None uses all
            stages. With a number, block 6 normalizes each node separately, since statistics of the whole map would give
            every node information about the whole image.

    Attributes:
        pretrained: True if the weights of the body are pretrained. Loading a model sets this attribute.
        norm_eval: keep the BatchNorm layers of a pretrained body in evaluation mode during training. With three scales
            and few images per step, the statistics of a batch are noisy and differ from the statistics in prediction.

    Raises:
        ValueError: if the model does not exist or does not support these strides.
        WeightsNotFoundError: if pretrained weights are requested but not available.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import TimmBackbone
        >>> backbone = TimmBackbone("resnet10t", stride=8, output_stride=32, channels=16, pretrained=False)
        >>> backbone(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 16, 8, 12])
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
                f"stride={stride} and output_stride={output_stride} are not valid. Expected stride=4, 8, 16 or 32 and "
                "output_stride=8, 16 or 32, where output_stride >= stride."
            )
        self.body: Any = _create(name, output_stride, pretrained, depth)
        float32_depthwise(self.body)
        reductions, widths = self.body.feature_info.reduction(), self.body.feature_info.channels()
        if reductions[-1] < stride:
            raise ValueError(
                f"With depth={depth}, the last map of {name} has stride {reductions[-1]}, which is finer than "
                f"stride={stride}. Increase depth or choose a finer stride."
            )
        # If several maps have the same stride, the last one is used, because it is the deepest.
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
        """Create the layers that join the maps of the body."""
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
        """Return the parameters of the body if they are pretrained."""
        return list(self.body.parameters()) if self.pretrained else []

    def freeze(self, stages: int, filters: bool = False) -> None:
        """Exclude parts of the body from training (see `Backbone.freeze`).

        These parts are the most expensive to train, and their weights change least.
        """
        if not 0 <= stages <= len(self.body.feature_info):
            raise ValueError(
                f"frozen_stages={stages} is not valid. Expected 0 to {len(self.body.feature_info)} for this backbone."
            )
        for module in self.body.modules() if filters else ():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.weight.requires_grad_(False)
        if stages == 0:
            return
        # The modules are in the order of the forward pass. timm separates the parts of their names by "." or "_".
        last = self.body.feature_info.module_name(stages - 1).replace(".", "_")
        modules = [(name.replace(".", "_") + "_", module) for name, module in self.body.named_modules()]
        within = [i for i, (name, _) in enumerate(modules) if name.startswith(f"{last}_")]
        if not within:
            raise ValueError(
                f"frozen_stages={stages} is not possible, because this backbone has no module {last!r}. Set "
                "frozen_stages to 0."
            )
        for _, module in modules[: within[-1] + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Set the training mode, but with `norm_eval` keep BatchNorm layers of a pretrained body in evaluation mode."""
        super().train(mode)
        if self.norm_eval and self.pretrained:
            for module in self.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the last map of each stride in the body (see `Backbone.levels`)."""
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
    additional 3 x 3 convolution on the map adds 16 pixels. Features with a small receptive field cannot distinguish
    classes with the same local appearance. This backbone therefore shows the effect of context on the context scenes.

    Args:
        stride: the number of pixels per node of the feature map, which must be 8.
        channels: the number of channels of the feature map.
        receptive_field: the size of the receptive field in pixels: 15, 31, 47, ...

    Raises:
        ValueError: if the stride or the receptive field has another value.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import PlainBackbone
        >>> PlainBackbone(channels=16, receptive_field=31)(torch.randn(1, 3, 32, 48)).shape
        torch.Size([1, 16, 4, 6])
    """

    def __init__(self, stride: int = 8, channels: int = 64, receptive_field: int = 15) -> None:
        super().__init__()
        if stride != 8:
            raise ValueError(f"stride={stride} is not valid for the plain backbone. Expected 8.")
        further, rest = divmod(receptive_field - 15, 16)
        if further < 0 or rest:
            raise ValueError(f"receptive_field={receptive_field} is not valid. Expected 15 plus a multiple of 16.")
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
        """Raise ValueError if anything should be frozen, since this backbone has no pretrained weights."""
        if stages or filters:
            raise ValueError(
                "The plain backbone has no pretrained weights to freeze. Set frozen_stages to 0 and frozen_filters to "
                "false."
            )

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return an empty list."""
        return []

    def forward(self, images: Tensor) -> Tensor:
        """Compute a feature map [B, channels, ceil(H / 8), ceil(W / 8)] from images [B, 3, H, W].

        Images are padded to multiples of 8 by replicating their border. Zero padding would change the features of the
        nodes at the border, and training crops that consist of whole nodes have no such padding.
        """
        height, width = images.shape[-2:]
        return self.layers(F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate"))


def _norm(channels: int, local: bool) -> nn.Module:
    """Create a normalization layer, either for each node separately or for the whole map."""
    if local:
        return LayerNorm2d(channels)
    return nn.GroupNorm(32 if channels % 32 == 0 else 1, channels)


def _create(name: str, output_stride: int, pretrained: bool | str | Path, depth: int | None = None) -> Any:
    """Create the features-only network of a timm model and load its weights."""
    file = Path(pretrained) if isinstance(pretrained, str | Path) else None
    arguments = hub_arguments(name, file) if pretrained else {}
    options: dict[str, Any] = dict(arguments or {})
    if depth is not None and depth < 1:
        raise ValueError(f"depth={depth} is not valid. Expected at least 1 stage of {name}.")
    if depth is not None:
        options["out_indices"] = tuple(range(depth))
    body: Any
    try:
        body = timm.create_model(name, features_only=True, output_stride=output_stride, **options)
    except (AssertionError, IndexError, TypeError, RuntimeError) as error:
        if depth is not None and isinstance(error, IndexError):
            raise ValueError(f"depth={depth} is not valid, because {name} has fewer stages.") from error
        # timm raises these errors for networks without dilation or feature maps, and torch raises them for weights.
        raise ValueError(
            f"The backbone {name!r} cannot be created with feature maps of stride {output_stride}: "
            f"{str(error).rstrip('.')}."
        ) from error
    if depth is not None and hasattr(body, "blocks"):
        # timm would also compute the stages after the last requested map.
        last = body.feature_info.module_name(depth - 1)  # "blocks.3.2" for a stage, "bn1" for the stem
        body.blocks = body.blocks[: int(last.split(".")[1]) + 1] if "." in last else nn.Sequential()
    if pretrained and arguments is None:
        classifier = timm.create_model(name)
        load_package_weights(name, classifier)
        # The features-only network consists of the first layers of the classifier, with the same names.
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
    """Create a backbone from its name in a `ModelConfig`.

    Args:
        name: the name of a timm model, "vgg16-fc6" for `VGG16Backbone`, or "plain" for `PlainBackbone`. "plain-47" is a
            `PlainBackbone` with a receptive field of 47 pixels.
        stride: as for `TimmBackbone`.
        output_stride: as for `TimmBackbone`.
        channels: as for `TimmBackbone`.
        pretrained: as for `TimmBackbone`.
        depth: as for `TimmBackbone`.

    Returns:
        The backbone.

    Raises:
        ValueError: if the name is unknown, or the backbone does not support a value.
        WeightsNotFoundError: if pretrained weights are requested but not available.

    Example:
        >>> from contextcrf.nets.backbones import create_backbone
        >>> backbone = create_backbone("plain-47", stride=8, output_stride=None, channels=64, pretrained=False)
        >>> backbone.out_channels
        64
    """
    plain = re.fullmatch(r"plain(?:-(\d+))?", name)
    if (plain or name == VGG16) and depth is not None:
        raise ValueError(f"depth={depth} is not possible for {name}, because only timm models can end after a stage.")
    if plain:
        if pretrained:
            raise ValueError("The plain backbone has no pretrained weights. Set pretrained to false.")
        if channels is None:
            raise ValueError(
                "The plain backbone has only one map, but this network needs several. Choose a timm model or vgg16-fc6."
            )
        return PlainBackbone(stride, channels, int(plain[1] or 15))
    if name == VGG16:
        if output_stride not in (None, stride):
            raise ValueError(
                f"{name} has only one map, so output_stride must be null or equal to stride={stride}, but "
                f"output_stride={output_stride}."
            )
        return VGG16Backbone(stride, channels, pretrained)
    if not timm.is_model(name):
        found = timm.list_models(f"*{name}*")[:5] or get_close_matches(name, timm.list_models(), n=3)
        advice = f"Similar names are {', '.join(found)}." if found else "timm.list_models() lists all models."
        raise ValueError(f"The backbone {name!r} is not a timm model. {advice}")
    return TimmBackbone(name, stride, output_stride, channels, pretrained, depth)
