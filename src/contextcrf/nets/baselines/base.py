"""What the competitors have in common."""

from torch import Tensor, nn

from contextcrf.nets.base import Backbone


class Baseline(Backbone):
    """A network on the maps of a backbone, whose own feature map is classified linearly.

    Args:
        backbone: without a block 6 (`channels` None), whose last map has the class's `output_stride`.
        channels: of the network's own layers.

    Attributes:
        stride: pixels per node of the feature map.
        output_stride: of the backbone's last map.
        width: `channels` in a comparison; those of the other networks may be too few for this one.
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
        """The backbone's."""
        return self.backbone.pretrained

    @pretrained.setter
    def pretrained(self, value: bool) -> None:
        self.backbone.pretrained = value

    @property
    def norm_eval(self) -> bool:
        """The backbone's; the network's own BatchNorm always learns."""
        return self.backbone.norm_eval

    @norm_eval.setter
    def norm_eval(self, value: bool) -> None:
        self.backbone.norm_eval = value

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        return self.backbone.levels(images)

    def freeze(self, stages: int, filters: bool = False) -> None:
        self.backbone.freeze(stages, filters)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The backbone's."""
        return self.backbone.pretrained_parameters()


def deep_layers(width: int, channels: int, size: int, dilation: int = 1) -> nn.Sequential:
    """Two layers behind a backbone's last map, VGG's "fc6" and "fc7" as convolutions: size x size, then 1 x 1.

    Single numbers are dropped, as there, not whole channels.
    """
    return nn.Sequential(
        nn.Conv2d(width, channels, size, padding=dilation * (size // 2), dilation=dilation),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Dropout(),
    )
