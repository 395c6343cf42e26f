"""The errors of image decoders, and their reasons in words."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from contextcrf.utils.errors import DataError

# The errors that Pillow raises for files that are not images, truncated or damaged. The type depends on the format.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
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
