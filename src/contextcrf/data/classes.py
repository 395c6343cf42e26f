"""The classes of a data set: their names and their colors in pictures of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from contextcrf.utils.errors import DataError
from contextcrf.utils.files import write_text

#: The label of unlabeled pixels, which no loss and no metric counts. Masks that store another value are mapped to it.
IGNORE_INDEX = 255

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Classes:
    """Class names and colors, in the order of the class indices.

    Args:
        names: K unique names, one for each class.
        palette: K colors (red, green, blue), each 0..255.

    Raises:
        ValueError: fewer than two classes, more than 255 (a mask has 8 bits, and 255 is the ignore_index), a repeated
            or empty name, different numbers of names and colors, or a color that is not three integers 0..255.

    Example:
        >>> Classes(("sheep", "boat"), ((255, 255, 255), (0, 0, 255))).names[1]
        'boat'
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]

    def __post_init__(self) -> None:
        # Lists are accepted and become tuples, so that the object is hashable and cannot change within a model.
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "palette", tuple(tuple(color) for color in self.palette))
        if not 2 <= len(self.names) <= IGNORE_INDEX:
            raise ValueError(f"expected 2 to {IGNORE_INDEX} classes, got {len(self.names)}")
        if len(self.names) != len(self.palette):
            raise ValueError(f"expected one color per class, got {len(self.names)} names, {len(self.palette)} colors")
        for index, name in enumerate(self.names):
            if not isinstance(name, str) or not name:
                raise ValueError(f"class {index}: expected a name that is a non-empty string, got {name!r}")
            if name in self.names[:index]:
                raise ValueError(f"class {index}: the name {name!r} is also that of class {self.names.index(name)}")
        for name, color in zip(self.names, self.palette, strict=True):
            if not _is_color(color):
                raise ValueError(f"class {name!r}: expected a color of three integers 0..255, got {list(color)}")

    def __len__(self) -> int:
        """The number of classes K, without `IGNORE_INDEX`."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of lists, for JSON; the inverse of `from_dict`."""
        return {"names": list(self.names), "palette": [list(color) for color in self.palette]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Classes:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is missing, or the values are not valid (see the class).
        """
        for key in ("names", "palette"):
            if not isinstance(values.get(key), list | tuple):
                raise ValueError(f"classes: expected a list under the key {key!r}, got {values.get(key)!r}")
        for color in values["palette"]:
            if not isinstance(color, list | tuple):
                raise ValueError(f"classes: expected a color of three integers 0..255, got {color!r}")
        return cls(tuple(values["names"]), tuple(tuple(color) for color in values["palette"]))

    @classmethod
    def from_yaml(cls, path: str | Path) -> tuple[Classes, int]:
        """Read a `classes.yaml`.

        The file has two keys: `ignore_index` (the value of unlabeled pixels in the mask files; 255 if absent) and
        `classes`, a list of `{name, color}` in the order of the class indices. If no class has a color, the colors are
        those of `voc_palette`.

        Returns:
            The classes and the ignore_index of the mask files.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the content differs from this; the message names the file, the key and what was expected.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: expected a YAML file: {error}") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected the keys 'classes' and 'ignore_index', got {content!r}")
        _reject_unknown_keys(content, {"ignore_index", "classes"}, str(path))

        ignore_index = content.get("ignore_index", IGNORE_INDEX)
        if not _is_byte(ignore_index):
            raise DataError(f"{path}: key 'ignore_index': expected an integer 0..255, got {ignore_index!r}")
        entries = content.get("classes")
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{path}: key 'classes': expected a list of {{name, color}}, got {entries!r}")
        default = voc_palette(len(entries))
        colored = any(isinstance(entry, dict) and "color" in entry for entry in entries)
        names: list[str] = []
        palette: list[Color] = []
        for index, entry in enumerate(entries):
            where = f"{path}: key 'classes', entry {index}"
            if not isinstance(entry, dict):
                raise DataError(f"{where}: expected {{name: ..., color: [red, green, blue]}}, got {entry!r}")
            _reject_unknown_keys(entry, {"name", "color"}, where)
            # YAML parses an unquoted `yes` or `off` as a boolean, which must not become a class named "True".
            if not isinstance(entry.get("name"), str):
                raise DataError(f"{where}, key 'name': expected a string (in quotes), got {entry.get('name')!r}")
            color: Any = entry.get("color") if colored else default[index]
            if not _is_color(color):
                raise DataError(f"{where}, key 'color': expected three integers 0..255, got {color!r}")
            names.append(entry["name"])
            palette.append(tuple(color))
        try:
            return cls(tuple(names), tuple(palette)), ignore_index
        except ValueError as error:
            raise DataError(f"{path}: key 'classes': {error}") from error

    def to_yaml(self, path: str | Path, ignore_index: int = IGNORE_INDEX) -> None:
        """Write a `classes.yaml`; the inverse of `from_yaml`.

        Args:
            path: the file, replaced if it exists.
            ignore_index: the value of unlabeled pixels in the mask files.
        """
        entries = [{"name": name, "color": list(color)} for name, color in zip(self.names, self.palette, strict=True)]
        content = {"ignore_index": ignore_index, "classes": entries}
        # The default flow style applies to the innermost lists only: a line per name, a line per color.
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)
        write_text(Path(path), text)


def voc_palette(n: int) -> tuple[Color, ...]:
    """The first `n` colors (at most 256) of the PASCAL VOC color map; color 0 is black.

    The bits of the index are assigned to red, green and blue in turn, and the lowest bits of the index become the
    highest bits of the color, so that neighboring indices have very different colors.

    Raises:
        ValueError: `n` is not in 0..256.

    Example:
        >>> voc_palette(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    if not 0 <= n <= 256:
        raise ValueError(f"expected 0 to 256 colors, got {n}")
    return tuple(_voc_color(index) for index in range(n))


def _voc_color(index: int) -> Color:
    red = green = blue = 0
    for bit in range(7, -1, -1):
        red |= (index & 1) << bit
        green |= (index >> 1 & 1) << bit
        blue |= (index >> 2 & 1) << bit
        index >>= 3
    return red, green, blue


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_color(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_byte(part) for part in value)


def _reject_unknown_keys(values: Mapping[Any, Any], known: set[str], where: str) -> None:
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}, expected {' and '.join(sorted(known))}")
