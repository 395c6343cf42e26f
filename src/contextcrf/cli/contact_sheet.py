"""The contact sheet of `contextcrf init`: some images with their labels, so that a person sees a wrong mapping."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from contextcrf.data.classes import Classes
from contextcrf.data.dataset import Pair, SegmentationDataset
from contextcrf.data.image_format import RGB, ImageFormat
from contextcrf.data.images import to_picture
from contextcrf.data.masks import MaskFormat
from contextcrf.data.visualization import Labels, overlay, qualitative_grid
from contextcrf.utils.files import atomic_write

# The number of images, the examples in a row, and the largest side of an image in pixels.
IMAGES, COLUMNS, SIDE = 12, 2, 240
_SOFTWARE = "contextcrf init"


def write_contact_sheet(
    path: Path, pairs: Sequence[Pair], classes: Classes, masks: MaskFormat, image_format: ImageFormat = RGB
) -> None:
    """Write a PNG file with up to 12 images, each beside the same image with the colors of its labels, and a legend.

    Args:
        path: the file to write.
        pairs: the images and masks, of which evenly spaced ones are drawn.
        classes: the classes, whose colors are drawn.
        masks: the format of the masks.
        image_format: the format of the images.
    """
    data = SegmentationDataset(pairs, classes, mask_format=masks, image_format=image_format).spread(IMAGES)
    cells: list[Image.Image] = []
    drawn: list[Labels] = []
    for image, mask in data.without_transform():
        picture = to_picture(torch.as_tensor(image))
        picture.thumbnail((SIDE, SIDE))
        labels = Image.fromarray(np.asarray(mask).astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
        drawn.append(np.asarray(labels))
        cells += [picture, overlay(picture, np.asarray(labels), classes.palette)]
    width = 2 * min(COLUMNS, len(data))
    cells += [Image.new("RGB", cells[0].size, "white")] * (-len(cells) % width)
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    sheet = qualitative_grid(rows, ["image", "labels"] * (width // 2), classes, drawn)
    information = PngImagePlugin.PngInfo()
    information.add_text("Software", _SOFTWARE)
    with atomic_write(path) as partial:
        sheet.save(partial, "PNG", pnginfo=information)


def is_contact_sheet(path: Path) -> bool:
    """Return whether a file is a contact sheet that `write_contact_sheet` wrote."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == _SOFTWARE
    except OSError:
        return False
