"""Augmentation for training, applied to image and mask together (torchvision v2 transforms)."""

from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.data.dataset import Transform


class RandomScale(v2.Transform):
    """Resize image (bilinear) and mask (nearest) by one factor, log-uniform in [low, high]."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise ValueError(f"scale range ({low}, {high}): expected 0 < low <= high")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        factor = self.low * (self.high / self.low) ** torch.rand(()).item()
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, size=params["size"], antialias=True)


class PadTo(v2.Transform):
    """Pad right and below up to a size: the image with gray, the mask with void."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return {"padding": [0, 0, max(0, self.size[1] - width), max(0, self.size[0] - height)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        fill = IGNORE_INDEX if inpt.ndim == 2 else 127
        return self._call_kernel(F.pad, inpt, padding=params["padding"], fill=fill)


def training_transform(
    crop: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    color: float = 0.0,
    flip: bool = True,
) -> Transform:
    """Random scale, crop, flip and color.

    Args:
        crop: height and width of the result in pixels; smaller images are padded with void.
        scale: range of the random scale.
        color: strength of brightness, contrast and saturation jitter (0 is off); hue moves by a tenth of it.
        flip: mirror left and right with probability 1/2.
    """
    steps: list[v2.Transform] = [RandomScale(*scale), PadTo(crop), v2.RandomCrop(list(crop))]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if color > 0:
        steps.append(v2.ColorJitter(brightness=color, contrast=color, saturation=color, hue=color / 10))
    return v2.Compose(steps)
