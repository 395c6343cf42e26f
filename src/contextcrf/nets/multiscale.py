"""Features of an image at several scales, concatenated to one feature map (Fig. 4 of the paper)."""

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.nets.base import Backbone

Upsampling = Literal["nearest", "bilinear"]


class MultiScale(nn.Module):
    """One backbone applied to the image at several scales. Smaller maps are upsampled, and all are concatenated.

    The last three arguments are additions of the CVPR 2016 version of the paper.

    Args:
        backbone: Network Part-1, shared by the scales.
        scales: factors of the input size; 1.2, 0.8 and 0.4 in the paper.
        block6_per_scale: a separate block 6 for each scale; the other blocks are shared.
        pyramid: odd window sizes, in nodes, of the sliding pyramid pooling: the maxima of each scale's map in such
            windows are concatenated to the map. CVPR 2016: 5 and 9.
        upsampling: interpolation of the smaller maps.

    Raises:
        ValueError: no scale or one that is not positive, a window size that is even or less than 3, or
            `block6_per_scale` for a backbone without a block 6.
    """

    def __init__(
        self,
        backbone: Backbone,
        scales: Sequence[float] = (1.2, 0.8, 0.4),
        block6_per_scale: bool = False,
        pyramid: Sequence[int] = (),
        upsampling: Upsampling = "nearest",
    ) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales={tuple(scales)}: expected at least one, each > 0")
        if any(size < 3 or size % 2 == 0 for size in pyramid):
            raise ValueError(f"pyramid={tuple(pyramid)}: expected odd sizes from 3")
        self.backbone = backbone
        self.scales = tuple(sorted(scales, reverse=True))
        self.pyramid, self.upsampling = tuple(pyramid), upsampling
        self.block6s: nn.ModuleList | None = None
        if block6_per_scale:
            if (block6 := getattr(backbone, "block6", None)) is None:
                raise ValueError("block6_per_scale: this network has no block 6; set it to false")
            self.block6s = nn.ModuleList(copy.deepcopy(block6) for _ in self.scales[1:])
        self.out_channels = backbone.out_channels * len(self.scales) * (1 + len(self.pyramid))

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The parameters with pretrained weights: those of the backbone and of the copies of its block 6."""
        old = self.backbone.pretrained_parameters()
        known = {id(parameter) for parameter in old}
        for block6 in self.block6s or ():
            first = self.backbone.block6.parameters()
            old += [own for own, model in zip(block6.parameters(), first, strict=True) if id(model) in known]
        return old

    def forward(self, images: Tensor) -> Tensor:
        """Compute features [B, out_channels, h, w], of the size of the largest scale's map, from normalized images."""
        maps = [self._pyramid(self._scale(number, images)) for number in range(len(self.scales))]
        size = maps[0].shape[-2:]
        return torch.cat([maps[0], *(F.interpolate(m, size, mode=self.upsampling) for m in maps[1:])], dim=1)

    def _scale(self, number: int, images: Tensor) -> Tensor:
        resized = self._resize(images, self.scales[number])
        if self.block6s is None or number == 0:
            return self.backbone(resized)
        return self.block6s[number - 1](self.backbone.maps(resized))

    def _pyramid(self, maps: Tensor) -> Tensor:
        return torch.cat([maps, *(F.max_pool2d(maps, size, 1, size // 2) for size in self.pyramid)], dim=1)

    @staticmethod
    def _resize(images: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return images
        size = [max(1, math.floor(side * scale + 0.5)) for side in images.shape[-2:]]
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=scale < 1)
