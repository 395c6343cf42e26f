"""Small files of annotation tools, and the masks that an import makes of them."""

import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

from contextcrf.data.importers.importing import import_dataset
from contextcrf.data.layouts import open_dataset


def write_image(path, width=6, height=4, orientation=None):
    """Write an image whose pixels all differ, with an EXIF orientation if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def write_mask(path, values, palette=None):
    """Write a mask: colors [H, W, 3], values [H, W], or values with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint8))
    if palette is not None:
        image.putpalette([part for color in palette for part in color])
    image.save(path)
    return path


def gray_png(path, labels, bits):
    """A gray PNG of 1, 2, 4, 8 or 16 bits, written without Pillow."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = labels.shape
    rows = b""
    for row in labels:
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def write_planes(path, values):
    """Write one channel of 16 bits as a TIFF file of planes (PlanarConfiguration 2)."""
    height, width = values.shape
    options = {"width": width, "height": height, "count": 1, "dtype": values.dtype, "interleave": "band"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **options) as file:
            file.write(values[None])


def write_json(path, content):
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def mask_of(out, stem):
    """The values of a mask, as a list of strings with one character per pixel; "." is the ignore_index."""
    with Image.open(Path(out) / "masks" / f"{stem}.png") as file:
        assert file.mode == "P"
        return ["".join("." if value == 255 else str(value) for value in row) for row in np.asarray(file).tolist()]


def imported(format, source, out, split="train", **options):
    """The report of an import, after the data set was opened and compared with it."""
    report = import_dataset(format, source, out, **options)
    data = open_dataset(out, split)
    assert list(data.classes.names) == list(report.pixels)
    for image, mask in data:
        assert image.shape[-2:] == mask.shape
    assert json.loads((Path(out) / "import.json").read_text()) == report.to_dict()
    assert report.images == len(list((Path(out) / "images").iterdir())) == len(list((Path(out) / "masks").iterdir()))
    return report
