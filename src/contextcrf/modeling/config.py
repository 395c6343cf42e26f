"""The two configurations of a model: `ModelConfig` defines its weights, and `InferenceConfig` defines its prediction.

A saved model contains both configurations. Therefore, `InferenceConfig` is in this package and not in `inference`.
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

# Words in the names of systems and losses. A relation cannot have one of these names.
RESERVED = (UNARY, PAIRWISE, DENSE, "lovasz")


def paper_relations() -> dict[str, Relation]:
    """Return the two relations of the paper, "Pairwise-1" (surrounding) and "Pairwise-2" (above)."""
    return {"surrounding": RangeBox.surrounding(), "above": RangeBox.above()}


@dataclass
class ModelConfig:
    """The settings that define the weights of a ContextCRF.

    Args:
        backbone: Name of the backbone: a timm model, a model of transformers such as "hf:facebook/dinov2-small",
            "vgg16-fc6" (the paper's VGG-16, stride 32, 16 or 8) or "plain" (a small network with random initial weights
            and a receptive field of 15 pixels; "plain-31" has 31 pixels, and so on in steps of 16).
        stride: Width of a node of the feature map: 4, 8, 16 or 32 pixels of the image at the largest of `scales`.
        output_stride: Number of pixels per node of the last feature map of the backbone; null means `stride`. If it is
            larger than `stride`, the feature maps whose strides are from `stride` to `output_stride` are upsampled to
            `stride` and summed. The backbone reaches `output_stride` by dilated convolutions. A backbone that does not
            support dilation ignores this value and keeps its own strides.
        depth: Number of backbone stages that are used, counted from the first; null uses all stages. With fewer stages,
            the receptive field is smaller.
        network: Network on top of the backbone: "context" (the network of the paper), or a baseline with a linear
            unary: "fcn-8s", "deeplab-largefov", "deeplab-msc-largefov" (all of stride 8) or "deeplabv3plus" (stride 4).
        channels: Number of channels of the feature map of one scale. 0 adds no new layers: all maps of the backbone
            with the stride `stride` or a larger one are resampled to one size and concatenated.
        scales: Scales at which the input image enters the network, as factors of its size.
        block6_per_scale: Use a separate block 6 (the layers after the body of the backbone) for each scale, as in the
            authors' CVPR 2016 paper.
        pyramid: Window sizes of sliding pyramid pooling (odd numbers of nodes), as in the authors' CVPR 2016 paper; an
            empty list switches it off.
        upsampling: Interpolation that enlarges the feature maps of smaller scales, "nearest" (as in the paper) or
            "bilinear".
        hidden: Number of hidden units of each potential.
        pairwise_hidden: Number of hidden units of each pairwise potential; null means `hidden`. The time of mean field
            grows in proportion to it.
        relations: Pairwise potentials by name, each with one box or with several boxes.
        graph_stride: Width of a node of the pairwise graphs, a multiple of `stride`; null means `stride`.
        shared_trunk: Use one trunk for all potentials; false uses one network for each potential, as in the paper.
        learned_dense: Make the dense CRF a part of the network. Its standard deviations and K x K compatibilities start
            at the values of `InferenceConfig.dense`. The objective "crf-rnn" trains them (Zheng et al., "Conditional
            Random Fields as Recurrent Neural Networks", ICCV 2015).
        learned_weights: Add a learned number for each relation and class to the relation weights. The numbers start at
            0. The objective "end-to-end" trains them.
        learned_gate: Multiply the messages of each relation at each node of the unary by a learned factor from 0 to 2.
            A 1 x 1 convolution and a sigmoid compute it from the features of the node. It starts at 1. The objective
            "end-to-end" trains it.
        message_upsampling: Interpolation that enlarges the messages of a graph that is coarser than the unary,
            "nearest" or "bilinear".

    Raises:
        ValueError: If a value is outside its range, or if two values contradict each other.

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
    pairwise_hidden: int | None = None
    relations: dict[str, Relation] = field(default_factory=paper_relations)
    graph_stride: int | None = None
    shared_trunk: bool = True
    learned_dense: bool = False
    learned_weights: bool = False
    learned_gate: bool = False
    message_upsampling: Upsampling = "nearest"

    def __post_init__(self) -> None:
        self.scales, self.pyramid = tuple(self.scales), tuple(self.pyramid)
        if self.network != "context":
            self._check_baseline()
        for name in self.relations:
            if not name.isidentifier() or name in RESERVED or hasattr(torch.nn.ModuleDict, name):
                raise ValueError(
                    f"The name {name!r} of a relation is not valid. Expected a word of letters, digits and _ that is "
                    f"not {', '.join(RESERVED)} or a method of torch.nn.ModuleDict."
                )
            if self.relations[name] == ():
                raise ValueError(f"The relation {name!r} has no box, but one or more boxes are expected.")
        _check_scales(self.scales)
        for name, least in {"channels": int(self.network != "context"), "hidden": 1, "pairwise_hidden": 1}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"The setting {name} is {value}, but {least} or more is expected.")
        for name in ("upsampling", "message_upsampling"):
            if getattr(self, name) not in get_args(Upsampling):
                raise ValueError(
                    f"The setting {name} is {getattr(self, name)!r}, but one of {', '.join(get_args(Upsampling))} is "
                    "expected."
                )
        if self.graph_stride is not None and (self.graph_stride < self.stride or self.graph_stride % self.stride):
            raise ValueError(
                f"The setting graph_stride={self.graph_stride} is not valid, because it must be a multiple of "
                f"stride={self.stride}."
            )

    @property
    def coarse_factor(self) -> int:
        """The factor f = graph_stride / stride: a node of the pairwise graphs covers f x f nodes of the unary."""
        return (self.graph_stride or self.stride) // self.stride

    def _check_baseline(self) -> None:
        if self.network not in BASELINES:
            raise ValueError(
                f"The setting network is {self.network!r}, but one of context, {', '.join(BASELINES)} is expected."
            )
        kind = BASELINES[self.network]
        if self.stride != kind.stride or self.output_stride not in (None, kind.output_stride) or self.depth is not None:
            raise ValueError(
                f"The settings are stride={self.stride}, output_stride={self.output_stride} and depth={self.depth}, "
                f"but the network {self.network} needs stride={kind.stride}, output_stride={kind.output_stride} or "
                "null, and depth=null."
            )


