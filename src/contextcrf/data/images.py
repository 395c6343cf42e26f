"""Functions that read images (8 bits per channel, RGB or gray) and masks (one class index per pixel)."""

import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.utils.errors import DataError

ImageLike = Image.Image | npt.NDArray[np.uint8] | Tensor

# The errors that Pillow raises for files that are not images, truncated or damaged. The type depends on the format.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# NumPy also raises BadZipFile for damaged array files.
ARRAY_ERRORS = (*DECODING_ERRORS, zipfile.BadZipFile)

# Modes with more than 8 bits per channel. Pillow's conversion to RGB clips their values at 255 instead of scaling them.
DEEP_IMAGE_MODES = ("I", "I;16", "I;16B", "I;16L", "F")


def as_pixels(image: ImageLike) -> Tensor:
    """Convert a PIL image, an array or a tensor to a uint8 RGB tensor [3, H, W] on the CPU.

    Args:
        image: a PIL image, a uint8 array [H, W, 3] or [H, W], or a uint8 tensor [3, H, W].

    Raises:
        ValueError: If the type, dtype or shape is different, or if the image has more than 8 bits per channel.

    Example:
        >>> as_pixels(np.zeros((4, 6), np.uint8)).shape
        torch.Size([3, 4, 6])
    """
    if isinstance(image, Image.Image):
        if image.mode in DEEP_IMAGE_MODES:
            raise ValueError(
                f"The image has mode {image.mode}, but 8 bits per channel are expected. Scale its values to 0..255 and "
                "convert it to 8 bits per channel."
            )
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"The array has dtype {image.dtype} and shape {image.shape}, but a uint8 array [H, W, 3] (RGB) or "
                "[H, W] (gray) is expected."
            )
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"The tensor has dtype {image.dtype} and shape {tuple(image.shape)}, but a uint8 tensor [3, H, W] "
                "(RGB) is expected."
            )
        return image.cpu()
    raise ValueError(f"The image has type {type(image).__name__}, but a PIL image, an array or a tensor is expected.")


def read_image(path: Path) -> Tensor:
    """Read an image file as a uint8 RGB tensor [3, H, W]. The EXIF orientation is applied.

    Images of more than twice `PIL.Image.MAX_IMAGE_PIXELS` (179 megapixels) raise an error. Pillow's warning at half
    that size is suppressed, since large images are ordinary input.

    Args:
        path: the image file.

    Raises:
        DataError: If the file cannot be decoded, or if it has more than 8 bits per channel. The message begins with
            the path.

    Example:
        >>> Image.new("RGB", (6, 4)).save("image.png")
        >>> read_image(Path("image.png")).shape
        torch.Size([3, 4, 6])
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return as_pixels(upright(file))
    except DECODING_ERRORS as error:
        raise DataError(f"{path} cannot be read as an image: {describe_error(error)}.") from error


def read_mask(path: Path, ignore_index: int) -> Tensor:
    """Read a mask of class indices as an int64 tensor [H, W].

    Args:
        path: an image file with one channel.
        ignore_index: the value of unlabeled pixels in the file. It is mapped to `IGNORE_INDEX` (255).

    Raises:
        DataError: If the file cannot be decoded, or if it has several channels. The message begins with the path.

    Example:
        >>> Image.fromarray(np.array([[0, 9]], np.uint8)).save("mask.png")
        >>> read_mask(Path("mask.png"), ignore_index=9)
        tensor([[  0, 255]])
    """
    try:
        with Image.open(path) as file:
            mask = torch.from_numpy(np.array(file).astype(np.int64))
    except DECODING_ERRORS as error:
        raise DataError(f"{path} cannot be read as a mask: {describe_error(error)}.") from error
    if mask.ndim != 2:
        raise DataError(
            f"{path} has {mask.shape[2]} channels, but a mask with one channel of class indices is expected. If the "
            "mask shows the classes as colors, convert the colors to the values 0, 1, 2, ... first."
        )
    return mask.masked_fill(mask == ignore_index, IGNORE_INDEX)


def describe_error(error: Exception) -> str:
    """Return the reason for one of the `DECODING_ERRORS`, without the path of the file and without a final period."""
    if isinstance(error, UnidentifiedImageError):
        return "Pillow cannot identify its format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__


def to_picture(image: Tensor) -> Image.Image:
    """Convert a uint8 tensor [3, H, W] to a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def upright(image: Image.Image) -> Image.Image:
    """Return the image with the rotation and reflection of its EXIF orientation applied."""
    return ImageOps.exif_transpose(image)


def is_turned(path: Path) -> bool:
    """Return whether the EXIF data of an image file specify an orientation other than upright."""
    with Image.open(path) as file:
        return file.getexif().get(ExifTags.Base.Orientation, 1) != 1
