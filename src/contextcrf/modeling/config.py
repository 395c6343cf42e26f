"""The shape of a ContextCRF, as plain values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch

from contextcrf.crf import DenseCRF, RangeBox, Relation
from contextcrf.nets.baselines import BASELINES
from contextcrf.nets.multiscale import Upsampling

# The name of the unary potential; the others have those of their relations.
UNARY = "unary"
# What no relation can be called: rows of tables and parts of the loss have these names.
RESERVED = (UNARY, "crf", "full", "dense", "iou")


def paper_relations() -> dict[str, Relation]:
    """The paper's two relations, "Pairwise-1" and "Pairwise-2"."""
    return {"surrounding": RangeBox.surrounding(), "above": RangeBox.above()}


@dataclass
class ModelConfig:
    """The shape of a ContextCRF.

    Args:
        backbone: a timm model; "vgg16-fc6", the paper's, of stride 32, 16 or 8; or "plain", small, random and with a
            receptive field of 15 pixels, "plain-31" with one of 31, and so on in steps of 16.
        stride: pixels per node of the feature map: 4, 8, 16 or 32.
        output_stride: stride of the backbone's last map; earlier maps join in where it is coarser than `stride`.
            `stride` if None.
        depth: the first stages of the backbone that are used, which see less of the image; all of them if None.
        network: what stands on the backbone: "context" is the paper's, the others are its competitors, whose unary is a
            linear layer: "fcn-8s", "deeplab-largefov", "deeplab-msc-largefov" (all of stride 8), "deeplabv3plus"
            (stride 4).
        channels: channels of the feature map of one scale.
        scales: scales of the input image.
        block6_per_scale: a sixth block of its own for each scale, as in the authors' later work.
        pyramid: odd window sizes, in nodes: beside the map of each scale stand its maxima in them, as in the authors'
            later work.
        upsampling: of the smaller scales' maps: "nearest", the paper's, or "bilinear".
        hidden: units of the hidden layer of each potential.
        relations: the pairwise potentials, by name: each a box, or several together.
        graph_stride: pixels per node of the pairwise graphs, a multiple of `stride`; `stride` if None.
        shared_trunk: one Network Part-1 for all potentials, or one for each as in the paper.
        iterations: mean-field iterations.
        strengths: weight of each relation's messages, as the number of unary votes that a node's neighbors have
            together (divided by the mean number of neighbors it becomes the weight of `mean_field`). Relations that
            are not named share one vote; None is the plain sum of the paper, every edge one vote.
        dense: arguments of the `DenseCRF` of the row "full"; those not named keep its defaults.
        learned_dense: that CRF is a part of the network, with standard deviations and K x K compatibilities that are
            learned from `dense` on, by the objective "crf-rnn" (Zheng et al., "Conditional Random Fields as Recurrent
            Neural Networks", ICCV 2015).
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
    iterations: int = 2
    strengths: dict[str, float | None] = field(default_factory=dict)
    dense: dict[str, int | float] = field(default_factory=dict)
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
        for name in ("channels", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected 1 or more")
        if self.iterations < 0:
            raise ValueError(f"iterations {self.iterations}: expected 0 or more")
        if self.upsampling not in get_args(Upsampling):
            raise ValueError(f"upsampling {self.upsampling!r}: expected one of {', '.join(get_args(Upsampling))}")
        for name, strength in self.strengths.items():
            if strength is not None and not math.isfinite(strength):
                raise ValueError(f"strengths: {name} {strength}: expected a finite number, or null for the plain sum")
        if unknown := sorted(set(self.strengths) - set(self.relations)):
            raise ValueError(f"strengths: {unknown} name no relation; relations: {sorted(self.relations)}")
        try:
            with torch.device("cpu"):  # its values are looked at, also where a model without any is made ("meta")
                DenseCRF(**self.dense)  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(f"dense: {error}; expected arguments of DenseCRF") from error
        if self.graph_stride is not None and (self.graph_stride < self.stride or self.graph_stride % self.stride):
            raise ValueError(f"graph_stride={self.graph_stride}: expected a multiple of stride={self.stride}")

    def _check_baseline(self) -> None:
        if self.network not in BASELINES:
            raise ValueError(f"network {self.network!r}: expected context, {', '.join(BASELINES)}")
        kind = BASELINES[self.network]
        if self.stride != kind.stride or self.output_stride not in (None, kind.output_stride) or self.depth is not None:
            raise ValueError(
                f"stride={self.stride}, output_stride={self.output_stride}, depth={self.depth}: {self.network} has "
                f"{kind.stride}, {kind.output_stride} and all stages"
            )
