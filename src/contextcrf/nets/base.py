"""The interface of all networks that compute a feature map from an image."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """Network Part-1 for one scale.

    Attributes:
        out_channels: number of channels of the feature map.
        mean, std: statistics with which its input images are normalized, per channel, in 0..1.
        pretrained: whether the weights of the body are pretrained; loading a model sets it.
        norm_eval: keep the BatchNorm layers of a pretrained body in evaluation mode during training.
        widths: number of channels of each map in `levels`, by stride.
        block6: the layers after the body, if there are any: the feature map is `block6(maps(images))`.
    """

    out_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pretrained: bool
    norm_eval: bool
    widths: dict[int, int]
    block6: nn.Sequential

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the body's last map of each stride, finest first, from normalized images [B, 3, H, W]."""
        raise NotImplementedError

    def maps(self, images: Tensor) -> Tensor:
        """Compute the input of block 6 from normalized images [B, 3, H, W]."""
        raise NotImplementedError

    def freeze(self, stages: int, filters: bool = False) -> None:
        """Exclude parts of the body from training.

        Args:
            stages: the number of frozen stages, from the first one, which has the finest maps.
            filters: freeze the depthwise filters of all stages.

        Raises:
            ValueError: the network does not have that many stages or no such filters.
        """
        raise NotImplementedError

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The parameters with pretrained weights, which are trained with a lower learning rate than new ones."""
        raise NotImplementedError
