"""Supervisely: a project of data sets with images in img/ and one JSON file per image in ann/."""

import base64
import binascii
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from contextcrf.data.images import DECODING_ERRORS
from contextcrf.data.importers.files import color_of, field, points_of, read_json, split_name
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import Findings, Record, Source, shape_names
from contextcrf.data.importers.shapes import Bitmap, Mask, PixelPolygon, Polygon, Region, Shape
from contextcrf.data.layouts import list_images
from contextcrf.utils.errors import DataError

# A damaged bitmap must not fill the memory.
_LARGEST = 1 << 28


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read a project, or one data set with the folders `ann` and `img`.

    The names of the data sets are those of the splits if one of them is a usual name, such as train.
    """
    folders = sorted({path.parent for path in source.rglob("ann") if path.is_dir()})
    if not folders:
        raise DataError(
            f"{source} contains no folder ann, but a project of Supervisely with ann/ and img/ is expected."
        )
    meta = next((path for path in (source / "meta.json", source.parent / "meta.json") if path.is_file()), None)
    classes: dict[str, Any] = {}
    if meta is not None:
        for item in field(read_json(meta), "classes", list, str(meta)):
            classes[field(item, "title", str, f"A class of {meta}").strip()] = color_of(item.get("color"))
    splits = {folder: split_name(folder.name) for folder in folders}
    usual = any(split in ("train", "val", "test") for split in splits.values())
    records: list[Record] = []
    for folder in folders:
        records += _read_folder(folder, (splits[folder],) if usual else (), options, findings)
    if meta is None:
        classes = dict.fromkeys(shape_names(records))
    return Source(tuple(classes), records, {name: color for name, color in classes.items() if color is not None})


def _read_folder(folder: Path, splits: tuple[str, ...], options: Options, findings: Findings) -> list[Record]:
    images = options.images or folder / "img"
    stems: dict[str, list[Path]] = {}
    for found in list_images(images) if images.is_dir() else ():
        stems.setdefault(found.stem, []).append(found)
    records, used = [], set()
    for path in sorted((folder / "ann").glob("*.json")):
        # The name of the annotation is image.jpg.json, or image.json in old projects.
        image = images / path.stem
        if not image.is_file():
            same = stems.get(path.stem, [])
            if len(same) > 1:
                names = ", ".join(found.name for found in same)
                findings.drop("annotations that fit several images of the same name", f"{path.name}: {names}")
                continue
            image = same[0] if same else image
        if not image.is_file():
            findings.drop("missing images", f"{folder.name}/{path.stem}")
            continue
        used.add(image)
        try:
            content = read_json(path)
            size = field(content, "size", dict, str(path))
            width, height = (field(size, key, int, f"The size in {path}") for key in ("width", "height"))
            objects = field(content, "objects", list, str(path))
        except DataError as error:
            findings.drop("annotation files that cannot be read", str(error))
            continue
        name = f"{folder.name}/{image.name}"
        shapes = [shape for item in objects if (shape := _shape(item, name, findings)) is not None]
        records.append(Record(image, name, (width, height), shapes, splits))
    for image in sorted({path for same in stems.values() for path in same} - used):
        findings.drop("images without an annotation", f"{folder.name}/{image.name}")
    return records


def _shape(item: Any, name: str, findings: Findings) -> Shape | None:
    try:
        title = field(item, "classTitle", str, "An object").strip()
        kind = item.get("geometryType") or ("bitmap" if item.get("bitmap") else "polygon")
        region = _region(kind, item)
    except DataError as error:
        findings.drop("shapes that are not valid", f"{name}: {error}")
        return None
    if region is None:
        findings.drop(f"shapes of the type {kind!r}, which cannot be drawn as an area", name)
        return None
    return Shape(title, region)


def _region(kind: str, item: dict[str, Any]) -> Region | None:
    if kind == "bitmap":
        return _bitmap(field(item, "bitmap", dict, "A bitmap"))
    if kind not in ("polygon", "rectangle"):
        return None
    points = field(item, "points", dict, f"A {kind}")
    ring = points_of(field(points, "exterior", list, f"A {kind}"), f"A {kind}")
    if kind == "rectangle":
        if len(ring) < 2:
            raise DataError(f"A rectangle has {len(ring)} points, but 2 are expected")
        columns, rows = zip(*ring, strict=True)
        # The right column and the bottom row belong to a rectangle.
        return Polygon.box(min(columns), min(rows), max(columns) + 1, max(rows) + 1)
    holes = [points_of(hole, "A polygon") for hole in points.get("interior") or []]
    if all(value.is_integer() for part in (ring, *holes) for point in part for value in point):
        whole = [[(int(x), int(y)) for x, y in part] for part in (ring, *holes)]
        return PixelPolygon(whole[0], tuple(whole[1:]))
    return Polygon(ring, tuple(holes))


def _bitmap(found: dict[str, Any]) -> Bitmap:
    """Return a bitmap: a PNG file, compressed by zlib and written as base64, whose first pixel is `origin`."""
    origin = points_of([field(found, "origin", list, "A bitmap")], "A bitmap")[0]
    try:
        packed = base64.b64decode(field(found, "data", str, "A bitmap"), validate=True)
        with Image.open(io.BytesIO(zlib.decompressobj().decompress(packed, _LARGEST))) as file:
            pixels = _members(file)
    except (binascii.Error, *DECODING_ERRORS) as error:
        raise DataError(f"A bitmap cannot be decoded: {error}") from error
    return Bitmap(pixels, int(origin[0]), int(origin[1]))


def _members(image: Image.Image) -> Mask:
    """Return the pixels of a class: those with an alpha above 0, or else those with a value above 0."""
    if image.mode in ("RGBA", "LA"):
        return np.array(image.getchannel("A")) > 0
    if image.mode == "P" and "transparency" in image.info:
        return np.array(image.convert("RGBA").getchannel("A")) > 0
    members: Mask = np.array(image) > 0
    return np.any(members, axis=2) if members.ndim == 3 else members
