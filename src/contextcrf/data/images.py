"""What counts as an image: 8 bits a channel, RGB or gray."""

import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

ImageLike = Image.Image | npt.NDArray[np.uint8] | Tensor

# What Pillow raises for a file that is no image, is cut short or is damaged, depending on the format and the place.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# What numpy raises for a damaged array file beside these.
ARRAY_ERRORS = (*DECODING_ERRORS, zipfile.BadZipFile)

# More than eight bits a channel: turned into RGB these would be cut off at 255, not scaled.
DEEP_IMAGE_MODES = ("I", "I;16", "I;16B", "I;16L", "F")


def as_pixels(image: ImageLike) -> Tensor:
    """Any usual form of an image as uint8 RGB [3, H, W]; what is not clear is refused by name (ValueError)."""
    if isinstance(image, Image.Image):
        if image.mode in DEEP_IMAGE_MODES:
            raise ValueError(f"mode {image.mode}; expected 8 bits a channel")
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


def read_picture(path: Path) -> Tensor:
    """A picture that somebody took, uint8 RGB [3, H, W], upright: phones store a portrait lying on its side.

    Raises one of `DECODING_ERRORS`, for more than twice `PIL.Image.MAX_IMAGE_PIXELS` (179 megapixels) too; Pillow's
    warning of half as many is for those who hold pictures to be a danger, not work.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            return as_pixels(upright(file))


def upright(image: Image.Image) -> Image.Image:
    """A picture as it was taken; the orientation that its EXIF data name is carried out."""
    return ImageOps.exif_transpose(image)


def is_turned(path: Path) -> bool:
    """Whether a picture's EXIF data say that it does not lie upright in its file."""
    with Image.open(path) as file:
        return file.getexif().get(ExifTags.Base.Orientation, 1) != 1
