"""The training images that the last epochs leave out, and the relation weights that are chosen on them.

A network is overconfident on the images that it was trained on, so relation weights that are tuned on them are too
small. `fit` therefore leaves out a part of the training images in its last epochs. `fit_heads` leaves out the same
images, and the relation weights are tuned on them.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation.tuning import reliable_trial, tune_relation_weights
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.training.config import TrainingConfig
from contextcrf.training.history import last_training

logger = logging.getLogger(__name__)

# The metadata key of the names of the images, in the entry of a training run.
HELD_OUT = "held_out"
# The part of the epochs that have all images.
ALL_IMAGES = 2 / 3
# Fewer images cannot show whether the pairwise terms help.
LEAST = 4


def held_out_positions(images: int, fraction: float) -> list[int]:
    """Return the positions of the images that are held out, evenly spaced.

    Args:
        images: the number of training images.
        fraction: the fraction of the images to hold out, from 0 to 0.25. At least 4 images are held out if the fraction
            is positive, and none if there are fewer than 16 images.

    Example:
        >>> held_out_positions(20, 0.2)
        [2, 7, 12, 17]
        >>> held_out_positions(15, 0.2)
        []
    """
    count = max(LEAST, round(images * fraction)) if fraction else 0
    if 4 * count > images:
        return []
    return [(2 * i + 1) * images // (2 * count) for i in range(count)]


def divide(
    model: ContextCRF, train: SegmentationDataset, config: TrainingConfig
) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """Divide the training images of `fit_heads` into those for the heads and those for the relation weights.

    If the unary is trained on a frozen backbone, `config.held_out` gives the fraction for the relation weights.
    Otherwise, they are the images that the last epochs of the network have left out.

    Args:
        model: the model, whose metadata name these images.
        train: the training images.
        config: config of the training of the heads.

    Returns:
        The images for the heads, and those for the relation weights or None if there are none.
    """
    if config.potentials is not None and UNARY in config.potentials:
        chosen = {train.pairs[i][0].name for i in held_out_positions(len(train), config.held_out)}
    else:
        chosen = set(_names(model.metadata))
    kept = [pair for pair in train.pairs if pair[0].name not in chosen]
    others = [pair for pair in train.pairs if pair[0].name in chosen]
    if len(others) < LEAST or not kept:
        return train, None
    return train.with_pairs(kept, train.skip_broken), train.with_pairs(others, train.skip_broken)


def choose_relation_weights(model: ContextCRF, data: SegmentationDataset) -> dict[str, Any]:
    """Tune the relation weights of a model on held-out images, and set them.

    The weights are 0 unless the pairwise terms raise the mean IoU with a 95% confidence interval above 0.

    Args:
        model: the model. Its inference settings are replaced.
        data: the held-out images.

    Returns:
        The images, the mean IoU without and with the pairwise terms, and the confidence interval, for the metadata.
    """
    trials = tune_relation_weights(model, data)
    best, difference = reliable_trial(trials)
    model.inference = best.inference
    weights = best.inference.weights(model.pairwise)
    shown = ", ".join(f"{name} {'plain sum' if value is None else f'{value:g}'}" for name, value in weights.items())
    if any(value != 0 for value in weights.values()):
        logger.info("Relation weights from %d held-out images: %s. Mean IoU %s.", len(data), shown, difference)
    else:
        logger.info(
            "The relation weights are 0, because no pairwise terms raise the mean IoU on the %d held-out images "
            "reliably. `contextcrf tune` tries them on other images.",
            len(data),
        )
    return {
        "images": len(data),
        "mean_iou": difference.second,
        "without": difference.first,
        "interval": [difference.low, difference.high],
    }


def _names(metadata: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the images that the last epochs of a network have left out."""
    names: Sequence[str] = last_training(metadata).get(HELD_OUT, ())
    return names
