"""COCO: a JSON file with images, categories, and annotations of polygons or run-length encoded masks."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextcrf.data.importers.files import ImageFinder, field, read_json, split_name
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import Findings, Record, Source
from contextcrf.data.importers.shapes import Bounds, Mask, Shape
from contextcrf.utils.errors import DataError


@dataclass(frozen=True)
class CocoRegion:
    """A segmentation of COCO, which pycocotools draws.

    Args:
        segmentation: polygons, or a run-length encoded mask.
    """

    segmentation: list[list[float]] | dict[str, Any]

    def bounds(self) -> Bounds:
        """Return the ends of the polygons or of the mask."""
        if isinstance(self.segmentation, dict):
            height, width = self.segmentation["size"]
            return 0, 0, width, height
        columns = [x for ring in self.segmentation for x in ring[0::2]]
        rows = [y for ring in self.segmentation for y in ring[1::2]]
        return min(columns), min(rows), max(columns), max(rows)

    def mask(self, width: int, height: int) -> Mask:
        """Return the pixels of all polygons together, or of the mask."""
        from pycocotools import mask as coco

        if isinstance(self.segmentation, list):
            # pycocotools would draw a list of four numbers as a box.
            encoded = coco.merge(coco.frPyObjects(self.segmentation, height, width))
        else:
            found = tuple(self.segmentation["size"])
            if found != (height, width):
                raise DataError(f"The mask has {found[1]} x {found[0]} pixels, but the image has {width} x {height}")
            counts = self.segmentation["counts"]
            if isinstance(counts, list):
                if sum(counts) != height * width or min(counts) < 0:
                    raise DataError(f"The run lengths have the sum {sum(counts)}, but {height * width} is expected")
                encoded = coco.frPyObjects(self.segmentation, height, width)
            else:
                encoded = self.segmentation
                _check_compressed(counts, height * width)
        with warnings.catch_warnings():
            # pycocotools 2.0.11 with NumPy 2
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            return coco.decode(encoded).astype(bool)


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read a JSON file, or the JSON files of a folder.

    In a folder, the files are the `instances_*.json` in `annotations/` or in the folder, or else the other JSON files
    there and one level below. Each file is a split. Images are found in the folder, or in that of the option `images`.
    """
    _check_library()
    paths = [source] if source.is_file() else _annotation_files(source, findings)
    folders = [source.parent, *_above(source)] if source.is_file() else [source]
    finder = ImageFinder([options.images] if options.images else folders)
    names: list[str] = []
    records: list[Record] = []
    for path in paths:
        for name, size, shapes in _read_file(path, names, options, findings):
            image = finder.find(name, findings, path.parent)
            if image is None:
                continue
            # The folder distinguishes images of the same name in several splits.
            place = name if "/" in name else f"{image.parent.name}/{name}"
            records.append(Record(image, place, size, shapes, _splits(path, len(paths))))
    return Source(tuple(names), records)


def _check_library() -> None:
    try:
        import pycocotools.mask  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            "The format coco needs the package pycocotools, which is not installed. Run "
            '`pip install "contextcrf[import]"`.'
        ) from error


def _above(path: Path) -> list[Path]:
    """Return the folder beside `annotations/`, which contains the images of COCO."""
    return [path.parent.parent] if path.parent.name == "annotations" else []


def _annotation_files(folder: Path, findings: Findings) -> list[Path]:
    places = [folder / "annotations", folder]
    found = next((files for place in places if (files := sorted(place.glob("instances_*.json")))), [])
    if not found:
        found = sorted({*folder.glob("*.json"), *folder.glob("*/*.json")})
    chosen = [path for path in found if _is_coco(read_json(path))]
    for path in sorted({*folder.glob("*.json"), *folder.glob("*/*.json")} - set(chosen)):
        findings.drop("JSON files that are not used, because they have no COCO instances", path.name)
    if not chosen:
        raise DataError(
            f"{folder} contains no COCO annotations: a JSON file with the keys 'images', 'annotations' and "
            "'categories', in the folder, in annotations/ or in the folder of a split. Give the path of the JSON file."
        )
    return chosen


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def _splits(path: Path, files: int) -> tuple[str, ...]:
    """Return the split of a file, by its name (instances_train2017.json) or its folder (train/_annotations.coco.json).

    A single file whose name and folder are not those of a split has no split.
    """
    names = [split_name(path.stem.removeprefix("instances_")), split_name(path.resolve().parent.name)]
    usual = [name for name in names if name in ("train", "val", "test")]
    other = [names[1] if path.name.startswith("_annotations") else names[0]] if files > 1 else []
    return tuple((usual or other)[:1])


