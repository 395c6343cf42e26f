"""Masks whose pixel values or colors are classes, as labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contextcrf.data.classes import Color
from contextcrf.data.importers.records import IGNORED, Findings, Labels
from contextcrf.data.stored_mask import StoredMask, code_color, color_code, decode_mask
from contextcrf.utils.errors import DataError

UNKNOWN_VALUES = "masks have pixels with an unknown value, which got the ignore_index"
_COLORS = (
    "several channels with different values, but a mask with one value per pixel is expected. If it has colors, "
    "convert them to class indices. For a data set of Hugging Face, --label-column chooses another column."
)
UNKNOWN_COLORS = "masks have pixels with an unknown color, which got the ignore_index"


def read_values(path: Path, content: bytes | None = None) -> npt.NDArray[np.int64]:
    """Read the stored values [H, W] of a mask.

    Args:
        path: the file, or a name for the messages if `content` is given.
        content: the content of a file in memory.

    Raises:
        DataError: If the file cannot be decoded, has lossy compression, or has colors.
    """
    return values_of(decode_mask(path, content))


def values_of(mask: StoredMask) -> npt.NDArray[np.int64]:
    """Return the stored values [H, W] of a mask.

    Raises:
        DataError: If the file has lossy compression, or if it has colors.
    """
    _check_lossless(mask)
    if mask.values is None:
        raise DataError(f"{mask.path} has {_COLORS}")
    return mask.values.astype(np.int64)


def one_channel(values: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.int64]:
    """Return integers [H, W]. Several channels with the same values count as one.

    Raises:
        DataError: If the channels differ.
    """
    if values.ndim == 3 and values.shape[2] in (3, 4) and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise DataError(f"{where} has the shape {values.shape}. It has {_COLORS}")
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
        colors: whether the values are colors of `color_code`.
    """
    found, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    unknown = [i for i, value in enumerate(found.tolist()) if value not in table]
    if unknown:
        unknown.sort(key=lambda i: -counts[i])
        shown = ", ".join(str(code_color(int(found[i])) if colors else int(found[i])) for i in unknown[:5])
        more = ", ..." if len(unknown) > 5 else ""
        pixels = int(counts[unknown].sum())
        findings.note(
            UNKNOWN_COLORS if colors else UNKNOWN_VALUES,
            f"{where}: {shown}{more} at {pixels} of {values.size} pixels",
        )
    labels = np.array([table.get(value, IGNORED) for value in found.tolist()], np.int32)
    return labels[inverse].reshape(values.shape)


def colors_of(mask: StoredMask) -> npt.NDArray[np.int64]:
    """Return the colors [H, W] of a mask as integers of `color_code`.

    Raises:
        DataError: If the file has lossy compression, or if it has gray values above 255.
    """
    _check_lossless(mask)
    return mask.color_codes().astype(np.int64)


def _check_lossless(mask: StoredMask) -> None:
    if mask.lossy:
        raise DataError(
            f"{mask.path} has lossy compression, which changes labels. Export the masks as PNG files, or use the "
            "original masks."
        )


def color_table(colors: Sequence[tuple[Color, int]], where: str) -> dict[int, int]:
    """Return the label of each color of `color_code`.

    Raises:
        DataError: If two entries have the same color.
    """
    table: dict[int, int] = {}
    for color, label in colors:
        if color_code(color) in table:
            raise DataError(f"{where} gives the color {list(color)} to two classes. Give each class its own color.")
        table[color_code(color)] = label
    return table
