"""Roboflow's export of semantic segmentation masks: NAME_mask.png beside each image, and _classes.csv."""

import csv
from functools import partial
from pathlib import Path

from contextcrf.data.importers.files import by_stem, split_name
from contextcrf.data.importers.label_maps import from_values, read_values
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import UNLABELED, Findings, Labels, Record, Source
from contextcrf.utils.errors import DataError

_TABLE, _SUFFIX = "_classes.csv", "_mask"


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read the folders of the splits, or one folder with images and masks."""
    folders = [folder for folder in (source, *sorted(source.glob("*/"))) if (folder / _TABLE).is_file()]
    if not folders:
        raise DataError(
            f"{source} and its folders contain no {_TABLE}. Export the project as 'Semantic Segmentation Masks'."
        )
    tables = {folder: _read_table(folder / _TABLE) for folder in folders}
    first = tables[folders[0]]
    for folder, table in tables.items():
        if table != first:
            raise DataError(
                f"{folder / _TABLE} and {folders[0] / _TABLE} have different classes. Export the project again, or "
                "import the folders separately."
            )
    # Pixels of the class "unlabeled" are those that no polygon covers.
    values = sorted(value for value, name in first.items() if name.casefold() != "unlabeled")
    labels = {value: index for index, value in enumerate(values)}
    labels |= {value: UNLABELED for value in first if value not in labels}
    records: list[Record] = []
    for folder in folders:
        splits = () if folder == source else (split_name(folder.name),)
        records += _read_folder(folder, splits, labels, findings)
    return Source(tuple(first[value] for value in values), records)


def _read_table(path: Path) -> dict[int, str]:
    """Read the name of each pixel value."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file, skipinitialspace=True) if row]
    table: dict[int, str] = {}
    for row in rows[1:]:
        if len(row) < 2 or not row[0].isdigit() or not row[1]:
            raise DataError(f"{path} has the line {','.join(row)!r}, but a pixel value and a class are expected.")
        if int(row[0]) in table or row[1] in table.values():
            raise DataError(f"{path} repeats the value or the class of the line {','.join(row)!r}.")
        table[int(row[0])] = row[1]
    if not table:
        raise DataError(f"{path} has no classes, but lines such as '1, road' after the first line are expected.")
    return table


def _read_folder(folder: Path, splits: tuple[str, ...], table: dict[int, int], findings: Findings) -> list[Record]:
    files = by_stem(folder, findings)
    records = []
    for stem, path in sorted(files.items()):
        if stem.endswith(_SUFFIX) and stem.removesuffix(_SUFFIX) in files:
            continue
        if stem.endswith(_SUFFIX):
            findings.drop("masks without an image", path.name)
        elif (mask := folder / f"{stem}{_SUFFIX}.png").is_file():
            records.append(Record(path, f"{folder.name}/{path.name}", None, partial(_labels, mask, table), splits))
        else:
            findings.drop("images without a mask", path.name)
    return records


def _labels(path: Path, table: dict[int, int], findings: Findings) -> Labels:
    return from_values(read_values(path), table, path.name, findings)
