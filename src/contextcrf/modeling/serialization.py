"""Models on disk: a folder with `model.safetensors` and `config.json`. No pickle, so nothing in a model can run."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from contextcrf.crf import RangeBox, Relation
from contextcrf.data.classes import Classes
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.model import ContextCRF

FORMAT = 1
WEIGHTS = "model.safetensors"
BUNDLED = Path(__file__).parent / "models"


class ModelError(ValueError):
    """A model cannot be found or read; the message names the file and what was expected."""


def save(model: ContextCRF, folder: str | Path, about: dict[str, Any] | None = None, half: bool = False) -> None:
    """Write a model.

    Args:
        model: the model.
        folder: made if missing.
        about: where it comes from and what was measured, any JSON values; kept as `model.about`.
        half: store weights as float16 (they are float32 again when loaded).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for key, value in model.state_dict().items()
    }
    # Each file is written whole before it takes its name: a full disk leaves the old model as it was.
    tensors = folder / f"{WEIGHTS}.part"
    try:
        save_file(state, tensors)
    except SafetensorError as error:
        raise OSError(f"{tensors}: the weights cannot be written: {error}; is there space?") from error
    config = {
        "format": FORMAT,
        "model": asdict(model.config),
        "classes": model.classes.to_dict(),
        "about": about if about is not None else model.about,
        "sha256": _digest(tensors),
    }
    text = folder / "config.json.part"
    text.write_text(json.dumps(config, indent=1) + "\n")
    tensors.chmod(text.stat().st_mode)  # safetensors keeps others out; the text beside it does not
    text.rename(folder / "config.json")
    tensors.rename(folder / WEIGHTS)


def folder_of(name_or_path: str | Path) -> Path:
    """The folder with a model's files: of the folder itself, of a training's, or of a bundled model by its name.

    Raises:
        ModelError: there is no such model.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = BUNDLED / str(name_or_path)
    # A training keeps its model beside its checkpoints.
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    bundled = ", ".join(sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))) or "none"
    raise ModelError(
        f"model {str(name_or_path)!r}: neither a folder with config.json and {WEIGHTS}, or of a training that has "
        f"ended, nor the name of a bundled model (those are: {bundled})"
    )


def load(name_or_path: str | Path) -> ContextCRF:
    """Load a model: a folder that `save` or a training wrote, or the name of a bundled model such as "camvid".

    Returns:
        The model in evaluation mode on the CPU, with its classes and preprocessing.

    Raises:
        ModelError: no such model, or a file of it is damaged or of another format.
    """
    folder = folder_of(name_or_path)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"{path}: expected a model of format {FORMAT}")
    try:
        shape = dict(config["model"])
        shape["relations"] = {name: _relation(value) for name, value in shape["relations"].items()}
        model = ContextCRF(ModelConfig(**shape), Classes.from_dict(config["classes"]), pretrained=False)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{path}: not the configuration of a model: {error!r}") from error
    model.about = config.get("about", {})
    path = folder / WEIGHTS
    try:
        # Models of the first releases have none.
        if (expected := config.get("sha256")) is not None and _digest(path) != expected:
            raise ModelError(f"{path}: damaged, or not the weights of this config.json: their SHA-256 is another")
        state = load_file(path)
        model.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in state.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be loaded into the model of config.json: {error}") from error
    for name in model.potentials:
        model.trunk(name).backbone.pretrained = True
    return model.eval()


def fingerprint(model: ContextCRF) -> str:
    """Of a model's shape, settings and weights: 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _relation(value: Any) -> Relation:
    """A relation from JSON: a box, or a list of boxes."""
    return tuple(_box(box) for box in value) if isinstance(value, list) else _box(value)


def _box(value: dict[str, Any]) -> RangeBox:
    return RangeBox(**{**value, "hole": _box(value["hole"]) if value.get("hole") else None})
