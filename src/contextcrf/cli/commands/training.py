"""Commands that train, merge and tune models."""

import logging
from pathlib import Path

from contextcrf.training.config import FitHeadsJob, FitJob
from contextcrf.utils.runtime import Precision

logger = logging.getLogger(__name__)


def fit(job: FitJob) -> None:
    """Train a model and write it to OUT/model.

    `contextcrf init` writes a config to start with. Pass it with --config. After an interruption, run the same command
    again to continue. The training resumes exactly after the last completed epoch. If OUT contains a training run with
    other settings, the command ends with an error that names the first difference.

    Args:
        job: Settings of the training, which are the options of the command.

    Example:
        contextcrf fit --data data --out runs/mine
        contextcrf fit --data data --out runs/large --model.backbone resnet50 --training.epochs 50
        contextcrf fit --init runs/mine --data data --out runs/fine --training.loss-at pixels
    """
    from torch import distributed

    from contextcrf.training.jobs import run

    folder = run(job)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        print(f"model written to {folder}")


def fit_heads(job: FitHeadsJob) -> None:
    """Train the pairwise potentials of a model on features that are computed once.

    This is the second stage after `fit`. The feature networks are not changed. By default, all pairwise potentials are
    trained. The unary potential is trained only if `training.potentials` names it. `contextcrf init` writes a config to
    start with. Pass it with --config. After an interruption, run the same command again to continue.

    Args:
        job: Settings of the training, which are the options of the command.

    Example:
        contextcrf fit-heads runs/mine --data data --out runs/heads
        contextcrf fit-heads runs/mine --data data --out runs/heads --training.epochs 20 --copies 4
    """
    from contextcrf.evaluation.tuning import TUNED
    from contextcrf.modeling.serialization import read_model
    from contextcrf.training.jobs import run

    folder = run(job)
    if TUNED not in read_model(folder).metadata:
        logger.warning(
            "The relation weights have their default values, because the network was trained on all images to the end. "
            "Tune them with `contextcrf tune` on images that it was not trained on, or train it with training.held_out."
        )
    print(f"model written to {folder}")


def merge_potentials(unary: str, pairwise: dict[str, str], out: Path) -> None:
    """Merge models, each trained for one potential, into a single model.

    As in the paper, every potential of the result has its own network.

    Args:
        unary: Trained model with the unary potential: a folder, or the name of a bundled model.
        pairwise: Trained model of each relation by the name of the relation, as in '{"above": "runs/above"}'.
        out: Folder for the merged model.

    Example:
        contextcrf merge-potentials --unary runs/unary --pairwise '{"above": "runs/above"}' --out runs/merged
    """
    from contextcrf.modeling.merging import merge_potentials as run
    from contextcrf.modeling.model import load
    from contextcrf.modeling.serialization import save

    print("merging", ", ".join(f"{name} of {path}" for name, path in {"unary": unary, **pairwise}.items()))
    parts = {name: load(path) for name, path in pairwise.items()}
    first = load(unary)
    save(run(first, parts), out, {"unary": first.metadata, **{name: part.metadata for name, part in parts.items()}})
    print(f"model written to {out}")


def average_weights(models: list[str], out: Path) -> None:
    """Average the weights of models that were trained from the same initial weights.

    The average often has a higher mean IoU than each of the models.

    Args:
        models: Two or more trained models with the same config: folders, or names of bundled models.
        out: Folder for the averaged model, which has the inference settings of the first model.

    Example:
        contextcrf average-weights runs/first runs/second --out runs/mean
    """
    from contextcrf.modeling.merging import average_weights as run
    from contextcrf.modeling.model import load
    from contextcrf.modeling.serialization import save

    print(f"averaging the weights of {len(models)} models")
    parts = [load(model) for model in models]
    others = {f"averaged with {number}": part.metadata for number, part in enumerate(parts[1:], 1)}
    save(run(parts), out, {**parts[0].metadata, **others})
    print(f"model written to {out}")


