"""Trainings from data to a model on disk, which can be stopped at any time and asked for again."""

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from lightning import Trainer

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.data.validation import check_same_classes, log_skipped, training_pairs
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.model import ContextCRF, load
from contextcrf.modeling.serialization import CONFIG, save, weights_digest
from contextcrf.training.checkpoints import newest_checkpoint
from contextcrf.training.config import FitHeadsJob, FitJob, Job, TrainingConfig
from contextcrf.training.trainer import augmentation, fit, fit_heads, make_trainer
from contextcrf.utils.locks import claim
from contextcrf.utils.provenance import Provenance
from contextcrf.utils.runtime import default_device

logger = logging.getLogger(__name__)

# The key of the metadata of relation weights that were tuned.
TUNED = "tune"


class OtherSettingsError(ValueError):
    """A folder holds a training with other settings than those that are asked for."""


class BusyError(OSError):
    """Another process is working on a training."""


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
    model, provenance, trainer = job.out / "model", provenance_of(job), trainer_of(job)
    done = model / CONFIG
    if job.checkpoint is not None:
        if trainer.is_global_zero:
            provenance.write(job.out)
        _train(job, job.checkpoint, trainer)
        return model
    if not trainer.is_global_zero:
        # The first process has claimed the training for all of them, and logs what happens.
        if not done.exists():
            resumed = newest_checkpoint(job.out / "checkpoints") is not None
            _train(job, "last" if resumed else None, trainer)
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
            _train(job, checkpoint, trainer)
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
    _check_provenance(job.out, provenance or provenance_of(job), "trained")


def _check_provenance(out: Path, wanted: Provenance, done: str) -> None:
    if mismatch := wanted.mismatch(out):
        raise OtherSettingsError(f"{out}: was {done} {mismatch}; move it away, or choose another folder")


def provenance_of(job: Job) -> Provenance:
    """Everything that decides the weights that a job trains.

    A model that the training starts from counts by its weights, data by the names of their folder, classes and images.
    Settings that change no weights do not count: who loads the data, and when they are validated.
    """
    common = Provenance.of(
        data=job.data.name,
        images=_images_digest(job.data, job.train_split),
        train_split=job.train_split,
        training=replace(job.training, workers=0, val_every=1),
    )
    if isinstance(job, FitHeadsJob):
        model = weights_digest(job.model)
        own = Provenance.of(job="fit-heads", model=model, copies=job.copies, graph_stride=job.graph_stride)
    else:
        # The objective trains through inference, and a learned dense CRF starts from its parameters.
        used = job.training.objective == "crf-rnn" or job.model.learned_dense
        own = Provenance.of(
            job="fit",
            model=job.model,
            inference=job.inference if used else None,
            pretrained=job.pretrained,
            init=None if job.init is None else weights_digest(job.init),
        )
    return Provenance({**own.values, **common.values})


def trainer_of(job: Job) -> Trainer:
    """The Lightning trainer of a job, which has the rank of this process among those of the training."""
    if isinstance(job, FitHeadsJob):
        return make_trainer(job.training, job.out)
    return make_trainer(job.training, job.out, job.devices, job.num_nodes)


def _train(job: Job, checkpoint: str | None, trainer: Trainer) -> None:
    """Train, and write the model in the first process."""
    train = _open(job.data, job.train_split, job.training)
    if isinstance(job, FitHeadsJob):
        network, name = _load_for_heads(job), "fit-heads"
        check_same_classes(network.classes, train.classes)
        train = training_pairs(train)
        fit_heads(network, train, job.training, job.out, job.copies, checkpoint, trainer)
    else:
        val = open_dataset(job.data, job.val_split) if job.val_split else None
        train = training_pairs(train, val)
        torch.manual_seed(job.training.seed)
        network, name = _start(job, train), "fit"
        check_same_classes(network.classes, train.classes)
        fit(network, train, val, job.training, job.out, checkpoint, trainer)
    if trainer.is_global_zero:
        log_skipped(train.broken)
        entry = Provenance.of(data=job.data.name, split=job.train_split, training=job.training)
        save(network, job.out / "model", {**network.metadata, name: entry.values})


def _start(job: FitJob, train: SegmentationDataset) -> ContextCRF:
    """The model that a training begins with."""
    if job.init is None:
        return ContextCRF(job.model, train.classes, job.pretrained, job.inference)
    network = load(job.init)
    if job.model.learned_dense and network.dense is None:
        inference = replace(network.inference, dense=job.inference.dense)
        network = with_config(network, replace(network.config, learned_dense=True), inference)
    return network


def _load_for_heads(job: FitHeadsJob) -> ContextCRF:
    """The model whose heads are trained, without relation weights that were tuned for others or for another graph."""
    network = load(job.model)
    tuned = network.metadata.pop(TUNED, None) is not None
    if job.graph_stride is not None or tuned:
        stride = network.config.graph_stride if job.graph_stride is None else job.graph_stride
        config = replace(network.config, graph_stride=stride)
        network = with_config(network, config, replace(network.inference, relation_weights={}))
    return network.to(default_device())


def _images_digest(data: Path, split: str) -> str:
    """The number of a split's images, and a digest of its classes and of the images' names."""
    images = open_dataset(data, split)
    listed = "\n".join([*images.classes.names, *(image.name for image, _ in images.pairs)])
    return f"{len(images)} images {hashlib.sha256(listed.encode()).hexdigest()[:16]}"


def _open(data: Path, split: str, config: TrainingConfig) -> "SegmentationDataset":
    dataset = open_dataset(data, split, augmentation(config))
    dataset.skip_broken = config.broken_images == "skip"
    return dataset
