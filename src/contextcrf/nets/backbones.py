"""Backbones: networks that compute a feature map from an image at one scale (the paper's "Network Part-1")."""

import re
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import timm
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.nets.base import Backbone
from contextcrf.nets.depthwise import float32_depthwise
from contextcrf.nets.hugging_face import PREFIX, HuggingFaceBackbone
from contextcrf.nets.pyramid import PyramidBackbone
from contextcrf.nets.timm_body import create_body, feature_maps, has_output_stride, stage_modules
from contextcrf.nets.vgg import VGG16Backbone

VGG16 = "vgg16-fc6"


class TimmBackbone(PyramidBackbone):
    """A timm model (the body) followed by a block 6, which corresponds to block 6 of the paper's VGG-16 network.

    If the model can be dilated, its last map has the stride `output_stride`. All other models keep their own strides,
    and their coarser maps are joined with the map of stride `stride` (see `PyramidBackbone`). A plain vision
    transformer has only one map. Transposed convolutions compute finer maps from it.

    Args:
        name: the name of a timm model.
        stride: the number of pixels per node of the feature map: 4, 8, 16 or 32.
        output_stride: the stride of the last map of a model that can be dilated: 8, 16 or 32. None uses `stride`.
        channels: the number of channels of the feature map. 0 adds no new layers: all maps of the body with the stride
            `stride` or a larger one are resampled to one size and concatenated. None omits all layers after the body,
            for networks that use its `levels`.
        pretrained: True loads ImageNet weights. A path loads a file with weights of the timm model. False initializes
            all weights randomly. If weights are requested but not available, an error is raised.
        depth: the number of stages of the body to use. Fewer stages have a smaller receptive field. None uses all
            stages. With a number, block 6 normalizes each node separately, since statistics of the whole map would give
            every node information about the whole image.
        in_chans: the number of channels of the images. With another number than 3, timm adapts pretrained weights of
            the first layer: it repeats the weights of red, green and blue in order, and scales them by 3 / `in_chans`.

    Attributes:
        pretrained: True if the weights of the body are pretrained. Loading a model sets this attribute.
        norm_eval: keep the BatchNorm layers of a pretrained body in evaluation mode during training. With three scales
            and few images per step, the statistics of a batch are noisy and differ from the statistics in prediction.

    Raises:
        ValueError: if timm has no feature maps for the model, or if a stride or the depth is not valid.
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
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        output_stride = output_stride or stride
        if stride not in (4, 8, 16, 32) or output_stride not in (8, 16, 32) or output_stride < stride:
            raise ValueError(
                f"stride={stride} and output_stride={output_stride} are not valid. Expected stride=4, 8, 16 or 32 and "
                "output_stride=8, 16 or 32, where output_stride >= stride."
            )
        self.body = create_body(name, output_stride, pretrained, depth, in_chans)
        float32_depthwise(self.body)
        self.own_steps, widths = self.body.feature_info.reduction(), self.body.feature_info.channels()
        if depth is not None and max(self.own_steps) < stride:
            raise ValueError(
                f"With depth={depth}, the last map of {name} has stride {self.own_steps[-1]}, which is finer than "
                f"stride={stride}. Increase depth or choose a finer stride."
            )
        self.pretrained = bool(pretrained)
        self.norm_eval = True
        config = self.body.default_cfg
        self.mean, self.std = (tuple(float(v) for v in config[key]) for key in ("mean", "std"))
        image = next(self.body.parameters()).new_zeros(1, in_chans, *config["input_size"][1:])
        self.build(widths, stride, output_stride, channels, depth is not None, has_output_stride(name), image)

    def outputs(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of the body (see `PyramidBackbone.outputs`)."""
        return feature_maps(self.body, images)

    def stage_modules(self) -> list[str]:
        """Return the name of the last module of each stage of the body."""
        return stage_modules(self.body)


