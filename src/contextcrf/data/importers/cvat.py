"""CVAT for images 1.1: an XML file with polygons, boxes, ellipses and run-length encoded masks."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from contextcrf.data.classes import Color
from contextcrf.data.importers.files import ImageFinder, color_of, read_xml, split_name
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import Findings, Record, Source, shape_names
from contextcrf.data.importers.shapes import Bitmap, Ellipse, Polygon, Region, Shape
from contextcrf.utils.errors import DataError

# Elements without an area, and elements of whole images.
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")
_NO_SHAPES = ("tag",)


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read an XML file, or the XML files of a folder."""
    paths = [source] if source.is_file() else sorted(source.glob("*.xml"))
    if not paths:
        raise DataError(f"{source} contains no XML file. Export the task as 'CVAT for images 1.1' and unpack the file.")
    finder = ImageFinder([options.images or (source.parent if source.is_file() else source)])
    colors: dict[str, Color | None] = {}
    records = []
    for path in paths:
        root = read_xml(path)
        _check(root, path)
        colors |= {name: color for name, color in _labels(root) if name not in colors}
        for element in root.iter("image"):
            record = _record(element, path, finder, findings)
            if record is not None:
                records.append(record)
    if not colors:  # an export without its meta data
        colors = dict.fromkeys(shape_names(records))
    return Source(tuple(colors), records, {name: color for name, color in colors.items() if color is not None})


def _check(root: Element, path: Path) -> None:
    if root.find("track") is not None:
        raise DataError(f"{path} has tracks of a video. Export the task as 'CVAT for images 1.1'.")
    if root.tag != "annotations":
        raise DataError(
            f"{path} has the root element {root.tag!r}, but 'annotations' is expected. Export the task as 'CVAT for "
            "images 1.1'."
        )


def _labels(root: Element) -> Iterator[tuple[str, Color | None]]:
    """Yield the names and colors of the labels of a task, a job or a project."""
    for label in root.findall("./meta//label"):
        if name := (label.findtext("name") or "").strip():
            yield name, color_of(label.findtext("color"))


def _record(element: Element, path: Path, finder: ImageFinder, findings: Findings) -> Record | None:
    name = element.get("name")
    if not name:
        findings.drop("images without a name", path.name)
        return None
    image = finder.find(name, findings)
    if image is None:
        return None
    subset = element.get("subset")
    shapes = [shape for child in element if (shape := _shape(child, name, findings)) is not None]
    try:
        size = (round(_number(element, "width")), round(_number(element, "height")))
    except DataError:
        findings.note("images without a size in the annotations were taken as upright", name)
        size = None
    return Record(image, name, size, shapes, (split_name(subset),) if subset else ())


def _shape(element: Element, name: str, findings: Findings) -> Shape | None:
    if element.tag in _WITHOUT_AREA or element.tag in _NO_SHAPES:
        findings.drop(f"annotations of the type {element.tag!r}, which cannot be drawn as an area", name)
        return None
    try:
        region = _region(element)
        order = _number(element, "z_order") if element.get("z_order") else 0.0
    except DataError as error:
        findings.drop("shapes that are not valid", f"{name}: {error}")
        return None
    if region is None:
        findings.drop(f"annotations of the unknown type {element.tag!r}", name)
        return None
    if not (label := (element.get("label") or "").strip()):
        findings.drop("shapes without a class", name)
        return None
    return Shape(label, region, order)


def _region(element: Element) -> Region | None:
    if element.tag == "polygon":
        return Polygon(_points(element))
    rotation = _number(element, "rotation") if element.get("rotation") else 0.0
    if element.tag == "box":
        left, top, right, bottom = (_number(element, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        return Polygon.box(left, top, right, bottom, rotation)
    if element.tag == "ellipse":
        cx, cy, rx, ry = (_number(element, key) for key in ("cx", "cy", "rx", "ry"))
        return Ellipse((cx, cy), (rx, ry), rotation)
    if element.tag == "mask":
        return _bitmap(element)
    return None


def _points(element: Element) -> list[tuple[float, float]]:
    try:
        pairs = [pair.split(",") for pair in (element.get("points") or "").split(";") if pair.strip()]
        return [(float(x), float(y)) for x, y in pairs]
    except ValueError as error:
        raise DataError("The points of a polygon are not pairs of numbers") from error


def _bitmap(element: Element) -> Bitmap:
    """Return the pixels of run lengths. The first run is outside the mask, and the rows follow each other."""
    left, top, width, height = (round(_number(element, key)) for key in ("left", "top", "width", "height"))
    try:
        runs = [int(run) for run in (element.get("rle") or "").split(",")]
    except ValueError as error:
        raise DataError("The run lengths of a mask are not integers") from error
    if min(runs) < 0 or sum(runs) != width * height:
        raise DataError(f"The run lengths of a mask have the sum {sum(runs)}, but {width * height} is expected")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return Bitmap(pixels.reshape(height, width), left, top)


def _number(element: Element, key: str) -> float:
    try:
        value = float(element.get(key, ""))
    except ValueError as error:
        raise DataError(f"A {element.tag} has the {key} {element.get(key)!r}, but a number is expected") from error
    if not np.isfinite(value):
        raise DataError(f"A {element.tag} has the {key} {element.get(key)!r}, but a finite number is expected")
    return value
