"""The base class of the networks to compare with."""

from torch import Tensor, nn

from contextcrf.nets.base import Backbone


class Baseline(Backbone):
    """A network that computes a feature map from the maps of a backbone. A linear classifier follows it.

    Args:
        backbone: a backbone without a block 6 (`channels` None) whose last map has the stride `output_stride`.
        channels: number of channels of the network's own layers.

    Attributes:
        stride: pixels per node of the feature map.
        output_stride: stride of the backbone's last map.
        width: the recommended `channels` in comparisons; the number that suits other networks may be too low.

    Raises:
        ValueError: the backbone's last map has another stride.
    """

    stride: int
    output_stride: int
    width: int

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        if max(backbone.widths) != self.output_stride:
            raise ValueError(
                f"{type(self).__name__}: the backbone's last map has stride {max(backbone.widths)}; "
                f"expected {self.output_stride}"
            )
        self.backbone = backbone
        self.mean, self.std, self.widths = backbone.mean, backbone.std, backbone.widths

    @property
    def pretrained(self) -> bool:
        """That of the backbone."""
        return self.backbone.pretrained

    @pretrained.setter
    def pretrained(self, value: bool) -> None:
        self.backbone.pretrained = value

    @property
    def norm_eval(self) -> bool:
        """That of the backbone; the network's own BatchNorm layers are always trained."""
        return self.backbone.norm_eval

    @norm_eval.setter
    def norm_eval(self, value: bool) -> None:
        self.backbone.norm_eval = value

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        return self.backbone.levels(images)

    def freeze(self, stages: int, filters: bool = False) -> None:
        self.backbone.freeze(stages, filters)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Those of the backbone."""
        return self.backbone.pretrained_parameters()


def deep_layers(width: int, channels: int, size: int, dilation: int = 1) -> nn.Sequential:
    """Two layers after a backbone's last map, VGG's "fc6" and "fc7" as convolutions: size x size, then 1 x 1.

    Dropout is applied to single elements, as in VGG-16, not to whole channels.

    Args:
        width: number of input channels.
        channels: number of channels of both layers.
        size: kernel size of the first layer, odd.
        dilation: of the first layer.
    """
    return nn.Sequential(
        nn.Conv2d(width, channels, size, padding=dilation * (size // 2), dilation=dilation),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Dropout(),
    )
