"""The stored values of image files, with any number of channels and any type of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from contextcrf.data.conversion import has_packed_depth
from contextcrf.data.decoding import DECODING_ERRORS, open_image, raw_mode, turned, upright

T = TypeVar("T")

_TIFF = (".tif", ".tiff")
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 284, 338, 339
# The values of the TIFF tag ExtraSamples for alpha channels.
_ALPHA = (1, 2)
# The channels of Pillow's modes without alpha. Images of the other modes are converted to RGB.
_BANDS = {"1": 1, "L": 1, "LA": 1, "La": 1, "I": 1, "F": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "I;16N": 1}


@dataclass(frozen=True)
class Header:
    """The channels of an image file and the type of its values.

    Attributes:
        bands: the number of channels, without an alpha channel. 3 for palettes and CMYK, which are converted to RGB.
        dtype: the type of the stored values.
        alpha: whether the file has an alpha channel.
        complete: whether Pillow decodes all channels and all bits.
        by_pillow: whether Pillow decodes at least the upper 8 bits of red, green and blue.
        pages: the number of pages of the same size.
    """

    bands: int
    dtype: np.dtype[Any]
    alpha: bool = False
    complete: bool = True
    by_pillow: bool = True
    pages: int = 1


def read_header(path: Path, channels: int | None = None) -> Header:
    """Read the header of an image file.

    Args:
        path: an image, or an array [H, W], [H, W, C] or [C, H, W] in the format of NumPy (.npy).
        channels: the expected number of channels, if it is known. It decides which axis of an array has the channels.

    Raises:
        OSError: If the file cannot be read. Other `ARRAY_ERRORS` are possible for damaged files.
        ValueError: If the file has no or several axes of channels, if it is unclear which axis of an array has them, or
            if a package is missing.
    """
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype.kind not in "uif":
            raise ValueError(
                f"The array has values of type {array.dtype}, but integers or real numbers are expected. For values of "
                "0 and 1, save 255 times the values as uint8"
            )
        return Header(_channels_last(array, channels).shape[2], array.dtype, by_pillow=False)
    try:
        with open_image(path) as image:
            alpha = "A" in image.getbands() or "a" in image.getbands()
            dtype = np.dtype(np.uint16) if has_packed_depth(image) else _dtype(image)
            if isinstance(image, TiffImageFile):
                return _pillow_tiff_header(image, dtype, alpha)
            bands = _BANDS.get(image.mode, 3)
            return Header(bands, dtype, alpha, bands == 1 or dtype == np.uint8)
    except UnidentifiedImageError:
        if path.suffix.lower() not in _TIFF:
            raise
        return _tiff_header(path)


def read_bands(path: Path, channels: int) -> npt.NDArray[Any]:
    """Read the stored values of an image file, upright.

    Args:
        path: as for `read_header`.
        channels: the expected number of channels. If it includes the alpha channel of the file, the values of alpha are
            a channel too. Otherwise, files with an alpha channel are refused.

    Returns:
        The values, [H, W, C].

    Raises:
        OSError: As for `read_header`.
        ValueError: As for `read_header`, or if the file has another number of channels.
    """
    if path.suffix.lower() == ".npy":
        return _channels_last(np.load(path, allow_pickle=False), channels)
    header = read_header(path)
    if not header.complete:
        return _without_alpha(_read_deep(path), header.alpha, channels)
    with open_image(path) as image:
        return bands_of(upright(image), channels)


def bands_of(image: Image.Image, channels: int) -> npt.NDArray[Any]:
    """Return the values of an image [H, W, C], as `read_bands` does.

    Args:
        image: the decoded image.
        channels: as for `read_bands`.
    """
    if image.mode in ("P", "PA", "1", "YCbCr", "HSV", "LAB") or (image.mode == "CMYK" and channels == 3):
        image = image.convert("L" if image.mode == "1" else "RGB")
    values = np.asarray(image)
    return _without_alpha(values[..., None] if values.ndim == 2 else values, image.mode in ("LA", "RGBA"), channels)


def _without_alpha(values: npt.NDArray[Any], alpha: bool, channels: int) -> npt.NDArray[Any]:
    """Remove the alpha channel of an opaque image, which is the last channel, unless it is one of the channels."""
    if not alpha or values.shape[2] == channels:
        return values
    if not (values[..., -1] == np.iinfo(values.dtype).max).all():
        raise ValueError(
            f"The image has an alpha channel with transparency, but {channels} channels are expected. Remove the alpha "
            "channel, or count it in `channels` if it contains data."
        )
    return values[..., :-1]


def _pillow_tiff_header(image: TiffImageFile, dtype: np.dtype[Any], alpha: bool) -> Header:
    tags: Any = image.tag_v2
    extra = tags.get(_EXTRA_SAMPLES, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    planar = tags.get(_PLANAR, 1) == 2
    if dtype == np.uint8 and max(tags.get(_BITS, (8,))) == 16:
        dtype = np.dtype(np.uint16)
    if dtype == np.uint8 and max(tags.get(_SAMPLE_FORMAT, (1,))) == 2:
        dtype = np.dtype(np.int8)
    if dtype != np.uint8 and tags.get(_PHOTOMETRIC) == 0:
        raise ValueError(
            "The TIFF file stores white as 0 (MinIsWhite) with more than 8 bits. Save it with black as 0 (MinIsBlack)"
        )
    # Pages of another size are previews. Pillow cannot open pages of other kinds, such as masks of transparency.
    pages, first = 0, (image.size, image.mode)
    try:
        for number in range(image.n_frames):
            image.seek(number)
            pages += (image.size, image.mode) == first
    except DECODING_ERRORS:
        pages = max(pages, 1)
    image.seek(0)
    bands = 3 if image.mode in ("CMYK", "P") else int(tags.get(_SAMPLES, 1)) - sum(kind in _ALPHA for kind in extra)
    # Pillow mixes up channels of 16 bits that are stored one after the other, and refuses a single one.
    by_pillow = pages == 1 and dtype != np.int8 and (not planar or dtype == np.uint8)
    complete = by_pillow and (bands == 1 or (bands <= 3 and dtype == np.uint8))
    return Header(bands * pages, dtype, alpha, complete, by_pillow, pages)


def _dtype(image: Image.Image) -> np.dtype[Any]:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return np.dtype(np.uint16)
    if image.mode == "I":
        return np.dtype(np.int16 if "16S" in raw_mode(image) else np.int32)
    return np.dtype(np.float32) if image.mode == "F" else np.dtype(np.uint8)


def _channels_last(array: npt.NDArray[Any], channels: int | None = None) -> npt.NDArray[Any]:
    """Return an array of a file as [H, W, C].

    The axis with the expected number of channels has the channels. If none or both have it, [H, W, C] is assumed,
    unless only the first axis is as short as those of channels are.
    """
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise ValueError(f"The array has the shape {array.shape}, but [H, W] or [H, W, C] is expected.")
    first, middle, last = array.shape
    if channels is not None and channels in (first, last):
        return array if last == channels else np.moveaxis(array, 0, 2)
    # Images are often square, also those with more channels than rows.
    if last in (1, 3, 4) or (last <= first and last <= middle) or first == middle:
        return array
    if middle == last:
        return np.moveaxis(array, 0, 2)
    if 2 * first > min(middle, last):
        raise ValueError(
            f"The array has the shape {array.shape}, so it is unclear which axis has the channels. Save it as "
            f"[H, W, C], and give the number of channels in images.yaml, such as `channels: {last}`"
        )
    return np.moveaxis(array, 0, 2)


def _tiff_header(path: Path) -> Header:
    with _tifffile().TiffFile(path) as file:
        series = _series(file)
        _, others = _axes(series.shape, series.axes)
        bands = series.shape[series.axes.index(others)] if others else 1
        return Header(bands, series.dtype, complete=False, by_pillow=False)


def _read_deep(path: Path) -> npt.NDArray[Any]:
    """Read a file whose values Pillow does not decode completely."""
    if path.suffix.lower() in _TIFF:
        with _tifffile().TiffFile(path) as file:
            orientation = file.pages[0].tags.get(ExifTags.Base.Orientation.value)
            if orientation is not None and orientation.value != 1:
                raise ValueError(
                    f"The TIFF file has the orientation {int(orientation.value)}, but 1 (upright) is expected. Save "
                    "the image upright."
                )
            series = _series(file)
            kept, others = _axes(series.shape, series.axes)
            values = _decoded(series.asarray).squeeze(
                tuple(i for i, axis in enumerate(series.axes) if axis not in kept)
            )
            values = values.transpose([kept.index(axis) for axis in f"YX{others}"])
            return values if others else values[..., None]
    try:
        import imagecodecs
    except ModuleNotFoundError as error:
        raise _missing() from error
    values = np.asarray(_decoded(partial(imagecodecs.imread, path)))
    # Without this check, Pillow would decode the pixels to search for EXIF data behind them.
    content = path.read_bytes()
    if not any(mark in content for mark in (b"eXIf", b"Raw profile type exif", b"Orientation")):
        return values
    with open_image(path) as image:
        return turned(values, image.getexif().get(ExifTags.Base.Orientation, 1))


def _series(file: Any) -> Any:
    """Return the first image of an opened TIFF file."""
    if not file.series:
        raise ValueError("The TIFF file has no complete image, as after an interrupted copy")
    return file.series[0]


def _decoded(decode: Callable[[], T]) -> T:
    """Decode an image. The codecs of imagecodecs raise errors of their own."""
    try:
        return decode()
    except RuntimeError as error:
        raise ValueError(
            f"The file cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def _axes(shape: Sequence[int], axes: str) -> tuple[str, str]:
    """Return the axes of a TIFF series that are kept, and the axis of its channels; "" if there is only one channel.

    The axes are Y, X and one of tifffile's letters for samples, channels, pages and unknown axes.
    """
    kept = "".join(axis for axis, size in zip(axes, shape, strict=True) if size > 1 or axis in "YX")
    others = kept.replace("Y", "").replace("X", "")
    if len(others) > 1 or "Y" not in kept or "X" not in kept:
        raise ValueError(
            f"The TIFF file has the axes {axes} and the size {tuple(shape)}, but one axis of channels is expected."
        )
    return kept, others


def _tifffile() -> Any:
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise _missing() from error
    return tifffile


def _missing() -> ValueError:
    return ValueError(
        "Pillow cannot decode the channels of this file. Damaged files cannot be read, but files with several channels "
        'of more than 8 bits, or with more than four channels, can be after pip install "contextcrf[bands]"'
    )
