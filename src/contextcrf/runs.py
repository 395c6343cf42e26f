"""Trainings that may be asked for again and again: what is there is kept, what was stopped goes on."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contextcrf.commands.training import fit, fit_heads
from contextcrf.storage import load

TRAINING: dict[str, Callable[..., None]] = {"fit": fit, "fit-heads": fit_heads}
_BEGUN = "settings.json"


class OtherSettingsError(ValueError):
    """A folder holds a training of other settings than those that are asked for."""


def settings_of(name: str, arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All settings of a training that decide what comes out, as plain values."""
    result = {"recipe": asdict(arguments["recipe"]), "about": {"split": arguments["train_split"]}}
    if name == "fit":
        result["model"] = asdict(arguments["model"])
    return json.loads(json.dumps(result))


def train_once(name: str, arguments: Mapping[str, Any]) -> Path:
    """Train unless the result is there, from the last checkpoint where there is one.

    Args:
        name: in `TRAINING`.
        arguments: of that function, `train_split` among them.

    Returns:
        The trained model's folder.

    Raises:
        OtherSettingsError: what is there was trained, or begun, with other settings.
    """
    out = Path(arguments["out"])
    begun, wanted, model = out / _BEGUN, settings_of(name, arguments), out / "model"
    if (model / "model.safetensors").exists():
        check_trained(model, name, arguments)
        return model
    resume = None
    if (out / "checkpoints" / "last.ckpt").exists():
        if not begun.exists() or json.loads(begun.read_text()) != wanted:
            raise OtherSettingsError(f"{out}: was begun with other settings than those of now: move it away")
        resume = "last"
    else:
        # Stopped before its first epoch had ended.
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(wanted, indent=1))
    TRAINING[name](**{**arguments, "ckpt_path": resume})
    return model


def check_trained(folder: Path, name: str, arguments: Mapping[str, Any]) -> None:
    """Whether a model was trained as is asked for.

    Raises:
        OtherSettingsError: it was not; the message names the first setting that differs.
    """
    model = load(folder)
    about = model.about[name]
    found = {"recipe": about["recipe"], "about": about, "model": json.loads(json.dumps(asdict(model.config)))}
    for part, values in settings_of(name, arguments).items():
        for key, value in values.items():
            if found[part][key] != value:
                raise OtherSettingsError(
                    f"{folder.parent}: was trained with {key} {found[part][key]}, not {value}: move it away"
                )
