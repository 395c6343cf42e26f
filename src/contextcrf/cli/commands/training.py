"""Making models."""

from pathlib import Path

from contextcrf.data.preparation import check, device, same_classes
from contextcrf.modeling.config import ModelConfig
from contextcrf.training.config import Precision, Recipe


def fit(
    data: Path,
    out: Path,
    model: ModelConfig,
    recipe: Recipe,
    train_split: str = "train",
    val_split: str | None = "val",
    pretrained: bool | Path = True,
    init: str | None = None,
    ckpt_path: str | None = None,
    devices: int = 1,
    nodes: int = 1,
) -> None:
    """Train a model end to end; end with OUT/model, which `evaluate` and `predict` take.

    Stopped, by whatever, the same command goes on exactly where the last epoch ended. Where OUT holds a training with
    other settings it says which.

    Args:
        data: folder of the data set.
        out: folder for logs, checkpoints and the model.
        model: the shape of the model.
        recipe: how to train.
        train_split: split to train on.
        val_split: split to watch; null for none.
        pretrained: start the backbone from ImageNet weights; or a file of them, as torchvision or timm have them.
        init: a trained model to start from instead; its shape replaces `model`, but for a dense CRF that is to be
            learned.
        ckpt_path: go on from a checkpoint even if its settings were others; "last" is the newest in OUT.
        devices: that share a step's images, on this machine; a process each.
        nodes: machines, with so many devices each; started by torchrun or SLURM.
    """
    from contextcrf.training.jobs import train

    arguments = {"data": data, "out": out, "model": model, "recipe": recipe, "train_split": train_split}
    arguments |= {"val_split": val_split, "pretrained": pretrained, "init": init, "ckpt_path": ckpt_path}
    arguments |= {"devices": devices, "nodes": nodes}
    print(f"model written to {train('fit', arguments)}")


def fit_heads(
    model: str,
    data: Path,
    out: Path,
    recipe: Recipe,
    train_split: str = "train",
    views: int = 2,
    graph_stride: int | None = None,
    ckpt_path: str | None = None,
) -> None:
    """Second stage: freeze a trained trunk, compute its features once, train the pairwise heads on them.

    Stopped, the same command goes on, as `fit` does.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        data: folder of the data set.
        out: folder for logs and the model.
        recipe: how to train; `potentials` names the relations, all of them if null.
        train_split: split to train on.
        views: augmented copies of each image whose features are kept in memory.
        graph_stride: pixels per node of the pairwise graphs; the model's own if null.
        ckpt_path: go on from a checkpoint even if its settings were others; "last" is the newest in OUT.
    """
    from contextcrf.training.jobs import train

    arguments = {"model": model, "data": data, "out": out, "recipe": recipe, "train_split": train_split}
    arguments |= {"views": views, "graph_stride": graph_stride, "ckpt_path": ckpt_path}
    print(f"model written to {train('fit-heads', arguments)}")


def assemble(unary: str, pairwise: dict[str, str], out: Path) -> None:
    """Put networks that were trained each for one potential into one model, as in the paper.

    Args:
        unary: the model whose unary potential is taken.
        pairwise: the model of each relation, by its name, as in '{"above": "runs/above/model"}'.
        out: folder for the model.
    """
    from contextcrf.modeling.merging import assemble as run
    from contextcrf.modeling.serialization import load, save

    print("putting together", ", ".join(f"{name} of {path}" for name, path in {"unary": unary, **pairwise}.items()))
    parts = {name: load(path) for name, path in pairwise.items()}
    first = load(unary)
    save(run(first, parts), out, {"unary": first.about, **{name: part.about for name, part in parts.items()}})
    print(f"model written to {out}")


def average(models: list[str], out: Path) -> None:
    """Average the weights of models that were trained on from a common beginning; often better than each of them.

    Args:
        models: two or more trained models: folders, or names of bundled ones.
        out: folder for the model, with the first one's strengths and dense CRF.
    """
    from contextcrf.modeling.merging import average as run
    from contextcrf.modeling.serialization import load, save

    print(f"averaging the weights of {len(models)} models")
    parts = [load(model) for model in models]
    others = {f"averaged with {number}": part.about for number, part in enumerate(parts[1:], 1)}
    save(run(parts), out, {**parts[0].about, **others})
    print(f"model written to {out}")


def tune(
    model: str,
    data: Path,
    split: str = "train",
    limit: int = 100,
    precision: Precision = "32-true",
    dense: bool = False,
    out: Path | None = None,
) -> None:
    """Choose the strength of the pairwise terms on a split, or the dense CRF; print every trial, before and after.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        data: folder of the data set.
        split: split to choose on. Do not report results of the tuned model on it.
        limit: images to use, spread evenly over the split.
        precision: of the networks.
        dense: choose the parameters of the dense CRF behind the model instead.
        out: folder for the tuned model; the model's own folder if null.
    """
    from contextcrf.data.dataset import open_dataset
    from contextcrf.evaluation.tuning import adopt, best_of, tune_dense, tune_strengths
    from contextcrf.modeling.serialization import folder_of, load, save

    if out is None and not Path(model).is_dir():
        raise ValueError(f"{model} is a bundled model and stays as it is; name a folder with --out")
    folder = out or folder_of(model)
    network = load(model).to(device())
    if dense and network.dense is not None:
        raise ValueError(f"{model}: its dense CRF is learned; it is trained, with recipe.objective crf-rnn, not tuned")
    if not network.pairwise and not dense:
        raise ValueError(f"{model}: the model has no pairwise potential to weigh")
    chosen = open_dataset(data, split).spread(limit)
    same_classes(network, chosen)
    check(chosen)
    trials = (tune_dense if dense else tune_strengths)(network, chosen, precision=precision)
    best = best_of(trials)
    for trial in trials:
        values = {key: "plain sum" if value is None else f"{value:g}" for key, value in trial.settings.items()}
        name = ", ".join(f"{key} {value}" for key, value in values.items()) or "one vote together"
        marks = ("  <- before" if trial is trials[0] else "") + ("  <- chosen" if trial is best else "")
        print(f"{100 * trial.mean_iou:6.2f}  {name}{marks}")
    before, after = (f"{100 * trial.mean_iou:.2f}" for trial in (trials[0], best))
    print(f"mean IoU on {len(chosen)} images of {split}: {before} -> {after}")
    adopt(network, best, dense)
    about = {"data": data.name, "split": split, "images": len(chosen), "mean_iou": best.mean_iou}
    save(network, folder, {**network.about, "tune-dense" if dense else "tune": about})
    print(f"model written to {folder}")
    if split == network.about.get("fit", {}).get("split"):
        print(f"the network was trained on {split}: its unary is too sure of that, and strengths come out too low")
    elif not dense and not any(best.settings.get(name, 1.0) != 0 for name in network.pairwise):
        print("strength 0: the neighbors are of no use here, the unary speaks alone")
