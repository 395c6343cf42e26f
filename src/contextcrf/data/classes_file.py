"""The file `classes.yaml`: the classes of a data set and the format of its masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contextcrf.data.classes import (
    Classes,
    classes_of,
    entry_name,
    ignored_values,
    is_color,
    is_integer,
    read_classes_yaml,
    yaml_text,
)
from contextcrf.data.masks import MaskFormat
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import write_text

# The folders of the images and of the masks, unless `classes.yaml` names others.
FOLDERS = ("images", "masks")


@dataclass(frozen=True)
class ClassesFile:
    """The content of a `classes.yaml`.

    Args:
        classes: the names and colors of the classes.
        mask_format: how the masks are read.
        mask_suffix: the text that the stem of a mask has after the stem of its image, such as "_mask".
        folders: the names of the folders of the images and of the masks beside the file.

    Example:
        >>> classes = Classes(("background", "leaf"), ((0, 0, 0), (128, 0, 0)))
        >>> masks = MaskFormat(values=((0,), (255,)), ignore_values=())
        >>> ClassesFile(classes, masks).write(Path("classes.yaml"))
        >>> print(Path("classes.yaml").read_text())
        ignore_index: null
        classes:
        - name: background
          color: [0, 0, 0]
          value: 0
        ...
        >>> ClassesFile.read(Path("classes.yaml")).mask_format == masks
        True
    """

    classes: Classes
    mask_format: MaskFormat
    mask_suffix: str = ""
    folders: tuple[str, str] = FOLDERS

    @classmethod
    def read(cls, path: Path) -> ClassesFile:
        """Read a `classes.yaml`.

        Raises:
            FileNotFoundError: If the file does not exist.
            DataError: If the content is not valid. The message names the file, the key, the value found and the
                expected value.
        """
        content = read_classes_yaml(path)
        classes = classes_of(content, path)
        kind, suffix = content.get("masks", "index"), content.get("mask_suffix", "")
        if kind not in ("index", "color"):
            raise DataError(f"{path} has {kind!r} under the key 'masks', but index or color is expected.")
        if not isinstance(suffix, str) or "/" in suffix or "\\" in suffix:
            raise DataError(
                f"{path} has {suffix!r} under the key 'mask_suffix', but the end of the mask names is expected, such "
                "as _mask. Put it in quotes."
            )
        folders = tuple(
            content.get(key, name) for key, name in zip(("image_folder", "mask_folder"), FOLDERS, strict=True)
        )
        for key, folder in zip(("image_folder", "mask_folder"), folders, strict=True):
            if not isinstance(folder, str) or not folder:
                raise DataError(f"{path} has {folder!r} under the key {key!r}, but the name of a folder is expected.")
        try:
            mask_format = _color_format(content, path) if kind == "color" else _index_format(content, path)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{path} describes the masks in two ways. {error}") from error
        return cls(classes, mask_format, suffix, (folders[0], folders[1]))

    def write(self, path: Path) -> None:
        """Write the file, which `read` reads. An existing file is replaced."""
        write_text(path, self.text())

    def text(self) -> str:
        """Return the content of the file."""
        masks = self.mask_format
        content: dict[str, Any] = {}
        if masks.kind == "color":
            content["masks"] = "color"
            if masks.ignore_colors:
                content["ignore_colors"] = [list(color) for color in masks.ignore_colors]
        else:
            values = list(masks.ignore_values)
            content["ignore_index"] = None if not values else values[0] if len(values) == 1 else values
        if self.mask_suffix:
            content["mask_suffix"] = self.mask_suffix
        if self.folders != FOLDERS:
            content["image_folder"], content["mask_folder"] = self.folders
        entries: list[dict[str, Any]] = []
        for index, name in enumerate(self.classes.names):
            color = masks.colors[index] if masks.kind == "color" else self.classes.palette[index]
            entry: dict[str, Any] = {"name": name, "color": list(color)}
            if masks.kind == "index" and not masks.is_plain:
                stored = masks.values[index]
                entry |= {"value": stored[0]} if len(stored) == 1 else {"values": list(stored)}
            entries.append(entry)
        return yaml_text({**content, "classes": entries})


def _index_format(content: Mapping[str, Any], path: Path) -> MaskFormat:
    if "ignore_colors" in content:
        raise DataError(
            f"{path} has the key 'ignore_colors', which is only for color masks. Add `masks: color`, or remove the key."
        )
    ignored = ignored_values(content, path)
    values: list[tuple[int, ...]] = []
    given = 0
    for index, entry in enumerate(content["classes"]):
        where = entry_name(index, path)
        if "value" in entry and "values" in entry:
            raise DataError(f"{where} has the keys 'value' and 'values', but one of them is expected.")
        stored = entry.get("values", entry.get("value"))
        stored = [stored] if is_integer(stored) else stored
        if stored is None:
            # The value of an ignored position is not a class, as in CamVid's ignore_index 0 for a class without pixels.
            values.append(() if index in ignored else (index,))
            continue
        given += 1
        if not isinstance(stored, list) or not all(is_integer(value) for value in stored):
            raise DataError(f"{where} has {stored!r} as its value in the masks, but an integer is expected.")
        values.append(tuple(stored))
    if 0 < given < len(values):
        index = next(
            i
            for i, entry in enumerate(content["classes"])
            if entry.get("values") is None and entry.get("value") is None
        )
        raise DataError(
            f"{entry_name(index, path)} has no value, but other classes have one. Give every class its value, or none."
        )
    return MaskFormat(values=tuple(values), ignore_values=ignored)


def _color_format(content: Mapping[str, Any], path: Path) -> MaskFormat:
    for index, entry in enumerate(content["classes"]):
        if "color" not in entry:
            raise DataError(
                f"{entry_name(index, path)} has no color, but the masks are read by color. Add `color: [red, green, "
                "blue]`."
            )
        if {"value", "values"} & {*entry}:
            raise DataError(
                f"{entry_name(index, path)} has a value, which is only for index masks, but the masks are read by "
                "color. Remove the value, or `masks: color`."
            )
    if content.get("ignore_index") is not None:
        raise DataError(
            f"{path} has the key 'ignore_index', which is only for index masks, but the masks are read by color. Write "
            "the colors of unlabeled pixels under 'ignore_colors' instead."
        )
    ignored = content.get("ignore_colors") or []
    if not isinstance(ignored, list) or not all(is_color(color) for color in ignored):
        raise DataError(
            f"{path} has {ignored!r} under the key 'ignore_colors', but a list of colors is expected, such as "
            "[[0, 0, 0]]."
        )
    colors = tuple(tuple(entry["color"]) for entry in content["classes"])
    return MaskFormat("color", colors=colors, ignore_colors=tuple(tuple(color) for color in ignored))
