"""The interface of all networks that compute a feature map from an image."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """A network that computes a feature map from an image at one scale.

    It is a part of the trunk (the paper's "Network Part-1").

    The body of a backbone is the part for which pretrained weights may exist. A backbone with a block 6 computes the
    feature map as `block6(maps(images))`.

    Attributes:
        out_channels: the number of channels of the feature map.
        mean: the mean of each channel of the images, in 0..1, with which the input is normalized.
        std: the standard deviation of each channel of the images, in 0..1, with which the input is normalized.
        pretrained: True if the weights of the body are pretrained. Loading a model sets this attribute.
        norm_eval: keep the BatchNorm layers of a pretrained body in evaluation mode during training.
        widths: the number of channels of each map in `levels`, by stride.
        block6: the layers after the body. Not all backbones have them.
        least_batch: the least number of images per training step.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import create_backbone
        >>> backbone = create_backbone("plain", stride=8, output_stride=None, channels=16, pretrained=False)
        >>> backbone(torch.randn(1, 3, 32, 48)).shape  # normalized images
        torch.Size([1, 16, 4, 6])
    """

    out_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pretrained: bool
    norm_eval: bool
    widths: dict[int, int]
    block6: nn.Sequential
    least_batch: int = 1

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the last map of each stride in the body.

        Args:
            images: normalized images, [B, C, H, W].

        Returns:
            The maps by stride, beginning with the finest map.
        """
        raise NotImplementedError

    def maps(self, images: Tensor) -> Tensor:
        """Compute the input of block 6.

        Args:
            images: normalized images, [B, C, H, W].
        """
        raise NotImplementedError

    def freeze(self, stages: int, filters: bool = False) -> None:
        """Exclude parts of the body from training.

        Args:
            stages: the number of frozen stages. The first stage has the finest maps.
            filters: also freeze the depthwise filters of all stages.

        Raises:
            ValueError: if the network has fewer stages, or if `filters` is set and the network has no depthwise
                filters.
        """
        raise NotImplementedError

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters with pretrained weights, which need a lower learning rate than new parameters."""
        raise NotImplementedError
