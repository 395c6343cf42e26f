"""What every network that turns an image into a feature map has."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """Network Part-1 for one scale.

    Attributes:
        out_channels: of the feature map.
        mean, std: of the images it takes, per channel, in 0..1.
        pretrained: whether its body has been trained before; a loaded model sets it.
        norm_eval: keep the BatchNorm of a pretrained body at its statistics while training.
        widths: channels of `levels`, by stride.
        block6: what follows the body, where there is such a block: the feature map is that of `maps` through it.
    """

    out_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pretrained: bool
    norm_eval: bool
    widths: dict[int, int]
    block6: nn.Sequential

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        """Normalized images [B, 3, H, W] to the body's last map of each stride, by stride, the finest first."""
        raise NotImplementedError

    def maps(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] to what block 6 takes."""
        raise NotImplementedError

    def freeze(self, stages: int, filters: bool = False) -> None:
        """Keep parts of the body as they came from ImageNet.

        Args:
            stages: how many of the first stages; they work on the finest maps.
            filters: whether the depthwise filters of all stages.
        """
        raise NotImplementedError

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The parameters that have been trained before; they go on at a lower rate than new ones."""
        raise NotImplementedError
