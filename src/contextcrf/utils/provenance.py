"""The record of what decided a result, kept beside it: equal records mean equal results."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from contextcrf.utils.files import write_json

FILE_NAME = "provenance.json"


@dataclass(frozen=True)
class Provenance:
    """Everything that decides a result, as plain JSON values by name.

    Trainings, predictions and measurements that can be resumed write one beside their results. A later run compares
    its own record with the one that it finds, and refuses to mix results of different origins.

    Attributes:
        values: by name; groups of settings are nested.

    Example:
        >>> first, second = Provenance.of(split="train", lr=0.1), Provenance.of(split="train", lr=0.2)
        >>> first.difference(second)
        ('lr', 0.1, 0.2)
    """

    values: dict[str, Any]

    @classmethod
    def of(cls, **values: Any) -> "Provenance":
        """A record of values of any type; dataclasses become groups of settings, paths become text."""
        return cls(json.loads(json.dumps(values, default=_plain)))

    @classmethod
    def read(cls, folder: Path) -> "Provenance | None":
        """The record of a folder; None if it has none."""
        path = folder / FILE_NAME
        return cls(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def write(self, folder: Path) -> None:
        """Keep the record in a folder, made if missing."""
        write_json(folder / FILE_NAME, self.values)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the record, for the names of files."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:16]

    def difference(self, other: "Provenance") -> tuple[str, Any, Any] | None:
        """The first value in which two records differ: its name, the value here, the value there; None if equal."""
        ours, theirs = _flat(self.values), _flat(other.values)
        for name in {**ours, **theirs}:
            if ours.get(name) != theirs.get(name):
                return name, ours.get(name), theirs.get(name)
        return None

    def mismatch(self, folder: Path) -> str | None:
        """The end of a sentence on how a folder's record differs from this one, "with NAME THERE, not HERE".

        Returns:
            None if the records are equal.
        """
        found = Provenance.read(folder)
        if found is None:
            return "with settings that were not recorded"
        difference = found.difference(self)
        return None if difference is None else "with {} {}, not {}".format(*difference)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.as_posix() if isinstance(value, Path) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups of settings on one level, under names such as "training.epochs"."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
