"""Commands that make models."""

from pathlib import Path

from contextcrf.training.config import FitHeadsJob, FitJob
from contextcrf.utils.runtime import Precision


def fit(job: FitJob) -> None:
    """Train a model end to end; the result is OUT/model, which `evaluate` and `predict` take.

    Stopped for any reason, the same command goes on exactly where the last epoch ended. Where OUT holds a training with
    other settings, the command stops and names the first that differs.
    """
    from contextcrf.training.jobs import run

    print(f"model written to {run(job)}")


def fit_heads(job: FitHeadsJob) -> None:
    """Train the second stage: freeze a trained trunk, compute its features once, train the pairwise heads on them.

    Stopped for any reason, the same command goes on, as `fit` does.
    """
    from contextcrf.training.jobs import run

    print(f"model written to {run(job)}")


def merge_potentials(unary: str, pairwise: dict[str, str], out: Path) -> None:
    """Merge networks that were trained each for one potential into one model, as in the paper.

    Args:
        unary: the model whose unary potential is taken.
        pairwise: the model of each relation, by its name, as in '{"above": "runs/above"}'.
        out: folder for the model.
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
    """Average the weights of models that were trained on from a common start; often better than each of them.

    Args:
        models: two or more trained models: folders, or names of bundled ones.
        out: folder for the model, with the first one's inference settings.
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
    split: str = "train",
    limit: int = 100,
    precision: Precision = "auto",
    dense: bool = False,
    out: Path | None = None,
) -> None:
    """Choose the relation weights on a split, or the dense CRF; print every trial, before and after.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        data: folder of the data set.
        split: split to choose on. Do not report results of the tuned model on it.
        limit: images to use, spread evenly over the split.
        precision: of the networks.
        dense: choose the parameters of the dense CRF instead.
        out: folder for the tuned model; the model's own folder if null.
    """
    from dataclasses import replace

    from contextcrf.data.layouts import open_dataset
    from contextcrf.data.validation import check_dataset, check_same_classes
    from contextcrf.evaluation.tuning import best_of, tune_dense, tune_relation_weights, warn_about_split
    from contextcrf.modeling.model import load
    from contextcrf.modeling.serialization import find_model, save
    from contextcrf.training.jobs import TUNED
    from contextcrf.utils.runtime import default_device, resolve_precision

    if limit < 1:
        raise ValueError(f"--limit {limit}: expected 1 or more images to choose on")
    resolve_precision(precision)  # warns first if it is slow here
    if out is None and not Path(model).is_dir():
        raise ValueError(f"{model} is a bundled model and is not changed; name a folder with --out")
    folder = out or find_model(model)
    network = load(model).to(default_device())
    if dense and network.dense is not None:
        raise ValueError(f"{model}: its dense CRF is learned; train it with training.objective crf-rnn, not by tuning")
    if not network.pairwise and not dense:
        raise ValueError(f"{model}: the model has no pairwise potential to weight")
    trained_on = warn_about_split(network, data.name, split, find_model(model))
    chosen = open_dataset(data, split).spread(limit)
    check_same_classes(network.classes, chosen.classes)
    check_dataset(chosen)
    trials = (tune_dense if dense else tune_relation_weights)(
        network, chosen, inference=replace(network.inference, precision=precision)
    )
    best = best_of(trials)
    for trial in trials:
        values = {key: "plain sum" if value is None else f"{value:g}" for key, value in trial.settings.items()}
        name = ", ".join(f"{key} {value}" for key, value in values.items()) or "a weight of 1 together"
        marks = ("  <- before" if trial is trials[0] else "") + ("  <- chosen" if trial is best else "")
        print(f"{100 * trial.mean_iou:6.2f}  {name}{marks}")
    before, after = (f"{100 * trial.mean_iou:.2f}" for trial in (trials[0], best))
    print(f"mean IoU on {len(chosen)} images of {split}: {before} -> {after}")
    entry = {"data": data.name, "split": split, "images": len(chosen), "mean_iou": best.mean_iou}
    tuned = replace(best.inference, precision=network.inference.precision)
    save(network, folder, {**network.metadata, "tune-dense" if dense else TUNED: entry}, inference=tuned)
    print(f"model written to {folder}")
    if not trained_on and not dense and all(weight == 0 for weight in tuned.weights(network.pairwise).values()):
        print("relation weights 0: the pairwise terms do not help here, and are switched off")
