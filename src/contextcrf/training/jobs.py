"""Trainings from data to a model on disk, and trainings that may be asked for again and again."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.data.preparation import device, report_left_out, same_classes, without_broken
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import WEIGHTS, folder_of, load, save
from contextcrf.training import augmentation, fit, fit_heads
from contextcrf.training.checkpoints import newest
from contextcrf.training.config import Recipe
from contextcrf.training.processes import rank
from contextcrf.utils.locks import claim

_SETTINGS = "settings.json"
# What is noted of strengths that were tuned, by the command and in a study.
_TUNED = ("tune", "tuned")


def run_fit(
    data: Path,
    out: Path,
    model: ModelConfig,
    recipe: Recipe,
    train_split: str = "train",
    val_split: str | None = "val",
    pretrained: bool | Path = True,
    init: str | Path | None = None,
    ckpt_path: str | None = None,
    devices: int = 1,
    nodes: int = 1,
) -> Path:
    """The command `fit`, whose arguments these are; returns the model's folder."""
    first = rank(devices * nodes) == 0
    if first:
        _refuse_overwriting(out, ckpt_path)
    train = _open(data, train_split, recipe)
    val = open_dataset(data, val_split) if val_split else None
    train = without_broken(train, val)
    torch.manual_seed(recipe.seed)
    network = load(init) if init else ContextCRF(model, train.classes, pretrained)
    if model.learned_dense and network.dense is None:
        network.learn_dense(model.dense)
    same_classes(network, train)
    fit(network, train, val, recipe, out, ckpt_path, devices=devices, nodes=nodes)
    if not first:
        return out / "model"
    report_left_out(train.broken)
    save(network, out / "model", {**network.about, "fit": _about(data, train_split, recipe)})
    return out / "model"


def run_fit_heads(
    model: str | Path,
    data: Path,
    out: Path,
    recipe: Recipe,
    train_split: str = "train",
    views: int = 2,
    graph_stride: int | None = None,
    ckpt_path: str | None = None,
) -> Path:
    """The command `fit-heads`, whose arguments these are; returns the model's folder.

    Strengths that were tuned, for other heads or another graph, are forgotten: new heads speak with one vote.
    """
    _refuse_overwriting(out, ckpt_path)
    network = load(model).to(device())
    about = {key: value for key, value in network.about.items() if key not in _TUNED}
    if graph_stride is not None or about != network.about:
        stride = network.config.graph_stride if graph_stride is None else graph_stride
        network.config = replace(network.config, graph_stride=stride, strengths={})
    train = _open(data, train_split, recipe)
    same_classes(network, train)
    train = without_broken(train)
    fit_heads(network, train, recipe, out, views, ckpt_path)
    report_left_out(train.broken)
    save(network, out / "model", {**about, "fit-heads": _about(data, train_split, recipe)})
    return out / "model"


TRAINING: dict[str, Callable[..., Path]] = {"fit": run_fit, "fit-heads": run_fit_heads}


class OtherSettingsError(ValueError):
    """A folder holds a training of other settings than those that are asked for."""


class BusyError(OSError):
    """Another process is at a training."""


def train(name: str, arguments: Mapping[str, Any]) -> Path:
    """A training as the command line has it: `train_once`, or from the checkpoint that is named, whatever its settings.

    Args, returns and raises as `train_once`.
    """
    out = Path(arguments["out"])
    if not arguments["ckpt_path"]:
        done = (out / "model" / WEIGHTS).exists()
        model = train_once(name, arguments)
        if done and _rank(arguments) == 0:
            print(f"{out}: trained before; nothing was left to do")
        return model
    if _rank(arguments) == 0:
        _note(out, settings_of(name, arguments))
    return TRAINING[name](**arguments)


