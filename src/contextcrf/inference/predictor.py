"""The one way from an image to labels: features, mean field, upsampling, dense CRF."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contextcrf.crf import DenseCRF, Explanation, explain, logits_from_probabilities, mean_field
from contextcrf.crf.coarse_grid import shrink
from contextcrf.crf.meanfield import Pair
from contextcrf.crf.pair_table import PairTable
from contextcrf.data.images import ImageLike, as_pixels
from contextcrf.inference.segmentation import Segmentation
from contextcrf.inference.tiling import tiles
from contextcrf.inference.tta import augmented
from contextcrf.modeling.config import UNARY, InferenceConfig
from contextcrf.modeling.network import ContextNetwork
from contextcrf.modeling.system import UNARY_PAIRWISE, System
from contextcrf.utils.progress import track
from contextcrf.utils.resizing import upsample
from contextcrf.utils.runtime import autocast


@dataclass(frozen=True)
class Prediction:
    """The prediction of one system for one image.

    Attributes:
        system: the system.
        marginals: float [K, H, W], on the CPU.
        seconds: the time of the network, which runs once for all systems, and of the system's own steps.
    """

    system: System
    marginals: Tensor
    seconds: float

    @property
    def labels(self) -> Tensor:
        """The most probable class of every pixel, int64 [H, W]."""
        return self.marginals.argmax(0)


class Predictor:
    """Predict with a model under some inference settings; neither is changed.

    Everything that predicts goes through this class: the commands, evaluation, tuning, validation during training, the
    web page and export. Its steps are `extract_features`, `mean_field` and `refine`; the ways through them are

    - `predict`: one image, several systems, with test-time augmentation; the others but the last call it;
    - `segment`: one image of any common type, one system, as a `Segmentation`;
    - `label`: the labels of one image, in tiles if it is large;
    - calling it: a batch of tensors to marginals of "unary+pairwise", with gradients, without augmentation.

    Args:
        model: the model.
        inference: the settings; None takes the model's own.

    Raises:
        ValueError: the settings name a relation or a system that the model does not have, or change the dense CRF of a
            model whose own is learned.

    Example:
        >>> from contextcrf import load
        >>> predictor = Predictor(load("camvid"), InferenceConfig(system="unary"))
        >>> predictor.segment(torch.zeros(3, 48, 64, dtype=torch.uint8)).labels.shape
        torch.Size([48, 64])
    """

    def __init__(self, model: ContextNetwork, inference: InferenceConfig | None = None) -> None:
        self.model = model
        self.inference = inference or model.inference
        self.weights = self.inference.weights(model.pairwise)
        if model.dense is not None and self.inference.dense != model.inference.dense:
            raise ValueError(
                "the dense CRF of this model is learned, so its parameters cannot be set: train it instead"
            )
        self.system(None)

    def system(self, system: str | System | None) -> System:
        """A system by its name; None is the one of the settings.

        Raises:
            ValueError: the name is not that of a system, or the model does not have one of its potentials.
        """
        system = self.inference.system if system is None else system
        found = System.from_name(system) if isinstance(system, str) else system
        found.potentials(self.model.pairwise)
        return found

    # The steps, in their order.

    def extract_features(self, images: Tensor, systems: Iterable[System] = (UNARY_PAIRWISE,)) -> dict[str, Tensor]:
        """The feature maps that some systems need, as `ContextCRF.features` has them.

        Args:
            images: [B, 3, H, W], RGB in 0..255.
            systems: the systems.
        """
        names = {name for system in systems for name in system.potentials(self.model.pairwise)}
        with self._autocast():
            return self.model.features(images, names)

    def mean_field(self, features: Mapping[str, Tensor], system: System, tabulate: bool | None = False) -> Tensor:
        """Mean-field marginals of a system, on the grid of its maps.

        Without the unary, mean field starts at the edges' own marginals (`PairwisePotential.edge_marginals`): from
        the uniform distribution every message is the same average over labels. Relation weights are relative to the
        unary, so they do not apply without it.

        Args:
            features: as `extract_features` returns them.
            system: the system; its dense CRF does not take part here.
            tabulate: hold the pair logits of each image, as `PairTable` does, which pays on small maps and can be
                traced; None does so where training would fit into memory.

        Returns:
            Marginals [B, K, h, w] on the unary's grid, on the graph's where the unary takes no part.
        """
        with self._autocast():
            return self._mean_field(features, system.potentials(self.model.pairwise), tabulate)

    def _mean_field(self, features: Mapping[str, Tensor], names: Sequence[str], tabulate: bool | None) -> Tensor:
        model, iterations = self.model, self.inference.iterations
        relations = [name for name in names if name != UNARY]
        if tabulate is None:
            tables = [PairTable.fits(model.pairwise_potential(name), features[name]) for name in relations]
            tabulate = bool(tables) and all(tables)
        if tabulate and len(batch := next(iter(features.values()))) > 1:
            # A table belongs to one image.
            singles = [{name: maps[i : i + 1] for name, maps in features.items()} for i in range(len(batch))]
            return torch.cat([self._mean_field(single, names, tabulate) for single in singles])
        if UNARY not in names:
            heads = [(model.pairwise_potential(name), features[name]) for name in relations]
            start = torch.stack([head.edge_marginals(maps) for head, maps in heads]).mean(0)
            pairs: list[Pair] = [PairTable(*head).pair for head in heads] if tabulate else list(heads)
            return mean_field(torch.zeros_like(start), pairs, iterations, start=start)
        relations = [name for name in relations if self._takes_part(name)]
        pairs = [model.pair(name, features[name], tabulate) for name in relations]
        weights = [self.message_weight(name, features[name]) for name in relations]
        return mean_field(model.unary(features[UNARY]), pairs, iterations, weights)

    def message_weight(self, relation: str, features: Tensor) -> float:
        """The factor of each message of a relation: its weight divided by the mean number of neighbors.

        Args:
            relation: its name.
            features: its map, [B, C, h, w].
        """
        weight = self.weights[relation]
        if weight is None:
            return 1.0
        return weight / max(1.0, self.model.pairwise_potential(relation).graph(features).mean_degree())

    def _takes_part(self, relation: str) -> bool:
        """Whether a relation has a weight, and its potential is not zero, or may learn."""
        if self.weights[relation] == 0:
            return False
        # A traced graph cannot depend on the values of parameters.
        traced = torch.compiler.is_exporting()
        return torch.is_grad_enabled() or traced or not self.model.pairwise_potential(relation).last.is_zero

    def refine(self, marginals: Tensor, images: Tensor) -> Tensor:
        """Marginals [B, K, H, W] through the dense CRF, guided by images [B, 3, H, W] in 0..255."""
        return self._dense_crf(marginals.device)(logits_from_probabilities(marginals), images)

    def _dense_crf(self, device: torch.device) -> DenseCRF:
        return self.inference.dense_crf().to(device) if self.model.dense is None else self.model.dense

    # The ways through them.

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..255 to marginals [B, K, H, W] of "unary+pairwise", with gradients if enabled."""
        marginals = self.mean_field(self.extract_features(images), UNARY_PAIRWISE)
        return upsample(marginals, images.shape[-2:])

    @torch.inference_mode()
    def predict(self, image: Tensor, systems: Sequence[System]) -> list[Prediction]:
        """Predict one image with several systems; the network runs once for all of them.

        Args:
            image: uint8 [3, H, W], RGB.
            systems: the systems.

        Returns:
            One prediction for each system, in their order.
        """
        images = image[None].to(self.model.device)
        passes = len(self.inference.scales) * (1 + self.inference.flip)
        totals: list[Tensor | None] = [None for _ in systems]
        seconds = [0.0 for _ in systems]
        with self._evaluation_mode():
            for scaled, restore in augmented(images.float(), self.inference.scales, self.inference.flip):
                start = self._clock()
                features = self.extract_features(scaled, systems)
                network_seconds = self._clock() - start
                for number, system in enumerate(systems):
                    start = self._clock()
                    found = restore(self.mean_field(features, system).float())
                    total = totals[number]
                    totals[number] = found if total is None else total + found
                    seconds[number] += network_seconds + self._clock() - start
            predictions = []
            for number, system in enumerate(systems):
                start = self._clock()
                total = totals[number]
                assert total is not None
                marginals = total / passes
                if system.dense:
                    marginals = self.refine(marginals, images)
                elapsed = seconds[number] + self._clock() - start
                predictions.append(Prediction(system, marginals[0].cpu(), elapsed))
        return predictions

    def segment(self, image: ImageLike, system: str | System | None = None) -> Segmentation:
        """Label one image; arguments and errors as for `ContextCRF.segment`."""
        pixels = as_pixels(image)
        [prediction] = self.predict(pixels, [self.system(system)])
        return Segmentation(pixels, prediction.marginals, self.model.classes)

    def label(self, pixels: Tensor, system: str | System | None = None) -> Tensor:
        """Labels uint8 [H, W] of an image uint8 [3, H, W], in tiles if it is large.

        The memory for marginals does not grow with the size of an image that is cut into tiles.
        """
        height, width = pixels.shape[1:]
        chosen = self.system(system)
        if height * width <= self.inference.tile_above:
            return self.predict(pixels, [chosen])[0].labels.byte()
        labels = torch.empty(height, width, dtype=torch.uint8)
        regions = list(tiles(height, width, self.inference.tile, self.inference.overlap))
        for computed, kept in track(regions, "tiles", transient=True):
            found = self.predict(pixels[:, *computed], [chosen])[0].labels
            rows, columns = (slice(k.start - c.start, k.stop - c.start) for k, c in zip(kept, computed, strict=True))
            labels[kept] = found[rows, columns].byte()
        return labels

    # Explanations.

    @torch.inference_mode()
    def explain(self, image: ImageLike, pixel: tuple[int, int]) -> dict[str, Explanation]:
        """The messages that one node gets from each neighbor, at the marginals with which mean field ends.

        Args:
            image: as for `segment`.
            pixel: row and column in the image; the node is the one whose cell holds it.

        Returns:
            By relation: messages with the relation's weight, as they are added to the unary logits. Neighbors are
            places on the graph, of `Explanation.size`.

        Raises:
            ValueError: the pixel lies outside the image.
        """
        pixels = as_pixels(image)
        size = (pixels.shape[-2], pixels.shape[-1])
        _check_pixel(pixel, size)
        with self._evaluation_mode():
            features = self.extract_features(pixels[None].to(self.model.device).float())
            marginals = self.mean_field(features, UNARY_PAIRWISE)
        return self.explain_marginals(features, marginals, pixel, size)

    @torch.inference_mode()
    def explain_marginals(
        self, features: Mapping[str, Tensor], marginals: Tensor, pixel: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, Explanation]:
        """`explain`, for features and marginals that have been computed.

        Args:
            features: of one image, as `extract_features` returns them.
            marginals: [1, K, h, w], as `mean_field` returns them.
            pixel: row and column in the image.
            size: height and width of the image.
        """
        _check_pixel(pixel, size)
        (row, column), (height, width), factor = pixel, size, self.model.config.coarse_factor
        rows, columns = marginals.shape[-2:]
        node = (row * rows // height // factor, column * columns // width // factor)
        coarse = shrink(marginals, factor)
        result = {}
        for name in self.model.pairwise:
            with self._autocast():
                found = explain(self.model.pairwise_potential(name), features[name], coarse, node)
            weight = self.message_weight(name, features[name])
            result[name] = replace(found, messages=weight * found.messages.float())
        return result

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        """The model in evaluation mode within the block, and each of its parts in its own mode after it."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _autocast(self) -> torch.autocast:
        return autocast(self.model.device, self.inference.precision)

    def _clock(self) -> float:
        """Seconds, after all work given to the device is done."""
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize(self.model.device)
        return time.perf_counter()


def _check_pixel(pixel: tuple[int, int], size: tuple[int, int]) -> None:
    (row, column), (height, width) = pixel, size
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"pixel {pixel}: expected a row in 0..{height - 1} and a column in 0..{width - 1}")
