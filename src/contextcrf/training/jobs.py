"""Jobs that train a model from a data set on disk and save it. An interrupted job can be resumed at any time."""

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Trainer

from contextcrf.data.image_format import check_same_images
from contextcrf.data.layouts import open_dataset
from contextcrf.data.pairing import masks_digest
from contextcrf.data.validation import check_same_classes, log_skipped, training_pairs
from contextcrf.modeling.serialization import CONFIG, save, weights_digest
from contextcrf.training.budget import plan_within_budget
from contextcrf.training.checkpoints import newest_checkpoint
from contextcrf.training.config import THROUGH_CRF, FitHeadsJob, FitJob, Job
from contextcrf.training.curve import CURVE, draw_curve, read_curve
from contextcrf.training.held_out import HELD_OUT, choose_relation_weights, divide, held_out_positions
from contextcrf.training.history import END_TO_END, next_entry
from contextcrf.training.inputs import (
    TUNED,
    initial_model,
    model_for_heads,
    open_training_images,
    open_validation_images,
)
from contextcrf.training.stages import check_stages, has_stages, stages_of
from contextcrf.training.trainer import fit, fit_heads, make_trainer
from contextcrf.utils.locks import claim
from contextcrf.utils.provenance import Provenance

logger = logging.getLogger(__name__)


class OtherSettingsError(ValueError):
    """An error that is raised if the output folder contains a training run whose settings differ from the job."""


class BusyError(OSError):
    """An error that is raised if another process is doing the same training run."""


def run(job: Job) -> Path:
    """Run a training job. A finished job is not repeated, and an interrupted job resumes from its checkpoint.

    Args:
        job: the job. With a `checkpoint`, the training resumes from it without a comparison of the settings.

    Returns:
        The folder of the trained model. If the job has several stages, this is the model of the last stage.

    Raises:
        OtherSettingsError: the output folder contains a finished or interrupted training run with other settings.
        BusyError: another process is running the same job.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.synthetic import write_scenes
        >>> from contextcrf.training import FitJob, TrainingConfig
        >>> job = FitJob(
        ...     data=write_scenes("scenes", train=2, val=1, height=64, width=96),
        ...     out=Path("run"),
        ...     model=ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,)),
        ...     training=TrainingConfig(epochs=1, batch_size=2, crop=(64, 96), precision="32-true", workers=0),
        ...     val_split=None,
        ...     pretrained=False,
        ... )
        >>> from contextcrf import load
        >>> load(run(job)).metadata["fit"]["split"]
        'train'
    """
    if isinstance(job, FitJob):
        check_stages(job)
        open_validation_images(job)  # an error comes before any work
        if has_stages(job):
            model = job.out / "model"
            for number, (name, stage) in enumerate((stages := stages_of(job)).items(), 1):
                logger.info("Stage %d of %d: %s", number, len(stages), name)
                model = run(stage)
            return model
    if job.budget is not None:
        job = plan_within_budget(job)
    model, provenance, trainer = job.out / "model", provenance_of(job), trainer_of(job)
    done = model / CONFIG
    if job.checkpoint is not None:
        if trainer.is_global_zero:
            provenance.write(job.out)
        _train(job, job.checkpoint, trainer)
        return model
    if not trainer.is_global_zero:
        # The first process holds the lock for all processes of the training, and writes the log.
        if not done.exists():
            resumed = newest_checkpoint(job.out / "checkpoints") is not None
            _train(job, "last" if resumed else None, trainer)
        return model
    # The folder of the model does not exist before the training has finished.
    with claim(done, job.out / ".model.lock") as mine:
        if mine:
            checkpoint = None
            if (found := newest_checkpoint(job.out / "checkpoints")) is not None:
                _check_provenance(job.out, provenance, "started")
                checkpoint = "last"
                logger.info("%s: The training resumes from %s.", job.out, found.name)
            elif (job.out / "checkpoints").exists():
                # The training was interrupted before the end of its first epoch.
                shutil.rmtree(job.out / "checkpoints")
            provenance.write(job.out)
            _train(job, checkpoint, trainer)
        elif done.exists():
            logger.info("%s: The model is already trained.", job.out)
    check_finished(job, provenance)
    return model


