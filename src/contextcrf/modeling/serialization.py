"""Models on disk: a folder with `config.json` and a file of weights. No pickle, so nothing in a model can run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from contextcrf.crf import RangeBox, Relation
from contextcrf.data.classes import Classes
from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.modeling.network import ContextNetwork
from contextcrf.utils.files import atomic_write, write_json

FORMAT = 2
CONFIG = "config.json"
# A model that replaces another one has the other of these two names for its weights.
WEIGHTS = ("model.safetensors", "model-2.safetensors")
BUNDLED = Path(__file__).parent.parent / "pretrained"


class ModelError(ValueError):
    """A model cannot be found or read; the message names the file and what was expected."""


def save(
    model: ContextNetwork,
    folder: str | Path,
    metadata: Mapping[str, Any] | None = None,
    half: bool = False,
    inference: InferenceConfig | None = None,
) -> None:
    """Write a model; an earlier one in the folder is replaced in one step.

    `config.json` names its file of weights, and that file is never written over: the new weights get another name. So
    the new model takes the place of the old one at the moment when `config.json` does, and a process that is killed at
    any time leaves the one or the other.

    Args:
        model: the model.
        folder: made if missing.
        metadata: where it comes from and what was measured, any JSON values; None keeps `model.metadata`.
        half: store weights as float16 (they are float32 again when loaded).
        inference: how the saved model predicts; None keeps `model.inference`.

    Raises:
        OSError: the files cannot be written.
        ValueError: the inference settings do not fit the model.

    Example:
        >>> import tempfile
        >>> from contextcrf import ContextCRF, load
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(ModelConfig(backbone="plain", channels=8, hidden=8), classes, pretrained=False)
        >>> folder = tempfile.mkdtemp()
        >>> save(model, folder, {"data": "beach"})
        >>> load(folder).metadata
        {'data': 'beach'}
    """
    folder = Path(folder)
    inference = inference or model.inference
    inference.check(model.pairwise)  # with others the model could not be loaded
    dtype = torch.float16 if half else torch.float32
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for key, value in model.state_dict().items()
    }
    weights = folder / next(name for name in WEIGHTS if name != _weights_name(folder))
    with atomic_write(weights) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(state, partial)
        except SafetensorError as error:
            raise OSError(f"{weights}: the weights cannot be written: {error}; is there space?") from error
        partial.chmod(mode)  # safetensors keeps other users out; ordinary files do not
    config = {
        "format": FORMAT,
        "model": asdict(model.config),
        "inference": asdict(inference),
        "classes": model.classes.to_dict(),
        "metadata": model.metadata if metadata is None else dict(metadata),
        "weights": {"file": weights.name, "sha256": _sha256(weights)},
    }
    write_json(folder / CONFIG, config)
    for name in WEIGHTS:
        if name != weights.name:
            (folder / name).unlink(missing_ok=True)


def _weights_name(folder: Path) -> str | None:
    """The name of the weights of the model in a folder, if there is one that can be read."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["weights"]["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_model(name_or_path: str | Path) -> Path:
    """The folder with a model's files: the folder itself, that of a training, or that of a bundled model by its name.

    Raises:
        ModelError: there is no such model.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = BUNDLED / str(name_or_path)
    # A training keeps its model beside its checkpoints.
    for place in (folder, folder / "model"):
        if (place / CONFIG).is_file():
            return place
    raise ModelError(
        f"model {str(name_or_path)!r}: expected a folder with {CONFIG} and its weights, the folder of a training that "
        f"has ended, or the name of a bundled model (those are: {', '.join(bundled_models()) or 'none'})"
    )


def bundled_models() -> list[str]:
    """The names of the models that come with the package.

    Example:
        >>> "camvid" in bundled_models()
        True
    """
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


@dataclass(frozen=True)
class SavedModel:
    """The content of a model's folder, its weights excepted.

    Attributes:
        path: of config.json.
        config, inference, classes, metadata: of the model.
        weights: the file of weights.
        sha256: of that file.
    """

    path: Path
    config: ModelConfig
    inference: InferenceConfig
    classes: Classes
    metadata: dict[str, Any]
    weights: Path
    sha256: str

    def load_weights(self, network: ContextNetwork) -> None:
        """Load the weights into a network of this configuration.

        Raises:
            ModelError: the file is missing, damaged, or does not fit.
        """
        try:
            if _sha256(self.weights) != self.sha256:
                raise ModelError(
                    f"{self.weights}: damaged, or not the weights of {self.path}: expected the SHA-256 {self.sha256}"
                )
            state = load_file(self.weights)
            network.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in state.items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"{self.weights}: cannot be loaded into the model of {self.path}: {error}") from error
        for name in network.potentials:
            network.trunk(name).backbone.pretrained = True


def read_model(folder: Path) -> SavedModel:
    """Read the configuration of a saved model.

    Raises:
        ModelError: `config.json` is damaged or of another format.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ModelError(f"{path}: format {found}; expected a model of format {FORMAT}, as this version saves it")
    try:
        settings = dict(config["model"])
        settings["relations"] = {name: _relation(value) for name, value in settings["relations"].items()}
        return SavedModel(
            path,
            ModelConfig(**settings),
            InferenceConfig(**config["inference"]),
            Classes.from_dict(config["classes"]),
            config["metadata"],
            folder / config["weights"]["file"],
            config["weights"]["sha256"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: not the configuration of a model: {error!r}") from error


def fingerprint(model: ContextNetwork) -> str:
    """16 hexadecimal digits that identify a model's configuration and weights; its inference settings do not count."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_digest(name_or_path: str | Path) -> str:
    """The SHA-256 of a saved model's weights.

    Raises:
        ModelError: there is no such model.
    """
    folder = find_model(name_or_path)
    name = _weights_name(folder)
    if name is None:
        raise ModelError(f"{folder / CONFIG}: not the configuration of a model")
    return _sha256(folder / name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _relation(value: Any) -> Relation:
    """A relation from JSON: a box, or a list of boxes."""
    return tuple(_box(box) for box in value) if isinstance(value, list) else _box(value)


def _box(value: dict[str, Any]) -> RangeBox:
    return RangeBox(**{**value, "hole": _box(value["hole"]) if value.get("hole") else None})
