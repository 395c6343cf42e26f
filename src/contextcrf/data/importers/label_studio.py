"""Label Studio: a JSON export with polygons, rectangles and ellipses in percent, and brush masks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from contextcrf.data.importers.files import ImageFinder, field, points_of, read_json
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import Findings, Record, Source, shape_names
from contextcrf.data.importers.shapes import Bounds, Ellipse, Mask, Polygon, Region, Shape, rotated
from contextcrf.utils.errors import DataError

_EXPORT = "Export the project as 'JSON' (not 'JSON-MIN')."
# The name of an uploaded file begins with eight digits that Label Studio adds.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read a JSON export, or the only JSON file of a folder."""
    path = source if source.is_file() else _only_json(source)
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DataError(f"{path} is not an export of Label Studio: a list of tasks is expected. {_EXPORT}")
    finder = ImageFinder([options.images or path.parent])
    records = []
    for position, task in enumerate(tasks):
        if "annotations" not in task and "completions" not in task:
            raise DataError(f"Task {task.get('id', position)} of {path} has no key 'annotations'. {_EXPORT}")
        record = _record(task, f"Task {task.get('id', position)}", finder, findings)
        if record is not None:
            records.append(record)
    return Source(shape_names(records), records)


@dataclass(frozen=True)
class Brush:
    """A brush mask, which is decoded when it is drawn, since all masks together may not fit the memory.

    Args:
        values: the bytes for `decode_brush`.
    """

    values: tuple[int, ...]

    def bounds(self) -> Bounds:
        """Return ends that are in every image, since a brush mask has the size of its image."""
        return 0, 0, 1, 1

    def mask(self, width: int, height: int) -> Mask:
        """Return the pixels whose alpha is above 0."""
        words = decode_brush(self.values)
        if words.size != 4 * width * height:
            raise DataError(f"The brush mask has {words.size} values, but {4 * width * height} are expected")
        return words.reshape(height, width, 4)[..., 3] > 0


