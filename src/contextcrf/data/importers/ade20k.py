"""ADE20K of the scene parsing challenge: images/SPLIT, annotations/SPLIT and objectInfo150.txt."""

from functools import partial
from pathlib import Path

from contextcrf.data.importers.files import by_stem, split_name
from contextcrf.data.importers.label_maps import from_values, read_values
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import UNLABELED, Findings, Labels, Record, Source
from contextcrf.utils.errors import DataError

_CLASSES = 150


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read the 150 classes. The value 0 of the masks is unlabeled, and the value k is the class k - 1."""
    root = options.images or source / "images"
    folders = sorted(path for path in (source / "annotations").glob("*/"))
    if not folders or not root.is_dir():
        raise DataError(
            f"{source} must contain images/training and annotations/training, as in ADEChallengeData2016. The full "
            "data set of ADE20K, with files *_seg.png, has another layout, which is not supported."
        )
    names = _names(source, findings)
    table = {0: UNLABELED} | {index + 1: index for index in range(len(names))}
    records = []
    for folder in folders:
        images, masks = by_stem(root / folder.name, findings), by_stem(folder, findings)
        for stem in sorted(images.keys() | masks.keys()):
            if stem not in masks:
                findings.drop("images without a mask", f"{folder.name}/{stem}")
            elif stem not in images:
                findings.drop("masks without an image", f"{folder.name}/{stem}")
            else:
                name = f"{folder.name}/{images[stem].name}"
                content = partial(_labels, masks[stem], table)
                records.append(Record(images[stem], name, None, content, (split_name(folder.name),)))
    return Source(names, records)


def _names(source: Path, findings: Findings) -> tuple[str, ...]:
    """Return the first synonym of each class in objectInfo150.txt, or numbers if the file does not exist."""
    path = source / "objectInfo150.txt"
    if not path.is_file():
        findings.note("the classes have numbers for names, since a file is missing", path.name)
        return tuple(f"class {number}" for number in range(1, _CLASSES + 1))
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    found: dict[int, str] = {}
    for row in rows:
        if row[0].strip().isdigit():
            found[int(row[0])] = row[-1].split(",")[0].strip()
    if sorted(found) != list(range(1, len(found) + 1)) or not found:
        raise DataError(f"{path} must have a line for each class, which begins with 1, 2, ... and ends with the name.")
    names: list[str] = []
    for number in sorted(found):
        name = found[number] or f"class {number}"
        names.append(name if name not in names else f"{name} {number}")
    return tuple(names)


def _labels(path: Path, table: dict[int, int], findings: Findings) -> Labels:
    return from_values(read_values(path), table, path.name, findings)
