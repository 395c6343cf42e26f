"""Masks whose pixel values or colors are classes, as labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from contextcrf.data.classes import Color
from contextcrf.data.images import DECODING_ERRORS, describe_error
from contextcrf.data.importers.records import IGNORED, Findings, Labels
from contextcrf.utils.errors import DataError

UNKNOWN_VALUES = "masks have pixels with an unknown value, which got the ignore_index"
UNKNOWN_COLORS = "masks have pixels with an unknown color, which got the ignore_index"


def open_mask(path: Path) -> Image.Image:
    """Read a mask file.

    Raises:
        DataError: If the file cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            file.load()
            return file
    except DECODING_ERRORS as error:
        raise DataError(f"{path} cannot be read as a mask: {describe_error(error)}.") from error


def read_values(path: Path) -> npt.NDArray[np.int64]:
    """Read the values [H, W] of a mask with one channel.

    Raises:
        DataError: If the file cannot be decoded, or if it has several channels.
    """
    return one_channel(np.array(open_mask(path)), str(path))


def one_channel(values: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.int64]:
    """Return integers [H, W]. Several channels with the same values count as one.

    Raises:
        DataError: If the channels differ.
    """
    if values.ndim == 3 and values.shape[2] in (3, 4) and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise DataError(
            f"{where} has the shape {values.shape}, but a mask with one value per pixel is expected. If it has colors, "
            "convert them to class indices. For a data set of Hugging Face, --label-column chooses another column."
        )
    return values.astype(np.int64)


def from_values(
    values: npt.NDArray[np.integer], table: Mapping[int, int], where: str, findings: Findings, colors: bool = False
) -> Labels:
    """Map the values of a mask to labels. Unknown values get `IGNORED`, and a note names them.

    Args:
        values: the values [H, W].
        table: the label of each known value.
        where: the name of the mask, for the note.
        findings: what the note is added to.
        colors: whether the values are colors of `pack`.
    """
    found, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    unknown = [i for i, value in enumerate(found.tolist()) if value not in table]
    if unknown:
        unknown.sort(key=lambda i: -counts[i])
        shown = ", ".join(str(unpack(found[i]) if colors else int(found[i])) for i in unknown[:5])
        more = ", ..." if len(unknown) > 5 else ""
        pixels = int(counts[unknown].sum())
        findings.note(
            UNKNOWN_COLORS if colors else UNKNOWN_VALUES,
            f"{where}: {shown}{more} at {pixels} of {values.size} pixels",
        )
    labels = np.array([table.get(value, IGNORED) for value in found.tolist()], np.int32)
    return labels[inverse].reshape(values.shape)


def read_colors(path: Path) -> npt.NDArray[np.int64]:
    """Read the colors [H, W] of a mask as integers of `pack`.

    Raises:
        DataError: If the file cannot be decoded.
    """
    return packed(open_mask(path))


def packed(mask: Image.Image) -> npt.NDArray[np.int64]:
    """Return the colors [H, W] of an image as integers of `pack`."""
    red, green, blue = np.moveaxis(np.array(mask.convert("RGB")).astype(np.int64), 2, 0)
    return red << 16 | green << 8 | blue


def pack(color: Color) -> int:
    """Return a color as one integer."""
    return color[0] << 16 | color[1] << 8 | color[2]


def unpack(color: int) -> Color:
    """Return the color of an integer of `pack`."""
    return int(color) >> 16, int(color) >> 8 & 255, int(color) & 255


def color_table(colors: Sequence[tuple[Color, int]], where: str) -> dict[int, int]:
    """Return the label of each color of `pack`.

    Raises:
        DataError: If two entries have the same color.
    """
    table: dict[int, int] = {}
    for color, label in colors:
        if pack(color) in table:
            raise DataError(f"{where} gives the color {list(color)} to two classes. Give each class its own color.")
        table[pack(color)] = label
    return table
