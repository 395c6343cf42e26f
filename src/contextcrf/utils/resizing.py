"""Functions that change the size of images, maps and masks."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly, as the paper does with its score maps.

    Args:
        maps: maps of scores, marginals or features, floating [B, C, h, w].
        size: the new height H and width W.

    Returns:
        The resized maps, [B, C, H, W].

    Example:
        >>> import torch
        >>> from contextcrf.utils.resizing import upsample
        >>> upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).tolist()
        [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def downsample(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resize masks by nearest-neighbor interpolation, which never mixes labels.

    Args:
        masks: the masks, int64 [B, H, W].
        size: the new height h and width w.

    Returns:
        The resized masks, int64 [B, h, w].

    Example:
        >>> import torch
        >>> from contextcrf.utils.resizing import downsample
        >>> downsample(torch.tensor([[[0, 1, 2, 255]]]), (1, 2)).tolist()
        [[[1, 255]]]
    """
    return F.interpolate(masks[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()
