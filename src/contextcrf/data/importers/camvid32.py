"""CamVid with its 32 colors: masks NAME_L.png and a list of the colors."""

import csv
from functools import partial
from pathlib import Path

from contextcrf.data.classes import Color
from contextcrf.data.importers.files import images_below, split_name
from contextcrf.data.importers.label_maps import color_table, colors_of, from_values
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import UNLABELED, Findings, Labels, Record, Source
from contextcrf.data.stored_mask import decode_mask
from contextcrf.utils.errors import DataError

_LISTS = ("label_colors.txt", "class_dict.csv")
_END = "_L"
_VOID = "void"


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read masks NAME_L.png, which are in any folders, and their images NAME.

    The folders train_labels, val_labels and test_labels are splits. Void is unlabeled.
    """
    path = options.label_map or next((found for name in _LISTS for found in sorted(source.rglob(name))), None)
    if path is None or not path.is_file():
        raise DataError(
            f"{source} contains no {' or '.join(_LISTS)}, so the colors are unknown. Give a file with lines such as "
            "'128 64 128 Road' with --label-map FILE."
        )
    entries = _read_csv(path) if path.suffix.lower() == ".csv" else _read_text(path)
    classes = [entry for entry in entries if entry[0].casefold() != _VOID]
    index_of = {name: index for index, (name, _) in enumerate(classes)}
    if len(index_of) != len(classes):
        raise DataError(f"{path} gives the same name to two colors. Give each color its own name.")
    table = color_table([(color, index_of.get(name, UNLABELED)) for name, color in entries], str(path))
    return Source(tuple(index_of), _records(source, options, table, findings), dict(classes))


def _read_text(path: Path) -> list[tuple[str, Color]]:
    """Read lines `red green blue name`."""
    entries = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip():
            *numbers, name = line.split(maxsplit=3)
            entries.append(_entry(name.strip(), numbers, path, line))
    return entries


def _read_csv(path: Path) -> list[tuple[str, Color]]:
    """Read lines `name,red,green,blue` after a title."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    return [_entry(row[0], row[1:4], path, ",".join(row)) for row in rows[1:]]


def _entry(name: str, numbers: list[str], path: Path, line: str) -> tuple[str, Color]:
    if len(numbers) != 3 or not all(number.isdigit() and int(number) < 256 for number in numbers) or not name:
        raise DataError(
            f"{path} has the line {line.strip()!r}, but three numbers from 0 to 255 and a name are expected."
        )
    red, green, blue = (int(number) for number in numbers)
    return name, (red, green, blue)


def _records(source: Path, options: Options, table: dict[int, int], findings: Findings) -> list[Record]:
    files = images_below(source)
    masks: dict[str, Path] = {}
    for path in (path for path in files if path.stem.endswith(_END)):
        if masks.setdefault(path.stem.removesuffix(_END), path) != path:
            findings.drop("masks of the same name; the first is used", path.relative_to(source).as_posix())
    images = images_below(options.images) if options.images else files
    records = []
    for image in (path for path in images if not path.stem.endswith(_END)):
        mask = masks.pop(image.stem, None)
        if mask is None:
            findings.drop("images without a mask", image.name)
            continue
        split = split_name(mask.parent.name.removesuffix("_labels"))
        splits = (split,) if split in ("train", "val", "test") else ()
        records.append(Record(image, image.name, None, partial(_labels, mask, table), splits))
    for mask in masks.values():
        findings.drop("masks without an image", mask.name)
    return records


def _labels(path: Path, table: dict[int, int], findings: Findings) -> Labels:
    return from_values(colors_of(decode_mask(path)), table, path.name, findings, colors=True)