@dataclass(frozen=True)
class InferenceConfig:
    """The settings of prediction. They do not change the weights of a model.

    Args:
        system: System that is used by default, such as "unary+pairwise+dense" (see `System`).
        iterations: Number of mean-field iterations (2 in the paper).
        relation_weights: Relation weights by name. The sum of the messages is divided by the mean number of
            neighbors and multiplied by the weight. With a weight of 1, the average message counts as much as the unary.
            0 switches the relation off, and null means the plain sum of the paper. A relation that is not named has the
            weight 1 / the number of relations.
        dense: Parameters of the dense CRF by name (see `DenseCRF`); the others have their default values.
        scales: Scales of test-time augmentation, as factors of the image size; the marginals of all scales are
            averaged.
        flip: Predict the mirrored image too and average the marginals.
        tile: Side of a tile in pixels, at least 32, for images that are too large to be labeled at once.
        overlap: Width in pixels of the border around each tile that is computed but not kept.
        tile_above: Largest number of pixels of an image that is labeled without tiles.
        precision: Numeric precision of the networks and of mean field: "auto" is bfloat16 where it is faster and single
            precision elsewhere. "bf16-mixed" and "32-true" force one of them.

    Raises:
        ValueError: If a value is not valid.

    Example:
        >>> InferenceConfig(relation_weights={"above": None}).weights(["surrounding", "above"])
        {'surrounding': 0.5, 'above': None}
    """

    system: str = "unary+pairwise"
    iterations: int = 2
    relation_weights: Mapping[str, float | None] = field(default_factory=dict)
    dense: Mapping[str, int | float | Sequence[float]] = field(default_factory=dict)
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    tile: int = 768
    overlap: int = 128
    tile_above: int = 2_100_000
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        # The caller may change the dictionaries later, so they are copied.
        object.__setattr__(self, "relation_weights", dict(self.relation_weights))
        object.__setattr__(self, "dense", dict(self.dense))
        object.__setattr__(self, "scales", tuple(self.scales))
        for name, least in {"iterations": 0, "tile": 32, "overlap": 0, "tile_above": 0}.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if not isinstance(self.flip, bool):
            raise ValueError(f"The setting flip is {self.flip!r}, but true or false is expected.")
        for name, weight in self.relation_weights.items():
            if weight is not None and not math.isfinite(weight):
                raise ValueError(
                    f"The relation weight of {name} is {weight}, but a finite number is expected, or null for the "
                    "plain sum."
                )
        try:
            self.dense_crf()
        except TypeError as error:
            raise ValueError(f"The setting dense is not valid: {error}. Expected arguments of DenseCRF.") from error
        _check_scales(self.scales)
        check_precision(self.precision)
        System.from_name(self.system)

    def check(self, relations: Iterable[str]) -> None:
        """Check that the settings fit a model with these relations.

        Args:
            relations: the names of the model's relations.

        Raises:
            ValueError: If the system or `relation_weights` names a relation that is not in `relations`.

        Example:
            >>> InferenceConfig(system="unary+above").check(["surrounding", "above"])
        """
        names = list(relations)
        self.weights(names)
        System.from_name(self.system).potentials(names)

    def weights(self, relations: Iterable[str]) -> dict[str, float | None]:
        """Return the relation weight of each relation, in the given order.

        Args:
            relations: the names of the model's relations.

        Raises:
            ValueError: If `relation_weights` names a relation that is not in `relations`.

        Example:
            >>> InferenceConfig(relation_weights={"above": 2.0}).weights(["surrounding", "above"])
            {'surrounding': 0.5, 'above': 2.0}
        """
        names = list(relations)
        if unknown := sorted(set(self.relation_weights) - set(names)):
            raise ValueError(
                f"The setting relation_weights names {unknown}, but the relations of the model are {names}."
            )
        return {name: self.relation_weights.get(name, 1 / len(names)) for name in names}

    @property
    def dense_is_off(self) -> bool:
        """Whether both compatibilities in `dense` are 0, so that the dense CRF changes nothing.

        `contextcrf tune --dense` chooses them if no dense CRF raises the mean IoU reliably.

        Example:
            >>> InferenceConfig(dense={"spatial_compat": 0, "bilateral_compat": 0}).dense_is_off
            True
        """
        return all(self.dense.get(name, None) == 0 for name in ("spatial_compat", "bilateral_compat"))

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults, by name, as plain JSON values.

        Example:
            >>> InferenceConfig(iterations=3, scales=(1.0, 0.5)).changes()
            {'iterations': 3, 'scales': [1.0, 0.5]}
        """
        own, default = (json.loads(json.dumps(asdict(settings))) for settings in (self, InferenceConfig()))
        return {name: value for name, value in own.items() if value != default[name]}

    def dense_crf(self, learnable: bool = False, num_classes: int = 0) -> DenseCRF:
        """Return the dense CRF of these settings, on the CPU.

        Args:
            learnable: make the parameters learnable. Each compatibility is then a K x K matrix, which starts as the
                Potts model.
            num_classes: the number of classes K. It is used only if `learnable` is set.

        Example:
            >>> InferenceConfig(dense={"bilateral_sxy": 20}).dense_crf().bilateral_sxy.item()
            20.0
        """
        # The values are needed even if a model is built on the device "meta", whose tensors have no values.
        with torch.device("cpu"):
            fixed = DenseCRF(**self.dense)  # type: ignore[arg-type]
            if not learnable:
                return fixed
            names = ("spatial_compat", "bilateral_compat")
            potts = {name: -getattr(fixed, name) * torch.eye(num_classes) for name in names}
            return DenseCRF(**{**self.dense, **potts}, learnable=True)


def _check_scales(scales: Sequence[float]) -> None:
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"The scales are {list(scales)}, but at least one is expected, each > 0 and finite.")
