"""The two configurations of a model: `ModelConfig` defines its weights, `InferenceConfig` how they are used.

A model on disk carries both, so `InferenceConfig` stands here and not in `inference`, which reads it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import torch

from contextcrf.crf import DenseCRF, RangeBox, Relation
from contextcrf.crf.checks import whole_number
from contextcrf.modeling.system import DENSE, PAIRWISE, UNARY, System
from contextcrf.nets.baselines import BASELINES
from contextcrf.nets.multiscale import Upsampling
from contextcrf.utils.runtime import Precision, check_precision

# Words of the names of systems and losses, which no relation can have.
RESERVED = (UNARY, PAIRWISE, DENSE, "lovasz")


def paper_relations() -> dict[str, Relation]:
    """The paper's two relations, "Pairwise-1" and "Pairwise-2"."""
    return {"surrounding": RangeBox.surrounding(), "above": RangeBox.above()}


@dataclass
class ModelConfig:
    """The settings that define the weights of a ContextCRF.

    Args:
        backbone: a timm model; "vgg16-fc6", the paper's, of stride 32, 16 or 8; or "plain", small, random and with a
            receptive field of 15 pixels, "plain-31" with one of 31, and so on in steps of 16.
        stride: pixels per node of the feature map: 4, 8, 16 or 32.
        output_stride: stride of the backbone's last map; earlier maps join in where it is coarser than `stride`.
            `stride` if None.
        depth: the first stages of the backbone that are used; fewer stages have a smaller receptive field. All of them
            if None.
        network: the network on top of the backbone: "context" is the paper's, the others are its competitors, whose
            unary is a linear layer: "fcn-8s", "deeplab-largefov", "deeplab-msc-largefov" (all of stride 8),
            "deeplabv3plus" (stride 4).
        channels: channels of the feature map of one scale.
        scales: scales of the input image.
        block6_per_scale: a sixth block of its own for each scale, as in the authors' later work.
        pyramid: odd window sizes, in nodes, of sliding pyramid pooling, as in the authors' later work.
        upsampling: how maps of smaller scales are enlarged: "nearest", the paper's, or "bilinear".
        hidden: units of the hidden layer of each potential.
        relations: the pairwise potentials, by name: each a box, or several together.
        graph_stride: pixels per node of the pairwise graphs, a multiple of `stride`; `stride` if None.
        shared_trunk: one Network Part-1 for all potentials, or one for each as in the paper.
        learned_dense: the dense CRF is a part of the network, with standard deviations and K x K compatibilities that
            the objective "crf-rnn" learns (Zheng et al., "Conditional Random Fields as Recurrent Neural Networks",
            ICCV 2015), beginning with those of `InferenceConfig.dense`.

    Raises:
        ValueError: a value outside what is listed above, or values that do not fit together.

    Example:
        >>> ModelConfig(backbone="plain", graph_stride=16).coarse_factor
        2
    """

    backbone: str = "tf_efficientnet_lite0"
    stride: int = 8
    output_stride: int | None = None
    depth: int | None = None
    network: str = "context"
    channels: int = 256
    scales: Sequence[float] = (1.2, 0.8, 0.4)
    block6_per_scale: bool = False
    pyramid: Sequence[int] = ()
    upsampling: Upsampling = "nearest"
    hidden: int = 512
    relations: dict[str, Relation] = field(default_factory=paper_relations)
    graph_stride: int | None = None
    shared_trunk: bool = True
    learned_dense: bool = False

    def __post_init__(self) -> None:
        self.scales, self.pyramid = tuple(self.scales), tuple(self.pyramid)
        if self.network != "context":
            self._check_baseline()
        for name in self.relations:
            if not name.isidentifier() or name in RESERVED or hasattr(torch.nn.ModuleDict, name):
                raise ValueError(
                    f"relations: {name!r}: expected a word of letters, digits and _ that is not {', '.join(RESERVED)} "
                    "or a method of torch.nn.ModuleDict"
                )
            if self.relations[name] == ():
                raise ValueError(f"relations: {name}: no box; expected one or more")
        _check_scales(self.scales)
        for name in ("channels", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected 1 or more")
        if self.upsampling not in get_args(Upsampling):
            raise ValueError(f"upsampling {self.upsampling!r}: expected one of {', '.join(get_args(Upsampling))}")
        if self.graph_stride is not None and (self.graph_stride < self.stride or self.graph_stride % self.stride):
            raise ValueError(f"graph_stride={self.graph_stride}: expected a multiple of stride={self.stride}")

    @property
    def coarse_factor(self) -> int:
        """Nodes of the unary's map along a node of the pairwise graphs."""
        return (self.graph_stride or self.stride) // self.stride

    def _check_baseline(self) -> None:
        if self.network not in BASELINES:
            raise ValueError(f"network {self.network!r}: expected context, {', '.join(BASELINES)}")
        kind = BASELINES[self.network]
        if self.stride != kind.stride or self.output_stride not in (None, kind.output_stride) or self.depth is not None:
            raise ValueError(
                f"stride={self.stride}, output_stride={self.output_stride}, depth={self.depth}: {self.network} has "
                f"{kind.stride}, {kind.output_stride} and all stages"
            )


@dataclass(frozen=True)
class InferenceConfig:
    """The settings of prediction. They change what a trained model predicts, and none of its weights.

    Args:
        system: the system that predicts unless another is asked for; see `System`.
        iterations: mean-field iterations; the paper uses 2.
        relation_weights: by relation. The sum of its messages is divided by the mean number of neighbors and multiplied
            by this weight: with 1 it counts as much as the unary, 0 switches the relation off. None is the paper's
            plain sum. The default is 1 / the number of relations.
        dense: arguments of the `DenseCRF`; those that are not named keep its defaults.
        scales: factors of the image's size in test-time augmentation, whose marginals are averaged.
        flip: average the marginals of the mirrored image too.
        tile: side of a tile, pixels, of images that are too large to be labeled at once.
        overlap: pixels around a tile that are computed with it on every side.
        tile_above: images of more pixels than this are labeled in tiles.
        precision: of the networks and of mean field: "auto" is bfloat16 where that is faster, else single precision.

    Raises:
        ValueError: a value that cannot be used.

    Example:
        >>> InferenceConfig(relation_weights={"above": None}).weights(["surrounding", "above"])
        {'surrounding': 0.5, 'above': None}
    """

    system: str = "unary+pairwise"
    iterations: int = 2
    relation_weights: Mapping[str, float | None] = field(default_factory=dict)
    dense: Mapping[str, int | float] = field(default_factory=dict)
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    tile: int = 1536
    overlap: int = 256
    tile_above: int = 16_000_000
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        # Copies: the caller's dictionaries may change later.
        object.__setattr__(self, "relation_weights", dict(self.relation_weights))
        object.__setattr__(self, "dense", dict(self.dense))
        object.__setattr__(self, "scales", tuple(self.scales))
        for name, least in {"iterations": 0, "tile": 32, "overlap": 0, "tile_above": 0}.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip {self.flip!r}: expected true or false")
        for name, weight in self.relation_weights.items():
            if weight is not None and not math.isfinite(weight):
                raise ValueError(
                    f"relation_weights: {name} {weight}: expected a finite number, or null for the plain sum"
                )
        try:
            self.dense_crf()
        except TypeError as error:
            raise ValueError(f"dense: {error}; expected arguments of DenseCRF") from error
        _check_scales(self.scales)
        check_precision(self.precision)
        System.from_name(self.system)

    def check(self, relations: Iterable[str]) -> None:
        """Check that the settings fit a model with these relations.

        Raises:
            ValueError: the system or `relation_weights` names another relation.
        """
        names = list(relations)
        self.weights(names)
        System.from_name(self.system).potentials(names)

    def weights(self, relations: Iterable[str]) -> dict[str, float | None]:
        """The weight of each relation, in the order given.

        Raises:
            ValueError: `relation_weights` names a relation that is not among them.
        """
        names = list(relations)
        if unknown := sorted(set(self.relation_weights) - set(names)):
            raise ValueError(f"relation_weights: {unknown} are not relations of the model, which has {names}")
        return {name: self.relation_weights.get(name, 1 / len(names)) for name in names}

    def changes(self) -> dict[str, Any]:
        """The settings that are not the defaults, by name, as plain JSON values.

        Example:
            >>> InferenceConfig(iterations=3, scales=(1.0, 0.5)).changes()
            {'iterations': 3, 'scales': [1.0, 0.5]}
        """
        own, default = (json.loads(json.dumps(asdict(settings))) for settings in (self, InferenceConfig()))
        return {name: value for name, value in own.items() if value != default[name]}

    def dense_crf(self, learnable: bool = False, num_classes: int = 0) -> DenseCRF:
        """The dense CRF of these settings, on the CPU.

        Args:
            learnable: with learned parameters, and each weight as the K x K matrix of the Potts model, in which the
                labels learn to differ.
            num_classes: K, for a learnable one.
        """
        # On the CPU even where a model is built on the device "meta", whose tensors have no values: these are needed.
        with torch.device("cpu"):
            fixed = DenseCRF(**self.dense)  # type: ignore[arg-type]
            if not learnable:
                return fixed
            names = ("spatial_compat", "bilateral_compat")
            potts = {name: -getattr(fixed, name) * torch.eye(num_classes) for name in names}
            return DenseCRF(**{**self.dense, **potts}, learnable=True)


def _check_scales(scales: Sequence[float]) -> None:
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales {list(scales)}: expected at least one, each > 0 and finite")
