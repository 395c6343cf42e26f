"""What the page computes: features once for each image, then inference whenever a setting changes."""

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
    """An image with what has been computed for it.

    Attributes:
        pixels: uint8 [3, H, W].
        original: width and height in the file, before the image was shrunk.
        features: as `Predictor.extract_features` returns them.
        unary: marginals [1, K, h, w] of the unary alone.
        pairwise: marginals [1, K, h, w] of the last mean field, with its settings.
        dense: marginals [1, K, H, W] of the last dense CRF, with its settings.
    """

    pixels: Tensor
    original: tuple[int, int]
    features: dict[str, Tensor]
    unary: Tensor
    pairwise: tuple[InferenceConfig, Tensor] | None = field(default=None, repr=False)
    dense: tuple[InferenceConfig, Tensor] | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


@dataclass(frozen=True)
class Labelings:
    """One image labeled by the three systems unary, unary+pairwise and unary+pairwise+dense."""

    unary: Segmentation
    pairwise: Segmentation
    dense: Segmentation

    def changes(self) -> tuple[float, float]:
        """The shares of the pixels whose labels the pairwise potentials change, and then the dense CRF."""
        unary, pairwise, dense = (found.labels for found in (self.unary, self.pairwise, self.dense))
        return (unary != pairwise).float().mean().item(), (pairwise != dense).float().mean().item()


@dataclass(frozen=True)
class PixelExplanation:
    """The explanation of a pixel's label.

    Attributes:
        text: Markdown.
        picture: maps of the messages; None where no message changes the label.
    """

    text: str
    picture: Image.Image | None


def with_dense(inference: InferenceConfig, parameters: Mapping[str, float]) -> InferenceConfig:
    """The settings with other parameters of the dense CRF, by name; "iterations" becomes a whole number."""
    whole = {"iterations": int(parameters["iterations"])}
    return replace(inference, dense={**inference.dense, **parameters, **whole})


class Session:
    """A model with the limits of the page. It keeps no image: `open` returns what later calls need.

    Args:
        model: the model; it is set to evaluation mode.
        limits: the limits on every image and computation.

    Attributes:
        inference: the model's own settings with every value written out, without test-time augmentation, whose copies
            would each need features of their own.
    """

    def __init__(self, model: ContextCRF, limits: Limits) -> None:
        self.model = model.eval()
        self.limits = limits
        own = model.inference
        self.inference = replace(own, relation_weights=own.weights(model.pairwise), scales=(1.0,), flip=False)
        # The parameters of a learned dense CRF are weights of the model.
        if model.dense is None:
            crf = own.dense_crf()
            parameters = {name: float(getattr(crf, name)) for name in DENSE_PARAMETERS}
            self.inference = with_dense(self.inference, parameters)

    @torch.inference_mode()
    def open(self, data: bytes) -> OpenedImage:
        """Decode a file and compute the features of its image.

        Raises:
            Refusal: as for `read_upload`, or the time is over.
        """
        with Deadline(self.limits.seconds) as deadline:
            pixels, original = read_upload(data, self.limits)
            deadline.check()
            predictor = Predictor(self.model, self.inference)
            features = predictor.extract_features(self._images(pixels).float())
            return OpenedImage(pixels, original, features, predictor.mean_field(features, UNARY_ONLY).float())

    @torch.inference_mode()
    def segment(self, image: OpenedImage, inference: InferenceConfig) -> Labelings:
        """Label an image with these settings; a step whose settings have not changed is not computed again.

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
        """Explain the label that unary+pairwise gives a pixel (row, column).

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
            # Where nothing changes there is nothing to draw; the text gives the reason.
            if not changes_score(found, pairwise, pixel):
                return PixelExplanation(text, None)
            return PixelExplanation(text, draw_messages(pairwise, found, pixel, predictor.weights))

    def _pairwise(self, image: OpenedImage, predictor: Predictor) -> Tensor:
        """Marginals [1, K, h, w] of unary+pairwise, which the dense CRF's settings do not change."""
        settings = replace(predictor.inference, dense={})
        if image.pairwise is None or image.pairwise[0] != settings:
            image.pairwise = settings, predictor.mean_field(image.features, UNARY_PAIRWISE).float()
        return image.pairwise[1]

    def _images(self, pixels: Tensor) -> Tensor:
        """A batch of one image on the model's device."""
        return pixels[None].to(self.model.device)

    def _segmentation(self, image: OpenedImage, marginals: Tensor) -> Segmentation:
        return Segmentation(image.pixels, marginals[0].cpu(), self.model.classes)
