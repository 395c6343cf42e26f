"""Long, Shelhamer, Darrell: "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015."""

import torch
from torch import Tensor

from contextcrf.nets.base import Backbone
from contextcrf.nets.baselines.base import Baseline, deep_layers
from contextcrf.utils.resizing import upsample


class FCN8s(Baseline):
    """Scores of the maps of stride 8, 16 and, behind two more layers, 32 are added up at stride 8.

    A sum of enlarged scores is a linear classification of the enlarged maps side by side, which is what this network
    gives; so the up-sampling is bilinear and stays so. The two layers ("fc6", "fc7") are a 7 x 7 and a 1 x 1
    convolution as there, of `channels` in place of 4096.
    """

    stride, output_stride, width = 8, 32, 512

    def __init__(self, backbone: Backbone, channels: int = 256) -> None:
        super().__init__(backbone, channels)
        self.deep = deep_layers(self.widths[32], channels, size=7)
        self.out_channels = self.widths[8] + self.widths[16] + channels

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] to features [B, out_channels, ceil(H / 8), ceil(W / 8)]."""
        levels = self.levels(images)
        size = levels[8].shape[-2:]
        return torch.cat([levels[8], upsample(levels[16], size), upsample(self.deep(levels[32]), size)], 1)
