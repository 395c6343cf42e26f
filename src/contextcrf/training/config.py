"""The settings of trainings, as plain values, typed from the command line to the optimizer.

The command line takes the options of its commands from these classes, so that this module imports nothing heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.utils.runtime import Precision, default_batch_size, default_workers

LossAt = Literal["graph", "pixels"]
ObjectiveName = Literal["piecewise", "pseudo-likelihood", "mean-field", "unrolled", "crf-rnn"]


@dataclass
class TrainingConfig:
    """How to train.

    Args:
        potentials: which potentials to train, "unary" and names of relations; None is all of them jointly.
        objective: "piecewise", eq. (13); "pseudo-likelihood", eq. (17); "mean-field", the likelihood with mean field in
            the loop; "unrolled", the cross-entropy of mean field's marginals: these couple the potentials, take all
            edges and the plain sum of the messages. Or "crf-rnn", the cross-entropy of the marginals of a learned dense
            CRF. All but the first take no class weights.
        epochs: passes over the training images.
        batch_size: images per step; if left out 8 on an accelerator, 4 on a CPU.
        optimizer: "adamw" with a one-cycle schedule, or "sgd", the paper's: momentum 0.9, rate x 0.97 per epoch.
        lr: rate of new layers; pretrained layers take a tenth, as in the paper. The paper's: 0.001.
        weight_decay: the paper's is 0.0005.
        max_edges: edges per step for each pairwise potential, drawn at random; None takes all.
        class_balance: exponent b of the unary loss's class weights, frequency^-b; 0 is the paper's plain sum.
        loss_at: where the unary's loss is taken: at the nodes of the "graph", to which labels are brought by nearest
            neighbor, as in the paper; or at the "pixels" of a crop, to which scores are brought bilinearly, as in
            prediction, so that objects thinner than a node count.
        lovasz: weight of the Lovász-Softmax loss beside the unary's; it is a surrogate of the mean IoU, in which thin
            and rare classes count as others do (Berman, Triki, Blaschko, CVPR 2018; not in the paper).
        ema: decay per step of an average of the weights that is evaluated and kept; 0 is off.
        crop: height and width of training crops, pixels.
        scale: range of the random scale.
        color: strength of the color jitter.
        flip: mirror left and right at random.
        precision: "auto" is bfloat16 where that is faster, else single precision; "bf16-mixed" and "32-true" force one.
        norm_eval: keep the backbone's BatchNorm statistics as they came from ImageNet.
        frozen_stages: first stages of the backbone that are not trained; they cost most and change least.
        frozen_filters: keep the backbone's depthwise filters too; the gradient of the 5 x 5 ones is the slowest part of
            a step on a CPU.
        workers: processes that load data; if left out none on a CPU.
        broken_images: files that cannot be read "stop" the training, with an error that names them; or "skip" them: the
            next image takes their place, and they are listed at the end.
        seed: of weights, data order and augmentation.
        val_every: epochs between validations.

    Raises:
        ValueError: a value outside what is listed above, or values that do not fit together.

    Example:
        >>> TrainingConfig(epochs=3, lr=0.01).optimizer
        'adamw'
    """

    potentials: Sequence[str] | None = None
    objective: ObjectiveName = "piecewise"
    epochs: int = 30
    batch_size: int = field(default_factory=default_batch_size)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 5e-4
    max_edges: int | None = None
    class_balance: float = 0.0
    loss_at: LossAt = "graph"
    lovasz: float = 0.0
    ema: float = 0.0
    crop: tuple[int, int] = (320, 320)
    scale: tuple[float, float] = (0.5, 2.0)
    color: float = 0.0
    flip: bool = True
    precision: Precision = "auto"
    norm_eval: bool = True
    frozen_stages: int = 0
    frozen_filters: bool = False
    workers: int = field(default_factory=default_workers)
    broken_images: Literal["stop", "skip"] = "stop"
    seed: int = 0
    val_every: int = 1

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}")
        for name in ("epochs", "batch_size", "val_every", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}: expected more than 0")
        for name in ("weight_decay", "class_balance", "lovasz", "color", "frozen_stages", "workers"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)}: expected 0 or more")
        if self.max_edges is not None and self.max_edges < 1:
            raise ValueError(f"max_edges {self.max_edges}: expected 1 or more, or null for all edges")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema {self.ema}: expected a decay per step of 0 (off) to below 1")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)}: expected a smallest and a largest factor, above 0")
        if min(self.crop) < 1:
            raise ValueError(f"crop {list(self.crop)}: expected height and width in pixels")
        if self.objective == "piecewise":
            return
        if self.max_edges is not None or self.class_balance:
            raise ValueError(
                f"objective {self.objective!r} takes all edges and no class weights: expected max_edges null and "
                f"class_balance 0, got {self.max_edges} and {self.class_balance}"
            )
        if self.loss_at != "graph" or self.lovasz:
            raise ValueError(
                f"loss_at {self.loss_at!r}, lovasz {self.lovasz}: expected graph and 0 with the objective "
                f"{self.objective!r}"
            )


@dataclass
class FitJob:
    """A training end to end; `training.jobs.run` does it.

    Args:
        data: folder of the data set.
        out: folder for logs, checkpoints and the model.
        model: what defines the weights.
        training: how to train.
        inference: how the trained model predicts.
        train_split: split to train on.
        val_split: split to validate on; null for none.
        pretrained: start the backbone from ImageNet weights; or a file of them, as torchvision or timm have them.
        init: a trained model to start from instead; its configurations replace `model` and `inference`, except that a
            dense CRF to be learned is added with the parameters of `inference`.
        checkpoint: resume from this checkpoint without comparing settings; "last" is the newest in OUT.
        devices: devices of this machine that share a step's images, with a process for each.
        num_nodes: machines, each with this many devices; torchrun or SLURM starts the processes.
    """

    data: Path
    out: Path
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    train_split: str = "train"
    val_split: str | None = "val"
    pretrained: bool | Path = True
    init: str | None = None
    checkpoint: str | None = None
    devices: int = 1
    num_nodes: int = 1

    def __post_init__(self) -> None:
        if self.init is None:
            self.inference.check(self.model.relations)


@dataclass
class FitHeadsJob:
    """The second stage of a training; `training.jobs.run` does it.

    Relation weights that were tuned for other heads or another graph are reset.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        data: folder of the data set.
        out: folder for logs and the model.
        training: how to train; `potentials` names the relations, null is all of them.
        train_split: split to train on.
        copies: augmented copies of each image whose features are kept in memory.
        graph_stride: pixels per node of the pairwise graphs; the model's own if null.
        checkpoint: resume from this checkpoint without comparing settings; "last" is the newest in OUT.
    """

    model: str
    data: Path
    out: Path
    training: TrainingConfig = field(default_factory=TrainingConfig)
    train_split: str = "train"
    copies: int = 2
    graph_stride: int | None = None
    checkpoint: str | None = None


Job = FitJob | FitHeadsJob
