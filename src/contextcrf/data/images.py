"""Reading of images (8 bits per channel, RGB or gray) and of masks (one class index per pixel)."""

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

# The errors that Pillow raises for files that are no images, truncated or damaged; which one depends on the format.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# NumPy raises one more for damaged array files.
ARRAY_ERRORS = (*DECODING_ERRORS, zipfile.BadZipFile)

# Modes with more than 8 bits per channel. A conversion to RGB would clip their values at 255 instead of scaling them.
DEEP_IMAGE_MODES = ("I", "I;16", "I;16B", "I;16L", "F")


def as_pixels(image: ImageLike) -> Tensor:
    """Convert an image in any usual form to a uint8 RGB tensor [3, H, W].

    Args:
        image: a PIL image, a uint8 array [H, W, 3] or [H, W], or a uint8 tensor [3, H, W].

    Raises:
        ValueError: another type, dtype or shape, or more than 8 bits per channel.
    """
    if isinstance(image, Image.Image):
        if image.mode in DEEP_IMAGE_MODES:
            raise ValueError(f"mode {image.mode}: expected 8 bits per channel; convert the image first")
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"array {image.dtype} {image.shape}: expected uint8 [H, W, 3], RGB")
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"tensor {image.dtype} {tuple(image.shape)}: expected uint8 [3, H, W], RGB")
        return image.cpu()
    raise ValueError(f"{type(image).__name__}: expected a PIL image, an array or a tensor")


def read_image(path: Path) -> Tensor:
    """Read an image file as a uint8 RGB tensor [3, H, W], upright as its EXIF orientation specifies.

    Images of more than twice `PIL.Image.MAX_IMAGE_PIXELS` (179 megapixels) are refused. Pillow's warning about half as
    many pixels is suppressed, since large photographs are ordinary input here.

    Raises:
        DataError: the file cannot be decoded or has more than 8 bits per channel; the message begins with its path.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return as_pixels(upright(file))
    except DECODING_ERRORS as error:
        raise DataError(f"{path}: the image cannot be read: {describe_error(error)}") from error


def read_mask(path: Path, ignore_index: int) -> Tensor:
    """Read a mask of class indices as an int64 tensor [H, W].

    Args:
        path: an image file with one channel.
        ignore_index: the value of unlabeled pixels in the file; it becomes `IGNORE_INDEX` (255).

    Raises:
        DataError: the file cannot be decoded or has several channels; the message begins with its path.
    """
    try:
        with Image.open(path) as file:
            mask = torch.from_numpy(np.array(file).astype(np.int64))
    except DECODING_ERRORS as error:
        raise DataError(f"{path}: the mask cannot be read: {describe_error(error)}") from error
    if mask.ndim != 2:
        raise DataError(f"{path}: the mask has {mask.shape[2]} channels; expected one, of class indices")
    return mask.masked_fill(mask == ignore_index, IGNORE_INDEX)


def describe_error(error: Exception) -> str:
    """The reason in one of `DECODING_ERRORS`, without the path that Pillow and the operating system add to some."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is not an image that Pillow can identify"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def to_picture(image: Tensor) -> Image.Image:
    """A tensor uint8 [3, H, W] as a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def upright(image: Image.Image) -> Image.Image:
    """The image with the rotation and reflection of its EXIF orientation applied."""
    return ImageOps.exif_transpose(image)


def is_turned(path: Path) -> bool:
    """Whether the EXIF data of an image file specify an orientation other than upright."""
    with Image.open(path) as file:
        return file.getexif().get(ExifTags.Base.Orientation, 1) != 1
