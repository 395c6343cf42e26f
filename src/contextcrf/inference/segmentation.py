"""What comes out: a labeled image."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from contextcrf.data.classes import Classes


@dataclass(frozen=True)
class Segmentation:
    """A labeled image.

    Attributes:
        image: uint8 [3, H, W].
        probabilities: marginals [K, H, W].
        classes: names and colors.
    """

    image: Tensor
    probabilities: Tensor
    classes: Classes

    @property
    def labels(self) -> Tensor:
        """The most probable class of every pixel, int64 [H, W]."""
        return self.probabilities.argmax(0)

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The image with the labels' colors laid over it."""
        # Only pictures need the drawing library.
        from contextcrf.evaluation.figures import overlay

        return overlay(Image.fromarray(self.image.permute(1, 2, 0).numpy()), self.labels, self.classes.palette, opacity)
