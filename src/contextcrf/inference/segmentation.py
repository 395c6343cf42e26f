"""The class `Segmentation`: the result of a prediction for one image."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from contextcrf.data.classes import Classes
from contextcrf.data.images import to_picture
from contextcrf.utils.labels import most_probable


@dataclass(frozen=True)
class Segmentation:
    """An image with its predicted labels.

    Attributes:
        image: the image, uint8 [C, H, W], by default RGB.
        probabilities: the marginals, float [K, H, W].
        classes: the names and colors of the K classes.

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
        return most_probable(self.probabilities)

    @property
    def picture(self) -> Image.Image:
        """The image as a PIL image."""
        return to_picture(self.image)

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """Blend the image with the colors of the predicted labels.

        Args:
            opacity: the opacity of the colors. 0 shows only the image, 1 only the colors.

        Raises:
            ValueError: If the opacity is not in 0..1.
        """
        # The drawing library is imported only if it is needed.
        from contextcrf.data.visualization import overlay

        return overlay(self.picture, self.labels, self.classes.palette, opacity)
