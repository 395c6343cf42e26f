"""The computations of the page: the features once per image, and the inference after each change of a setting."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from contextcrf.evaluation.report import draw_messages
from contextcrf.inference.predictor import Predictor
from contextcrf.inference.segmentation import Segmentation
from contextcrf.modeling.config import InferenceConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.system import UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.utils.resizing import upsample
from contextcrf.webapp.description import changes_score, describe
from contextcrf.webapp.limits import Deadline, Limits
from contextcrf.webapp.uploads import read_upload

# The parameters of the dense CRF that the page can change.
DENSE_PARAMETERS = (
    "spatial_sxy",
    "spatial_compat",
    "bilateral_sxy",
    "bilateral_srgb",
    "bilateral_compat",
    "iterations",
)


@dataclass(eq=False)
class OpenedImage:
    """An image with the results that have been computed for it.

    Args:
        pixels: the image, uint8 [3, H, W].
        original: width and height in the file, before the image was shrunk.
        features: the result of `Predictor.extract_features`.
        unary: marginals [1, K, h, w] of the unary.
        pairwise: settings and marginals [1, K, h, w] of the last mean field; None before the first.
        dense: settings and marginals [1, K, H, W] of the last dense CRF; None before the first.
    """

    pixels: Tensor
    original: tuple[int, int]
    features: dict[str, Tensor]
    unary: Tensor
    pairwise: tuple[InferenceConfig, Tensor] | None = field(default=None, repr=False)
    dense: tuple[InferenceConfig, Tensor] | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


@dataclass(frozen=True)
class Labelings:
    """The segmentations of an image by three systems.

    Args:
        unary: the segmentation of unary.
        pairwise: the segmentation of unary+pairwise.
        dense: the segmentation of unary+pairwise+dense.
    """

    unary: Segmentation
    pairwise: Segmentation
    dense: Segmentation

    def changes(self) -> tuple[float, float]:
        """Return two shares of the pixels: those with other labels after mean field, and then after the dense CRF."""
        unary, pairwise, dense = (found.labels for found in (self.unary, self.pairwise, self.dense))
        return (unary != pairwise).float().mean().item(), (pairwise != dense).float().mean().item()


@dataclass(frozen=True)
class PixelExplanation:
    """The explanation of a pixel's label.

    Args:
        text: the explanation in Markdown.
        picture: figure with maps of the messages; None if no message changes the score of the label.
    """

    text: str
    picture: Image.Image | None


def with_dense(inference: InferenceConfig, parameters: Mapping[str, float]) -> InferenceConfig:
    """Return the settings with other parameters of the dense CRF.

    Args:
        inference: the settings.
        parameters: new values by name. The value of "iterations" is converted to an integer.
    """
    whole = {"iterations": int(parameters["iterations"])}
    return replace(inference, dense={**inference.dense, **parameters, **whole})


class Session:
    """A model with the limits of the page. It stores no images.

    Args:
        model: the model, which is set to evaluation mode.
        limits: the limits on every image and computation.

    Attributes:
        inference: the settings of the model with the value of every parameter. They have no test-time augmentation,
            since each augmented copy would need its own features.

    Raises:
        ValueError: the model takes images of another format than RGB.
    """

    def __init__(self, model: ContextCRF, limits: Limits) -> None:
        if not model.image_format.is_rgb:
            raise ValueError(
                f"The page shows RGB images, but the model takes images with {model.image_format.describe()}. Label "
                "them with `contextcrf predict`."
            )
        self.model = model.eval()
        self.limits = limits
        own = model.inference
        self.inference = replace(own, relation_weights=own.weights(model.pairwise), scales=(1.0,), flip=False)
        # The parameters of a learned dense CRF are weights of the model and cannot be set.
        if model.dense is None:
            crf = own.dense_crf()
            values = {name: torch.as_tensor(getattr(crf, name)) for name in DENSE_PARAMETERS}
            # A value for each channel or class has no slider.
            parameters = {name: value.item() for name, value in values.items() if value.ndim == 0}
            self.inference = with_dense(self.inference, parameters)

    @torch.inference_mode()
    def open(self, data: bytes) -> OpenedImage:
        """Decode a file and compute the features of its image.

        Args:
            data: all bytes of the file.

        Returns:
            The image with its features and the marginals of the unary, for `segment` and `explain`.

        Raises:
            Refusal: `read_upload` refuses the file, or the time is over.
        """
        with Deadline(self.limits.seconds) as deadline:
            pixels, original = read_upload(data, self.limits)
            deadline.check()
            predictor = Predictor(self.model, self.inference)
            features = predictor.extract_features(self._images(pixels).float())
            return OpenedImage(pixels, original, features, predictor.mean_field(features, UNARY_ONLY).float())

    @torch.inference_mode()
    def segment(self, image: OpenedImage, inference: InferenceConfig) -> Labelings:
        """Predict the labels of an image with some settings.

        A step is computed only if its settings have changed since the last call.

        Args:
            image: the image. The results of the steps are stored in it.
            inference: the settings.

        Raises:
            Refusal: the time is over.
        """
        with Deadline(self.limits.seconds):
            predictor = Predictor(self.model, inference)
            pairwise = upsample(self._pairwise(image, predictor), image.size)
            if image.dense is None or image.dense[0] != inference:
                image.dense = inference, predictor.refine(pairwise, self._images(image.pixels))
            return Labelings(
                self._segmentation(image, upsample(image.unary, image.size)),
                self._segmentation(image, pairwise),
                self._segmentation(image, image.dense[1]),
            )

    @torch.inference_mode()
    def explain(self, image: OpenedImage, inference: InferenceConfig, pixel: tuple[int, int]) -> PixelExplanation:
        """Explain the label of a pixel in unary+pairwise.

        Args:
            image: the image.
            inference: the settings.
            pixel: row and column in the image.

        Raises:
            Refusal: the time is over.
        """
        with Deadline(self.limits.seconds):
            predictor = Predictor(self.model, inference)
            marginals = self._pairwise(image, predictor)
            found = predictor.explain_marginals(image.features, marginals, pixel, image.size)
            unary = self._segmentation(image, upsample(image.unary, image.size))
            pairwise = self._segmentation(image, upsample(marginals, image.size))
            text = describe(found, self.model.pool(marginals)[0].argmax(0), unary, pairwise, pixel)
            # Without a change, there is no figure, and the text gives the reason.
            if not changes_score(found, pairwise, pixel):
                return PixelExplanation(text, None)
            return PixelExplanation(text, draw_messages(pairwise, found, pixel, predictor.weights))

    def _pairwise(self, image: OpenedImage, predictor: Predictor) -> Tensor:
        """Return marginals [1, K, h, w] of unary+pairwise, which do not depend on the settings of the dense CRF."""
        settings = replace(predictor.inference, dense={})
        if image.pairwise is None or image.pairwise[0] != settings:
            image.pairwise = settings, predictor.mean_field(image.features, UNARY_PAIRWISE).float()
        return image.pairwise[1]

    def _images(self, pixels: Tensor) -> Tensor:
        """Return a batch of one image on the device of the model."""
        return pixels[None].to(self.model.device)

    def _segmentation(self, image: OpenedImage, marginals: Tensor) -> Segmentation:
        return Segmentation(image.pixels, marginals[0].cpu(), self.model.classes)