class PlainBackbone(Backbone):
    """A small convolutional network with a known receptive field and without pretrained weights.

    Three 3 x 3 convolutions of stride 2 and one 1 x 1 convolution have a receptive field of 15 x 15 pixels. Each
    additional 3 x 3 convolution on the map adds 16 pixels. Features with a small receptive field cannot distinguish
    classes with the same local appearance. This backbone therefore shows the effect of context on the context scenes.

    Args:
        stride: the number of pixels per node of the feature map, which must be 8.
        channels: the number of channels of the feature map.
        receptive_field: the size of the receptive field in pixels: 15, 31, 47, ...
        in_chans: the number of channels of the images.

    Raises:
        ValueError: if the stride or the receptive field has another value.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import PlainBackbone
        >>> PlainBackbone(channels=16, receptive_field=31)(torch.randn(1, 3, 32, 48)).shape
        torch.Size([1, 16, 4, 6])
    """

    def __init__(self, stride: int = 8, channels: int = 64, receptive_field: int = 15, in_chans: int = 3) -> None:
        super().__init__()
        if stride != 8:
            raise ValueError(f"stride={stride} is not valid for the plain backbone. Expected 8.")
        further, rest = divmod(receptive_field - 15, 16)
        if further < 0 or rest:
            raise ValueError(f"receptive_field={receptive_field} is not valid. Expected 15 plus a multiple of 16.")
        widths = (in_chans, 16, 32, channels)
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
        """Compute a feature map [B, channels, ceil(H / 8), ceil(W / 8)] from images [B, C, H, W].

        Images are padded to multiples of 8 by replicating their border. Zero padding would change the features of the
        nodes at the border, and training crops that consist of whole nodes have no such padding.
        """
        height, width = images.shape[-2:]
        return self.layers(F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate"))


def create_backbone(
    name: str,
    stride: int,
    output_stride: int | None,
    channels: int | None,
    pretrained: bool | str | Path,
    depth: int | None = None,
    in_chans: int = 3,
) -> Backbone:
    """Create a backbone from its name in a `ModelConfig`.

    Args:
        name: the name of a timm model, "vgg16-fc6" for `VGG16Backbone`, or "plain" for `PlainBackbone`. "plain-47" is a
            `PlainBackbone` with a receptive field of 47 pixels. "hf:facebook/dinov2-small" is a `HuggingFaceBackbone`.
        stride: as for `TimmBackbone`.
        output_stride: as for `TimmBackbone`.
        channels: as for `TimmBackbone`.
        pretrained: as for `TimmBackbone`.
        depth: as for `TimmBackbone`.
        in_chans: as for `TimmBackbone`. `HuggingFaceBackbone` takes only 3 channels with pretrained weights.

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
    if (plain or name == VGG16 or name.startswith(PREFIX)) and depth is not None:
        raise ValueError(f"depth={depth} is not possible for {name}, because only timm models can end after a stage.")
    if plain:
        if pretrained:
            raise ValueError("The plain backbone has no pretrained weights. Set pretrained to false.")
        if not channels:
            raise ValueError(
                "The plain backbone has only one map, but this network needs several. Choose a timm model or vgg16-fc6."
            )
        return PlainBackbone(stride, channels, int(plain[1] or 15), in_chans)
    if name == VGG16:
        if output_stride not in (None, stride):
            raise ValueError(
                f"{name} has only one map, so output_stride must be null or equal to stride={stride}, but "
                f"output_stride={output_stride}."
            )
        return VGG16Backbone(stride, channels or None, pretrained, in_chans)
    if name.startswith(PREFIX):
        if output_stride not in (None, stride):
            raise ValueError(
                f"{name} cannot be dilated, so output_stride must be null or equal to stride={stride}, but "
                f"output_stride={output_stride}."
            )
        return HuggingFaceBackbone(name.removeprefix(PREFIX), stride, channels, pretrained, in_chans)
    if not timm.is_model(name):
        found = timm.list_models(f"*{name}*")[:5] or get_close_matches(name, timm.list_models(), n=3)
        advice = f"Similar names are {', '.join(found)}." if found else "timm.list_models() lists all models."
        raise ValueError(f"The backbone {name!r} is not a timm model. {advice}")
    return TimmBackbone(name, stride, output_stride, channels, pretrained, depth, in_chans)
