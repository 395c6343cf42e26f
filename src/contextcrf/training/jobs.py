"""Trainings from data to a model on disk, which can be stopped at any time and asked for again."""

import hashlib
import logging
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning import Trainer

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.data.validation import check_same_classes, log_skipped, training_pairs
from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.model import ContextCRF, load
from contextcrf.modeling.serialization import CONFIG, save, weights_digest
from contextcrf.training.checkpoints import newest_checkpoint
from contextcrf.training.config import TrainingConfig
from contextcrf.training.trainer import augmentation, fit, fit_heads, make_trainer
from contextcrf.utils.locks import claim
from contextcrf.utils.provenance import Provenance
from contextcrf.utils.runtime import default_device

logger = logging.getLogger(__name__)

# Keys of the metadata of relation weights that were tuned, by the command and in a study.
TUNED = ("tune", "tuned")


class OtherSettingsError(ValueError):
    """A folder holds a training with other settings than those that are asked for."""


class BusyError(OSError):
    """Another process is working on a training."""


@dataclass
class FitJob:
    """A training end to end; `run` does it.

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
        checkpoint: go on from a checkpoint even if its settings were others; "last" is the newest in OUT.
        devices: devices of this machine that share a step's images, with a process for each.
        num_nodes: machines with so many devices each; torchrun or SLURM starts the processes.
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

    def provenance(self) -> Provenance:
        """Everything that decides the trained weights.

        A model that the training starts from counts by its weights, data by the names of their folder, classes and
        images.
        """
        return Provenance.of(
            job="fit",
            data=self.data.name,
            images=_images_digest(self.data, self.train_split),
            train_split=self.train_split,
            model=self.model,
            training=_decisive(self.training),
            # The objective trains through inference, and a learned dense CRF starts from its parameters.
            inference=self.inference if self.training.objective == "crf-rnn" or self.model.learned_dense else None,
            pretrained=self.pretrained,
            init=None if self.init is None else weights_digest(self.init),
        )

    def trainer(self) -> Trainer:
        """The Lightning trainer, which has the rank of this process among those of the training."""
        return make_trainer(self.training, self.out, self.devices, self.num_nodes)

    def train(self, checkpoint: str | None, trainer: Trainer) -> None:
        """Train and write the model."""
        train = _open(self.data, self.train_split, self.training)
        val = open_dataset(self.data, self.val_split) if self.val_split else None
        train = training_pairs(train, val)
        torch.manual_seed(self.training.seed)
        if self.init is None:
            network = ContextCRF(self.model, train.classes, self.pretrained, self.inference)
        else:
            network = load(self.init)
            if self.model.learned_dense and network.dense is None:
                inference = replace(network.inference, dense=self.inference.dense)
                network = with_config(network, replace(network.config, learned_dense=True), inference)
        check_same_classes(network.classes, train.classes)
        fit(network, train, val, self.training, self.out, checkpoint, trainer)
        if trainer.is_global_zero:
            log_skipped(train.broken)
            entry = Provenance.of(data=self.data.name, split=self.train_split, training=self.training)
            save(network, self.out / "model", {**network.metadata, "fit": entry.values})


@dataclass
class FitHeadsJob:
    """The second stage of a training; `run` does it.

    Relation weights that were tuned for other heads or another graph are reset.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        data: folder of the data set.
        out: folder for logs and the model.
        training: how to train; `potentials` names the relations, null is all of them.
        train_split: split to train on.
        copies: augmented copies of each image whose features are kept in memory.
        graph_stride: pixels per node of the pairwise graphs; the model's own if null.
        checkpoint: go on from a checkpoint even if its settings were others; "last" is the newest in OUT.
    """

    model: str
    data: Path
    out: Path
    training: TrainingConfig = field(default_factory=TrainingConfig)
    train_split: str = "train"
    copies: int = 2
    graph_stride: int | None = None
    checkpoint: str | None = None

    def provenance(self) -> Provenance:
        """Everything that decides the trained weights, as in `FitJob.provenance`."""
        return Provenance.of(
            job="fit-heads",
            data=self.data.name,
            images=_images_digest(self.data, self.train_split),
            train_split=self.train_split,
            model=weights_digest(self.model),
            training=_decisive(self.training),
            copies=self.copies,
            graph_stride=self.graph_stride,
        )

    def trainer(self) -> Trainer:
        """A trainer of one process."""
        return make_trainer(self.training, self.out)

    def train(self, checkpoint: str | None, trainer: Trainer) -> None:
        """Train and write the model."""
        network = load(self.model)
        metadata = {key: value for key, value in network.metadata.items() if key not in TUNED}
        if self.graph_stride is not None or metadata != network.metadata:
            stride = network.config.graph_stride if self.graph_stride is None else self.graph_stride
            config = replace(network.config, graph_stride=stride)
            network = with_config(network, config, replace(network.inference, relation_weights={}))
        train = _open(self.data, self.train_split, self.training)
        check_same_classes(network.classes, train.classes)
        train = training_pairs(train)
        fit_heads(network.to(default_device()), train, self.training, self.out, self.copies, checkpoint, trainer)
        log_skipped(train.broken)
        entry = Provenance.of(data=self.data.name, split=self.train_split, training=self.training)
        save(network, self.out / "model", {**metadata, "fit-heads": entry.values})


Job = FitJob | FitHeadsJob


def run(job: Job) -> Path:
    """Train unless the result is there, from the newest checkpoint where there is one.

    Args:
        job: with a `checkpoint` the training goes on from it, whatever its settings were.

    Returns:
        The trained model's folder.

    Raises:
        OtherSettingsError: the folder holds a training, finished or not, with other settings.
        BusyError: another process is working on it.
    """
    model, provenance, trainer = job.out / "model", job.provenance(), job.trainer()
    done = model / CONFIG
    if job.checkpoint is not None:
        if trainer.is_global_zero:
            provenance.write(job.out)
        job.train(job.checkpoint, trainer)
        return model
    if not trainer.is_global_zero:
        # The first process has claimed the training for all of them, and logs what happens.
        if not done.exists():
            resumed = newest_checkpoint(job.out / "checkpoints") is not None
            job.train("last" if resumed else None, trainer)
        return model
    with claim(done) as mine:
        if mine:
            checkpoint = None
            if (found := newest_checkpoint(job.out / "checkpoints")) is not None:
                _check_provenance(job.out, provenance, "begun")
                checkpoint = "last"
                logger.info("%s: going on from %s", job.out, found.name)
            elif (job.out / "checkpoints").exists():
                # Stopped before its first epoch had ended.
                shutil.rmtree(job.out / "checkpoints")
            provenance.write(job.out)
            job.train(checkpoint, trainer)
        elif done.exists():
            logger.info("%s: already trained; nothing is left to do", job.out)
    check_finished(job, provenance)
    return model


def check_finished(job: Job, provenance: Provenance | None = None) -> None:
    """Check that a training has ended and had the job's settings.

    Raises:
        OtherSettingsError: its settings were others; the message names the first that differs.
        BusyError: it has not ended.
    """
    if not (job.out / "model" / CONFIG).exists():
        raise BusyError(f"{job.out}: another process is working on this training; start again when it has ended")
    _check_provenance(job.out, provenance or job.provenance(), "trained")


def _check_provenance(out: Path, wanted: Provenance, done: str) -> None:
    found = Provenance.read(out)
    if found is None:
        raise OtherSettingsError(f"{out}: its settings were not recorded; move it away, or choose another folder")
    if (difference := found.difference(wanted)) is not None:
        name, there, here = difference
        raise OtherSettingsError(
            f"{out}: was {done} with {name} {there}, not {here}; move it away, or choose another folder"
        )


def _images_digest(data: Path, split: str) -> str:
    """The number of a split's images, and a digest of its classes and of the images' names."""
    images = open_dataset(data, split)
    listed = "\n".join([*images.classes.names, *(image.name for image, _ in images.pairs)])
    return f"{len(images)} images {hashlib.sha256(listed.encode()).hexdigest()[:16]}"


def _decisive(config: TrainingConfig) -> TrainingConfig:
    """The configuration without the settings that change no weights."""
    return replace(config, workers=0, val_every=1)


def _open(data: Path, split: str, config: TrainingConfig) -> SegmentationDataset:
    dataset = open_dataset(data, split, augmentation(config))
    dataset.skip_broken = config.broken_images == "skip"
    return dataset
