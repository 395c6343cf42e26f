"""The multi-scale network, which concatenates the features of an image at several scales (Fig. 4 of the paper)."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.nets.base import Backbone

Upsampling = Literal["nearest", "bilinear"]


class MultiScale(nn.Module):
    """A network that applies one backbone to an image at several scales.

    The smaller feature maps are upsampled, and all maps are concatenated. `block6_per_scale` and `pyramid` are
    additions from the authors' CVPR 2016 paper.

    Args:
        backbone: the backbone, which all scales share.
        scales: the factors of the input size. The paper uses 1.2, 0.8 and 0.4.
        block6_per_scale: use a separate block 6 for each scale. The scales share the other blocks.
        pyramid: the window sizes of the sliding pyramid pooling, odd and in nodes. For each size, the map of maxima in
            sliding windows is concatenated to the map of each scale. CVPR 2016 uses 5 and 9.
        upsampling: the interpolation of the smaller maps, "nearest" or "bilinear".

    Attributes:
        out_channels: the number of channels of the concatenated map.

    Raises:
        ValueError: if there is no scale, a scale is not positive, a window size is even or less than 3, or
            `block6_per_scale` is set for a backbone without a block 6.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import create_backbone
        >>> from contextcrf.nets.multiscale import MultiScale
        >>> backbone = create_backbone("plain", stride=8, output_stride=None, channels=16, pretrained=False)
        >>> network = MultiScale(backbone, scales=(1.0, 0.5))
        >>> network(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 32, 8, 12])
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
            raise ValueError(f"scales={tuple(scales)} is not valid. Expected at least one scale, each > 0.")
        if any(size < 3 or size % 2 == 0 for size in pyramid):
            raise ValueError(f"pyramid={tuple(pyramid)} is not valid. Expected odd window sizes >= 3.")
        self.backbone = backbone
        self.scales = tuple(sorted(scales, reverse=True))
        self.pyramid, self.upsampling = tuple(pyramid), upsampling
        self.block6s: nn.ModuleList | None = None
        if block6_per_scale:
            if (block6 := getattr(backbone, "block6", None)) is None:
                raise ValueError(
                    "block6_per_scale is true, but this backbone has no block 6. Set block6_per_scale to false."
                )
            self.block6s = nn.ModuleList(copy.deepcopy(block6) for _ in self.scales[1:])
        self.out_channels = backbone.out_channels * len(self.scales) * (1 + len(self.pyramid))

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters with pretrained weights, in the backbone and in the copies of its block 6."""
        old = self.backbone.pretrained_parameters()
        known = {id(parameter) for parameter in old}
        for block6 in self.block6s or ():
            first = self.backbone.block6.parameters()
            old += [own for own, model in zip(block6.parameters(), first, strict=True) if id(model) in known]
        return old

    def forward(self, images: Tensor) -> Tensor:
        """Compute a feature map.

        Args:
            images: normalized images, [B, C, H, W].

        Returns:
            The feature map, [B, out_channels, h, w], with the size of the map of the largest scale.
        """
        maps = [self._pyramid(self._scale(number, images)) for number in range(len(self.scales))]
        size = maps[0].shape[-2:]
        return torch.cat([maps[0], *(F.interpolate(m, size, mode=self.upsampling) for m in maps[1:])], dim=1)

    def _scale(self, number: int, images: Tensor) -> Tensor:
        """Compute the map of one scale."""
        resized = self._resize(images, self.scales[number])
        if self.block6s is None or number == 0:
            return self.backbone(resized)
        return self.block6s[number - 1](self.backbone.maps(resized))

    def _pyramid(self, maps: Tensor) -> Tensor:
        """Concatenate the maps of the sliding pyramid pooling to a map."""
        return torch.cat([maps, *(F.max_pool2d(maps, size, 1, size // 2) for size in self.pyramid)], dim=1)

    @staticmethod
    def _resize(images: Tensor, scale: float) -> Tensor:
        """Resize images by a factor."""
        if scale == 1:
            return images
        if torch.jit.is_tracing():
            # The sizes are tensors, which the traced graph computes anew for each image.
            sides = [torch.as_tensor(side) for side in images.shape[-2:]]
            size: Any = [torch.floor(side * scale + 0.5).clamp(min=1).long() for side in sides]
        else:
            size = [max(1, math.floor(side * scale + 0.5)) for side in images.shape[-2:]]
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=scale < 1)
