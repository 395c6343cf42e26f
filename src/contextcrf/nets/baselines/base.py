"""The base class of the baseline networks, and layers that several of them share."""

from torch import Tensor, nn

from contextcrf.nets.base import Backbone


class Baseline(Backbone):
    """A network that computes a feature map from the maps of a backbone.

    The unary potential of a baseline is a linear classifier of this feature map.

    Args:
        backbone: a backbone without a block 6, that is, one made by `create_backbone` with channels=None. Its last map
            must have the stride `output_stride`.
        channels: the number of channels of the layers after the backbone.

    Attributes:
        stride: the number of pixels per node of the feature map.
        output_stride: the required stride of the last map of the backbone.
        width: the recommended value of `channels` in comparisons. A value of `channels` that suits other networks may
            be too low for this one.

    Raises:
        ValueError: if the last map of the backbone has another stride.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import create_backbone
        >>> from contextcrf.nets.baselines import BASELINES
        >>> backbone = create_backbone("resnet10t", 32, None, channels=None, pretrained=False)
        >>> network = BASELINES["fcn-8s"](backbone, channels=16).eval()
        >>> network(torch.randn(1, 3, 64, 96)).shape  # normalized images
        torch.Size([1, 400, 8, 12])
    """

    stride: int
    output_stride: int
    width: int

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        if max(backbone.widths) != self.output_stride:
            raise ValueError(
                f"{type(self).__name__} needs a backbone whose last map has stride {self.output_stride}, but the "
                f"stride is {max(backbone.widths)}."
            )
        self.backbone = backbone
        self.mean, self.std, self.widths = backbone.mean, backbone.std, backbone.widths

    @property
    def pretrained(self) -> bool:
        """True if the weights of the backbone are pretrained."""
        return self.backbone.pretrained

    @pretrained.setter
    def pretrained(self, value: bool) -> None:
        self.backbone.pretrained = value

    @property
    def norm_eval(self) -> bool:
        """True if training keeps the BatchNorm layers of a pretrained backbone in evaluation mode.

        The BatchNorm layers after the backbone are always trained.
        """
        return self.backbone.norm_eval

    @norm_eval.setter
    def norm_eval(self, value: bool) -> None:
        self.backbone.norm_eval = value

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the maps of the backbone (see `Backbone.levels`)."""
        return self.backbone.levels(images)

    def freeze(self, stages: int, filters: bool = False) -> None:
        """Exclude parts of the backbone from training (see `Backbone.freeze`)."""
        self.backbone.freeze(stages, filters)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the pretrained parameters of the backbone."""
        return self.backbone.pretrained_parameters()


def deep_layers(width: int, channels: int, size: int, dilation: int = 1) -> nn.Sequential:
    """Create the layers "fc6" and "fc7" of VGG-16 as convolutions for the last map of a backbone.

    The first convolution is size x size, and the second is 1 x 1. As in VGG-16, dropout is applied to single elements,
    not to whole channels.

    Args:
        width: the number of input channels.
        channels: the number of channels of both layers.
        size: the kernel size of the first layer, odd.
        dilation: the dilation of the first layer.

    Returns:
        The two convolutions, each followed by a ReLU and dropout.
    """
    return nn.Sequential(
        nn.Conv2d(width, channels, size, padding=dilation * (size // 2), dilation=dilation),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Dropout(),
    )
