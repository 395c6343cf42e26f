"""The command line. `contextcrf COMMAND --help` tells what each takes; every option may stand in a YAML file."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from jsonargparse import ArgumentParser

from contextcrf.model import ModelConfig
from contextcrf.recipe import Recipe

# Heavy libraries are imported inside the commands: `--help` should not wait for Lightning.

Precision = Literal["32-true", "bf16-mixed"]


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
) -> None:
    """Train a model end to end; end with OUT/model, which `evaluate` and `predict` take.

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
        ckpt_path: "last" goes on exactly where the last checkpoint in OUT was written; or a checkpoint's path.
    """
    import torch

    from contextcrf.data.dataset import open_dataset
    from contextcrf.model import ContextCRF
    from contextcrf.storage import load, save
    from contextcrf.training import augmentation
    from contextcrf.training import fit as run

    _refuse_overwriting(out, ckpt_path)
    train = open_dataset(data, train_split, augmentation(recipe))
    val = open_dataset(data, val_split) if val_split else None
    for part in (train, val) if val else (train,):
        _check(part)
    torch.manual_seed(recipe.seed)
    network = load(init) if init else ContextCRF(model, train.classes, pretrained)
    if model.learned_dense and network.dense is None:
        network.learn_dense(model.dense)
    _same_classes(network, train)
    run(network, train, val, recipe, out, ckpt_path)
    save(network, out / "model", {**network.about, "fit": _about(data, train_split, recipe)})
    print(f"model written to {out / 'model'}")


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

    Args:
        model: trained model: a folder, or the name of a bundled one.
        data: folder of the data set.
        out: folder for logs and the model.
        recipe: how to train; `potentials` names the relations, all of them if null.
        train_split: split to train on.
        views: augmented copies of each image whose features are kept in memory.
        graph_stride: pixels per node of the pairwise graphs; the model's own if null.
        ckpt_path: "last" goes on exactly where the last checkpoint in OUT was written; or a checkpoint's path.
    """
    from contextcrf.data.dataset import open_dataset
    from contextcrf.storage import load, save
    from contextcrf.training import augmentation
    from contextcrf.training import fit_heads as run

    _refuse_overwriting(out, ckpt_path)
    network = load(model).to(_device())
    if graph_stride is not None:
        # Strengths belong to the graph they were tuned on.
        network.config = replace(network.config, graph_stride=graph_stride, strengths={})
    train = open_dataset(data, train_split, augmentation(recipe))
    _same_classes(network, train)
    _check(train)
    run(network, train, recipe, out, views, ckpt_path)
    save(network, out / "model", {**network.about, "fit-heads": _about(data, train_split, recipe)})
    print(f"model written to {out / 'model'}")


def folds(data: Path, out: Path, folds: int = 3, splits: Sequence[str] = ("train", "val")) -> None:
    """Deal a data set to folds for cross-validation: OUT is the same data with splits foldK-train and foldK-test.

    Args:
        data: folder of the data set.
        out: new folder; images and masks are links.
        folds: how many.
        splits: whose images take part.
    """
    from contextcrf.data.folds import write_folds

    write_folds(data, out, folds, splits)
    images = len(list((out / "images").iterdir()))
    print(f"{folds} folds of {images} images written to {out}")


def voc(root: Path, sbd: Path | None = None, download: bool = False) -> None:
    """Make PASCAL VOC 2012 ready: the development kit, and with SBD the 10,582 images of its split train_aug.

    Args:
        root: folder for, or of, the development kit.
        sbd: folder for, or of, the Semantic Boundaries Dataset; without it there is no train_aug.
        download: fetch what is not there, 2 GB for VOC and 1.4 GB for SBD.
    """
    from contextcrf.data.voc import prepare_voc

    print(f"PASCAL VOC 2012 is in {prepare_voc(root, sbd, download)}")


def voc_submission(
    model: str,
    root: Path,
    out: Path,
    split: str = "test",
    competition: Literal["comp5", "comp6"] = "comp6",
    dense: bool = False,
) -> None:
    """Label a split of PASCAL VOC 2012 into an archive that its evaluation server takes.

    Args:
        model: trained model of VOC's classes.
        root: folder of, or above, the development kit with the images of the split.
        out: the archive, .tgz.
        split: "test", or "val" to try it.
        competition: comp5 for networks that have seen VOC's own masks only, comp6 for all others.
        dense: run the dense CRF behind the model.
    """
    from contextcrf.storage import load
    from contextcrf.submission import write_submission

    count = write_submission(load(model).to(_device()), root, out, split, competition, dense)
    print(f"{count} images of {split} labelled, written to {out}")


