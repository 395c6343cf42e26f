"""ContextCRF: Network Part-1 and the CRF's potentials put together (Fig. 2 of the paper)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.crf import (
    DenseCRF,
    Explanation,
    PairwisePotential,
    UnaryPotential,
    explain,
    logits_from_probabilities,
    mean_field,
    mean_field_nll,
    pseudo_likelihood_nll,
    unrolled_nll,
)
from contextcrf.crf.meanfield import Pair, shrink
from contextcrf.crf.pair_table import PairTable
from contextcrf.crf.potentials import nodes_nll
from contextcrf.data.classes import IGNORE_INDEX, Classes
from contextcrf.data.images import ImageLike, as_pixels
from contextcrf.inference.segmentation import Segmentation
from contextcrf.inference.tta import ONE_VIEW, Views
from contextcrf.modeling.config import UNARY, ModelConfig
from contextcrf.modeling.hub import HubModel
from contextcrf.nets.backbones import create_backbone
from contextcrf.nets.base import Backbone
from contextcrf.nets.baselines import BASELINES
from contextcrf.nets.multiscale import MultiScale
from contextcrf.training.config import LossAt
from contextcrf.utils.resizing import downsample, upsample

# Objectives that couple the potentials, by the name of a recipe's `objective`.
OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "pseudo-likelihood": pseudo_likelihood_nll,
    "mean-field": mean_field_nll,
    "unrolled": unrolled_nll,
}


class ContextCRF(nn.Module, HubModel):
    """A deep structured model: multi-scale networks give the unary and the pairwise terms of a CRF.

    Images are RGB, [B, 3, H, W], values 0..255 of any dtype; normalization belongs to the model. The potentials are
    "unary" and the names of the relations; wherever `potentials` is an argument, None means all.

    Args:
        config: its shape.
        classes: names and colors of the K classes.
        pretrained: ImageNet weights for the backbone, or a file of them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, classes: Classes, pretrained: bool | Path = True) -> None:
        super().__init__()
        # A copy: strengths are tuned in place, and the caller's configuration may serve another model.
        self.config = config = replace(config, strengths=dict(config.strengths), dense=dict(config.dense))
        self.classes = classes
        self.num_classes = num_classes = len(classes)
        self.about: dict[str, Any] = {}

        def trunk() -> MultiScale:
            return MultiScale(
                _backbone(config, pretrained),
                config.scales,
                config.block6_per_scale,
                config.pyramid,
                config.upsampling,
            )

        names = [UNARY, *config.relations]
        self.trunks = nn.ModuleDict({"shared": trunk()} if config.shared_trunk else {name: trunk() for name in names})
        first = self.trunk(UNARY)
        width = first.out_channels
        self.unary = UnaryPotential(width, num_classes, config.hidden if config.network == "context" else None)
        self.pairwise = nn.ModuleDict(
            {name: PairwisePotential(width, num_classes, box, config.hidden) for name, box in config.relations.items()}
        )
        # A head that has not been trained says nothing, instead of drowning the others in noise.
        for head in self.pairwise.values():
            assert isinstance(head, PairwisePotential)
            head.last.silence()
        self.dense = _learned_dense(config, num_classes) if config.learned_dense else None
        self.register_buffer("mean", 255 * torch.tensor(first.backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(first.backbone.std).view(1, 3, 1, 1), persistent=False)

    @property
    def potentials(self) -> tuple[str, ...]:
        """The names of all potentials: "unary" and the relations."""
        return (UNARY, *self.pairwise)

    @property
    def trained_relations(self) -> list[str]:
        """The relations whose potentials have been trained; the others say nothing."""
        return [name for name in self.pairwise if not self._pairwise(name).last.silent]

    def select(self, potentials: Iterable[str] | None) -> tuple[str, ...]:
        """The named potentials in the model's order, all for None. Unknown names are a ValueError."""
        if potentials is None:
            return self.potentials
        wanted = tuple(potentials)
        unknown = [name for name in wanted if name not in self.potentials]
        if unknown or not wanted:
            raise ValueError(f"potentials {list(wanted)}: expected some of {list(self.potentials)}")
        return tuple(name for name in self.potentials if name in wanted)

    def potential(self, name: str) -> nn.Module:
        """The head of one potential."""
        return self.unary if name == UNARY else self.pairwise[name]

    def trunk(self, name: str) -> MultiScale:
        """The Network Part-1 of one potential."""
        trunk = self.trunks["shared" if self.config.shared_trunk else name]
        assert isinstance(trunk, MultiScale)
        return trunk

    def features(self, images: Tensor, potentials: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The feature map each potential works on.

        Args:
            images: [B, 3, H, W], RGB in 0..255.
            potentials: which; None is all.

        Returns:
            By name: [B, C, h, w] for the unary, the same on the coarser graph for the pairwise potentials.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images {tuple(images.shape)}: expected [B, 3, H, W]")
        normalized = (images - self.mean) / self.std
        names = self.select(potentials)
        trunks = {name: self.trunk(name) for name in names}
        fine = {trunk: trunk(normalized) for trunk in dict.fromkeys(trunks.values())}
        coarse = {trunk: self.pool(map_) for trunk, map_ in fine.items()} if names != (UNARY,) else {}
        return {name: (fine if name == UNARY else coarse)[trunks[name]] for name in names}

    def infer(
        self,
        features: dict[str, Tensor],
        potentials: Iterable[str] | None = None,
        iterations: int | None = None,
        strengths: Mapping[str, float | None] | None = None,
        tabulate: bool = False,
    ) -> Tensor:
        """Mean-field marginals of the CRF with some of the potentials.

        Without the unary, mean field starts at the edges' own marginals (`PairwisePotential.edge_marginals`): from
        the uniform distribution every message is the same average over labels. Strengths are relative to the unary, so
        there they do not apply.

        Args:
            features: as `features` returns them.
            potentials: which take part; None is all.
            iterations: in place of the configuration's.
            strengths: in place of the configuration's.
            tabulate: hold the pair logits of the image, as `PairTable` does; for small maps and for tracing.

        Returns:
            Marginals [B, K, h, w] on the unary's grid, on the graph's where the unary takes no part.
        """
        names = self.select(potentials)
        strengths = self.config.strengths if strengths is None else strengths
        relations = [name for name in names if name != UNARY and (UNARY not in names or self._speaks(name))]
        pairs: list[Pair] = [(self._pairwise(name), features[name]) for name in relations]
        if UNARY in names:
            unary, start = self.unary(features[UNARY]), None
            weights = [self._weight(name, maps, strengths) for name, (_, maps) in zip(relations, pairs, strict=True)]
        else:
            own = [self._pairwise(name).edge_marginals(features[name]) for name in relations]
            start = torch.stack(own).mean(0)
            unary, weights = torch.zeros_like(start), [1.0] * len(pairs)
        if tabulate:
            pairs = [PairTable(self._pairwise(name), features[name]).pair for name in relations]
        count = self.config.iterations if iterations is None else iterations
        return mean_field(unary, pairs, count, weights, start=start, cell=self.cell)

    def forward(self, images: Tensor, potentials: Iterable[str] | None = None) -> Tensor:
        """Images [B, 3, H, W] in 0..255 to marginals [B, K, H, W]: inference, then bilinear up-sampling."""
        names = self.select(potentials)
        return upsample(self.infer(self.features(images, names), names), images.shape[-2:])

    @torch.inference_mode()
    def segment(
        self,
        image: ImageLike,
        potentials: Iterable[str] | None = None,
        dense: bool = False,
        views: Views = ONE_VIEW,
    ) -> Segmentation:
        """Label one image.

        Args:
            image: a PIL image of any mode, an array uint8 [H, W, 3] or [H, W], or a tensor uint8 [3, H, W].
            potentials: which take part; None is all.
            dense: run the dense CRF behind them.
            views: other scales, or mirrored, whose marginals are averaged.

        Raises:
            ValueError: another type, number of axes or dtype; the message says what it was.
        """
        pixels = as_pixels(image)
        images = pixels[None].to(self.mean.device).float()
        seen = [back(self._infer_images(view, potentials)[1].float()) for view, back in views.of(images)]
        marginals = torch.stack(seen).mean(0)
        if dense:
            marginals = self.refine(marginals, pixels[None].to(marginals.device))
        return Segmentation(pixels, marginals[0].cpu(), self.classes)

    def refine(self, marginals: Tensor, images: Tensor, settings: dict[str, float] | None = None) -> Tensor:
        """The row "full": marginals [B, K, H, W] through the dense CRF, guided by images [B, 3, H, W] in 0..255.

        Args:
            marginals: of the row that is refined.
            images: the pictures they belong to.
            settings: arguments of `DenseCRF` in place of the configuration's.

        Raises:
            ValueError: settings for a dense CRF that is learned.
        """
        if self.dense is not None:
            if settings is not None:
                raise ValueError("the dense CRF of this model is learned: it is trained, not tuned")
            return self.dense(logits_from_probabilities(marginals), images)
        crf = DenseCRF(**{**self.config.dense, **(settings or {})}).to(marginals.device)  # type: ignore[arg-type]
        return crf(logits_from_probabilities(marginals), images)

    @torch.no_grad()
    def explain(self, image: ImageLike, pixel: tuple[int, int]) -> dict[str, Explanation]:
        """What the neighbors of one node say about it, by relation, at the marginals that inference ends with.

        Args:
            image: as for `segment`.
            pixel: row and column in the image; the node is the one whose cell holds it.

        Returns:
            By relation: messages with the relation's weight, as they are added to the unary logits. Neighbors are
            places on the graph, of `Explanation.size`.
        """
        pixels = as_pixels(image)
        _check_pixel(pixel, pixels.shape[-2:])
        features, marginals = self._infer_images(pixels[None].to(self.mean.device).float())
        return self.explain_inference(features, marginals, pixel, pixels.shape[-2:])

    @torch.no_grad()
    def explain_inference(
        self,
        features: dict[str, Tensor],
        marginals: Tensor,
        pixel: tuple[int, int],
        size: Sequence[int],
        strengths: Mapping[str, float | None] | None = None,
    ) -> dict[str, Explanation]:
        """`explain`, of an inference that has been done.

        Args:
            features: of one image, as `features` returns them.
            marginals: [1, K, h, w], as `infer` returns them.
            pixel: row and column in the image.
            size: height and width of the image.
            strengths: those of the inference, in place of the configuration's.
        """
        _check_pixel(pixel, size)
        strengths = self.config.strengths if strengths is None else strengths
        (row, column), (height, width) = pixel, size
        rows, columns = marginals.shape[-2:]
        node = (row * rows // height // self.cell, column * columns // width // self.cell)
        cells = shrink(marginals, self.cell)
        result = {}
        for name in self.pairwise:
            found = explain(self._pairwise(name), features[name], cells, node)
            weight = self._weight(name, features[name], strengths)
            result[name] = replace(found, messages=weight * found.messages)
        return result

    def nll(
        self,
        features: dict[str, Tensor],
        masks: Tensor,
        max_edges: int | None = None,
        class_weights: Tensor | None = None,
        loss_at: LossAt = "nodes",
        surrogate: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The piecewise negative log-likelihood of each potential, eq. (10)-(13), by name.

        Args:
            features: as `features` returns them, of the potentials to train.
            masks: int64 [B, H, W] at image size, void 255; brought to each map by nearest neighbor.
            max_edges: as in `PairwisePotential.nll`.
            class_weights: as in `UnaryPotential.nll`.
            loss_at: the unary's mean is over the nodes, or over the pixels, to which its logits are then up-sampled.
            surrogate: another loss of the unary's logits [B, K, ...] and their labels; it is added as "iou".
        """
        losses = {}
        for name, maps in features.items():
            if name != UNARY:
                labels = downsample(masks, maps.shape[-2:])
                losses[name] = self._pairwise(name).nll(maps, labels, max_edges=max_edges)
                continue
            logits = self.unary(maps)
            if loss_at == "pixels":
                logits, labels = upsample(logits, masks.shape[-2:]), masks
            else:
                labels = downsample(masks, maps.shape[-2:])
            losses[name] = nodes_nll(logits, labels, class_weights=class_weights)
            if surrogate is not None:
                losses["iou"] = surrogate(logits, labels)
        return losses

    def coupled_nll(self, features: dict[str, Tensor], masks: Tensor, objective: str) -> Tensor:
        """A negative log-likelihood of all potentials in `features` together, on the unary's grid, a scalar.

        Args:
            features: as `features` returns them, the unary's among them.
            masks: int64 [B, H, W] at image size, void 255.
            objective: a name in `OBJECTIVES`.
        """
        if UNARY not in features:
            raise ValueError(f"objective {objective!r} needs the unary among the potentials, got {sorted(features)}")
        unary = self.unary(features[UNARY]).float()
        pairs = [(self._pairwise(name), maps) for name, maps in features.items() if name != UNARY]
        return OBJECTIVES[objective](unary, pairs, downsample(masks, unary.shape[-2:]), cell=self.cell)

    def learn_dense(self, settings: Mapping[str, int | float]) -> None:
        """Make the dense CRF a part of the network, as `ModelConfig.learned_dense` does.

        Args:
            settings: arguments of `DenseCRF` that it begins with.
        """
        self.config = replace(self.config, dense=dict(settings), learned_dense=True)
        self.dense = _learned_dense(self.config, self.num_classes).to(self.mean.device)

    def refined_nll(self, features: dict[str, Tensor], images: Tensor, masks: Tensor) -> Tensor:
        """The mean negative log-likelihood of the known pixels under the dense CRF; a scalar, 0 if there are none.

        Args:
            features: as `features` returns them; the potentials that take part.
            images: [B, 3, H, W] in 0..255, which guide the dense CRF.
            masks: int64 [B, H, W] at image size, void 255.

        Raises:
            ValueError: the model's dense CRF is not learned.
        """
        if self.dense is None:
            raise ValueError('the objective "crf-rnn" trains a learned dense CRF; set model.learned_dense')
        pairwise = [(self._pairwise(name), maps) for name, maps in features.items() if name != UNARY]
        if pairwise and all(PairTable.fits(*pair) for pair in pairwise):
            # What the iterations share is then computed once: four times as fast as `mean_field` on the whole batch.
            singles = [{name: maps[i : i + 1] for name, maps in features.items()} for i in range(len(images))]
            marginals = torch.cat([self.infer(single, single, tabulate=True) for single in singles])
        else:
            marginals = self.infer(features, features)
        # Prediction takes what is improbable for 1e-5; here that would hide the gradient of what is quite wrong.
        marginals = upsample(marginals.float(), masks.shape[-2:])
        logits = logits_from_probabilities(marginals, floor=torch.finfo(marginals.dtype).tiny)
        logs = self.dense.log_marginals(logits, images)
        known = (masks != IGNORE_INDEX).sum().clamp(min=1)
        return F.nll_loss(logs, masks, ignore_index=IGNORE_INDEX, reduction="sum") / known

    def _infer_images(
        self, images: Tensor, potentials: Iterable[str] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Features and marginals of images float [B, 3, H, W], in evaluation mode."""
        training = self.training
        self.eval()
        try:
            features = self.features(images, potentials)
            return features, self.infer(features, potentials)
        finally:
            self.train(training)

    def _pairwise(self, name: str) -> PairwisePotential:
        potential = self.pairwise[name]
        assert isinstance(potential, PairwisePotential)
        return potential

    def _speaks(self, name: str) -> bool:
        """Whether a pairwise potential can send anything, or is learning to; a traced graph cannot branch on that."""
        asked = not torch.is_grad_enabled() and not torch.compiler.is_exporting()
        return not asked or not self._pairwise(name).last.silent

    def _weight(self, name: str, maps: Tensor, strengths: Mapping[str, float | None]) -> float:
        strength = strengths.get(name, 1 / len(self.pairwise))
        return 1.0 if strength is None else strength / max(1.0, self._pairwise(name).graph(maps).mean_degree())

    @property
    def cell(self) -> int:
        """Nodes of the unary's map along a cell of the pairwise graphs."""
        return (self.config.graph_stride or self.config.stride) // self.config.stride

    def pool(self, maps: Tensor) -> Tensor:
        """A map on the unary's grid, averaged over the cells of the pairwise graphs."""
        if self.cell == 1:
            return maps
        return F.avg_pool2d(maps, self.cell, ceil_mode=True)


def _check_pixel(pixel: tuple[int, int], size: Sequence[int]) -> None:
    (row, column), (height, width) = pixel, size
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"pixel {pixel}: expected a row in 0..{height - 1} and a column in 0..{width - 1}")


def _learned_dense(config: ModelConfig, num_classes: int) -> DenseCRF:
    """With every weight of the configuration as the matrix of the Potts model, from which labels learn to differ."""
    with torch.device("cpu"):  # its values are looked at, also where a model without any is made ("meta")
        fixed = DenseCRF(**config.dense)  # type: ignore[arg-type]
        names = ("spatial_compat", "bilateral_compat")
        potts = {name: -getattr(fixed, name) * torch.eye(num_classes) for name in names}
        learned = DenseCRF(**{**config.dense, **potts}, learnable=True)
    return learned.to(torch.get_default_device())


def _backbone(config: ModelConfig, pretrained: bool | Path) -> Backbone:
    if config.network == "context":
        return create_backbone(
            config.backbone, config.stride, config.output_stride, config.channels, pretrained, config.depth
        )
    kind = BASELINES[config.network]
    return kind(create_backbone(config.backbone, kind.output_stride, None, None, pretrained), config.channels)