def tune(
    model: str,
    data: Path,
    split: str,
    limit: int = 100,
    precision: Precision = "auto",
    dense: bool = False,
    out: Path | None = None,
) -> None:
    """Tune the relation weights of a model, or its dense CRF, for the highest mean IoU on a split.

    The command prints the mean IoU of every trial and its gain with a 95% confidence interval. It writes the best
    settings to the model. The weights are 0, or the dense CRF is switched off, unless the interval of the gain is above
    0. Tune on images that the model was not trained on, and do not report results on them. The command prints a warning
    if the model was trained on the split.

    Args:
        model: Trained model: a folder, or the name of a bundled model.
        data: Folder of the data set.
        split: Split whose images the settings are chosen on, such as val.
        limit: Largest number of images, at least 2, which are spread evenly over the split.
        precision: Numeric precision of the networks. "auto" is bfloat16 where it is faster, and single precision
            elsewhere.
        dense: Tune the parameters of the dense CRF instead of the relation weights.
        out: Folder for the tuned model. If null, the settings of the given model are replaced.

    Example:
        contextcrf tune runs/heads --data data --split val
        contextcrf tune runs/heads --data data --split val --dense
        contextcrf tune camvid --data CamVid --split val --out runs/tuned
    """
    from dataclasses import replace

    from contextcrf.cli.trials import print_trials
    from contextcrf.data.image_format import check_same_images
    from contextcrf.data.layouts import open_dataset
    from contextcrf.data.validation import check_dataset, check_same_classes
    from contextcrf.evaluation.tuning import (
        TUNED,
        TUNED_DENSE,
        reliable_trial,
        tune_dense,
        tune_relation_weights,
        warn_about_split,
    )
    from contextcrf.modeling.model import load
    from contextcrf.modeling.serialization import find_model, save
    from contextcrf.utils.runtime import default_device, resolve_precision

    if limit < 2:
        raise ValueError(f"--limit is {limit}, but at least 2 images are needed for an interval of the gain.")
    resolve_precision(precision)  # a warning about a slow precision comes first
    if out is None and not Path(model).is_dir():
        raise ValueError(f"{model} is not a folder, and bundled models cannot be changed. Give a folder with --out.")
    folder = out or find_model(model)
    network = load(model).to(default_device())
    if dense and network.dense is not None:
        raise ValueError(
            f"The dense CRF of {model} is learned, so it cannot be tuned. Train it with `contextcrf fit` and "
            "--training.objective crf-rnn."
        )
    if not dense and network.weight_offsets is not None:
        raise ValueError(
            f"The relation weights of {model} are learned, so they cannot be tuned. Train them with `contextcrf fit` "
            "and --training.objective end-to-end."
        )
    if not network.pairwise and not dense:
        raise ValueError(
            f"{model} has no pairwise potentials, so it has no relation weights to tune. Use a model with "
            "relations, or tune the dense CRF with --dense."
        )
    if not dense and not network.trained_relations:
        raise ValueError(
            f"The pairwise potentials of {model} are not trained, so they have no weights to tune. Train them with "
            "`contextcrf fit-heads`, or tune the dense CRF with --dense."
        )
    warn_about_split(network, data.name, split, find_model(model))
    chosen = open_dataset(data, split).spread(limit)
    if len(chosen) < 2:
        raise ValueError(f"The split {split} of {data} has 1 image, but the interval of a gain needs at least 2.")
    check_same_classes(network.classes, chosen.classes)
    check_same_images(network.image_format, chosen.image_format)
    check_dataset(chosen)
    trials = (tune_dense if dense else tune_relation_weights)(
        network, chosen, inference=replace(network.inference, precision=precision)
    )
    best, difference = reliable_trial(trials)
    print_trials(trials, best)
    before, after = (f"{100 * trial.mean_iou:.2f}" for trial in (trials[0], best))
    print(f"mean IoU on {len(chosen)} images of {split}: {before} -> {after}")
    if best.off and dense:
        print("The dense CRF is switched off, because no parameters raise the mean IoU on these images reliably.")
    elif best.off:
        print("All relation weights are 0, because the pairwise terms do not raise the mean IoU reliably.")
    entry = {"data": data.name, "split": split, "images": len(chosen), "mean_iou": best.mean_iou}
    entry |= {"without": difference.first, "interval": [difference.low, difference.high]}
    tuned = replace(best.inference, precision=network.inference.precision)
    save(network, folder, {**network.metadata, TUNED_DENSE if dense else TUNED: entry}, inference=tuned)
    print(f"model written to {folder}")
