"""Training commands that may be given again and again: what is there is kept, what was stopped goes on."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contextcrf.cli import build_parser, main
from contextcrf.storage import load

_BEGUN = "settings.json"


class OtherSettingsError(ValueError):
    """A folder holds a training of other settings than those that are asked for."""


def settings_of(command: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All settings of a training command, `fit` or `fit-heads`, that decide what comes out, as plain values."""
    parser = build_parser()
    wanted = parser.instantiate(parser.parse_args(list(command)))[command[0]]
    result = {"recipe": asdict(wanted.recipe), "about": {"split": wanted.train_split}}
    if command[0] == "fit":
        result["model"] = asdict(wanted.model)
    return json.loads(json.dumps(result))


def train_once(command: Sequence[str]) -> Path:
    """Run a training command unless its result is there, from its last checkpoint where there is one.

    Args:
        command: of `fit` or `fit-heads`, with --out as its last option.

    Returns:
        The trained model's folder.

    Raises:
        OtherSettingsError: what is there was trained, or begun, with other settings.
    """
    out = Path(command[-1])
    begun, wanted, model = out / _BEGUN, settings_of(command), out / "model"
    if (model / "model.safetensors").exists():
        check_trained(model, command)
        return model
    resume = []
    if (out / "checkpoints" / "last.ckpt").exists():
        if not begun.exists() or json.loads(begun.read_text()) != wanted:
            raise OtherSettingsError(f"{out}: was begun with other settings than those of now: move it away")
        resume = ["--ckpt_path", "last"]
    else:
        # Stopped before its first epoch had ended.
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(wanted, indent=1))
    main([*command, *resume])
    return model


def check_trained(folder: Path, command: Sequence[str]) -> None:
    """Whether a model was trained as a command says.

    Raises:
        OtherSettingsError: it was not; the message names the first setting that differs.
    """
    model = load(folder)
    about = model.about[command[0]]
    found = {"recipe": about["recipe"], "about": about, "model": json.loads(json.dumps(asdict(model.config)))}
    for part, values in settings_of(command).items():
        for key, value in values.items():
            if found[part][key] != value:
                raise OtherSettingsError(
                    f"{folder.parent}: was trained with {key} {found[part][key]}, not {value}: move it away"
                )
