"""Small files of annotation tools, and the masks that an import makes of them."""

import json
from pathlib import Path

import numpy as np
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
