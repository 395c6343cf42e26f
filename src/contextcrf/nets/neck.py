"""Maps at strides that a network does not have: resampling by coordinates, and learned upsampling."""

import math
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn


def resample(maps: Tensor, step: float, stride: float, size: Sequence[int], starts: Sequence[float] = (0, 0)) -> Tensor:
    """Resample maps linearly to nodes of another stride. No map is stretched: every node keeps its place in the image.

    Node i of the input covers the pixels from `starts + i * step`, and node j of the result those from `j * stride`. At
    the border, the values of the outermost nodes are repeated. A coarser result averages the nodes that it covers.

    Args:
        maps: the maps, [B, C, h, w].
        step: the number of pixels per node of the input.
        stride: the number of pixels per node of the result.
        size: the height and the width of the result in nodes.
        starts: the first pixel of the first node of the input, vertically and horizontally.

    Returns:
        The resampled maps, [B, C, *size].

    Example:
        >>> import torch
        >>> from contextcrf.nets.neck import resample
        >>> resample(torch.tensor([[[[0.0, 4.0, 8.0]]]]), step=16, stride=8, size=(1, 5)).tolist()
        [[[[0.0, 1.0, 3.0, 5.0, 7.0]]]]
    """
    rows, columns = (
        _weights(count, step, stride, nodes, start, maps)
        for count, nodes, start in zip(maps.shape[-2:], size, starts, strict=True)
    )
    return rows @ maps @ columns.T


def _weights(count: int, step: float, stride: float, nodes: int, start: float, like: Tensor) -> Tensor:
    """Compute the weight of each of `count` nodes in each new node, [nodes, count]."""
    old = start + (torch.arange(count, device=like.device) + 0.5) * step
    new = ((torch.arange(nodes, device=like.device) + 0.5) * stride).clamp(old[0], old[-1])
    weights = (1 - (new[:, None] - old).abs() / max(step, stride)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def upsampling(width: int, factor: int) -> tuple[nn.Sequential, int]:
    """Create transposed convolutions that upsample a map, as in ViTDet's simple feature pyramid.

    Each of them doubles the size of the map and halves the number of channels. The source is Li, Mao, Girshick, He,
    "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022.

    Args:
        width: the number of channels of the map.
        factor: the factor of the size, a power of two.

    Returns:
        The layers and the number of channels of their result.

    Example:
        >>> import torch
        >>> from contextcrf.nets.neck import upsampling
        >>> layers, width = upsampling(32, 4)
        >>> layers(torch.randn(1, 32, 5, 6)).shape, width
        (torch.Size([1, 8, 20, 24]), 8)
    """
    layers: list[nn.Module] = []
    for _ in range(round(math.log2(factor))):
        half = max(1, width // 2)
        layers += [nn.ConvTranspose2d(width, half, 2, stride=2), LayerNorm2d(half), nn.GELU()]
        width = half
    return nn.Sequential(*layers[:-2]), width


def nominal(step: float) -> int:
    """Return the power of two that is nearest to a stride, in relative terms.

    Example:
        >>> from contextcrf.nets.neck import nominal
        >>> [nominal(step) for step in (4, 7, 14, 16)]
        [4, 8, 16, 16]
    """
    return 2 ** round(math.log2(step))
