"""labelme: one JSON file per image, with polygons, rectangles, circles and masks."""

import base64
import binascii
import io
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from contextcrf.data.images import DECODING_ERRORS
from contextcrf.data.importers.files import ImageFinder, field, images_below, points_of, read_json, split_of
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import Findings, Record, Source, shape_names
from contextcrf.data.importers.shapes import Bitmap, Ellipse, Polygon, Region, Shape
from contextcrf.utils.errors import DataError

# labelme's names for pixels that are excluded, and for the background.
IGNORE, BACKGROUND = "__ignore__", "_background_"
NOT_LABELME = "JSON files that labelme has not written"


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read a JSON file of labelme, or all JSON files in a folder and its subfolders."""
    root = source if source.is_dir() else source.parent
    records = []
    for path in sorted(source.rglob("*.json")) if source.is_dir() else [source]:
        record = _read_file(path, root, options, findings)
        if record is not None:
            records.append(record)
    used = {record.image.resolve() for record in records if isinstance(record.image, Path)}
    for image in images_below(options.images or root) if source.is_dir() else ():
        # An image may also be embedded in the JSON file beside it.
        if image.resolve() not in used and not image.with_suffix(".json").is_file():
            findings.drop("images without a JSON file", image.relative_to(options.images or root).as_posix())
    return Source(shape_names(records), records)


def _read_file(path: Path, root: Path, options: Options, findings: Findings) -> Record | None:
    try:
        content = read_json(path)
    except DataError as error:
        findings.drop("JSON files that cannot be read", str(error))
        return None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        findings.drop(NOT_LABELME, path.name)
        return None
    stated = content.get("imagePath")
    name = stated.replace("\\", "/") if isinstance(stated, str) and stated else f"{path.stem}.png"
    image = _image(path, name, content, root, options, findings)
    if image is None:
        return None
    width, height = content.get("imageWidth"), content.get("imageHeight")
    size = (int(width), int(height)) if width and height else None
    shapes = [shape for item in content["shapes"] if (shape := _shape(item, path.name, findings)) is not None]
    place = PurePosixPath(path.relative_to(root).as_posix())
    # The image is named by its JSON file, since imagePath often begins with the folders of another machine.
    return Record(image, str(place.with_suffix(PurePosixPath(name).suffix)), size, shapes, split_of(place))


def _image(
    path: Path, name: str, content: dict[str, Any], root: Path, options: Options, findings: Findings
) -> Path | Callable[[], bytes] | None:
    """Return the image file beside the JSON file, or else a function that returns the embedded image."""
    folder = options.images or path.parent
    if (folder / name).is_file():
        return folder / name
    if (folder / PurePosixPath(name).name).is_file():
        return folder / PurePosixPath(name).name
    if content.get("imageData"):
        return lambda: _embedded(path)
    return ImageFinder([options.images or root]).find(name, findings)


def _embedded(path: Path) -> bytes:
    """Return the embedded image. It is read again, since all images together may not fit the memory."""
    try:
        return base64.b64decode(field(read_json(path), "imageData", str, str(path)), validate=True)
    except binascii.Error as error:
        raise DataError(f"{path} has an imageData that is not base64: {error}.") from error


def _shape(item: Any, where: str, findings: Findings) -> Shape | None:
    """Return a shape, or None with a finding."""
    try:
        label = str(field(item, "label", (str, int), f"A shape of {where}")).strip()
        kind = item.get("shape_type") or "polygon"
        points = points_of(item.get("points"), f"A shape of {where}")
        region = _region(kind, points, item)
    except DataError as error:
        findings.drop("shapes that are not valid", f"{where}: {error}")
        return None
    if region is None:
        findings.drop(f"shapes of the type {kind!r}, which cannot be drawn as an area", where)
        return None
    if not label:
        findings.drop("shapes without a class", where)
        return None
    return Shape(None if label == IGNORE else label, region)


def _region(kind: str, points: list[tuple[float, float]], item: dict[str, Any]) -> Region | None:
    if kind in ("polygon", "oriented_rectangle"):
        return Polygon(points)
    if kind in ("rectangle", "circle", "mask") and len(points) < 2:
        raise DataError(f"A {kind} has {len(points)} points, but 2 are expected.")
    if kind == "rectangle":
        columns, rows = zip(*points, strict=True)
        return Polygon.box(min(columns), min(rows), max(columns), max(rows))
    if kind == "circle":
        radius = math.dist(points[0], points[1])
        return Ellipse(points[0], (radius, radius))
    if kind == "mask":
        return _bitmap(points, item)
    return None


def _bitmap(points: list[tuple[float, float]], item: dict[str, Any]) -> Bitmap:
    """Return the embedded PNG of a mask, whose first pixel is the first point."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(field(item, "mask", str, "A mask"), validate=True))) as file:
            pixels = np.array(file.convert("L")) > 0
    except (binascii.Error, *DECODING_ERRORS) as error:
        raise DataError(f"A mask cannot be decoded: {error}.") from error
    return Bitmap(pixels, round(min(points[0][0], points[1][0])), round(min(points[0][1], points[1][1])))