def assemble(unary: str, pairwise: dict[str, str], out: Path) -> None:
    """Put networks that were trained each for one potential into one model, as in the paper.

    Args:
        unary: the model whose unary potential is taken.
        pairwise: the model of each relation, by its name, as in '{"above": "runs/above/model"}'.
        out: folder for the model.
    """
    from contextcrf.model import assemble as run
    from contextcrf.storage import load, save

    parts = {name: load(path) for name, path in pairwise.items()}
    first = load(unary)
    save(run(first, parts), out, {"unary": first.about, **{name: part.about for name, part in parts.items()}})
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
    from contextcrf.storage import load, save
    from contextcrf.tuning import best_of, tune_dense, tune_strengths

    folder = out or Path(model)
    if out is None and not folder.is_dir():
        raise ValueError(f"{model} is a bundled model and stays as it is; name a folder with --out")
    network = load(model).to(_device())
    if dense and network.dense is not None:
        raise ValueError(f"{model}: its dense CRF is learned; it is trained, with recipe.objective crf-rnn, not tuned")
    if not network.pairwise and not dense:
        raise ValueError(f"{model}: the model has no pairwise potential to weigh")
    chosen = open_dataset(data, split).spread(limit)
    _same_classes(network, chosen)
    _check(chosen)
    trials = (tune_dense if dense else tune_strengths)(network, chosen, precision=precision)
    best = best_of(trials)
    for trial in trials:
        values = {key: "plain sum" if value is None else f"{value:g}" for key, value in trial.settings.items()}
        name = ", ".join(f"{key} {value}" for key, value in values.items()) or "one vote together"
        print(f"{100 * trial.mean_iou:6.2f}  {name}{'  <- chosen' if trial is best else ''}")
    before, after = (f"{100 * trial.mean_iou:.2f}" for trial in (trials[0], best))
    print(f"mean IoU on {len(chosen)} images of {split}: {before} -> {after}")
    if dense:
        network.config.dense.update(best.settings)
    else:
        network.config.strengths = dict(best.settings)
    about = {"data": data.name, "split": split, "images": len(chosen), "mean_iou": best.mean_iou}
    save(network, folder, {**network.about, "tune-dense" if dense else "tune": about})
    print(f"model written to {folder}")


def evaluate(
    model: str,
    data: Path,
    out: Path,
    split: str = "val",
    rows: list[str] | None = None,
    pictures: int = 6,
    precision: Precision = "32-true",
    scales: list[float] = [1.0],  # noqa: B006 - read by the command line, never changed
    flip: bool = False,
) -> None:
    """Measure a model at full resolution: a table on the terminal, OUT/results.json and .md, and pictures.

    OUT/images.npz holds the confusion matrix of every image, for `compare`.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        data: folder of the data set.
        out: folder for the results.
        split: any split of the data set.
        rows: what to evaluate: "unary", names of relations, "crf" (all potentials), "full" (then the dense CRF), or
            several joined by "+". Each potential alone and "crf" if null.
        pictures: images to draw: spread over the split, with the truth and the first and last row.
        precision: of the networks.
        scales: average the marginals of the image at these scales.
        flip: and of the mirrored image.
    """
    import torch
    from rich.console import Console

    from contextcrf.comparison import COUNTS, write_counts
    from contextcrf.data.dataset import open_dataset
    from contextcrf.evaluation import Results, systems
    from contextcrf.evaluation import evaluate as run
    from contextcrf.report import draw
    from contextcrf.storage import load
    from contextcrf.views import Views

    network, views = load(model).to(_device()), Views(scales, flip)
    wanted = systems(network, rows)
    dataset = open_dataset(data, split)
    _same_classes(network, dataset)
    _check(dataset)
    measured = run(network, dataset, wanted, precision, views=views)
    command = ["contextcrf", "evaluate", model, "--data", str(data), "--split", split, "--precision", precision]
    command += ["--out", str(out), *(["--rows", json.dumps(rows)] if rows else [])]
    command += ["--scales", json.dumps(scales), "--flip", json.dumps(flip)] if len(views) > 1 else []
    about = {"data": f"{data.name} {split}, {len(dataset)} images", "command": f"`{shlex.join(command)}`"}
    results = Results(dataset.classes.names, measured, about)
    results.write(out)
    names = [Path(os.path.relpath(path, data)).as_posix() for path, _ in dataset.pairs]
    write_counts(out / COUNTS, names, {row.name: torch.stack(row.images) for row in measured})
    draw(network, dataset.spread(pictures), wanted, results, out, precision)
    Console().print(results.to_rich())
    print(f"written to {out}")