def decode_brush(values: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Decode the run-length encoded bytes of a brush mask (the format of the JavaScript package rle-pack).

    The header has the number of words (32 bits), the bits per word less 1 (5 bits), and four sizes of run lengths less
    1 (4 bits each). Each block has a flag (1 bit), the position of its size (2 bits) and its length less 1. If the flag
    is 1, one word is repeated; otherwise, that many words follow.

    Args:
        values: the bytes.

    Returns:
        The words. The masks of Label Studio have four words (RGBA) per pixel.

    Raises:
        DataError: If the bytes are not valid.
    """
    try:
        bits = "".join(f"{byte:08b}" for byte in bytes(values))
    except (TypeError, ValueError) as error:
        raise DataError("The brush mask is not a list of bytes") from error
    place = 0

    def take(size: int) -> int:
        nonlocal place
        place += size
        if place > len(bits):
            raise DataError("The brush mask ends too early")
        return int(bits[place - size : place], 2)

    number, size = take(32), take(5) + 1
    if size != 8:
        raise DataError(f"The brush mask has {size} bits per word, but 8 are expected")
    sizes = [take(4) + 1 for _ in range(4)]
    # The shortest code of the longest run has 3 + 16 + 8 bits, so that damaged headers do not fill the memory.
    if number > len(bits) * 65536:
        raise DataError(f"The brush mask has {number} values in its header, but only {len(values)} bytes")
    words = np.zeros(number, np.uint8)
    start = 0
    while start < number:
        repeated = take(1)
        end = start + take(sizes[take(2)]) + 1
        if end > number:
            raise DataError(f"The brush mask has more than the {number} values of its header")
        words[start:end] = take(8) if repeated else [take(8) for _ in range(end - start)]
        start = end
    return words


def _only_json(folder: Path) -> Path:
    found = sorted(folder.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{folder} must contain one JSON file, but it contains: {names}. Give the path of the export.")
    return found[0]


def _record(task: dict[str, Any], where: str, finder: ImageFinder, findings: Findings) -> Record | None:
    name = _image_name(task)
    if name is None:
        findings.drop("tasks without an image", where)
        return None
    annotation = _annotation(task, name, findings)
    if annotation is None:
        findings.drop("images without an annotation", name)
        return None
    image = _find(name, finder, findings)
    if image is None:
        return None
    items = [item for item in annotation.get("result") or [] if isinstance(item, dict)]
    if len({item["to_name"] for item in items if _names(item) and item.get("to_name")}) > 1:
        findings.drop("tasks with shapes on several images, of which nothing shows which is which", name)
        return None
    sizes = {
        (
            field(item, "original_width", (int, float), f"A shape of {name}"),
            field(item, "original_height", (int, float), f"A shape of {name}"),
        )
        for item in items
        if item.get("original_width") and item.get("original_height")
    }
    if len(sizes) > 1:
        findings.drop("images with annotations for different sizes", name)
        return None
    if not sizes:
        return Record(image, name, None, [])
    size = (int(next(iter(sizes))[0]), int(next(iter(sizes))[1]))
    return Record(image, name, size, _shapes(items, size, name, findings))


def _image_name(task: dict[str, Any]) -> str | None:
    """Return the name of the task's image: of the uploaded file, or the path in its data."""
    data = task.get("data")
    texts = [text for text in data.values() if isinstance(text, str)] if isinstance(data, dict) else []
    if isinstance(data, dict) and isinstance(data.get("image"), str):
        texts.insert(0, data["image"])
    for text in texts:
        parts = urlsplit(text)
        # Files of a local storage are /data/local-files/?d=folder/name.jpg.
        path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
        if Path(path).suffix:
            return path.lstrip("/")
    found = task.get("file_upload")
    return found if isinstance(found, str) and found else None


def _find(name: str, finder: ImageFinder, findings: Findings) -> Path | None:
    """Find an image by its name, or by the name that it had before it was uploaded."""
    attempt = Findings()
    found = finder.find(name, attempt)
    short = _UPLOADED.sub("", Path(name).name)
    if found is None and short != Path(name).name:
        found = finder.find(short, Findings()) or finder.find_uploaded(short)
    if found is None:
        for reason, items in attempt.dropped.items():
            for item in items:
                findings.drop(reason, item)
        return None
    for remark, items in attempt.notes.items():
        for item in items:
            findings.note(remark, item)
    return found


def _annotation(task: dict[str, Any], name: str, findings: Findings) -> dict[str, Any] | None:
    """Return the ground truth, or else the first annotation that the annotator did not skip."""
    found = [item for item in task.get("annotations", task.get("completions")) or [] if isinstance(item, dict)]
    valid = [item for item in found if not item.get("was_cancelled") and not item.get("skipped")]
    if len(valid) > 1:
        findings.note("images have several annotations, of which the ground truth or the first is used", name)
    return next((item for item in valid if item.get("ground_truth")), valid[0] if valid else None)


def _shapes(items: list[dict[str, Any]], size: tuple[int, int], name: str, findings: Findings) -> list[Shape]:
    # With separate tags for shapes and labels, the items of one shape have the same id, and each has the geometry.
    named = {item.get("id") for item in items if _names(item)} - {None}
    shapes = []
    for item in items:
        if item.get("type") in ("choices", "textarea", "rating", "number", "relation"):
            continue
        labels = _names(item)
        if not labels:
            if item.get("id") not in named:
                findings.drop("shapes without a class", name)
            continue
        if len(labels) > 1:
            findings.note("shapes have several classes, of which the first is used", name)
        try:
            region = _region(item, size)
        except DataError as error:
            findings.drop("shapes that are not valid", f"{name}: {error}")
            continue
        if region is None:
            findings.drop(f"shapes of the type {item.get('type')!r}, which cannot be drawn as an area", name)
            continue
        shapes.append(Shape(labels[0], region))
    return shapes


def _names(item: dict[str, Any]) -> list[str]:
    """Return the classes of an item, such as its value under "brushlabels"."""
    value, kind = item.get("value"), item.get("type")
    found = value.get(kind) if isinstance(value, dict) and str(kind).endswith("labels") else None
    return [text for name in found if (text := str(name).strip())] if isinstance(found, list) else []


def _region(item: dict[str, Any], size: tuple[int, int]) -> Region | None:
    value = field(item, "value", dict, "A shape")
    if item.get("image_rotation"):
        raise DataError("The image was rotated in Label Studio. Set its rotation to 0 and export again")
    scale_x, scale_y = size[0] / 100, size[1] / 100
    if "rle" in value:
        return Brush(tuple(field(value, "rle", list, "A brush mask")))
    if "points" in value:
        return Polygon([(x * scale_x, y * scale_y) for x, y in points_of(value["points"], "A polygon")])
    if not {"x", "y"} <= value.keys():
        return None
    numbers = (float(field(value, key, (int, float), "A shape")) for key in ("x", "y"))
    x, y = (number * scale for number, scale in zip(numbers, (scale_x, scale_y), strict=True))
    rotation = float(field(value, "rotation", (int, float), "A shape")) if value.get("rotation") else 0.0
    if "radiusX" in value:
        radii = (
            field(value, "radiusX", (int, float), "An ellipse"),
            field(value, "radiusY", (int, float), "An ellipse"),
        )
        return Ellipse((x, y), (radii[0] * scale_x, radii[1] * scale_y), rotation)
    if "width" in value:
        width = field(value, "width", (int, float), "A rectangle") * scale_x
        height = field(value, "height", (int, float), "A rectangle") * scale_y
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        # Label Studio rotates around the upper left corner.
        return Polygon(rotated(corners, (x, y), rotation) if rotation else corners)
    return None
