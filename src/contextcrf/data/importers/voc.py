"""PASCAL VOC's layout with any label map, as CVAT and Datumaro write it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contextcrf.data.classes import Color, voc_palette
from contextcrf.data.importers.files import add_file, images_below
from contextcrf.data.importers.label_maps import color_table, colors_of, from_values, values_of
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import IGNORED, Findings, Labels, Record, Source
from contextcrf.data.stored_mask import code_color, color_code, decode_mask
from contextcrf.data.visualization import IGNORED_COLOR
from contextcrf.utils.errors import DataError

# Names of labels that exclude pixels.
_IGNORED_NAMES = ("void", "ignore", "ignored", "__ignore__")
_FOLDERS = ("", "VOC2012", "VOCdevkit/VOC2012")


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read a folder with JPEGImages, SegmentationClass and a label map. The split lists may have any names."""
    kit = next((source / part for part in _FOLDERS if (source / part / "SegmentationClass").is_dir()), None)
    if kit is None:
        raise DataError(
            f"{source} contains no folder SegmentationClass, but the folders SegmentationClass and JPEGImages are "
            "expected. Export the masks in the format of PASCAL VOC or as 'Segmentation mask'."
        )
    path = options.label_map or kit / "labelmap.txt"
    if not path.is_file():
        raise DataError(
            f"{path} does not exist, so the classes are unknown. Give a file with lines such as 'road:128,64,128::' "
            f"with --label-map FILE. If {source} is PASCAL VOC 2012 itself, it needs no import: all commands open it."
        )
    entries = read_label_map(path)
    ignored = [label for label, (name, _) in enumerate(entries) if name.casefold() in _IGNORED_NAMES]
    for label in ignored:
        findings.note("labels of the label map got the ignore_index", entries[label][0])
    classes = [entry for label, entry in enumerate(entries) if label not in ignored]
    index_of = {name: index for index, (name, _) in enumerate(classes)}
    # By the position in the label map, and by color.
    values = {label: index_of.get(name, IGNORED) for label, (name, _) in enumerate(entries)}
    colors = color_table([(color, index_of.get(name, IGNORED)) for name, color in entries], str(path))
    colors.setdefault(color_code(IGNORED_COLOR), IGNORED)
    values.setdefault(255 if options.ignore_index is None else options.ignore_index, IGNORED)
    records = _records(kit, options, values, colors, findings)
    return Source(tuple(name for name, _ in classes), records, dict(classes))


def read_label_map(path: Path) -> list[tuple[str, Color]]:
    """Read the lines `name:red,green,blue:parts:actions` of a label map. Without any color, VOC's colors are used.

    Raises:
        DataError: If a line is not valid, or if a name occurs twice.
    """
    entries: list[tuple[str, Color | None]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        text = rest.split(":")[0].strip()
        color = None if not text else _color(text)
        if not name or (text and color is None):
            raise DataError(
                f"Line {number} of {path} is {line.strip()!r}, but a line such as 'road:128,64,128::' is expected."
            )
        if name in (known for known, _ in entries):
            raise DataError(f"Line {number} of {path} repeats the name {name!r}. Give each label its own name.")
        entries.append((name, color))
    if not entries:
        raise DataError(f"{path} is empty, but lines such as 'road:128,64,128::' are expected.")
    if all(color is None for _, color in entries):
        return [(name, color) for (name, _), color in zip(entries, voc_palette(len(entries)), strict=True)]
    if without := [name for name, color in entries if color is None]:
        raise DataError(f"{path} gives no color to {', '.join(without)}. Give every label a color.")
    return [(name, color) for name, color in entries if color is not None]


def _color(text: str) -> Color | None:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) < 256 for part in parts):
        return None
    red, green, blue = (int(part) for part in parts)
    return red, green, blue


