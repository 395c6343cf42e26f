"""Depthwise convolutions in single precision on the CPU.

Under bfloat16 autocast on x86, the backward pass of a depthwise convolution is 4-8 times as slow as in float32, because
it contains no matrix products, whereas all other convolutions become several times as fast. Depthwise convolutions
therefore remain in float32.
"""

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn


class _Float32OnCpu(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


class _DepthwiseConv2d(_Float32OnCpu, nn.Conv2d):
    pass


class _DepthwiseConv2dSame(_Float32OnCpu, Conv2dSame):
    pass


_REPLACEMENTS: dict[type[nn.Conv2d], type[nn.Conv2d]] = {
    nn.Conv2d: _DepthwiseConv2d,
    Conv2dSame: _DepthwiseConv2dSame,
}


def float32_depthwise(network: nn.Module) -> None:
    """Replace the depthwise convolutions of a network in place; parameters and their names are unchanged."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            # Only the class is exchanged: a wrapper would rename the parameters, and a replaced `forward` would be
            # lost when the module is copied.
            module.__class__ = _REPLACEMENTS.get(type(module), type(module))
