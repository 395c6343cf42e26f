"""What the page computes: features once for a picture, then inference as often as a slider moves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from contextcrf.crf import DenseCRF
from contextcrf.evaluation.report import draw_pushes
from contextcrf.inference.segmentation import Segmentation
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.utils.resizing import upsample
from contextcrf.webapp.limits import Deadline, Limits
from contextcrf.webapp.uploads import read_upload
from contextcrf.webapp.words import describe

# What the page lets one change of the dense CRF.
DENSE = ("spatial_sxy", "spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat", "iterations")


@dataclass(frozen=True)
class Settings:
    """What the sliders say.

    Args:
        iterations: of mean field.
        strengths: of every relation; None is the plain sum of the paper.
        dense: arguments of the dense CRF; None for one that is learned.
    """

    iterations: int
    strengths: Mapping[str, float | None]
    dense: Mapping[str, float] | None


@dataclass(eq=False)
class Picture:
    """A picture and what has been computed for it.

    Attributes:
        pixels: uint8 [3, H, W].
        original: width and height of the file's picture, before it was shrunk.
        features: by potential, as the model returns them.
        unary: marginals [1, K, h, w] of the unary alone.
        crf: those of the last mean field, with its settings.
        refined: marginals [1, K, H, W] of the last dense CRF, with all settings.
    """

    pixels: Tensor
    original: tuple[int, int]
    features: dict[str, Tensor]
    unary: Tensor
    crf: tuple[tuple[int, dict[str, float | None]], Tensor] | None = field(default=None, repr=False)
    refined: tuple[Settings, Tensor] | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


@dataclass(frozen=True)
class Results:
    """One picture labeled three times: by the unary alone, by the CRF, by the CRF with the dense CRF behind it."""

    unary: Segmentation
    crf: Segmentation
    refined: Segmentation

    def changes(self) -> tuple[float, float]:
        """Shares of the pixels whose label the CRF changed, and then the dense CRF."""
        unary, crf, refined = (found.labels for found in (self.unary, self.crf, self.refined))
        return (unary != crf).float().mean().item(), (crf != refined).float().mean().item()


@dataclass(frozen=True)
class Why:
    """Why a pixel has its label: in words (Markdown), and as a picture where any neighbor pushes."""

    words: str
    picture: Image.Image | None


class Session:
    """A model with limits. Pictures belong to those who opened them: the session keeps none.

    Args:
        model: set to evaluation mode.
        limits: of every picture and computation.
    """

    def __init__(self, model: ContextCRF, limits: Limits) -> None:
        self.model = model.eval()
        self.limits = limits

    def defaults(self) -> Settings:
        """The model's own settings."""
        config = self.model.config
        strengths = {name: config.strengths.get(name, 1 / len(self.model.pairwise)) for name in self.model.pairwise}
        if self.model.dense is not None:
            return Settings(config.iterations, strengths, None)
        crf = DenseCRF(**config.dense)  # type: ignore[arg-type]
        return Settings(config.iterations, strengths, {name: float(getattr(crf, name)) for name in DENSE})

    @torch.inference_mode()
    def open(self, data: bytes) -> Picture:
        """Decode a file and compute the features of its picture.

        Raises:
            Refusal: as `read_upload`, or it took too long.
        """
        with Deadline(self.limits.seconds) as deadline:
            pixels, original = read_upload(data, self.limits)
            deadline.check()
            images = pixels[None].to(self.model.mean.device).float()
            features = self.model.features(images)
            return Picture(pixels, original, features, self.model.infer(features, [UNARY]))

    @torch.inference_mode()
    def segment(self, picture: Picture, settings: Settings) -> Results:
        """Inference with these settings; what they leave as it was is not computed again.

        Raises:
            Refusal: it took too long.
        """
        with Deadline(self.limits.seconds):
            crf = self._crf(picture, settings)
            if picture.refined is None or picture.refined[0] != settings:
                images = picture.pixels[None].to(crf.device)
                marginals = upsample(crf, picture.size)
                picture.refined = settings, self.model.refine(marginals, images, _arguments(settings))
            unary, full = (self._segmentation(picture, upsample(maps, picture.size)) for maps in (picture.unary, crf))
            return Results(unary, full, self._segmentation(picture, picture.refined[1]))

    @torch.inference_mode()
    def explain(self, picture: Picture, settings: Settings, pixel: tuple[int, int]) -> Why:
        """Who voted for the label that the CRF gives a pixel (row, column).

        Raises:
            Refusal: it took too long.
        """
        with Deadline(self.limits.seconds):
            crf = self._crf(picture, settings)
            strengths = settings.strengths
            found = self.model.explain_inference(picture.features, crf, pixel, picture.size, strengths)
            unary, full = (self._segmentation(picture, upsample(maps, picture.size)) for maps in (picture.unary, crf))
            words = describe(found, self.model.pool(crf)[0], unary, full, pixel)
            # Without a push there is nothing to draw; the words say why.
            pushes = any(bool(one.messages.any()) for one in found.values())
            return Why(words, draw_pushes(full, found, pixel, strengths) if pushes else None)

    def _crf(self, picture: Picture, settings: Settings) -> Tensor:
        key = (settings.iterations, dict(settings.strengths))
        if picture.crf is None or picture.crf[0] != key:
            maps = self.model.infer(picture.features, None, settings.iterations, settings.strengths)
            picture.crf = key, maps
        return picture.crf[1]

    def _segmentation(self, picture: Picture, marginals: Tensor) -> Segmentation:
        return Segmentation(picture.pixels, marginals[0].cpu(), self.model.classes)


def _arguments(settings: Settings) -> dict[str, float] | None:
    """The dense CRF's: a number of iterations is a whole number, whatever a slider makes of it."""
    if settings.dense is None:
        return None
    return {**settings.dense, "iterations": int(settings.dense["iterations"])}
