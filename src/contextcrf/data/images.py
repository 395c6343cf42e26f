"""Functions that read images as tensors with 8 bits per channel."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image
from torch import Tensor

from contextcrf.data.bands import bands_of, read_bands, read_header
from contextcrf.data.conversion import has_packed_depth, scale_16_bits, scale_fractions, to_rgb8
from contextcrf.data.decoding import ARRAY_ERRORS as ARRAY_ERRORS
from contextcrf.data.decoding import DECODING_ERRORS as DECODING_ERRORS
from contextcrf.data.decoding import describe_error as describe_error
from contextcrf.data.decoding import naming_image, open_image
from contextcrf.data.decoding import upright as upright
from contextcrf.data.image_format import IMAGES_FILE, RGB, ImageFormat
from contextcrf.data.masks import read_mask as read_mask

ImageLike = Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | Tensor

# Modes with more than 8 bits per channel. Pillow's conversion to RGB clips their values at 255, so use `as_pixels`.
DEEP_IMAGE_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
# The files that may have channels which Pillow does not decode.
_BAND_SUFFIXES = (".tif", ".tiff", ".npy")


def as_pixels(image: ImageLike, image_format: ImageFormat = RGB) -> Tensor:
    """Convert a PIL image, an array or a tensor to a uint8 tensor [C, H, W] on the CPU, by default RGB.

    Values of 16 bits are scaled by 255/65535. A PIL image may also be gray, CMYK or a palette image, or have
    floating-point values from 0 to 1. Its EXIF orientation is applied, as for files, so that the photograph of a phone
    is upright. Its colors are converted to sRGB if it has an ICC profile. Transparent pixels are composited over black.

    Args:
        image: a PIL image, an array [H, W, 3] or [H, W], or a tensor [3, H, W]. Arrays and tensors have the dtype uint8
            or uint16. If `image_format` is not RGB, the image has the channels of this format and any numeric dtype.
            Pass its values as a file stores them; this function scales them. Only a uint8 tensor is assumed to be
            scaled already, like the result of `read_image`.
        image_format: the channels and the range of the values. With a format other than RGB, transparency and color
            profiles have no effect.

    Raises:
        ValueError: If the type, dtype or shape is not one of these, or if the range of the values is unclear: 16 bits
            with only values below 16384, which may come from a camera with fewer bits, or floating-point values outside
            0..1.

    Example:
        >>> as_pixels(np.zeros((4, 6), np.uint8)).shape
        torch.Size([3, 4, 6])
    """
    if isinstance(image, Image.Image):
        image = upright(image)
    if not image_format.is_rgb and not (isinstance(image, Tensor) and image.dtype == torch.uint8):
        return _channels_first(image_format.scale(_values(image, image_format.channels)))
    if isinstance(image, Image.Image):
        return _channels_first(to_rgb8(image, has_packed_depth(image)))
    if isinstance(image, np.ndarray):
        pixels: npt.NDArray[Any] = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f"The array has dtype {pixels.dtype} and shape {pixels.shape}, but a uint8 array [H, W, 3] (RGB) or "
                "[H, W] (gray) is expected, or a uint16 array of such a shape."
            )
        return _channels_first(scale_16_bits(pixels) if pixels.dtype == np.uint16 else pixels)
    if isinstance(image, Tensor):
        channels, rgb = image_format.channels, " (RGB)" * image_format.is_rgb
        if image.dtype not in (torch.uint8, torch.uint16) or image.ndim != 3 or image.shape[0] != channels:
            raise ValueError(
                f"The tensor has dtype {image.dtype} and shape {tuple(image.shape)}, but a uint8 tensor "
                f"[{channels}, H, W]{rgb} is expected, or a uint16 tensor of such a shape."
            )
        image = image.cpu()
        return torch.from_numpy(scale_16_bits(image.numpy())) if image.dtype == torch.uint16 else image
    raise ValueError(f"The image has type {type(image).__name__}, but a PIL image, an array or a tensor is expected.")


def _values(image: ImageLike, channels: int) -> npt.NDArray[Any]:
    """Return the values of an image in memory, [H, W, C]."""
    if isinstance(image, Image.Image):
        return bands_of(image, channels)
    values = image.cpu().numpy().transpose(1, 2, 0) if isinstance(image, Tensor) and image.ndim == 3 else image
    if isinstance(values, np.ndarray) and values.ndim in (2, 3):
        return values if values.ndim == 3 else values[..., None]
    shape = f" with the shape {tuple(image.shape)}" if isinstance(image, np.ndarray | Tensor) else ""
    raise ValueError(
        f"The image is a {type(image).__name__}{shape}, but a PIL image, an array [H, W, {channels}] or a tensor "
        f"[{channels}, H, W] is expected."
    )


def _channels_first(pixels: npt.NDArray[np.uint8]) -> Tensor:
    # A copy in every case, since Pillow's arrays of a single channel are read-only.
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def read_image(path: Path, image_format: ImageFormat = RGB) -> Tensor:
    """Read an image file as a uint8 tensor [C, H, W], by default RGB. The EXIF orientation is applied.

    `as_pixels` describes how the kinds of images are converted. TIFF files may have any number of channels, and arrays
    [H, W, C] in the format of NumPy (.npy) are read too.

    Images of more than 179 megapixels (twice `PIL.Image.MAX_IMAGE_PIXELS`) raise an error. Pillow's warning at half
    that size is suppressed, since large images are ordinary input.

    Args:
        path: the image file.
        image_format: the channels and the range of the values.

    Raises:
        DataError: If the file cannot be decoded, if it has another number of channels, or if the range of its values is
            unclear. The message begins with the path.

    Example:
        >>> Image.new("RGB", (6, 4)).save("image.png")
        >>> read_image(Path("image.png")).shape
        torch.Size([3, 4, 6])
    """
    with naming_image(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if not image_format.is_rgb:
            return _channels_first(image_format.scale(read_bands(path, image_format.channels)))
        if may_have_bands(path):
            header = read_header(path, image_format.channels)
            if header.bands not in (1, 3):
                pages = f"{header.pages} pages with together " if header.pages > 1 else ""
                raise ValueError(
                    f"The file has {pages}{header.bands} channels, but an RGB or gray image is expected. If they "
                    f"are the channels of one image, put the file {IMAGES_FILE} with the line "
                    f"`channels: {header.bands}` into the folder of the data set, and train a model with it. "
                    "Otherwise, save each image in its own file"
                )
            if not header.by_pillow:
                values = read_bands(path, 3)
                values = scale_fractions(values) if values.dtype.kind == "f" else values
                return as_pixels(values[..., 0] if values.shape[2] == 1 else values)
        with open_image(path) as file:
            return pixels_of(file)


def pixels_of(file: Image.Image) -> Tensor:
    """Return the pixels of an opened image file, upright, as `read_image` does.

    Raises:
        ValueError: As `as_pixels`. Pillow raises other `DECODING_ERRORS` if the file cannot be decoded.
    """
    if file.format in ("GIF", "PNG", "WEBP") and (frames := getattr(file, "n_frames", 1)) > 1:
        raise ValueError(f"The file is an animation of {frames} frames, but a single image is expected. Save one frame")
    packed = has_packed_depth(file)
    return _channels_first(to_rgb8(upright(file), packed))


def may_have_bands(path: Path) -> bool:
    """Return whether a file may have channels that Pillow does not decode, which its suffix shows."""
    return path.suffix.lower() in _BAND_SUFFIXES


def is_plain(path: Path) -> bool:
    """Return whether the header of a file is that of an RGB or gray image that Pillow decodes.

    Raises:
        OSError: If the file cannot be decoded. Other `ARRAY_ERRORS` are possible.
    """
    header = read_header(path)
    return header.bands in (1, 3) and header.by_pillow


def to_picture(image: Tensor) -> Image.Image:
    """Convert a uint8 tensor [C, H, W] to a PIL image in RGB.

    The first three channels are red, green and blue. With one or two channels, the first channel is drawn in gray.
    """
    colors = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    # NumPy has no threads of its own. Those of PyTorch would delay a network in another thread.
    return Image.fromarray(np.ascontiguousarray(colors.numpy().transpose(1, 2, 0)))


def orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, from 1 (upright) to 8.

    It is 1 for files that Pillow does not decode, because they are refused if they are turned.
    """
    if path.suffix.lower() == ".npy" or (may_have_bands(path) and not is_plain(path)):
        return 1
    with open_image(path) as file:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))


def hidden_turns(paths: Iterable[Path]) -> list[Path]:
    """Return the images that are turned by their EXIF data without a change of their size.

    These are square images, and images that are turned by half a turn or mirrored. The size of a mask does not show
    whether the mask belongs to the upright image or to the image as stored.
    """
    found = []
    for path in paths:
        turned = orientation(path)
        if turned in (5, 6, 7, 8):
            with open_image(path) as file:
                square = file.width == file.height
        if turned in (2, 3, 4) or (turned in (5, 6, 7, 8) and square):
            found.append(path)
    return found