def reproduce(study: str, data: Path, out: Path, rows: list[str] | None = None) -> None:
    """Train and measure the paper's systems and their competitors on a data set; write its tables and figures.

    Give the command again to go on: what is finished is kept. OUT gets table1 to table3 as .md, .tex and .json, with
    the paper's numbers beside those found here, fig6.png to fig10.png, and results.json.

    Args:
        study: "camvid", "voc" (the paper's own), or a YAML file with model and recipe.
        data: folder of the data set.
        out: folder for networks and results.
        rows: of the tables, as in '[unary-3scales, full]'; all if null.
    """
    from rich.console import Console

    from contextcrf.reproduction import Workshop, open_study, rows_of
    from contextcrf.tables import write_all

    wanted, shop = rows_of(rows), Workshop(open_study(study), data, out)
    Console().print(write_all(shop, wanted).to_rich())
    print(f"written to {out}")


def compare(
    first: Path, second: Path, first_row: str | None = None, second_row: str | None = None, block: int = 1
) -> None:
    """Say whether one row beats another on the same images: both mean IoU, the difference and its 95 % interval.

    The interval is a paired bootstrap over images: what another draw of images could change, not another training.

    Args:
        first: folder that `evaluate` wrote.
        second: another, or the same.
        first_row: name of the row in `first`; may be left out where there is but one.
        second_row: name of the row in `second`.
        block: draw so many neighbouring images together; more than 1 for frames of a video, which repeat each other.
    """
    from contextcrf.comparison import compare as run

    print(run(first, second, first_row, second_row, block))


def predict(
    model: str,
    images: list[Path],
    out: Path,
    opacity: float = 0.5,
    dense: bool = False,
    scales: list[float] = [1.0],  # noqa: B006 - read by the command line, never changed
    flip: bool = False,
) -> None:
    """Label images: OUT/STEM.png (palette PNG) and OUT/STEM_overlay.png for each; exit status 1 if any failed.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        images: files and folders.
        out: folder for the results.
        opacity: of the colours in the overlays.
        dense: run the dense CRF behind the model, with the parameters that `tune --dense true` wrote into it.
        scales: average the marginals of each image at these scales.
        flip: and of the mirrored image.
    """
    from contextcrf.prediction import find_files, plan_outputs, predict_files
    from contextcrf.storage import load
    from contextcrf.views import Views

    views = Views(scales, flip)
    files = find_files(images)
    plan_outputs(files, out)  # a clash is told before the model is loaded
    outcome = predict_files(load(model).to(_device()), files, out, opacity, dense, views=views)
    _report(len(files), outcome, "images labelled", out)


def explain(
    model: str, image: Path, row: int, column: int, out: Path, strengths: dict[str, float | None] | None = None
) -> None:
    """Draw which neighbours push one pixel to its label and which away from it.

    Args:
        model: trained model with pairwise potentials: a folder, or the name of a bundled one.
        image: the picture.
        row: of the pixel, from the top.
        column: of the pixel, from the left.
        out: PNG to write: the labels, then for each relation the neighbours, red for the label and blue for the
            runner-up.
        strengths: of the relations, in place of the model's, as in '{"above": 1}': what they would say where tuning
            found it better not to listen to them.
    """
    from contextcrf.data.checks import DECODING_ERRORS
    from contextcrf.pixels import read_picture
    from contextcrf.report import draw_explanation
    from contextcrf.storage import load

    network = load(model).to(_device())
    if not network.pairwise:
        raise ValueError(f"{model}: the model has no pairwise potential to explain")
    network.config = replace(network.config, strengths={**network.config.strengths, **(strengths or {})})
    try:
        pixels = read_picture(image)
    except DECODING_ERRORS as error:
        raise ValueError(f"{image}: could not be read: {error}") from error
    picture = draw_explanation(network, pixels, (row, column))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    print(f"written to {out}")


def refine(
    maps: list[Path],
    images: Path,
    out: Path,
    kind: Literal["probabilities", "logits"] = "probabilities",
    classes: Path | None = None,
    num_classes: int | None = None,
    confidence: float = 0.7,
    void: int = 255,
    spatial_sxy: float = 3,
    spatial_compat: float = 3,
    bilateral_sxy: float = 80,
    bilateral_srgb: float = 13,
    bilateral_compat: float = 10,
    iterations: int = 10,
    marginals: bool = False,
) -> None:
    """Refine the maps of any network with the dense CRF: OUT/STEM.png for each; exit status 1 if any failed.

    Args:
        maps: files or folders: .npy or .npz with floating [K, H, W], or .png label maps.
        images: folder with an image of the same stem for each.
        out: folder to write to.
        kind: what the numbers of .npy and .npz files are.
        classes: a classes.yaml with names and colours.
        num_classes: K of label maps, where there is no classes.yaml.
        confidence: the probability that a label of a label map is right.
        void: the value of a label map that means "unknown".
        spatial_sxy: standard deviation of the spatial kernel, pixels.
        spatial_compat: its weight.
        bilateral_sxy: standard deviation of the bilateral kernel in the image plane, pixels.
        bilateral_srgb: the same in colour, in units of 0..255.
        bilateral_compat: its weight.
        iterations: of mean field.
        marginals: also write OUT/STEM.npy, float32 [K, H, W].
    """
    from contextcrf.classes import Classes
    from contextcrf.crf import DenseCRF
    from contextcrf.prediction import find_files
    from contextcrf.refinement import MAP_SUFFIXES, Maps, pair_up, refine_files

    known = None
    if classes is not None:
        known, void = Classes.from_yaml(classes)
    crf = DenseCRF(spatial_sxy, spatial_compat, bilateral_sxy, bilateral_srgb, bilateral_compat, iterations)
    pairs = pair_up(find_files(maps, MAP_SUFFIXES, "maps"), images)
    reading = Maps(kind, known, num_classes, confidence, void)
    outcome = refine_files(pairs, crf.to(_device()), reading, out, marginals, _device())
    _report(len(pairs), outcome, "maps refined", out)


