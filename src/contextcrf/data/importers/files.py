"""Files of a source: JSON and XML that are read safely, and images that are found by the names in annotations."""

import json
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from contextcrf.data.importers.records import Findings
from contextcrf.data.layouts import IMAGE_SUFFIXES, list_images
from contextcrf.utils.errors import DataError

# The names that tools give to the usual splits.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def split_name(name: str) -> str:
    """Return the usual name of a split: "train" for training and train2017, "val" for valid and validation."""
    return _SPLITS.get(name.casefold().rstrip("0123456789"), name)


def split_of(path: PurePosixPath) -> tuple[str, ...]:
    """Return the split whose folder contains a path, or nothing if no folder has the name of a split."""
    parts = [part.casefold().rstrip("0123456789") for part in path.parts[:-1]]
    return next(((_SPLITS[part],) for part in parts if part in _SPLITS), ())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If the file is not JSON in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a JSON file in UTF-8: {error}.") from error


def read_xml(path: Path) -> ElementTree.Element:
    """Read an XML file. Entity declarations, which can expand without limit or read other files, are refused.

    Raises:
        DataError: If the file is not XML, or if it declares entities.
    """

    def refuse(name: str, *_: object) -> None:
        raise DataError(
            f"{path} declares the XML entity {name!r}, but annotations need no entities, and entities can be harmful. "
            "Export the annotations again, or remove the declaration."
        )

    content = path.read_bytes()
    checker = expat.ParserCreate()
    checker.EntityDeclHandler = refuse
    try:
        checker.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read as an XML file: {error}.") from error


def field(values: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return the value of a key, and check its type.

    Raises:
        DataError: If `values` is not a mapping, the key is missing, or its value has another type.
    """
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = {"list": "a list", "dict": "an object", "str": "a string", "int": "a number", "float": "a number"}
        expected = " or ".join(dict.fromkeys(names[item.__name__] for item in kinds))
        shown = repr(found) if len(repr(found)) < 60 else f"{repr(found)[:60]}..."
        raise DataError(f"{where} has {shown} under the key {key!r}, but {expected} is expected.")
    return found


def points_of(values: Any, where: str) -> list[tuple[float, float]]:
    """Return pairs of numbers as points.

    Raises:
        DataError: If the values are not a list of pairs of numbers.
    """
    try:
        return [(float(x), float(y)) for x, y in values]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} has points that are not pairs of numbers.") from error


def color_of(text: str | None) -> tuple[int, int, int] | None:
    """Return the color of a text such as "#ff8000", or None for other texts."""
    if text is None or len(text) != 7 or not text.startswith("#"):
        return None
    try:
        red, green, blue = bytes.fromhex(text[1:])
    except ValueError:
        return None
    return red, green, blue


def images_below(folder: Path) -> list[Path]:
    """Return the sorted images in a folder and its subfolders, without hidden files and folders."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


class ImageFinder:
    """Finds images by the paths or names in annotations.

    Args:
        folders: the folders that contain the images, or whose subfolders contain them.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = list(dict.fromkeys(folder.resolve() for folder in folders))

    @cached_property
    def _index(self) -> dict[str, list[Path]]:
        """The files by their names in lower case."""
        index: dict[str, list[Path]] = {}
        for path in dict.fromkeys(path for folder in self.folders for path in images_below(folder)):
            index.setdefault(path.name.casefold(), []).append(path)
        return index

    @cached_property
    def _stems(self) -> dict[str, list[Path]]:
        """The files by their names without the suffix in lower case."""
        index: dict[str, list[Path]] = {}
        for path in (path for paths in self._index.values() for path in paths):
            index.setdefault(path.stem.casefold(), []).append(path)
        return index

    @cached_property
    def _uploaded(self) -> dict[str, list[Path]]:
        """The files by their names with underscores in place of spaces."""
        index: dict[str, list[Path]] = {}
        for path in (path for paths in self._index.values() for path in paths):
            index.setdefault(unicodedata.normalize("NFC", path.name).replace(" ", "_"), []).append(path)
        return index

    def find(self, name: str, findings: Findings, near: Path | None = None) -> Path | None:
        """Return the image of a name. If it is missing or the name is ambiguous, return None and add a finding.

        Args:
            name: the path or the name in the annotations.
            findings: what the finding is added to.
            near: a folder that is searched after the roots, such as that of the annotations.
        """
        wanted = PurePosixPath(name.replace("\\", "/"))
        for folder in (*self.folders, *([] if near is None else [near.resolve()])):
            if (folder / wanted).is_file():
                return folder / wanted
        # The longest common end of the paths decides between files of the same name.
        named = self._index.get(wanted.name.casefold(), [])
        for length in range(len(wanted.parts), 1, -1):
            if len(same := [path for path in named if path.parts[-length:] == wanted.parts[-length:]]) == 1:
                return same[0]
        if len(named) > 1:
            findings.drop(
                "images whose name is ambiguous, because several files have it (give one folder with --images)", name
            )
            return None
        if named:
            if len(wanted.parts) > 1 and named[0].parent not in self.folders:
                findings.note("images were found in another folder than in the annotations", f"{name}: {named[0]}")
            return named[0]
        others = self._stems.get(wanted.stem.casefold(), [])
        if len(others) == 1:
            findings.note("images were found with another suffix than in the annotations", f"{name}: {others[0].name}")
            return others[0]
        findings.drop("missing images", name)
        return None

    def find_uploaded(self, name: str) -> Path | None:
        """Return the only image whose name becomes `name` if its spaces are replaced by underscores, as in uploads."""
        found = self._uploaded.get(unicodedata.normalize("NFC", name), [])
        return found[0] if len(found) == 1 else None


def by_stem(folder: Path, findings: Findings) -> dict[str, Path]:
    """Return the images of a folder, without its subfolders, by their names without the suffix.

    Of several files that differ only in the suffix, the first is returned, and the others are dropped.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder) if folder.is_dir() else ():
        add_file(found, path.stem, path, findings)
    return found


def add_file(files: dict[str, Path], stem: str, path: Path, findings: Findings) -> None:
    """Add a file to the files by their names without the suffix, or drop it if there is a file of this name."""
    if files.setdefault(stem, path) is not path:
        findings.drop("files of the same name with another suffix", f"{path.name}: {files[stem].name} is used")
