"""A labeled image."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from contextcrf.data.classes import Classes
from contextcrf.data.images import to_picture


@dataclass(frozen=True)
class Segmentation:
    """A labeled image.

    Attributes:
        image: uint8 [3, H, W].
        probabilities: marginals [K, H, W].
        classes: names and colors.

    Example:
        >>> import torch
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> image, marginals = torch.zeros(3, 2, 2, dtype=torch.uint8), torch.eye(2)[:, :, None].repeat(1, 1, 2)
        >>> found = Segmentation(image, marginals, classes)
        >>> found.labels.tolist(), found.overlay().size
        ([[0, 0], [1, 1]], (2, 2))
    """

    image: Tensor
    probabilities: Tensor
    classes: Classes

    @property
    def labels(self) -> Tensor:
        """The most probable class of every pixel, int64 [H, W]."""
        return self.probabilities.argmax(0)

    @property
    def picture(self) -> Image.Image:
        """The image as a PIL image."""
        return to_picture(self.image)

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The image with the labels' colors laid over it.

        Args:
            opacity: 0 shows the image alone, 1 the colors alone.
        """
        # Only pictures need the drawing library.
        from contextcrf.data.visualization import overlay

        return overlay(self.picture, self.labels, self.classes.palette, opacity)
