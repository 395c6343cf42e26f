"""The network of a model: Network Part-1 and the potentials of the CRF (Fig. 2 of the paper)."""

from collections.abc import Iterable
from copy import deepcopy
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.crf import CoarseGrid, PairwisePotential, UnaryPotential
from contextcrf.crf.meanfield import Pair
from contextcrf.crf.pair_table import PairTable
from contextcrf.data.classes import Classes
from contextcrf.data.image_format import RGB, ImageFormat
from contextcrf.modeling.config import UNARY, InferenceConfig, ModelConfig
from contextcrf.nets.backbones import create_backbone
from contextcrf.nets.base import Backbone
from contextcrf.nets.baselines import BASELINES
from contextcrf.nets.multiscale import MultiScale


class ContextNetwork(nn.Module):
    """The networks and potentials of a `ContextCRF`, without the methods that predict, save and load.

    Images are tensors [B, 3, H, W] in RGB with values in 0..255 and any dtype, or have the C channels of
    `image_format`. The model normalizes them. The names of the potentials are "unary" and the names of the relations.
    Methods with an argument `potentials` use all potentials if it is None.

    Args:
        config: the configuration of the weights.
        classes: the names and colors of the K classes.
        pretrained: True initializes the backbone with ImageNet weights, False initializes it randomly, and a path loads
            the weights of this file.
        inference: the inference settings. None uses the default settings.
        image_format: the channels of the images and the range of their values in files.

    Attributes:
        config: a copy of the argument.
        classes: the argument.
        image_format: the argument.
        num_classes: the number of classes K.
        inference: the inference settings.
        metadata: how the model was made and its evaluation results, as JSON values.
        dense: the learned dense CRF, or None.
        weight_offsets: the learned numbers [K] that are added to the weight of each relation, or None.
        gate: the convolution that computes the factors of the messages at each node, or None (see `gates`).

    Raises:
        ValueError: If the inference settings name a relation that the model does not have.

    Example:
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> network = ContextNetwork(ModelConfig(backbone="plain", channels=8, hidden=8), classes, pretrained=False)
        >>> {name: tuple(maps.shape) for name, maps in network.features(torch.zeros(1, 3, 64, 96), ["unary"]).items()}
        {'unary': (1, 24, 10, 15)}
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: ModelConfig,
        classes: Classes,
        pretrained: bool | Path = True,
        inference: InferenceConfig | None = None,
        image_format: ImageFormat = RGB,
    ) -> None:
        super().__init__()
        # The caller may change the configuration later, so it is copied.
        self.config = config = deepcopy(config)
        self.inference = inference or InferenceConfig()
        self.inference.check(config.relations)
        self.classes = classes
        self.image_format = image_format
        self.num_classes = num_classes = len(classes)
        self.metadata: dict[str, Any] = {}

        def trunk() -> MultiScale:
            return MultiScale(
                _backbone(config, pretrained, image_format.channels),
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
        units = config.pairwise_hidden or config.hidden
        self.pairwise = nn.ModuleDict(
            {name: PairwisePotential(width, num_classes, box, units) for name, box in config.relations.items()}
        )
        # The last layers are zero-initialized, since an untrained potential must not send random messages.
        for name in self.pairwise:
            self.pairwise_potential(name).last.zero_()
        self.dense = None
        if config.learned_dense:
            self.dense = self.inference.dense_crf(learnable=True, num_classes=num_classes)
            self.dense.to(torch.get_default_device())
        self.weight_offsets = None
        if config.learned_weights:
            offsets = {name: nn.Parameter(torch.zeros(num_classes)) for name in config.relations}
            self.weight_offsets = nn.ParameterDict(offsets)
        self.gate = None
        if config.learned_gate and config.relations:
            self.gate = nn.Conv2d(width, len(config.relations), 1)
            for parameter in self.gate.parameters():
                nn.init.zeros_(parameter)
        for name in ("mean", "std"):
            # The weights of the first layer repeat red, green and blue for further channels. So do the statistics.
            own = islice(cycle(getattr(first.backbone, name)), image_format.channels)
            values = torch.tensor(getattr(image_format, name) or [255 * value for value in own])
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean.device

    @property
    def potentials(self) -> tuple[str, ...]:
        """The names of all potentials: "unary" and the names of the relations."""
        return (UNARY, *self.pairwise)

    @property
    def trained_relations(self) -> list[str]:
        """The relations whose potentials were trained. The other potentials are zero and send no messages."""
        return [name for name in self.pairwise if not self.pairwise_potential(name).last.is_zero]

    def select(self, potentials: Iterable[str] | None) -> tuple[str, ...]:
        """Return the given names of potentials in the order of the model.

        Args:
            potentials: the names. None returns all names.

        Raises:
            ValueError: If a name is not the name of a potential, or if there are no names.
        """
        if potentials is None:
            return self.potentials
        wanted = tuple(potentials)
        unknown = [name for name in wanted if name not in self.potentials]
        if unknown or not wanted:
            raise ValueError(
                f"The potentials are {list(wanted)}, but one or more of {list(self.potentials)} are expected."
            )
        return tuple(name for name in self.potentials if name in wanted)

    def potential(self, name: str) -> nn.Module:
        """Return the potential of this name."""
        return self.unary if name == UNARY else self.pairwise[name]

    def pairwise_potential(self, name: str) -> PairwisePotential:
        """Return the pairwise potential of a relation."""
        potential = self.pairwise[name]
        assert isinstance(potential, PairwisePotential)
        return potential

    def trunk(self, name: str) -> MultiScale:
        """Return the feature network (Network Part-1) of a potential."""
        trunk = self.trunks["shared" if self.config.shared_trunk else name]
        assert isinstance(trunk, MultiScale)
        return trunk

    def features(self, images: Tensor, potentials: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Compute the feature map of each potential.

        Args:
            images: images [B, C, H, W] with values in 0..255.
            potentials: the names of the potentials. None uses all potentials.

        Returns:
            The feature maps by name. The map of the unary has shape [B, C, h, w], and the maps of the pairwise
            potentials have the size of their graphs, which are coarser if `graph_stride` is larger than `stride`.

        Raises:
            ValueError: If the images have a wrong shape, or if a name is not the name of a potential.
        """
        channels = self.image_format.channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"The images have the shape {tuple(images.shape)}, but [B, {channels}, H, W] is expected.")
        # Convolutions on the CPU take a third less time in this memory layout.
        normalized = (images.to(self.mean.dtype) - self.mean) / self.std
        normalized = normalized.contiguous(memory_format=torch.channels_last)
        names = self.select(potentials)
        trunks = {name: self.trunk(name) for name in names}
        fine = {trunk: trunk(normalized) for trunk in dict.fromkeys(trunks.values())}
        coarse = {trunk: self.pool(map_) for trunk, map_ in fine.items()} if names != (UNARY,) else {}
        return {name: (fine if name == UNARY else coarse)[trunks[name]] for name in names}

    def pool(self, maps: Tensor) -> Tensor:
        """Average a map on the unary's grid over each node of the pairwise graphs."""
        factor = self.config.coarse_factor
        if factor == 1:
            return maps
        # Pooling is many times as fast with the channels last in memory.
        return F.avg_pool2d(maps.contiguous(memory_format=torch.channels_last), factor, ceil_mode=True)

    def gates(self, features: Tensor) -> dict[str, Tensor]:
        """Compute the factor of the messages of each relation at each node (`ModelConfig.learned_gate`).

        Args:
            features: the feature map of the unary, [B, C, h, w].

        Returns:
            The factors by relation, [B, 1, h, w] each, from 0 to 2. Without a gate, the dictionary is empty.
        """
        if self.gate is None:
            return {}
        factors = 2 * self.gate(features).float().sigmoid()
        return dict(zip(self.pairwise, factors.split(1, dim=1), strict=True))

    def pair(self, name: str, features: Tensor, tabulate: bool = False) -> Pair:
        """Return a relation and its features in the form that `mean_field` takes, for marginals on the unary's grid.

        Args:
            name: the name of the relation.
            features: the feature map of the relation, which `features` returns.
            tabulate: compute the pair logits of the image once and keep them in a `PairTable`. The feature map must
                belong to a single image.
        """
        potential = PairTable(self.pairwise_potential(name), features) if tabulate else self.pairwise_potential(name)
        return CoarseGrid(potential, self.config.coarse_factor, self.config.message_upsampling), features


def _backbone(config: ModelConfig, pretrained: bool | Path, in_chans: int) -> Backbone:
    if config.network == "context":
        return create_backbone(
            config.backbone, config.stride, config.output_stride, config.channels, pretrained, config.depth, in_chans
        )
    kind = BASELINES[config.network]
    backbone = create_backbone(config.backbone, kind.output_stride, None, None, pretrained, in_chans=in_chans)
    return kind(backbone, config.channels)
