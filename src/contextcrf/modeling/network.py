"""Network Part-1 and the CRF's potentials put together (Fig. 2 of the paper)."""

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.crf import CoarseGrid, PairwisePotential, UnaryPotential
from contextcrf.crf.meanfield import Pair
from contextcrf.crf.pair_table import PairTable
from contextcrf.data.classes import Classes
from contextcrf.modeling.config import UNARY, InferenceConfig, ModelConfig
from contextcrf.nets.backbones import create_backbone
from contextcrf.nets.base import Backbone
from contextcrf.nets.baselines import BASELINES
from contextcrf.nets.multiscale import MultiScale


class ContextNetwork(nn.Module):
    """The networks and potentials of a `ContextCRF`, without its ways to predict, save and load.

    Images are RGB, [B, 3, H, W], values 0..255 of any dtype; normalization belongs to the model. The potentials are
    "unary" and the names of the relations; wherever `potentials` is an argument, None means all.

    Arguments and attributes are those of `ContextCRF`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: ModelConfig,
        classes: Classes,
        pretrained: bool | Path = True,
        inference: InferenceConfig | None = None,
    ) -> None:
        super().__init__()
        # A copy: the caller's configuration may change later.
        self.config = config = deepcopy(config)
        self.inference = inference or InferenceConfig()
        self.inference.check(config.relations)
        self.classes = classes
        self.num_classes = num_classes = len(classes)
        self.metadata: dict[str, Any] = {}

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
        # An untrained potential sends no messages, instead of random ones.
        for name in self.pairwise:
            self.pairwise_potential(name).last.zero_()
        self.dense = None
        if config.learned_dense:
            self.dense = self.inference.dense_crf(learnable=True, num_classes=num_classes)
            self.dense.to(torch.get_default_device())
        self.register_buffer("mean", 255 * torch.tensor(first.backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(first.backbone.std).view(1, 3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    @property
    def potentials(self) -> tuple[str, ...]:
        """The names of all potentials: "unary" and the relations."""
        return (UNARY, *self.pairwise)

    @property
    def trained_relations(self) -> list[str]:
        """The relations whose potentials have been trained; the others are zero and send no messages."""
        return [name for name in self.pairwise if not self.pairwise_potential(name).last.is_zero]

    def select(self, potentials: Iterable[str] | None) -> tuple[str, ...]:
        """The named potentials in the model's order, all for None.

        Raises:
            ValueError: a name that is not a potential's, or no name at all.
        """
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

    def pairwise_potential(self, name: str) -> PairwisePotential:
        """The pairwise potential of one relation."""
        potential = self.pairwise[name]
        assert isinstance(potential, PairwisePotential)
        return potential

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

        Raises:
            ValueError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images {tuple(images.shape)}: expected [B, 3, H, W]")
        normalized = (images - self.mean) / self.std
        names = self.select(potentials)
        trunks = {name: self.trunk(name) for name in names}
        fine = {trunk: trunk(normalized) for trunk in dict.fromkeys(trunks.values())}
        coarse = {trunk: self.pool(map_) for trunk, map_ in fine.items()} if names != (UNARY,) else {}
        return {name: (fine if name == UNARY else coarse)[trunks[name]] for name in names}

    def pool(self, maps: Tensor) -> Tensor:
        """Average a map on the unary's grid over the nodes of the pairwise graphs."""
        factor = self.config.coarse_factor
        return maps if factor == 1 else F.avg_pool2d(maps, factor, ceil_mode=True)

    def pair(self, name: str, features: Tensor, tabulate: bool = False) -> Pair:
        """One relation as `mean_field` takes it, with marginals on the unary's grid.

        Args:
            name: the relation.
            features: its map, as `features` returns it.
            tabulate: hold the pair logits of the one image, as `PairTable` does.
        """
        potential = PairTable(self.pairwise_potential(name), features) if tabulate else self.pairwise_potential(name)
        return CoarseGrid(potential, self.config.coarse_factor), features


def _backbone(config: ModelConfig, pretrained: bool | Path) -> Backbone:
    if config.network == "context":
        return create_backbone(
            config.backbone, config.stride, config.output_stride, config.channels, pretrained, config.depth
        )
    kind = BASELINES[config.network]
    return kind(create_backbone(config.backbone, kind.output_stride, None, None, pretrained), config.channels)
