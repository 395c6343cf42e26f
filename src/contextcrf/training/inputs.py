"""The model and the images with which a training job starts."""

from dataclasses import replace

import torch

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import known_splits, open_dataset
from contextcrf.evaluation.tuning import TUNED
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.model import ContextCRF, load
from contextcrf.training.config import ADDED, FitHeadsJob, FitJob, Job
from contextcrf.training.trainer import augmentation
from contextcrf.utils.errors import DataError
from contextcrf.utils.runtime import default_device


def open_training_images(job: Job) -> SegmentationDataset:
    """Open the training split of a job with the augmentation of its config."""
    dataset = open_dataset(job.data, job.train_split, augmentation(job.training))
    dataset.skip_broken = job.training.broken_images == "skip"
    return dataset


def open_validation_images(job: FitJob) -> SegmentationDataset | None:
    """Open the validation split of a job; None if it has none.

    Raises:
        DataError: The split does not exist. The message has the ways out.
    """
    if job.val_split is None:
        return None
    if job.val_split not in (found := known_splits(job.data)):
        raise DataError(
            f"The split {job.val_split} of {job.data} does not exist, but the training is validated on it. Choose one "
            f"of {', '.join(found)} with --val-split, or train without validation with --val-split null."
        )
    return open_dataset(job.data, job.val_split)


def initial_model(job: FitJob, train: SegmentationDataset) -> ContextCRF:
    """Return the initial model of a training run on images. Random weights follow from the seed of the config."""
    torch.manual_seed(job.training.seed)
    if job.init is None:
        return ContextCRF(job.model, train.classes, job.pretrained, job.inference, train.image_format)
    network = load(job.init)
    inference, default = network.inference, ModelConfig()
    if job.model.learned_dense and network.dense is None:
        inference = replace(inference, dense=job.inference.dense)
    # A default of the job keeps the setting of the trained model.
    added = {name: value for name in ADDED if (value := getattr(job.model, name)) != getattr(default, name)}
    return with_config(network, replace(network.config, **added), inference) if added else network


def model_for_heads(job: FitHeadsJob) -> ContextCRF:
    """Load the model of a job, without relation weights that were tuned for other heads or another graph."""
    network = load(job.model)
    tuned = network.metadata.pop(TUNED, None) is not None
    if job.graph_stride is not None or tuned or _has_learned_weights(network):
        stride = network.config.graph_stride if job.graph_stride is None else job.graph_stride
        config = replace(network.config, graph_stride=stride, learned_weights=False, learned_gate=False)
        network = with_config(network, config, replace(network.inference, relation_weights={}))
    return network.to(default_device())


def _has_learned_weights(network: ContextCRF) -> bool:
    return network.weight_offsets is not None or network.gate is not None
