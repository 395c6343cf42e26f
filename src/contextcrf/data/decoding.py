"""The errors of image decoders, and their reasons in words."""

import struct
import zipfile
import zlib

from PIL import Image, UnidentifiedImageError

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
