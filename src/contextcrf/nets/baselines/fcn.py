"""FCN-8s, from Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015."""

import torch
from torch import Tensor

from contextcrf.nets.base import Backbone
from contextcrf.nets.baselines.base import Baseline, deep_layers
from contextcrf.utils.resizing import upsample


class FCN8s(Baseline):
    """FCN-8s, which sums scores from maps of stride 8, 16 and 32 at stride 8.

    The sum of upsampled scores is a linear function of the concatenation of the upsampled maps. This concatenation is
    the feature map of the network. The upsampling is therefore bilinear and not trained. Two layers are applied to the
    map of stride 32: a 7 x 7 convolution ("fc6") and a 1 x 1 convolution ("fc7"), as in the original network. They have
    `channels` channels instead of 4096.

    Args:
        backbone: as for `Baseline`, with `output_stride` 32.
        channels: as for `Baseline`.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import create_backbone
        >>> from contextcrf.nets.baselines.fcn import FCN8s
        >>> backbone = create_backbone("resnet10t", 32, None, channels=None, pretrained=False)
        >>> FCN8s(backbone, channels=16).eval()(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 400, 8, 12])
    """

    stride, output_stride, width = 8, 32, 512

    def __init__(self, backbone: Backbone, channels: int = 256) -> None:
        super().__init__(backbone, channels)
        self.deep = deep_layers(self.widths[32], channels, size=7)
        self.out_channels = self.widths[8] + self.widths[16] + channels

    def forward(self, images: Tensor) -> Tensor:
        """Compute features [B, out_channels, ceil(H / 8), ceil(W / 8)] from normalized images [B, C, H, W]."""
        levels = self.levels(images)
        size = levels[8].shape[-2:]
        return torch.cat([levels[8], upsample(levels[16], size), upsample(self.deep(levels[32]), size)], 1)