def _records(
    kit: Path, options: Options, values: Mapping[int, int], colors: Mapping[int, int], findings: Findings
) -> list[Record]:
    root, masks = options.images or kit / "JPEGImages", kit / "SegmentationClass"
    images = _by_place(root, findings)
    if not images:
        raise DataError(
            f"{root} contains no images. Export the task with its images, or give their folder with --images FOLDER."
        )
    found = _by_place(masks, findings)
    splits = _splits(kit)
    listed = {stem for stems in splits.values() for stem in stems}
    for stem in sorted(listed - found.keys()):
        findings.drop("images of a split without a mask", stem)
    for stem in sorted(images.keys() - found.keys() - listed):
        findings.drop("images without a mask", stem)
    records = []
    for stem, mask in found.items():
        if stem not in images:
            findings.drop("masks without an image", stem)
            continue
        names = tuple(split for split, stems in splits.items() if stem in stems)
        if splits and not names:
            findings.note("images are in no split", stem)
        records.append(
            Record(images[stem], f"{stem}{images[stem].suffix}", None, partial(_labels, mask, values, colors), names)
        )
    return records


def _by_place(folder: Path, findings: Findings) -> dict[str, Path]:
    """Return the images in a folder and its subfolders by their paths without the suffix."""
    found: dict[str, Path] = {}
    for path in images_below(folder):
        add_file(found, path.relative_to(folder).with_suffix("").as_posix(), path, findings)
    return found


def _splits(kit: Path) -> dict[str, set[str]]:
    """Return the images of each list in ImageSets/Segmentation, without suffixes."""
    lists = sorted((kit / "ImageSets" / "Segmentation").glob("*.txt"))
    return {
        path.stem: {_stem(line) for line in path.read_text("utf-8-sig").splitlines() if line.strip()} for path in lists
    }


def _stem(line: str) -> str:
    name = line.strip().replace("\\", "/")
    return name.rpartition(".")[0] if name.lower().endswith((".jpg", ".jpeg", ".png")) else name


def _labels(path: Path, values: Mapping[int, int], colors: Mapping[int, int], findings: Findings) -> Labels:
    """Read a mask by its colors, or by its values if they are positions in the label map.

    Tools order palettes differently, so the colors of a palette PNG decide unless the label map has none of them.

    Raises:
        DataError: If both ways are possible and give different labels.
    """
    mask = decode_mask(path)
    gray = mask.values is not None and mask.channels == 1 and mask.palette is None
    if gray and values_of(mask).max(initial=0) > 255:
        return from_values(values_of(mask), values, path.name, findings)
    shown = colors_of(mask)
    by_color, color_findings = _attempt(shown, colors, path.name, True)
    if mask.channels > 1:
        return _keep(by_color, color_findings, findings)
    by_value, value_findings = _attempt(values_of(mask), values, path.name, False)
    colored, valued = not color_findings.notes, not value_findings.notes
    if not gray:
        known = np.isin(shown, list(colors))
        agree = np.array_equal(by_color[known], by_value[known])
        use_values = (valued and agree and not colored) or not known.any()
    elif colored and valued and not _all_gray(colors) and not np.array_equal(by_color, by_value):
        raise DataError(
            f"{path} has gray values that are both positions in the label map and gray colors of it, with different "
            "classes. Export the masks as color PNGs, or give the classes other colors."
        )
    else:
        use_values = not colored
    return _keep(*((by_value, value_findings) if use_values else (by_color, color_findings)), findings)


def _attempt(
    found: npt.NDArray[np.int64], table: Mapping[int, int], where: str, colors: bool
) -> tuple[Labels, Findings]:
    findings = Findings()
    return from_values(found, table, where, findings, colors), findings


def _keep(labels: Labels, attempt: Findings, findings: Findings) -> Labels:
    for remark, items in attempt.notes.items():
        for item in items:
            findings.note(remark, item)
    return labels


def _all_gray(colors: Mapping[int, int]) -> bool:
    """Return whether the label map has gray colors alone, apart from VOC's color of excluded pixels."""
    return all(len(set(code_color(color))) == 1 for color in colors if color != color_code(IGNORED_COLOR))
