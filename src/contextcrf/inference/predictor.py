"""The class `Predictor`, which makes all predictions: features, mean field, upsampling and dense CRF."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contextcrf.crf import DenseCRF, Explanation, explain, logits_from_probabilities, mean_field
from contextcrf.crf.coarse_grid import shrink
from contextcrf.crf.colors import FRACTION_LIMIT
from contextcrf.crf.meanfield import Pair
from contextcrf.crf.pair_table import PairTable
from contextcrf.data.images import ImageLike, as_pixels
from contextcrf.inference.segmentation import Segmentation
from contextcrf.inference.tiling import Region, tiles, within
from contextcrf.inference.tta import augmented
from contextcrf.modeling.config import UNARY, InferenceConfig
from contextcrf.modeling.network import ContextNetwork
from contextcrf.modeling.system import UNARY_PAIRWISE, System
from contextcrf.utils.labels import most_probable
from contextcrf.utils.memory import release_freed_memory
from contextcrf.utils.progress import track
from contextcrf.utils.resizing import upsample
from contextcrf.utils.runtime import autocast

# Freed memory is released before each batch of more pixels. Even images of one size would let the memory grow, and the
# release takes little of their time.
_RELEASED_ABOVE = 500_000


@dataclass(frozen=True)
class Prediction:
    """The prediction of one system for one image.

    Attributes:
        system: the system.
        marginals: the marginals, float [K, H, W], on the CPU.
        seconds: the time of the network and of the other steps of the system, in seconds. The network runs once for all
            systems, and its whole time is included.

    Example:
        >>> prediction = Prediction(UNARY_PAIRWISE, torch.tensor([[[0.9, 0.2]], [[0.1, 0.8]]]), seconds=0.1)
        >>> prediction.labels
        tensor([[0, 1]])
    """

    system: System
    marginals: Tensor
    seconds: float

    @property
    def labels(self) -> Tensor:
        """The most probable class of every pixel, int64 [H, W]."""
        return most_probable(self.marginals)


class Predictor:
    """A model with inference settings. Every prediction of the library uses this class.

    The commands, evaluation, tuning, validation during training, the web page and the export all use it. The model and
    the settings are not changed. The steps of a prediction are the methods `extract_features`, `mean_field` and
    `refine`. The following methods combine these steps:

    - `predict` returns the marginals of several systems for one image, with test-time augmentation. `predict_batch`
      does so for several images of one size.
    - `segment` calls `predict` for one system and an image of any supported type, and returns a `Segmentation`.
    - `label` calls `predict` for one system and returns the labels. It divides large images into tiles.
    - `__call__` returns the marginals of "unary+pairwise" for a batch of images, with gradients and without
      augmentation.

    Args:
        model: the model.
        inference: the settings. None uses the settings of the model.

    Raises:
        ValueError: If the settings name a relation or a system that the model does not have. Also if they change the
            dense CRF of a model with a learned dense CRF.

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
                "The dense CRF of this model is learned, so its parameters cannot be set. Train the model to change "
                "them."
            )
        self.system(None)
        self._size: torch.Size | None = None  # of the previous images

    def system(self, system: str | System | None) -> System:
        """Return the system for a name, and check that the model has its potentials.

        Args:
            system: a name such as "unary+pairwise", or a system. None is the system of the settings.

        Raises:
            ValueError: If the name is not the name of a system, or if the model does not have one of its potentials.
        """
        system = self.inference.system if system is None else system
        found = System.from_name(system) if isinstance(system, str) else system
        found.potentials(self.model.pairwise)
        return found

    # The steps of a prediction, in order.

    def extract_features(self, images: Tensor, systems: Iterable[System] = (UNARY_PAIRWISE,)) -> dict[str, Tensor]:
        """Compute the feature maps that the systems need.

        Args:
            images: images [B, C, H, W] with values in 0..255.
            systems: the systems.

        Returns:
            The feature maps by potential, as `ContextCRF.features` returns them.
        """
        names = {name for system in systems for name in system.potentials(self.model.pairwise)}
        with self._autocast():
            return self.model.features(images, names)

    def mean_field(
        self,
        features: Mapping[str, Tensor],
        system: System,
        tabulate: bool | None = False,
        unary: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean-field marginals of a system, without its dense CRF.

        For a system without the unary, mean field starts at the marginals of the edges
        (`PairwisePotential.edge_marginals`). With a uniform start, the first messages would be averages over all labels
        of the neighbors. Relation weights are relative to the unary, so they are not applied to such a system.

        Args:
            features: the feature maps that `extract_features` returns.
            system: the system.
            tabulate: keep the pair logits of each image in a `PairTable`. This is faster for small feature maps, and it
                can be traced. None uses tables if the tables of all relations are small enough (`PairTable.fits`).
            unary: the unary logits (`unary_logits`), if they are already computed. Otherwise they are computed here.

        Returns:
            Marginals [B, K, h, w] on the grid of the unary, or on the grid of the graph for a system without the unary.
        """
        with self._autocast():
            return self._mean_field(features, system.potentials(self.model.pairwise), tabulate, unary)

    def unary_logits(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute the unary logits [B, K, h, w] from the feature maps that `extract_features` returns."""
        with self._autocast():
            return self.model.unary(features[UNARY])

    def _mean_field(
        self, features: Mapping[str, Tensor], names: Sequence[str], tabulate: bool | None, unary: Tensor | None
    ) -> Tensor:
        model, iterations = self.model, self.inference.iterations
        relations = [name for name in names if name != UNARY]
        if tabulate is None:
            fitting = [PairTable.fits(model.pairwise_potential(name), features[name]) for name in relations]
            tabulate = bool(fitting) and all(fitting)
        if tabulate and len(batch := next(iter(features.values()))) > 1:
            # A table can hold only one image.
            parts = [slice(i, i + 1) for i in range(len(batch))]
            singles = [{name: maps[part] for name, maps in features.items()} for part in parts]
            logits = [None if unary is None else unary[part] for part in parts]
            found = zip(singles, logits, strict=True)
            return torch.cat([self._mean_field(single, names, tabulate, one) for single, one in found])
        if UNARY not in names:
            heads = [(model.pairwise_potential(name), features[name]) for name in relations]
            pairs: list[Pair]
            if tabulate:
                tables = [PairTable(*head) for head in heads]
                starts, pairs = [table.edge_marginals() for table in tables], [table.pair for table in tables]
            else:
                starts, pairs = [head.edge_marginals(maps) for head, maps in heads], [*heads]
            start = torch.stack(starts).mean(0)
            return mean_field(torch.zeros_like(start), pairs, iterations, start=start)
        relations = [name for name in relations if self.takes_part(name)]
        pairs = [model.pair(name, features[name], tabulate) for name in relations]
        gates = model.gates(features[UNARY])
        weights = [_gated(self.message_weight(name, features[name]), gates.get(name)) for name in relations]
        unary = model.unary(features[UNARY]) if unary is None else unary
        return mean_field(unary, pairs, iterations, weights)

    def message_weight(self, relation: str, features: Tensor) -> float | Tensor:
        """Return the factor of each message of a relation: its weight divided by the mean number of neighbors.

        If the weight is None (the plain sum), the factor is 1. If the model has a learned number for each class
        (`ModelConfig.learned_weights`), these numbers are added to the weight, and the factor is a tensor [K].

        Args:
            relation: the name of the relation.
            features: the feature map of the relation, [B, C, h, w].
        """
        weight, offsets = self.weights[relation], self.model.weight_offsets
        if weight is None and offsets is None:
            return 1.0
        degree = max(1.0, self.model.pairwise_potential(relation).graph(features).mean_degree())
        factor = 1.0 if weight is None else weight / degree
        return factor if offsets is None else factor + offsets[relation].float() / degree

    def takes_part(self, relation: str) -> bool:
        """Return whether the messages of a relation must be computed.

        They are not needed if the weight is 0, or if the potential is zero and gradients are disabled.
        """
        if self.weights[relation] == 0 and self.model.weight_offsets is None:
            return False
        # In a traced graph, the decision cannot depend on the values of parameters.
        traced = torch.compiler.is_exporting()
        return torch.is_grad_enabled() or traced or not self.model.pairwise_potential(relation).last.is_zero

    def refine(self, marginals: Tensor, images: Tensor) -> Tensor:
        """Refine marginals with the dense CRF.

        Args:
            marginals: the marginals [B, K, H, W].
            images: the images [B, C, H, W] with values in 0..255.

        Returns:
            The refined marginals [B, K, H, W].
        """
        # Images of 8 bits are never in another unit here, and an almost black one must not end a run over many images.
        known = (0, 255) if images.dtype == torch.uint8 else None
        return self._dense_crf(marginals.device)(logits_from_probabilities(marginals), images, image_range=known)

    def _dense_crf(self, device: torch.device) -> DenseCRF:
        return self.inference.dense_crf().to(device) if self.model.dense is None else self.model.dense

    # The methods that combine the steps.

    def __call__(self, images: Tensor) -> Tensor:
        """Return the marginals of the system "unary+pairwise", with gradients if they are enabled.

        Args:
            images: images [B, C, H, W] with values in 0..255.

        Returns:
            Marginals [B, K, H, W].

        Raises:
            ValueError: If floating-point images are in 0..1, or are normalized.
        """
        _check_unit(images)
        marginals = self.mean_field(self.extract_features(images), UNARY_PAIRWISE)
        return upsample(marginals, images.shape[-2:])

    def predict(self, image: Tensor, systems: Sequence[System]) -> list[Prediction]:
        """Predict one image with several systems. The network runs once for all systems.

        Args:
            image: the image, uint8 [C, H, W], as `read_image` returns it.
            systems: the systems.

        Returns:
            One prediction for each system, in the same order.

        Example:
            >>> from contextcrf import load
            >>> image = torch.zeros(3, 48, 64, dtype=torch.uint8)
            >>> [prediction] = Predictor(load("camvid")).predict(image, [UNARY_PAIRWISE])
            >>> prediction.marginals.shape
            torch.Size([11, 48, 64])
        """
        [predictions] = self.predict_batch(image[None], systems)
        return predictions

    @torch.inference_mode()
    def predict_batch(self, images: Tensor, systems: Sequence[System]) -> list[list[Prediction]]:
        """Predict images of one size with several systems.

        The network and its unary run once for all systems. Mean field runs once for the systems that differ only in the
        dense CRF, or in relations whose messages are not needed (`takes_part`). If the images are large, or differ in
        size from the previous ones, freed memory is released (`release_freed_memory`).

        Args:
            images: the images, uint8 [B, C, H, W].
            systems: the systems.

        Returns:
            One list for each image, with one prediction for each system in the same order. The seconds of a prediction
                are those of the batch divided by B.

        Example:
            >>> from contextcrf import load
            >>> images = torch.zeros(2, 3, 48, 64, dtype=torch.uint8)
            >>> [[first], [second]] = Predictor(load("camvid")).predict_batch(images, [UNARY_PAIRWISE])
            >>> second.marginals.shape
            torch.Size([11, 48, 64])
        """
        if images.shape != self._size or images[:, 0].numel() > _RELEASED_ABOVE:
            release_freed_memory()
            self._size = images.shape
        images = images.to(self.model.device)
        passes = len(self.inference.scales) * (1 + self.inference.flip)
        sparse = {system: self._before_dense(system) for system in systems}
        totals: dict[System, Tensor] = {}
        seconds = dict.fromkeys(sparse.values(), 0.0)
        with self._evaluation_mode():
            for scaled, restore in augmented(images.float(), self.inference.scales, self.inference.flip):
                start = self._clock()
                features = self.extract_features(scaled, systems)
                network_seconds = self._clock() - start
                start = self._clock()
                unary = self.unary_logits(features) if any(system.unary for system in systems) else None
                unary_seconds = self._clock() - start
                for system in seconds:
                    start = self._clock()
                    found = restore(self._marginals(features, system, unary).float())
                    totals[system] = totals[system] + found if system in totals else found
                    seconds[system] += network_seconds + unary_seconds * system.unary + self._clock() - start
            predictions = []
            for system, key in sparse.items():
                start = self._clock()
                marginals = totals[key] if passes == 1 else totals[key] / passes
                if system.dense:
                    marginals = self.refine(marginals, images)
                elapsed = (seconds[key] + self._clock() - start) / len(images)
                predictions.append([Prediction(system, values, elapsed) for values in marginals.cpu()])
        by_image = [dict(zip(sparse, found, strict=True)) for found in zip(*predictions, strict=True)]
        return [[found[system] for system in systems] for found in by_image]

    def _before_dense(self, system: System) -> System:
        """Return the system with the same mean field that has no dense CRF and no relations without messages."""
        names = [name for name in system.potentials(self.model.pairwise) if name != UNARY]
        needed = [name for name in names if not system.unary or self.takes_part(name)]
        return replace(system, relations=tuple(needed), dense=False)

    def _marginals(self, features: Mapping[str, Tensor], system: System, unary: Tensor | None) -> Tensor:
        """Return the mean-field marginals in the fastest way."""
        # Without the unary, the start needs all pair logits, so a table costs nothing more.
        return self.mean_field(features, system, tabulate=False if system.unary else None, unary=unary)

    def segment(self, image: ImageLike, system: str | System | None = None) -> Segmentation:
        """Label one image.

        Args:
            image: a PIL image, an array [H, W, 3] or [H, W], or a tensor [3, H, W]. Arrays and tensors have the dtype
                uint8 or uint16 (see `as_pixels`).
            system: the system or its name. None is the system of the settings.

        Raises:
            ValueError: If the image has a wrong type, shape or dtype, or if the model does not have a potential of the
                system.
        """
        pixels = as_pixels(image, self.model.image_format)
        [prediction] = self.predict(pixels, [self.system(system)])
        return Segmentation(pixels, prediction.marginals, self.model.classes)

    def label(self, pixels: Tensor, system: str | System | None = None) -> Tensor:
        """Return the labels of one image, uint8 [H, W].

        Images of more than `InferenceConfig.tile_above` pixels are divided into tiles. The memory for the marginals
        then depends on the size of a tile, and not on the size of the image.

        Args:
            pixels: the image, uint8 [C, H, W], as `read_image` returns it.
            system: the system or its name. None is the system of the settings.

        Raises:
            ValueError: If the model does not have a potential of the system.
        """
        labels = torch.empty(pixels.shape[1:], dtype=torch.uint8)
        for computed, kept in self.regions(*labels.shape):
            labels[kept] = self.label_region(pixels[:, *computed], computed, kept, system)
        return labels

    def regions(self, height: int, width: int) -> Iterator[tuple[Region, Region]]:
        """Yield the parts of an image that `label` labels one after another, and report the progress.

        Args:
            height: the height of the image in pixels.
            width: the width of the image in pixels.

        Yields:
            The rows and columns that are computed, and the rows and columns that are kept, as `tiles` returns them. An
                image of at most `InferenceConfig.tile_above` pixels is a single part.

        Example:
            >>> from contextcrf import load
            >>> list(Predictor(load("camvid")).regions(2, 3))
            [((slice(0, 2, None), slice(0, 3, None)), (slice(0, 2, None), slice(0, 3, None)))]
        """
        if not self.needs_tiles(height, width):
            whole = slice(0, height), slice(0, width)
            yield whole, whole
            return
        regions = list(tiles(height, width, self.inference.tile, self.inference.overlap))
        yield from track(regions, "Labeling tiles", transient=True)

    def label_region(
        self, pixels: Tensor, computed: Region, kept: Region, system: str | System | None = None
    ) -> Tensor:
        """Label one of the `regions` of an image.

        Args:
            pixels: the pixels of the computed rows and columns, uint8 [C, h, w].
            computed: the rows and columns of the image that are computed.
            kept: the rows and columns of the image that are kept.
            system: the system or its name. None is the system of the settings.

        Returns:
            The labels of the rows and columns that are kept, uint8.

        Raises:
            ValueError: If the model does not have a potential of the system.

        Example:
            >>> from contextcrf import load
            >>> computed, kept = (slice(0, 64), slice(0, 96)), (slice(0, 64), slice(0, 64))
            >>> pixels = torch.zeros(3, 64, 96, dtype=torch.uint8)
            >>> Predictor(load("camvid")).label_region(pixels, computed, kept).shape
            torch.Size([64, 64])
        """
        found = self.predict(pixels, [self.system(system)])[0].labels
        return found[within(kept, computed)].byte()

    def label_batch(self, images: Tensor, system: str | System | None = None) -> Tensor:
        """Return the labels of images of one size, uint8 [B, H, W]. They are not divided into tiles.

        Args:
            images: the images, uint8 [B, C, H, W].
            system: the system or its name. None is the system of the settings.

        Raises:
            ValueError: If the model does not have a potential of the system.
        """
        predictions = self.predict_batch(images, [self.system(system)])
        return torch.stack([prediction.labels.byte() for [prediction] in predictions])

    @property
    def images_at_once(self) -> int:
        """The number of images that the network should process at once: 8, or 1 on the CPU, which gains nothing."""
        return 1 if self.model.device.type == "cpu" else 8

    def needs_tiles(self, height: int, width: int) -> bool:
        """Return whether `label` divides an image of this size in pixels into tiles."""
        return height * width > self.inference.tile_above

    # Explanations.

    @torch.inference_mode()
    def explain(self, image: ImageLike, pixel: tuple[int, int]) -> dict[str, Explanation]:
        """Compute the messages that a node receives from each neighbor, at the final marginals of mean field.

        Args:
            image: the image, as for `segment`.
            pixel: the row and the column of a pixel. The messages of the node that contains this pixel are computed.

        Returns:
            An explanation for each relation. Its messages are multiplied by `message_weight` and by the gate of the
            node, if the model has one. They are the values that mean field adds to the unary logits if
            `ModelConfig.message_upsampling` is "nearest". Its neighbors are positions on the graph, which has the size
            `Explanation.size`.

        Raises:
            ValueError: If the pixel is outside the image.

        Example:
            >>> from contextcrf import load
            >>> found = Predictor(load("camvid")).explain(torch.zeros(3, 48, 64, dtype=torch.uint8), (20, 30))
            >>> sorted(found)
            ['above', 'surrounding']
        """
        pixels = as_pixels(image, self.model.image_format)
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
        """Compute the messages of `explain` from existing feature maps and marginals.

        Args:
            features: the feature maps of one image, which `extract_features` returned.
            marginals: the marginals [1, K, h, w], which `mean_field` returned.
            pixel: the row and the column of a pixel in the image.
            size: the height and the width of the image in pixels.

        Returns:
            An explanation for each relation, as for `explain`.

        Raises:
            ValueError: If the pixel is outside the image.
        """
        _check_pixel(pixel, size)
        (row, column), (height, width), factor = pixel, size, self.model.config.coarse_factor
        rows, columns = marginals.shape[-2:]
        place = (row * rows // height, column * columns // width)
        node = (place[0] // factor, place[1] // factor)
        coarse = shrink(marginals, factor)
        with self._autocast():
            gates = {name: gate[0, 0, *place] for name, gate in self.model.gates(features[UNARY]).items()}
        result = {}
        for name in self.model.pairwise:
            with self._autocast():
                found = explain(self.model.pairwise_potential(name), features[name], coarse, node)
            weight = _gated(self.message_weight(name, features[name]), gates.get(name))
            result[name] = replace(found, messages=weight * found.messages.float())
        return result

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        """Put the model into evaluation mode within the block, and restore the mode of each of its modules after it."""
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
        """Wait until the device has finished its work, and return the time in seconds."""
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize(self.model.device)
        return time.perf_counter()


def _gated(weight: float | Tensor, gate: Tensor | None) -> float | Tensor:
    """Return the factor of the messages at each node: the weight, [K] or a number, times the gate [B, 1, h, w]."""
    if gate is None:
        return weight
    if isinstance(weight, Tensor) and gate.ndim == 4:
        weight = weight.view(1, -1, 1, 1)
    return weight * gate


def _check_pixel(pixel: tuple[int, int], size: tuple[int, int]) -> None:
    (row, column), (height, width) = pixel, size
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(
            f"The pixel {pixel} is outside the image. Expected a row in 0..{height - 1} and a column in 0..{width - 1}."
        )


def _check_unit(images: Tensor) -> None:
    """Raise ValueError if the values of floating-point images with contrast show another unit than 0..255."""
    # A traced graph cannot branch on values.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or not images.is_floating_point() or images.numel() == 0:
        return
    low, high = torch.stack(images.detach().aminmax()).tolist()  # one transfer from the device
    if low < high <= 1 or (low < 0 and high <= FRACTION_LIMIT):
        way_out = "Multiply them by 255" if low >= 0 else "Undo the normalization (images * std + mean)"
        raise ValueError(
            f"The images have values from {low:.4g} to {high:.4g}, but values in 0..255 are expected, which the model "
            f"normalizes. {way_out}. If they are really almost black, pass them as uint8."
        )