def _read_file(
    path: Path, names: list[str], options: Options, findings: Findings
) -> list[tuple[str, tuple[int, int] | None, list[Shape]]]:
    """Return the name, size and shapes of each image of a file, and add its categories to `names`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a COCO file: an object with the key 'images' is expected.")
    categories: dict[int, str] = {}
    for item in field(content, "categories", list, str(path)):
        where = f"A category of {path}"
        number, name = field(item, "id", int, where), str(field(item, "name", (str, int), where)).strip()
        if not name:
            raise DataError(f"{path} has no name for the category {number}. Give it a name.")
        if categories.setdefault(number, name) != name:
            raise DataError(
                f"{path} has the id {number} for the two categories {categories[number]!r} and {name!r}, so the class "
                "of their shapes is unclear. Give each category its own id."
            )
    for number in sorted(categories):
        if categories[number] not in names:
            names.append(categories[number])
    shapes: dict[Any, list[Shape]] = {}
    images: dict[Any, dict[str, Any]] = {}
    for item in field(content, "images", list, str(path)):
        # Some tools write the ids of the images as numbers, and those of the annotations as text.
        if (number := str(field(item, "id", (int, str), f"An image of {path}"))) in images:
            raise DataError(f"{path} has two images with the id {number!r}. Export the annotations again.")
        images[number] = item
    file_names = {number: field(item, "file_name", str, f"Image {number} of {path}") for number, item in images.items()}
    for item in field(content, "annotations", list, str(path)):
        if not isinstance(item, dict):
            raise DataError(f"{path} has the annotation {item!r}, but an object is expected.")
        number = str(field(item, "image_id", (int, str), f"Annotation {item.get('id')!r} of {path}"))
        if number not in images:
            findings.drop("annotations of an image that is not listed", f"{path.name}: image_id {number}")
            continue
        shape = _shape(item, categories, options, file_names[number], findings)
        if shape is not None:
            shapes.setdefault(number, []).append(shape)
    return [
        (file_names[number], _size(images[number], f"Image {number} of {path}"), shapes.get(number, []))
        for number in images
    ]


def _size(image: dict[str, Any], where: str) -> tuple[int, int] | None:
    if not image.get("width") or not image.get("height"):
        return None
    sides = {key: int(value) if str(value := image[key]).isdecimal() else value for key in ("width", "height")}
    width, height = (field(sides, key, (int, float), where) for key in sides)
    return int(width), int(height)


def _shape(
    item: dict[str, Any], categories: dict[int, str], options: Options, name: str, findings: Findings
) -> Shape | None:
    """Return the shape of an annotation, or None with a finding."""
    if "segments_info" in item:
        raise DataError(
            f"The annotations of {name} are panoptic, but annotations with a segmentation are expected. Give the file "
            "of the instances."
        )
    if (stated := item.get("iscrowd") or 0) not in (0, 1, "0", "1"):
        raise DataError(f"An annotation of {name} has {stated!r} under the key 'iscrowd', but 0 or 1 is expected.")
    crowd = bool(int(stated)) and options.crowd != "class"
    category = item.get("category_id")
    if isinstance(category, str) and category.isdecimal():
        category = int(category)
    if category not in categories:
        findings.drop(f"annotations with the unknown category_id {category!r}", name)
        return None
    segmentation = _segmentation(item.get("segmentation"))
    if segmentation is None:
        findings.drop("annotations without a valid segmentation (boxes, key points, fewer than 3 points)", name)
        return None
    if isinstance(segmentation, list) and len(segmentation) < len(_rings(item["segmentation"])):
        findings.drop("parts of polygons that are not valid (fewer than 3 points)", name)
    if crowd:
        findings.note("crowd regions (iscrowd) got the ignore_index", name)
    return Shape(None if crowd else categories[category], CocoRegion(segmentation))


def _segmentation(found: Any) -> list[list[float]] | dict[str, Any] | None:
    """Return a segmentation if it is valid. Polygons of fewer than 3 points are left out."""
    if isinstance(found, dict):
        size, counts = found.get("size"), found.get("counts")
        pair = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)
        runs = isinstance(counts, list) and counts and all(isinstance(count, int) for count in counts)
        return found if pair and (runs or (isinstance(counts, str) and counts)) else None
    if not isinstance(found, list):
        return None
    valid = [ring for ring in _rings(found) if _is_ring(ring)]
    return [[float(value) for value in ring] for ring in valid] or None


def _rings(found: list[Any]) -> list[Any]:
    """Return the polygons of a segmentation. Some tools write one polygon without the outer list."""
    return [found] if found and isinstance(found[0], int | float) else found


def _is_ring(ring: Any) -> bool:
    if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2:
        return False
    return all(isinstance(value, int | float) and bool(np.isfinite(value)) for value in ring)


def _check_compressed(counts: str, pixels: int) -> None:
    """Check the sum of compressed run lengths. pycocotools reads and writes outside its memory if the sum is wrong.

    Each number has 5 bits per character, the lowest first; bit 5 continues it, and the last bit 4 is the sign. From the
    fourth number on, the number two places earlier is added.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode("latin-1", "replace"):
        code = character - 48
        if not 0 <= code < 64:
            raise DataError("The compressed run lengths have a character that is not valid")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift or sum(runs) != pixels or min(runs, default=0) < 0:
        raise DataError(f"The compressed run lengths have the sum {sum(runs)}, but {pixels} is expected")
