"""The georeference of TIFF files, recognized by their tags without a library for geodata."""

import struct
from pathlib import Path

_TIFF = (".tif", ".tiff")
# The tags of GeoTIFF: pixel scale, tie points (also ground control points), transformation and keys of the CRS.
_GEO_TAGS = {33550, 33922, 34264, 34735}
# The world files beside a TIFF file, and what a file .aux.xml of GDAL contains if it has a georeference.
_WORLD_FILES = (".tfw", ".TFW", ".tifw", ".tiffw", ".wld")
_AUXILIARY = ("<GeoTransform", "<SRS", "<GCPList")
# The formats of the types BYTE, SHORT and LONG.
_FORMATS = {1: "B", 3: "H", 4: "I"}


def is_georeferenced(path: Path) -> bool:
    """Return whether an image file is a TIFF file with a georeference.

    A georeference is a coordinate reference system (CRS), a geotransform or ground control points. They are in the tags
    of GeoTIFF, in a world file such as `scene.tfw`, or in the file `scene.tif.aux.xml` that GDAL writes. Rational
    polynomial coefficients (RPCs) alone do not count.

    Args:
        path: the image file. The result is False for a file that is not a TIFF file or does not exist.

    Example:
        >>> from PIL import Image
        >>> Image.new("RGB", (6, 4)).save("plain.tif")
        >>> is_georeferenced(Path("plain.tif"))
        False
    """
    if path.suffix.lower() not in _TIFF or not (tags := tiff_tags(path)):
        return False
    if _GEO_TAGS & tags.keys() or any(path.with_suffix(suffix).is_file() for suffix in _WORLD_FILES):
        return True
    auxiliary = path.with_name(f"{path.name}.aux.xml")
    if not auxiliary.is_file():
        return False
    text = auxiliary.read_text(encoding="utf-8", errors="replace")
    return any(element in text for element in _AUXILIARY)


def tiff_tags(path: Path) -> dict[int, int]:
    """Read the tags of the first image of a TIFF file, also of a BigTIFF file of more than 4 GB.

    Args:
        path: the file.

    Returns:
        The value of each tag: its first number if the tag has at most as many small integers as fit beside the tag, and
        0 for all other types. A file that is not a TIFF file or is damaged has no tags.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
            order = {b"II": "<", b"MM": ">"}[start[:2]]
            (version,) = struct.unpack(f"{order}H", start[2:4])
            # The formats of the offset, of the number of tags, and of a tag: its number, type, count and value.
            offset, count, entry = {42: ("4xI", "H", "HHI4s"), 43: ("8xQ", "Q", "HHQ8s")}[version]
            file.seek(struct.unpack_from(order + offset, start)[0])
            (number,) = struct.unpack(order + count, file.read(struct.calcsize(order + count)))
            size = struct.calcsize(order + entry)
            content = file.read(min(number, 65536) * size)
            return {
                tag: _first(order, kind, length, value)
                for tag, kind, length, value in struct.iter_unpack(order + entry, content)
            }
    except (OSError, KeyError, struct.error):
        return {}


def _first(order: str, kind: int, length: int, value: bytes) -> int:
    """Return the first number of a tag whose numbers are stored beside it, and 0 for other tags."""
    form = order + _FORMATS.get(kind, "")
    if kind not in _FORMATS or length * struct.calcsize(form) > len(value):
        return 0
    return int(struct.unpack_from(form, value)[0])
