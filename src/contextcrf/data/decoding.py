"""Opening of image files, their orientation, and the errors of decoders with their reasons in words."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from contextcrf.utils.errors import DataError

# The errors that Pillow raises for files that are not images, truncated or damaged. The type depends on the format.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# The EXIF orientations that turn or mirror an image, and those of them that exchange width and height.
TURNED, SIDEWAYS = (2, 3, 4, 5, 6, 7, 8), (5, 6, 7, 8)
V = TypeVar("V", bound=np.generic)
# NumPy also raises BadZipFile for damaged array files.
ARRAY_ERRORS = (*DECODING_ERRORS, zipfile.BadZipFile)


def describe_error(error: Exception) -> str:
    """Return the reason for one of the `DECODING_ERRORS`, without the path of the file and without a final period."""
    if isinstance(error, UnidentifiedImageError):
        return "Pillow cannot identify its format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__


@contextmanager
def naming_image(path: Path) -> Iterator[None]:
    """Add the path of an image file to the `ARRAY_ERRORS` of the block.

    Raises:
        DataError: If the block raises one of them. The message begins with the path.
    """
    try:
        yield
    except ARRAY_ERRORS as error:
        raise DataError(f"{path} cannot be read as an image: {describe_error(error)}.") from error


@contextmanager
def open_image(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file with Pillow.

    TIFF files are opened as a stream. Pillow would map others into memory and read gray ones with an orientation from 5
    to 8 with a wrong row length.

    Args:
        path: the file.
        content: the content of the file, if it is in memory. The path is then not used.
    """
    if content is not None:
        with Image.open(io.BytesIO(content)) as image:
            yield image
        return
    if path.suffix.lower() not in (".tif", ".tiff"):
        with Image.open(path) as image:
            yield image
        return
    with path.open("rb") as file, Image.open(file) as image:
        yield image


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's raw mode of an opened file that is not decoded yet, such as "L;4", or the mode of an image.

    The raw mode gives the number of bits that the file stores, which the mode of the decoded image hides.
    """
    tiles = getattr(image, "tile", None)
    if not tiles:
        return image.mode
    args = tiles[0][3]
    raw = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else None
    return raw if isinstance(raw, str) else image.mode


def upright(image: Image.Image) -> Image.Image:
    """Return the image with the rotation and reflection of its EXIF orientation applied, and with its format."""
    turned_image = ImageOps.exif_transpose(image)
    turned_image.format = image.format  # Pillow's copy has no format, which shows the meaning of mode I.
    return turned_image


def turned(values: npt.NDArray[V], orientation: int) -> npt.NDArray[V]:
    """Turn an array [H, W, ...] as the EXIF orientation of its file says.

    Example:
        >>> turned(np.array([[1, 2]]), orientation=6).tolist()
        [[1], [2]]
    """
    if orientation in SIDEWAYS:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values
