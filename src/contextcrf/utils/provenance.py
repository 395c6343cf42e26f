"""Provenance records: all settings and data that determine a result, saved next to the result.

Two results with equal records are equal.
"""

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
    """A record of all settings and data that determine a result, as JSON values by name.

    Training runs, predictions and evaluations that can be resumed write a record next to their results. A later run
    compares its own record with the existing one. If the records differ, it raises an error instead of mixing the
    results.

    Attributes:
        values: the settings by name. Groups of settings are nested dictionaries.

    Example:
        >>> from contextcrf.utils.provenance import Provenance
        >>> first, second = Provenance.of(split="train", lr=0.1), Provenance.of(split="train", lr=0.2)
        >>> first.difference(second)
        ('lr', 0.1, 0.2)
    """

    values: dict[str, Any]

    @classmethod
    def of(cls, **values: Any) -> "Provenance":
        """Create a record from values of any type.

        Args:
            values: the settings by name. Dataclasses become groups of settings. Paths and other objects become strings.

        Returns:
            The record.

        Example:
            >>> from pathlib import Path
            >>> from contextcrf.utils.provenance import Provenance
            >>> Provenance.of(split="train", folder=Path("runs") / "a").values
            {'split': 'train', 'folder': 'runs/a'}
        """
        return cls(json.loads(json.dumps(values, default=_plain)))

    @classmethod
    def read(cls, folder: Path) -> "Provenance | None":
        """Read the record of a folder.

        Args:
            folder: the folder with the results.

        Returns:
            The record, or None if the folder has no record.
        """
        path = folder / FILE_NAME
        return cls(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def write(self, folder: Path) -> None:
        """Write the record to a folder.

        Args:
            folder: the folder with the results. It is created if it does not exist.
        """
        write_json(folder / FILE_NAME, self.values)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the record, for use in file names."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:16]

    def difference(self, other: "Provenance") -> tuple[str, Any, Any] | None:
        """Find the first value in which two records differ.

        Args:
            other: the other record.

        Returns:
            The name of the value, such as "training.epochs", the value in this record and the value in the other
            record.
                A missing value is None. The result is None if the records are equal.
        """
        ours, theirs = _flat(self.values), _flat(other.values)
        for name in {**ours, **theirs}:
            if ours.get(name) != theirs.get(name):
                return name, ours.get(name), theirs.get(name)
        return None

    def mismatch(self, folder: Path) -> str | None:
        """Describe the first difference between the record of a folder and this record.

        Args:
            folder: the folder with earlier results.

        Returns:
            The end of a sentence for an error message, or None if the records are equal. The text is "with NAME VALUE,
            not EXPECTED", such as "with epochs 1, not 2", or "with settings that were not recorded" if the folder has
            no record. If the record lacks a value, the text says so.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from contextcrf.utils.provenance import Provenance
            >>> folder = Path(tempfile.mkdtemp())
            >>> Provenance.of(epochs=1).write(folder)
            >>> Provenance.of(epochs=2).mismatch(folder)
            'with epochs 1, not 2'
        """
        found = Provenance.read(folder)
        if found is None:
            return "with settings that were not recorded"
        difference = found.difference(self)
        if difference is not None and (key := difference[0].partition(".")[0]) not in found.values:
            return f"without a record of {key}, as by an earlier version"
        return None if difference is None else "with {} {}, not {}".format(*difference)


def _plain(value: Any) -> Any:
    """Convert an object that JSON does not support."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.as_posix() if isinstance(value, Path) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested groups of settings to one level, with names such as "training.epochs"."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
