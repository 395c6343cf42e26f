"""One image seen several times: at other scales and mirrored, its marginals averaged."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from contextcrf.utils.resizing import upsample


@dataclass(frozen=True)
class Views:
    """How an image is looked at in prediction.

    Args:
        scales: factors of its size, beside those of the network itself.
        flip: look at each mirrored left and right too.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales {list(self.scales)}: expected at least one, each > 0")

    def __len__(self) -> int:
        return len(self.scales) * (1 + self.flip)

    def of(self, images: Tensor) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Views of images float [B, 3, H, W] in 0..255, each with what brings its marginals [B, K, h, w] to H x W."""
        size = images.shape[-2:]

        def back(marginals: Tensor) -> Tensor:
            return upsample(marginals, size)

        for scale in self.scales:
            view = images
            if scale != 1:
                scaled = [max(1, round(side * scale)) for side in size]
                view = F.interpolate(images, scaled, mode="bilinear", align_corners=False, antialias=scale < 1)
            yield view, back
            if self.flip:
                yield view.flip(-1), lambda marginals: back(marginals).flip(-1)


ONE_VIEW = Views()
