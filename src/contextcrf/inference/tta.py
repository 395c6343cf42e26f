"""Test-time augmentation: one image at several scales and mirrored, whose marginals are averaged."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.nn import functional as F

from contextcrf.utils.resizing import upsample


def augmented(
    images: Tensor, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """The augmented copies of images, each with the function that undoes the augmentation.

    Args:
        images: float [B, 3, H, W] in 0..255.
        scales: factors of the image's size, beside those of the network itself.
        flip: yield each scale mirrored left and right too.

    Yields:
        Images [B, 3, h', w'] and a function from their marginals [B, K, h, w] to marginals [B, K, H, W].
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
