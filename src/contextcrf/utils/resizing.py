"""Images, maps of values and of labels brought to other sizes and layouts."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [B, C, h, w], of scores or features, to [B, C, H, W], bilinear, as the paper does with its score maps."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def downsample(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Label masks int64 [B, H, W] to [B, h, w] by nearest neighbor: labels do not mix."""
    return F.interpolate(masks[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()


def channels_last(images: Tensor) -> Tensor:
    """Images of any dtype as float, laid out as convolutions like them best."""
    return images.float().contiguous(memory_format=torch.channels_last)
