"""The classes of a data set: their names and the colors that pictures of labels use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from contextcrf.utils.errors import DataError
from contextcrf.utils.files import read_text, write_text
from contextcrf.utils.yaml_files import parse_yaml

#: The label of unlabeled pixels, which losses and metrics ignore. Masks that store another value are mapped to it.
IGNORE_INDEX = 255

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Classes:
    """The names and colors of the classes, in the order of the class indices.

    Args:
        names: K unique names, one for each class.
        palette: K colors (red, green, blue) with values in 0..255, one for each class.

    Raises:
        ValueError: If there are fewer than 2 classes, or more than 255 (a mask has 8 bits, and 255 is the
            ignore_index). Also if a name is empty or repeated, if the numbers of names and colors differ, or if a
            color is not three integers in 0..255.

    Example:
        >>> Classes(("sheep", "boat"), ((255, 255, 255), (0, 0, 255))).names[1]
        'boat'
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]

    def __post_init__(self) -> None:
        # Lists become tuples, so that the object is hashable and cannot change within a model.
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "palette", tuple(tuple(color) for color in self.palette))
        if not 2 <= len(self.names) <= IGNORE_INDEX:
            raise ValueError(f"The number of classes is {len(self.names)}, but it must be from 2 to {IGNORE_INDEX}.")
        if len(self.names) != len(self.palette):
            raise ValueError(
                f"The number of names is {len(self.names)}, but the number of colors is {len(self.palette)}. "
                "Give one color for each class."
            )
        for index, name in enumerate(self.names):
            if not isinstance(name, str) or not name:
                raise ValueError(f"The name of class {index} is {name!r}, but a non-empty string is expected.")
            if name in self.names[:index]:
                raise ValueError(
                    f"The classes {self.names.index(name)} and {index} have the same name, {name!r}. "
                    "Give every class a different name."
                )
        for name, color in zip(self.names, self.palette, strict=True):
            if not is_color(color):
                raise ValueError(
                    f"The color of class {name!r} is {list(color)}, but three integers from 0 to 255 are expected."
                )

    def __len__(self) -> int:
        """Return the number of classes K, without `IGNORE_INDEX`."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return the names and colors as a dictionary of lists, which can be stored as JSON.

        Example:
            >>> Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128))).to_dict()
            {'names': ['sky', 'sea'], 'palette': [[0, 0, 255], [0, 128, 128]]}
        """
        return {"names": list(self.names), "palette": [list(color) for color in self.palette]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Classes:
        """Build the classes from a dictionary that `to_dict` returned.

        Args:
            values: a mapping with the keys `names` and `palette`.

        Raises:
            ValueError: If a key is missing, or if the names or colors are not valid (see the class).

        Example:
            >>> Classes.from_dict({"names": ["sky", "sea"], "palette": [[0, 0, 255], [0, 128, 128]]}).names
            ('sky', 'sea')
        """
        for key in ("names", "palette"):
            if not isinstance(values.get(key), list | tuple):
                raise ValueError(f"The classes have {values.get(key)!r} under the key {key!r}, but a list is expected.")
        for color in values["palette"]:
            if not isinstance(color, list | tuple):
                raise ValueError(
                    f"The palette contains {color!r}, but a color of three integers from 0 to 255 is expected."
                )
        return cls(tuple(values["names"]), tuple(tuple(color) for color in values["palette"]))

    @classmethod
    def from_yaml(cls, path: str | Path) -> tuple[Classes, int | None]:
        """Read the classes of a `classes.yaml`.

        `ignore_index` is the value of unlabeled pixels in the mask files (default 255; null if there is none).
        `classes` is a list of `{name, color}` in the order of the class indices. If no class has a color, the colors
        of `voc_palette` are used. `ClassesFile` also reads the other keys of the file, which describe the masks.

        Args:
            path: the file.

        Returns:
            The classes and the ignore_index of the mask files. If the file has several such values, the first is
            returned.

        Raises:
            FileNotFoundError: If the file does not exist.
            DataError: If the content of the file is not valid. The message names the file, the key, the value found
                and the expected value.

        Example:
            >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
            >>> classes.to_yaml("classes.yaml", ignore_index=9)
            >>> Classes.from_yaml("classes.yaml") == (classes, 9)
            True
        """
        content = read_classes_yaml(Path(path))
        values = ignored_values(content, Path(path))
        return classes_of(content, Path(path)), values[0] if values else None

    def to_yaml(self, path: str | Path, ignore_index: int | None = IGNORE_INDEX) -> None:
        """Write a `classes.yaml`, which `from_yaml` reads.

        Args:
            path: the file. An existing file is replaced.
            ignore_index: the value of unlabeled pixels in the mask files; None if there is none.

        Example:
            >>> from pathlib import Path
            >>> Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128))).to_yaml("classes.yaml")
            >>> print(Path("classes.yaml").read_text().splitlines()[0])
            ignore_index: 255
        """
        entries = [{"name": name, "color": list(color)} for name, color in zip(self.names, self.palette, strict=True)]
        content = {"ignore_index": ignore_index, "classes": entries}
        write_text(Path(path), yaml_text(content))


def yaml_text(content: Mapping[str, Any]) -> str:
    """Return the text of a `classes.yaml`."""
    # With this flow style, every name and every color has its own line.
    return yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, allow_unicode=True)


