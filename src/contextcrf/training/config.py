"""The configs of training runs.

The command line takes its options and their help from these classes. Therefore this module has only fast imports.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.utils.runtime import Precision, default_batch_size, default_workers

LossAt = Literal["graph", "pixels"]
Strategy = Literal["ddp", "fsdp"]
# The settings that add learned parts of the CRF to a model, and all settings that a job can add to `FitJob.init`.
LEARNED = ("learned_dense", "learned_weights", "learned_gate")
ADDED = (*LEARNED, "message_upsampling")
# The objectives whose gradients pass through mean field and the dense CRF of the whole system.
THROUGH_CRF = ("crf-rnn", "end-to-end")
# The parts of a model that may have learning rates of their own.
PARTS = ("new", "pretrained", "pairwise", "weights", "dense")
ObjectiveName = Literal["piecewise", "pseudo-likelihood", "mean-field", "unrolled", "crf-rnn", "end-to-end"]


@dataclass
class TrainingConfig:
    """The config of a training run.

    The objectives "pseudo-likelihood", "mean-field" and "unrolled" couple the potentials. They use all edges and the
    plain sum of the messages. All objectives other than "piecewise" need `max_edges` null and `loss_at` "graph". All
    objectives other than "piecewise" and "end-to-end" need `class_balance` 0 and `lovasz` 0.

    Args:
        potentials: Names of the potentials that are trained, "unary" and names of relations; null trains all potentials
            with `fit`, and all relations with `fit-heads`.
        objective: Loss that is minimized: "piecewise" (eq. 13), "pseudo-likelihood" (eq. 17), "mean-field" (likelihood
            with mean field in the training loop), "unrolled" (cross-entropy of the mean-field marginals), "crf-rnn"
            (cross-entropy of the marginals after mean field and a learned dense CRF) or "end-to-end" (the same, but the
            dense CRF is optional, and learned relation weights are trained too).
        epochs: Number of passes over the training images. With 0, the command `fit` writes the initial model without
            training it.
        batch_size: Number of images per step; the default is 8 on an accelerator and 4 on a CPU.
        optimizer: Optimizer and schedule: "adamw" with a one-cycle schedule, or "sgd" with momentum 0.9 and a learning
            rate that is multiplied by 0.97 after each epoch, as in the paper.
        lr: Learning rate of the new layers; the pretrained layers get a tenth of it. The paper uses 0.001 for new
            layers.
        weight_decay: Weight decay of the optimizer; the paper uses 0.0005.
        max_edges: Number of random edges per step for each pairwise potential; null uses all edges.
        class_balance: Exponent b of the class weights frequency^-b in the piecewise losses, and in the loss of the
            objective "end-to-end"; 0 weights all classes equally, as in the paper. The weight of an edge is the mean
            weight of its two labels.
        loss_at: Resolution of the unary loss: "graph" downsamples the labels to the graph nodes by nearest neighbor, as
            in the paper, and "pixels" upsamples the logits bilinearly to the crop, which keeps objects that are thinner
            than a node.
        lovasz: Weight of the Lovász-Softmax loss, a surrogate of the mean IoU, that is added to the unary loss, or to
            the loss of the objective "end-to-end" (Berman, Triki, Blaschko, CVPR 2018; not in the paper); 0 adds
            nothing.
        ema: Decay per step of the moving average of the weights that is evaluated and saved; 0 disables the average.
        crop: Height and width of the training crops in pixels.
        scale: Smallest and largest factor of the random scaling.
        color: Strength of the random color jitter; 0 disables it.
        flip: Mirror training images horizontally at random.
        precision: Numeric precision: "auto" is bfloat16 where it is faster and single precision elsewhere. "bf16-mixed"
            and "32-true" force one of them.
        norm_eval: Do not update the BatchNorm statistics of the pretrained backbone.
        frozen_stages: Number of backbone stages, counted from the first, that are not trained. The first stages are the
            most expensive to train and change least.
        frozen_filters: Do not train the depthwise filters of the backbone. On a CPU, the gradient of 5 x 5 depthwise
            filters, as in the default backbone, is the slowest part of a step.
        workers: Number of processes that load data; the default is 0 on a CPU. On an accelerator, it is half the number
            of CPU cores, from 1 to 8.
        broken_images: Treatment of files that cannot be read: "stop" ends the training with an error that names them,
            and "skip" uses the next image instead and lists the files at the end.
        held_out: Fraction of the training images, from 0 to 0.25, that `fit` leaves out in the last third of its
            epochs. If `fit-heads` trains only pairwise potentials, it ignores its own `held_out`: it leaves out the
            images that `fit` left out, and tunes the relation weights on them. If `fit-heads` also trains the unary, it
            uses its own `held_out`: it leaves out this fraction of the training images, chosen anew, and tunes the
            relation weights on them. 0 leaves out no image.
        seed: Seed of the weights, the data order and the augmentation.
        val_every: Number of epochs between validations.
        part_lr: Factors of the learning rate by part: "new" (new layers and the unary), "pretrained", "pairwise",
            "weights" (the learned numbers of the relation weights, and the gate) and "dense". The default is 1, and 0.1
            for "pretrained". Without an entry "pairwise", the pairwise potentials belong to "new".
        patience: Number of validations without a higher mean IoU after which the training ends. The weights with the
            highest mean IoU on the validation split are kept, which can be the weights from before the training; null
            trains to the end and keeps the last weights.

    Raises:
        ValueError: a value is not allowed, or values contradict each other.

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
    held_out: float = 0.0
    seed: int = 0
    val_every: int = 1
    part_lr: Mapping[str, float] = field(default_factory=dict)
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(get_args(kind))}.")
        for name in ("batch_size", "val_every", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be greater than 0.")
        for name in ("epochs", "weight_decay", "class_balance", "lovasz", "color", "frozen_stages", "workers"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0 or greater.")
        if unknown := sorted(set(self.part_lr) - set(PARTS)):
            raise ValueError(f"part_lr names {unknown[0]!r}, but the parts are {', '.join(PARTS)}.")
        if not all(0 <= factor < math.inf for factor in self.part_lr.values()):
            raise ValueError(f"part_lr is {dict(self.part_lr)}, but factors of 0 or greater are expected.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}, but must be 1 or greater, or null.")
        if self.max_edges is not None and self.max_edges < 1:
            raise ValueError(f"max_edges is {self.max_edges}, but must be 1 or greater, or null for all edges.")
        if not 0 <= self.held_out <= 0.25:
            raise ValueError(f"held_out is {self.held_out}, but must be a fraction from 0 to 0.25.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, but must be a decay per step of 0 (no average) or more, and below 1.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"scale is {list(self.scale)}, but must be a smallest and a largest factor in this order, both above 0."
            )
        if min(self.crop) < 1:
            raise ValueError(f"crop is {list(self.crop)}, but must be a height and a width of 1 or more pixels.")
        if self.objective == "piecewise":
            return
        if self.max_edges is not None or self.loss_at != "graph":
            raise ValueError(
                f"max_edges is {self.max_edges} and loss_at is {self.loss_at!r}, but the objective {self.objective!r} "
                "uses all edges and has no separate unary loss. Set max_edges to null and loss_at to graph."
            )
        if self.objective != "end-to-end" and (self.class_balance or self.lovasz):
            raise ValueError(
                f"class_balance is {self.class_balance} and lovasz is {self.lovasz}, but the objective "
                f"{self.objective!r} has no class weights and no Lovász-Softmax loss. Set both to 0."
            )


@dataclass
class FitJob:
    """A job that trains a model on images; `training.jobs.run` runs it.

    With `heads` or `end_to_end`, the job has several stages. `training` is the config of the first stage. The folders
    OUT/piecewise and OUT/heads contain the models of the stages before the last one.

    Args:
        data: Folder of the data set.
        out: Folder for logs, checkpoints and the model.
        model: Config of the model, which defines its weights.
        training: Config of the training.
        inference: Inference settings of the trained model.
        train_split: Split that the model is trained on.
        val_split: Split that the model is validated on; null disables the validation.
        pretrained: Initialize the backbone with ImageNet weights; a path loads them from a file in the format of
            torchvision or timm.
        init: Trained model (a folder, or the name of a bundled model) from whose weights the training starts; null
            starts from `pretrained`. The configs of the trained model replace `model` and `inference` of this job, but
            the job can add parts that the trained model lacks. `model.learned_weights` adds learned numbers to the
            relation weights, `model.learned_gate` adds a gate, and `model.message_upsampling` replaces the
            interpolation of the messages if it is not "nearest". `model.learned_dense` adds a learned dense CRF, which
            starts at the parameters in `inference.dense` of this job.
        checkpoint: Checkpoint from which the training resumes without a comparison of the settings; "last" is the
            newest checkpoint in OUT. Null also resumes from the newest checkpoint, but ends with an error if the
            settings differ from those of the checkpoint.
        devices: Number of devices of this machine; they share the images of a step, with one process per device.
        num_nodes: Number of machines, each with as many devices as `devices`; torchrun or SLURM starts the processes.
        strategy: Use of several devices: "ddp" keeps the whole weights on each device, and "fsdp" keeps a part of the
            weights, gradients and optimizer state on each device, for backbones that are too large for one device.
            "fsdp" needs `training.patience` null and no learned dense CRF. With one device, both are the same.
        budget: Time for the training, such as "10m" or "1h30m"; null trains for all epochs of the config. The duration
            of a step is measured. If the budget is too short for all epochs, the number of epochs is reduced, and the
            learning rate schedule is shortened accordingly. Several stages share the time: 50% for the first stage, 20%
            for `heads` and 30% for `end_to_end`.
        heads: Config of a second stage, which trains heads on the features of the first stage, as `fit-heads` does. It
            has the settings of the group training, as in --heads.epochs 8; null leaves the stage out.
        end_to_end: Config of a last stage, which trains the whole system through mean field and the learned dense CRF.
            The parts `learned_dense`, `learned_weights` and `learned_gate` of `model` are added for this stage. It has
            the settings of the group training, as in --end-to-end.epochs 5; null leaves the stage out.
        copies: Number of augmented copies of each image whose features are kept in memory in the stage `heads`. Null
            means 2.

    Example:
        >>> job = FitJob(Path("camvid"), Path("runs/unary"), training=TrainingConfig(potentials=["unary"]))
        >>> job.train_split, job.val_split
        ('train', 'val')
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
    strategy: Strategy = "ddp"
    budget: str | None = None
    heads: TrainingConfig | None = None
    end_to_end: TrainingConfig | None = None
    copies: int | None = None

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy is {self.strategy!r}, but must be one of {', '.join(get_args(Strategy))}.")
        if self.init is None:
            self.inference.check(self.model.relations)


@dataclass
class FitHeadsJob:
    """A job that trains heads on the features of a trained model or a pretrained backbone; `training.jobs.run` runs it.

    Relation weights that were tuned for other heads or for another graph are reset to the default.

    Args:
        model: Model whose features are used: a folder, or the name of a bundled model. For the features of a pretrained
            backbone, it is a model that `fit` wrote with `training.epochs` 0.
        data: Folder of the data set.
        out: Folder for logs, checkpoints and the model.
        training: Config of the training.
        train_split: Split that the heads are trained on.
        copies: Number of augmented copies of each image whose features are kept.
        graph_stride: Pixels per node of the pairwise graphs; null keeps the graph stride of the model.
        checkpoint: Checkpoint from which the training resumes without a comparison of the settings; "last" is the
            newest checkpoint in OUT. Null also resumes from the newest checkpoint, but ends with an error if the
            settings differ from those of the checkpoint.
        budget: Time for this stage, such as "5m", including the computation of the features; null trains for all epochs
            of the config. If the time is too short, the number of epochs is reduced.
        cache: Folder for the features, in which they are also found by a later run and by other processes that train
            other heads at the same time; null keeps them in memory.

    Example:
        >>> job = FitHeadsJob("runs/unary/model", Path("camvid"), Path("runs/heads"), copies=1)
        >>> job.training.objective
        'piecewise'
    """

    model: str
    data: Path
    out: Path
    training: TrainingConfig = field(default_factory=TrainingConfig)
    train_split: str = "train"
    copies: int = 2
    graph_stride: int | None = None
    checkpoint: str | None = None
    budget: str | None = None
    cache: Path | None = None


Job = FitJob | FitHeadsJob