def settings_of(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what comes out of a training, as plain values.

    A model that it starts from counts by its weights, data by the names of their folder, classes and images. What the
    model needs for prediction alone does not count.
    """
    apart = ("out", "val_split", "ckpt_path", "devices", "nodes")
    result = {key: value for key, value in arguments.items() if key not in apart}
    images = open_dataset(arguments["data"], arguments["train_split"])
    listed = "\n".join([*images.classes.names, *(image.name for image, _ in images.pairs)])
    result["data"] = Path(arguments["data"]).name
    result["images"] = f"{len(images)} images {hashlib.sha256(listed.encode()).hexdigest()[:16]}"
    if name == "fit":
        shape = asdict(arguments["model"])
        # Through its dense CRF a network meets all of its inference in training.
        idle = () if shape["learned_dense"] else ("strengths", "iterations", "dense")
        result["model"] = {key: value for key, value in shape.items() if key not in idle}
    for key in ("init",) if name == "fit" else ("model",):
        if result.get(key) is not None:
            weights = (folder_of(result[key]) / WEIGHTS).read_bytes()
            result[key] = f"weights {hashlib.sha256(weights).hexdigest()[:16]}"
    # Who loads the data does not matter either.
    result["recipe"] = {key: value for key, value in asdict(arguments["recipe"]).items() if key != "workers"}
    return json.loads(json.dumps({"training": name, **result}, default=str))


def train_once(name: str, arguments: Mapping[str, Any]) -> Path:
    """Train unless the result is there, from the last checkpoint where there is one.

    Args:
        name: in `TRAINING`.
        arguments: of that function.

    Returns:
        The trained model's folder.

    Raises:
        OtherSettingsError: what is there was trained, or begun, with other settings.
        BusyError: another process is at it.
    """
    out = Path(arguments["out"])
    model, settings = out / "model", settings_of(name, arguments)
    if _rank(arguments) > 0:
        if (model / WEIGHTS).exists():
            return model  # trained before; the first process says so
        # The first process has claimed it for all.
        begun = newest(out / "checkpoints") is not None
        return TRAINING[name](**{**arguments, "ckpt_path": "last" if begun else None})
    with claim(model / WEIGHTS) as mine:
        if mine:
            resume = None
            if (found := newest(out / "checkpoints")) is not None:
                _compare(out, settings, "begun")
                resume = "last"
                print(f"{out}: begun before; going on from {found.name}")
            elif (out / "checkpoints").exists():
                # Stopped before its first epoch had ended.
                shutil.rmtree(out / "checkpoints")
            _note(out, settings)
            TRAINING[name](**{**arguments, "ckpt_path": resume})
    _check(out, settings)
    return model


def _rank(arguments: Mapping[str, Any]) -> int:
    return rank(arguments.get("devices", 1) * arguments.get("nodes", 1))


def check_trained(name: str, arguments: Mapping[str, Any]) -> None:
    """Whether a training has ended and was as is asked for.

    Raises:
        OtherSettingsError: it was not; the message names the first setting that differs.
        BusyError: it has not ended.
    """
    _check(Path(arguments["out"]), settings_of(name, arguments))


def _check(out: Path, settings: Mapping[str, Any]) -> None:
    if not (out / "model" / WEIGHTS).exists():
        raise BusyError(f"{out}: another process is at it: start again when it has ended")
    _compare(out, settings, "trained")


def _note(out: Path, settings: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f"{_SETTINGS}.part"
    unfinished.write_text(json.dumps(settings, indent=1) + "\n")
    unfinished.rename(out / _SETTINGS)


def _compare(out: Path, wanted: Mapping[str, Any], done: str) -> None:
    path = out / _SETTINGS
    if not path.exists():
        raise OtherSettingsError(f"{out}: nobody knows how this was {done}: move it away")
    # What was begun before a setting existed has its default.
    settings = json.loads(path.read_text())
    for key, group in (("model", ModelConfig()), ("recipe", Recipe())):
        if isinstance(settings.get(key), dict):
            settings[key] = {**json.loads(json.dumps(asdict(group))), **settings[key]}
    found = _flat(settings)
    for key, value in _flat(wanted).items():
        if (there := found.get(key)) != value:
            raise OtherSettingsError(
                f"{out}: was {done} with {key} {there}, not {value}: move it away, or choose another folder"
            )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One level of the groups `model` and `recipe`, "recipe.epochs" and so on."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        result |= {f"{key}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {key: value}
    return result


def _open(data: Path, split: str, recipe: Recipe) -> SegmentationDataset:
    dataset = open_dataset(data, split, augmentation(recipe))
    dataset.skip_broken = recipe.broken_images == "skip"
    return dataset


def _refuse_overwriting(out: Path, ckpt_path: str | None) -> None:
    if (out / "checkpoints").exists() and ckpt_path is None:
        raise FileExistsError(f"{out} holds checkpoints: go on with ckpt_path last, or choose another folder")


def _about(data: Path, split: str, recipe: Recipe) -> dict[str, Any]:
    return {"data": data.name, "split": split, "recipe": recipe.to_dict()}