def read_classes_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a `classes.yaml`, and check its keys and the entries of its classes.

    Raises:
        FileNotFoundError: If the file does not exist.
        DataError: If the content is not a mapping, if a key is unknown, or if the classes are not a list of mappings.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path} contains {content!r}, but a mapping with the keys 'classes' and 'ignore_index' is expected."
        )
    known = {"ignore_index", "classes", "masks", "ignore_colors", "mask_suffix", "image_folder", "mask_folder"}
    _reject_unknown_keys(content, known, str(path))
    entries = content.get("classes")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} has {entries!r} under the key 'classes', but a list of {{name, color}} is expected.")
    for index, entry in enumerate(entries):
        where = entry_name(index, path)
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {entry!r}, but {{name: ..., color: [red, green, blue]}} is expected.")
        _reject_unknown_keys(entry, {"name", "color", "value", "values"}, where)
    return content


def entry_name(index: int, path: Path) -> str:
    """Return the words of a message for a class in a `classes.yaml`."""
    return f"Entry {index} under the key 'classes' of {path}"


def ignored_values(content: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """Return the values of unlabeled pixels in a `classes.yaml`, without repetitions.

    Raises:
        DataError: If the value under `ignore_index` is not an integer, a list of integers or null.
    """
    stored = content.get("ignore_index", IGNORE_INDEX)
    values = [] if stored is None else stored if isinstance(stored, list) else [stored]
    if not all(is_integer(value) for value in values):
        raise DataError(
            f"{path} has {stored!r} under the key 'ignore_index', but an integer is expected (or null, if all pixels "
            "are labeled)."
        )
    return tuple(dict.fromkeys(values))


def classes_of(content: Mapping[str, Any], path: Path) -> Classes:
    """Return the classes in the mapping that `read_classes_yaml` returned.

    Raises:
        DataError: If a name or a color is not valid, or if there are too few or too many classes.
    """
    entries = content["classes"]
    if len(entries) > IGNORE_INDEX:
        raise DataError(
            f"{path} has {len(entries)} classes, but at most {IGNORE_INDEX} are possible. Merge classes: a class can "
            "have several values in the masks (`values: [3, 7]`)."
        )
    default = voc_palette(len(entries))
    colored = any("color" in entry for entry in entries)
    names: list[str] = []
    palette: list[Color] = []
    for index, entry in enumerate(entries):
        where = entry_name(index, path)
        # YAML parses an unquoted `yes` or `off` as a boolean, which must not become a class named "True".
        if not isinstance(entry.get("name"), str):
            raise DataError(
                f"{where} has the name {entry.get('name')!r}, but a string is expected. Put the name in quotes."
            )
        color: Any = entry.get("color") if colored else default[index]
        if not is_color(color):
            raise DataError(f"{where} has the color {color!r}, but three integers from 0 to 255 are expected.")
        names.append(entry["name"])
        palette.append(tuple(color))
    try:
        return Classes(tuple(names), tuple(palette))
    except ValueError as error:
        raise DataError(f"{path} has no valid classes under the key 'classes'. {error}") from error


def _load(path: Path) -> Any:
    try:
        return parse_yaml(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a YAML file in UTF-8: {error}") from error


def voc_palette(n: int) -> tuple[Color, ...]:
    """Return the first `n` colors of the PASCAL VOC color map. Color 0 is black.

    The bits of the index are assigned to red, green and blue in turn. The lowest bits of the index become the highest
    bits of the color, so that neighboring indices have very different colors.

    Args:
        n: the number of colors, from 0 to 256.

    Raises:
        ValueError: If `n` is not in 0..256.

    Example:
        >>> voc_palette(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    if not 0 <= n <= 256:
        raise ValueError(f"The number of colors is {n}, but it must be from 0 to 256.")
    return tuple(_voc_color(index) for index in range(n))


def _voc_color(index: int) -> Color:
    red = green = blue = 0
    for bit in range(7, -1, -1):
        red |= (index & 1) << bit
        green |= (index >> 1 & 1) << bit
        blue |= (index >> 2 & 1) << bit
        index >>= 3
    return red, green, blue


def is_integer(value: object) -> bool:
    """Return whether a value of a YAML file is an integer and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_color(value: object) -> bool:
    """Return whether a value of a YAML file is a color: three integers from 0 to 255."""
    return isinstance(value, list | tuple) and len(value) == 3 and all(is_integer(x) and 0 <= x <= 255 for x in value)


def _reject_unknown_keys(values: Mapping[Any, Any], known: set[str], where: str) -> None:
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise DataError(
            f"{where} has the unknown key {unknown[0]!r}. The known keys are {' and '.join(sorted(known))}."
        )
