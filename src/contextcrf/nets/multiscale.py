"""Several scales of one image through one network, as one feature map (Fig. 4 of the paper)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.nets.backbones import PlainBackbone, TimmBackbone


class MultiScale(nn.Module):
    """The image at several scales through one backbone; smaller maps enlarged (nearest neighbour), all concatenated.

    Args:
        backbone: Network Part-1, shared by the scales.
        scales: factors of the input size; the paper's are 1.2, 0.8 and 0.4.
    """

    def __init__(self, backbone: TimmBackbone | PlainBackbone, scales: Sequence[float] = (1.2, 0.8, 0.4)) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales={tuple(scales)}: expected at least one, each > 0")
        self.backbone = backbone
        self.scales = tuple(sorted(scales, reverse=True))
        self.out_channels = backbone.out_channels * len(self.scales)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to features [B, channels * len(scales), h, w] of the largest scale's size."""
        maps = [self.backbone(self._resize(images, scale)) for scale in self.scales]
        size = maps[0].shape[-2:]
        return torch.cat([maps[0], *(F.interpolate(m, size, mode="nearest") for m in maps[1:])], dim=1)

    @staticmethod
    def _resize(images: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return images
        size = [max(1, math.floor(side * scale + 0.5)) for side in images.shape[-2:]]
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=scale < 1)