def demo(out: Path = Path("demo"), epochs: int = 20, train_images: int = 160, val_images: int = 40) -> None:
    """The whole way on scenes that are drawn here: draw, train, tune, evaluate, pictures. A few minutes.

    Args:
        out: folder for everything it makes; what an earlier demo left there is replaced.
        epochs: of training.
        train_images: scenes to train on.
        val_images: scenes to evaluate on.
    """
    from contextcrf.demo import run

    run(out, epochs, train_images, val_images)


def _report(count: int, outcome: Any, done: str, out: Path) -> None:
    print(f"{count - len(outcome.failed)} of {count} {done}, written to {out}")
    if outcome.failed:
        for path, reason in outcome.failed:
            print(f"could not be read: {path}: {reason}", file=sys.stderr)
        raise SystemExit(1)


def _check(dataset: Any) -> None:
    from contextcrf.data.checks import check_pairs

    check_pairs(dataset.pairs, len(dataset.classes), dataset.void)


def _same_classes(network: Any, dataset: Any) -> None:
    ours, theirs = network.classes.names, dataset.classes.names
    if ours != theirs:
        raise ValueError(f"the model knows the classes {', '.join(ours)}; the data have {', '.join(theirs)}")


def _device() -> Any:
    """Where networks run: the accelerator if there is one."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _refuse_overwriting(out: Path, ckpt_path: str | None) -> None:
    if (out / "checkpoints").exists() and ckpt_path is None:
        raise FileExistsError(f"{out} holds checkpoints: go on with --ckpt_path last, or choose another --out")


def _about(data: Path, split: str, recipe: Recipe) -> dict[str, Any]:
    return {"data": data.name, "split": split, "recipe": recipe.to_dict()}


# Each command with the arguments that stand without a name in front.
COMMANDS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "fit": (fit, ()),
    "fit-heads": (fit_heads, ("model",)),
    "folds": (folds, ("data",)),
    "voc": (voc, ("root",)),
    "voc-submission": (voc_submission, ("model", "root")),
    "assemble": (assemble, ()),
    "tune": (tune, ("model",)),
    "evaluate": (evaluate, ("model",)),
    "reproduce": (reproduce, ("study",)),
    "compare": (compare, ("first", "second")),
    "predict": (predict, ("model", "images")),
    "explain": (explain, ("model", "image")),
    "refine": (refine, ("maps",)),
    "demo": (demo, ()),
}


def build_parser() -> ArgumentParser:
    """The parser of the whole command line, made from the signatures and docstrings of the commands."""
    parser = ArgumentParser(prog="contextcrf", description="Semantic segmentation with deep structured models.")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, (function, positional) in COMMANDS.items():
        documentation = docstring_parser.parse(function.__doc__ or "")
        help_of = {parameter.arg_name: parameter.description for parameter in documentation.params}
        command = ArgumentParser(description=documentation.short_description)
        command.add_argument("--config", action="config", help="YAML file with any of the options below")
        for argument in positional:
            kind = function.__annotations__[argument]
            if kind == list[Path]:
                command.add_argument(argument, type=Path, nargs="+", help=help_of[argument])
            else:
                command.add_argument(argument, type=kind, help=help_of[argument])
        command.add_function_arguments(function, skip=set(positional), as_group=False)
        commands.add_subcommand(name, command, help=documentation.short_description)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `contextcrf`. An error of the user's is one line; CONTEXTCRF_TRACEBACK=1 shows where it arose."""
    # Lightning tells of devices it does not use and of its own products.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    parser = build_parser()
    options = parser.parse_args(list(sys.argv[1:] if arguments is None else arguments))
    function = COMMANDS[options.command][0]
    try:
        values = parser.instantiate(options)[options.command].as_dict()
        values.pop("config")
        function(**values)
    except (ValueError, OSError) as error:
        if os.environ.get("CONTEXTCRF_TRACEBACK"):
            raise
        print(f"contextcrf: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
