"""Long, Shelhamer, Darrell: "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015."""

import torch
from torch import Tensor

from contextcrf.nets.base import Backbone
from contextcrf.nets.baselines.base import Baseline, deep_layers
from contextcrf.utils.resizing import upsample


class FCN8s(Baseline):
    """FCN-8s: scores of the maps of stride 8, 16 and (after two more layers) 32 are summed at stride 8.

    The sum of upsampled scores is a linear function of the concatenated, upsampled maps, which are the features of this
    network. The upsampling is therefore bilinear and not trained. The two layers ("fc6", "fc7") are a 7 x 7 and a 1 x 1
    convolution as in the original, with `channels` instead of 4096 channels.
    """

    stride, output_stride, width = 8, 32, 512

    def __init__(self, backbone: Backbone, channels: int = 256) -> None:
        super().__init__(backbone, channels)
        self.deep = deep_layers(self.widths[32], channels, size=7)
        self.out_channels = self.widths[8] + self.widths[16] + channels

    def forward(self, images: Tensor) -> Tensor:
        """Compute features [B, out_channels, ceil(H / 8), ceil(W / 8)] from normalized images [B, 3, H, W]."""
        levels = self.levels(images)
        size = levels[8].shape[-2:]
        return torch.cat([levels[8], upsample(levels[16], size), upsample(self.deep(levels[32]), size)], 1)
