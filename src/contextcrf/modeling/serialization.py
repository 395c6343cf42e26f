"""Models on disk: a folder with `config.json` and a file of weights. No pickle is used, so loading runs no code."""

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
from contextcrf.data.image_format import ImageFormat
from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.modeling.network import ContextNetwork
from contextcrf.utils.files import atomic_write, write_json

FORMAT = 2
CONFIG = "config.json"
# A new model in the folder uses the name that the previous model does not use.
WEIGHTS = ("model.safetensors", "model-2.safetensors")
BUNDLED = Path(__file__).parent.parent / "pretrained"


class ModelError(ValueError):
    """An error that is raised if a model cannot be found or read. The message names the model or the file."""


def save(
    model: ContextNetwork,
    folder: str | Path,
    metadata: Mapping[str, Any] | None = None,
    half: bool = False,
    inference: InferenceConfig | None = None,
) -> None:
    """Write a model into a folder. A previous model in the folder is replaced in a single step.

    `config.json` names the file of the weights. The new weights are written to a file with another name, so the
    previous weights are never overwritten. The new model replaces the previous model when `config.json` is replaced. If
    the process is killed at any time, the folder contains either the previous model or the new model.

    Args:
        model: the model.
        folder: the folder, which is created if necessary.
        metadata: how the model was made and its evaluation results, as JSON values. None keeps `model.metadata`.
        half: store the weights as float16. Loaded weights are always float32.
        inference: the inference settings of the saved model. None keeps `model.inference`.

    Raises:
        OSError: If the files cannot be written.
        ValueError: If the inference settings do not fit the model.

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
    inference.check(model.pairwise)  # A model with other settings could not be loaded.
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
            reason = str(error).rstrip(".")
            raise OSError(
                f"The weights cannot be written to {weights}: {reason}. Check the free space on the disk."
            ) from error
        partial.chmod(mode)  # safetensors removes the permissions of other users.
    config = {
        "format": FORMAT,
        "model": asdict(model.config),
        "inference": asdict(inference),
        "classes": model.classes.to_dict(),
        "images": model.image_format.to_dict(),
        "metadata": model.metadata if metadata is None else dict(metadata),
        "weights": {"file": weights.name, "sha256": _sha256(weights)},
    }
    write_json(folder / CONFIG, config)
    for name in WEIGHTS:
        if name != weights.name:
            (folder / name).unlink(missing_ok=True)


def _weights_name(folder: Path) -> str | None:
    """Return the name of the file of weights in a folder, or None if the folder has no readable model."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["weights"]["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_model(name_or_path: str | Path) -> Path:
    """Return the folder that contains the files of a model.

    Args:
        name_or_path: the folder of a model, the folder of a finished training run, or the name of a bundled model.

    Raises:
        ModelError: If there is no such model.

    Example:
        >>> find_model("camvid").name
        'camvid'
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = BUNDLED / str(name_or_path)
    # A training run writes its model to the subfolder model.
    for place in (folder, folder / "model"):
        if (place / CONFIG).is_file():
            return place
    raise ModelError(
        f"There is no model {str(name_or_path)!r}. Expected a folder with {CONFIG} and its weights, the folder of a "
        f"finished training, or the name of a bundled model ({', '.join(bundled_models()) or 'none is installed'})."
    )


def bundled_models() -> list[str]:
    """Return the names of the models that are part of the package.

    Example:
        >>> "camvid" in bundled_models()
        True
    """
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


@dataclass(frozen=True)
class SavedModel:
    """The content of a model's folder without the weights.

    Attributes:
        path: the path of config.json.
        config: the configuration of the weights.
        inference: the inference settings.
        classes: the names and colors of the classes.
        image_format: the channels of the images and the range of their values in files.
        metadata: how the model was made and its evaluation results.
        weights: the path of the file of weights.
        sha256: the SHA-256 of the file of weights.
    """

    path: Path
    config: ModelConfig
    inference: InferenceConfig
    classes: Classes
    image_format: ImageFormat
    metadata: dict[str, Any]
    weights: Path
    sha256: str

    def load_weights(self, network: ContextNetwork) -> None:
        """Load the weights into a network of this configuration.

        Args:
            network: the network, whose weights are replaced.

        Raises:
            ModelError: If the file of weights does not exist, is damaged, or does not fit the network.
        """
        try:
            if _sha256(self.weights) != self.sha256:
                raise ModelError(
                    f"{self.weights} is damaged or does not belong to {self.path}, which expects a file with the "
                    f"SHA-256 {self.sha256}. Copy the model again."
                )
            state = load_file(self.weights)
            network.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in state.items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"{self.weights} cannot be loaded into the model of {self.path}: {error}") from error
        for name in network.potentials:
            network.trunk(name).backbone.pretrained = True


def read_model(folder: Path) -> SavedModel:
    """Read the configuration of a saved model.

    Args:
        folder: the folder of the model.

    Raises:
        ModelError: If `config.json` is damaged or has another format.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not a JSON file: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ModelError(f"{path} has the format {found}, but this version of contextcrf expects the format {FORMAT}.")
    try:
        settings = dict(config["model"])
        settings["relations"] = {name: _relation(value) for name, value in settings["relations"].items()}
        return SavedModel(
            path,
            ModelConfig(**settings),
            InferenceConfig(**config["inference"]),
            Classes.from_dict(config["classes"]),
            ImageFormat.from_dict(config.get("images", {})),
            config["metadata"],
            folder / config["weights"]["file"],
            config["weights"]["sha256"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} is not a valid configuration of a model: {error!r}.") from error


def fingerprint(model: ContextNetwork) -> str:
    """Return 16 hexadecimal digits that identify the configuration and the weights of a model.

    The inference settings do not change the fingerprint.

    Args:
        model: the model.

    Example:
        >>> from contextcrf import load
        >>> len(fingerprint(load("camvid")))
        16
    """
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_digest(name_or_path: str | Path) -> str:
    """Return the SHA-256 of the file of weights of a saved model.

    Args:
        name_or_path: as for `find_model`.

    Raises:
        ModelError: If there is no such model.
    """
    folder = find_model(name_or_path)
    name = _weights_name(folder)
    if name is None:
        raise ModelError(f"{folder / CONFIG} is not a valid configuration of a model.")
    return _sha256(folder / name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _relation(value: Any) -> Relation:
    """Build a relation from its JSON values, a box or a list of boxes."""
    return tuple(_box(box) for box in value) if isinstance(value, list) else _box(value)


def _box(value: dict[str, Any]) -> RangeBox:
    return RangeBox(**{**value, "hole": _box(value["hole"]) if value.get("hole") else None})