def check_finished(job: Job, provenance: Provenance | None = None) -> None:
    """Check that the training of a job has finished with the settings of the job.

    Args:
        job: the job.
        provenance: provenance of the job; None computes it.

    Raises:
        OtherSettingsError: the settings differ; the message names the first difference.
        BusyError: the training has not finished.
    """
    if not (job.out / "model" / CONFIG).exists():
        raise BusyError(
            f"{job.out}: Another process is running this training. Start the command again when that process has ended."
        )
    _check_provenance(job.out, provenance or provenance_of(job), "trained")


def _check_provenance(out: Path, wanted: Provenance, done: str) -> None:
    """Raise an error if the provenance record of a folder differs from the wanted one."""
    if mismatch := wanted.mismatch(out):
        raise OtherSettingsError(f"{out} was {done} {mismatch}. Move the folder away, or choose another --out.")


def provenance_of(job: Job) -> Provenance:
    """Return the record of everything that determines the weights that a job trains.

    An initial model is recorded by the digest of its weights. A data set is recorded by the names of its folder and
    images, its classes, and the content and the format of its masks. The number of workers and the epochs between
    validations do not change the weights and are recorded as constants.
    """
    common = Provenance.of(
        data=job.data.name,
        **_digests(job.data, job.train_split),
        train_split=job.train_split,
        training=replace(job.training, workers=0, val_every=1),
    )
    if isinstance(job, FitHeadsJob):
        model = weights_digest(job.model)
        own = Provenance.of(job="fit-heads", model=model, copies=job.copies, graph_stride=job.graph_stride)
    else:
        # Only these objectives and a learned dense CRF depend on the inference settings.
        used = job.training.objective in THROUGH_CRF or job.model.learned_dense
        own = Provenance.of(
            job="fit",
            model=job.model,
            inference=job.inference if used else None,
            pretrained=job.pretrained,
            init=None if job.init is None else weights_digest(job.init),
        )
    return Provenance({**own.values, **common.values})


def trainer_of(job: Job) -> Trainer:
    """Return the Lightning trainer of a job, which has the rank of this process."""
    if isinstance(job, FitHeadsJob):
        return make_trainer(job.training, job.out)
    return make_trainer(job.training, job.out, job.devices, job.num_nodes, job.strategy)


def _train(job: Job, checkpoint: str | None, trainer: Trainer) -> None:
    """Train the model of a job, and save it in the first process."""
    train, tuned = open_training_images(job), dict[str, Any]()
    if isinstance(job, FitHeadsJob):
        network, name = model_for_heads(job), "fit-heads"
        check_same_classes(network.classes, train.classes)
        check_same_images(network.image_format, train.image_format)
        train, held_out = divide(network, training_pairs(train), job.training)
        fit_heads(network, train, job.training, job.out, job.copies, checkpoint, trainer, job.cache)
        if held_out is not None:
            tuned = {TUNED: {"data": job.data.name, **choose_relation_weights(network, held_out)}}
    else:
        val = open_validation_images(job)
        train = training_pairs(train, val)
        network = initial_model(job, train)
        name = next_entry(network.metadata, END_TO_END if job.training.objective in THROUGH_CRF else "fit")
        check_same_classes(network.classes, train.classes)
        check_same_images(network.image_format, train.image_format)
        fit(network, train, val, job.training, job.out, checkpoint, trainer)
    if trainer.is_global_zero:
        log_skipped(train.broken)
        entry = Provenance.of(data=job.data.name, split=job.train_split, training=job.training).values
        left_out = [] if name == "fit-heads" else held_out_positions(len(train), job.training.held_out)
        if left_out:
            entry[HELD_OUT] = [train.pairs[position][0].name for position in left_out]
        trained = {name: entry} if job.training.epochs else {}
        save(network, job.out / "model", {**network.metadata, **trained, **tuned})
        if curve := read_curve(job.out):
            draw_curve(curve, job.out / CURVE)


def _digests(data: Path, split: str) -> dict[str, str]:
    """Return the classes of a split, and the number of its images with digests of their names and of their masks."""
    images = open_dataset(data, split)
    kind = [] if images.image_format.is_rgb else [images.image_format.describe()]
    listed = "\n".join([*kind, *(image.name for image, _ in images.pairs)])
    return {
        "classes": ", ".join(images.classes.names),
        "images": f"{len(images)} images {hashlib.sha256(listed.encode()).hexdigest()[:16]}",
        "masks": f"with the digest {masks_digest(images)}",
    }
