"""Test-time augmentation: the marginals of an image at several scales, also mirrored, are averaged."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.nn import functional as F

from contextcrf.utils.resizing import upsample


def augmented(
    images: Tensor, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Yield augmented copies of images, each with a function that undoes the augmentation.

    Args:
        images: images, float [B, C, H, W].
        scales: the factors of the image size. The network then also resizes each copy to its own scales
            (`ModelConfig.scales`).
        flip: also yield the horizontally mirrored images at each scale.

    Yields:
        Images [B, C, h', w'], and a function that converts their marginals [B, K, h, w] to marginals [B, K, H, W].

    Example:
        >>> import torch
        >>> images = torch.zeros(1, 3, 32, 48)
        >>> [copy.shape[-2:] for copy, _ in augmented(images, scales=(1.0, 0.5))]
        [torch.Size([32, 48]), torch.Size([16, 24])]
        >>> copy, restore = next(augmented(images, scales=(0.5,)))
        >>> restore(torch.rand(1, 2, 4, 6)).shape
        torch.Size([1, 2, 32, 48])
    """
    size = images.shape[-2:]

    def restore(marginals: Tensor) -> Tensor:
        return upsample(marginals, size)

    def restore_flipped(marginals: Tensor) -> Tensor:
        return restore(marginals).flip(-1)

    for scale in scales:
        scaled = images
        if scale != 1:
            sides = [max(1, round(side * scale)) for side in size]
            scaled = F.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=scale < 1)
        yield scaled, restore
        if flip:
            yield scaled.flip(-1), restore_flipped
