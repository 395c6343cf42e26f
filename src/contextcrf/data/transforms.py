"""Data augmentation: joint random transforms of image and mask (torchvision v2)."""

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.data.dataset import Transform


class RandomScale(v2.Transform):
    """A transform that resizes the image (bilinear) and the mask (nearest) by the same random factor.

    The factor is log-uniform in [low, high].

    Args:
        low: the smallest factor, greater than 0.
        high: the largest factor.

    Raises:
        ValueError: If `low` is not positive or is greater than `high`.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise ValueError(f"The scale range is ({low}, {high}), but 0 < low <= high is expected.")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor and return the new size. torchvision calls this method."""
        height, width = v2.query_size(flat_inputs)
        factor = self.low * (self.high / self.low) ** torch.rand(()).item()
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image or a mask. torchvision calls this method."""
        return self._call_kernel(F.resize, inpt, size=params["size"], antialias=True)


class ChannelJitter(v2.Transform):
    """A transform that changes the brightness and the contrast of images with any number of channels.

    All channels have the same random factors, which are uniform in [1 - strength, 1 + strength].

    Args:
        strength: the strength of the change, from 0 to 1.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factors. torchvision calls this method."""
        brightness, contrast = (1 + self.strength * (2 * torch.rand(2) - 1)).tolist()
        return {"brightness": brightness, "contrast": contrast}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change an image; masks are not changed. torchvision calls this method."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        bright = params["brightness"] * inpt.as_subclass(torch.Tensor).float()
        mean = bright.mean()
        changed = mean + params["contrast"] * (bright - mean)
        return tv_tensors.wrap(changed.round().clamp(0, 255).to(inpt.dtype), like=inpt)


class ColorJitter(v2.Transform):
    """torchvision's `ColorJitter` for images with three channels, and `ChannelJitter` for other images.

    Args:
        strength: the strength of the jitter of brightness, contrast and saturation, from 0 to 1. The strength of the
            hue jitter is a tenth of it.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.colors = v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength, hue=strength / 10)
        self.channels = ChannelJitter(strength)

    def forward(self, *inputs: Any) -> Any:
        """Change the image of an image and its mask."""
        return (self.colors if inputs[0].shape[0] == 3 else self.channels)(*inputs)


def training_transform(
    crop: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    color: float = 0.0,
    flip: bool = True,
) -> Transform:
    """Return a transform with random scale, crop, horizontal flip and color jitter.

    Args:
        crop: the height and width of the result in pixels. If a scaled image is smaller, it is padded with gray, and
            its mask is padded with `IGNORE_INDEX`.
        scale: the range of the random scale factor.
        color: the strength of the jitter of brightness, contrast and saturation. The strength of the hue jitter is a
            tenth of it. Images that do not have three channels have no jitter of saturation and hue. 0 switches the
            jitter off.
        flip: flip the image with probability 1/2.

    Returns:
        A joint transform of image and mask, which can be pickled.

    Raises:
        ValueError: If the smallest scale is not positive or is greater than the largest scale.

    Example:
        >>> image, mask = torch.zeros(3, 50, 60, dtype=torch.uint8), torch.zeros(50, 60, dtype=torch.int64)
        >>> transform = training_transform(crop=(32, 48))
        >>> image, mask = transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        >>> image.shape, mask.shape
        (torch.Size([3, 32, 48]), torch.Size([32, 48]))
    """
    fill: Any = {tv_tensors.Image: 127, tv_tensors.Mask: IGNORE_INDEX}
    steps: list[v2.Transform] = [RandomScale(*scale), v2.RandomCrop(list(crop), pad_if_needed=True, fill=fill)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if color > 0:
        steps.append(ColorJitter(color))
    return v2.Compose(steps)
