"""The format of the images in a folder: their channels and the range of their values, found in the files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contextcrf.data.bands import Header, read_bands, read_header
from contextcrf.data.decoding import naming_image
from contextcrf.data.image_format import IMAGES_FILE, RGB, ImageFormat
from contextcrf.data.images import read_image
from contextcrf.utils.errors import DataError
from contextcrf.utils.progress import track

# The bits per channel of common sensors.
_BITS = (8, 10, 12, 14, 16)
# The share of the values below and above the range of a channel, which are clipped, in percent.
_CLIPPED = 0.1
# The number of pixels of an image from which the percentiles and the statistics are computed.
_SAMPLE = 20_000


def recognize_images(images: Sequence[Path]) -> tuple[ImageFormat, list[str]]:
    """Find the number of channels and the range of the values of images.

    Images with one or three channels and 8 bits are RGB, and so are images whose type defines the range of their
    values. Otherwise, the values decide:

    - Whole numbers of one or three channels have the smallest range of 8, 10, 12, 14 or 16 bits that contains them.
    - Other images have one range per channel, without the 0.1% smallest and the 0.1% largest values.

    The mean and the standard deviation are found for images that do not have three channels.

    Args:
        images: the paths of the images.

    Returns:
        The format, and sentences about what was found, which are empty for RGB.

    Raises:
        DataError: If a file cannot be read, or if two files have different channels or types of values.

    Example:
        >>> infrared = np.random.default_rng(0).integers(0, 4000, (20, 30, 4)).astype(np.uint16)
        >>> np.save("a.npy", infrared)
        >>> recognize_images([Path("a.npy")])[0].channels
        4
    """
    headers = {path: _header(path) for path in track(images, "Reading the headers of the images", transient=True)}
    channels = _channels(headers)
    findings = _alpha_finding(headers) if channels == 3 else []
    if channels == 3 and all(_has_known_range(path, header) for path, header in headers.items()):
        return RGB, findings
    types = {path: header.dtype for path, header in headers.items()}
    if len({*types.values()}) > 1:
        first, second = _two_of(types)
        raise DataError(
            f"{first} has values of type {types[first]}, but {second} has values of type {types[second]}. Save all "
            "images with the same type of values."
        )
    dtype = next(iter(types.values()))
    samples = [_sample(path, channels) for path in track(images, "Reading the values of the images", transient=True)]
    values = np.concatenate([sample for sample, _ in samples])
    largest, smallest = max(extremes[1] for _, extremes in samples), min(extremes[0] for _, extremes in samples)
    ranges: tuple[tuple[float, float], ...] = ()
    if channels == 3 and dtype.kind in "ui" and smallest >= 0 and largest < 2 ** _BITS[-1]:
        bits = next(bits for bits in _BITS if largest < 2**bits)
        ranges = ((0, 2**bits - 1),)
        findings.append(
            f"The images have {8 * dtype.itemsize} bits per channel, and their largest value is {largest:g}. They are "
            f"read with the range 0..{2**bits - 1}. If the range is another one, change it in {IMAGES_FILE}."
        )
    elif dtype != np.uint8:
        low, high = np.percentile(values, [_CLIPPED, 100 - _CLIPPED], axis=0)
        ranges = tuple(
            (float(f"{a:.6g}"), float(f"{b if b > a else a + 1:.6g}")) for a, b in zip(low, high, strict=True)
        )
        ranges = ranges if channels != 3 else ((min(a for a, _ in ranges), max(b for _, b in ranges)),)
        findings.append(
            f"The values of the images are from {smallest:g} to {largest:g}. The ranges in {IMAGES_FILE}, without the "
            f"{_CLIPPED}% smallest and largest values, become 0..255."
        )
    if channels == 3:
        return ImageFormat(3, ranges), findings
    findings.insert(0, f"The images have {channels} channels. The first three are shown as red, green and blue.")
    scaled = ImageFormat(channels, ranges).scale(values[None])[0].astype(np.float64)
    mean, std = (tuple(round(float(v), 2) for v in found) for found in (scaled.mean(0), np.maximum(scaled.std(0), 1)))
    return ImageFormat(channels, ranges, mean, std), findings


def _header(path: Path) -> Header:
    with naming_image(path):
        return read_header(path)


def _channels(headers: dict[Path, Header]) -> int:
    """Return the number of channels of all files, where gray images count as RGB."""
    counts = {path: 3 if header.bands == 1 else header.bands for path, header in headers.items()}
    if len({*counts.values()}) > 1:
        first, second = _two_of(counts)
        raise DataError(
            f"{first} has {counts[first]} channels, but {second} has {counts[second]}. All images of a data set need "
            "the same channels. Save them with the same channels, or move some of them to another data set."
        )
    return next(iter(counts.values()))


def _two_of(values: dict[Path, Any]) -> tuple[Path, Path]:
    """Return two files with different values."""
    paths = list(values)
    return paths[0], next(path for path in paths if values[path] != values[paths[0]])


def _alpha_finding(headers: dict[Path, Header]) -> list[str]:
    if not (found := [path for path, header in headers.items() if header.alpha]):
        return []
    channels = headers[found[0]].bands + 1
    return [
        f"{len(found)} of {len(headers)} images have an alpha channel, such as {found[0]}. Transparent pixels are "
        f"composited over black. If it contains data, write `channels: {channels}` into {IMAGES_FILE} beside "
        "classes.yaml."
    ]


def _has_known_range(path: Path, header: Header) -> bool:
    """Return whether the type of an RGB or gray image defines the range of its values."""
    if header.dtype == np.uint8:
        return True
    if header.dtype != np.uint16 and header.dtype.kind != "f":
        return False
    try:
        read_image(path)
    except DataError as error:
        if isinstance(error.__cause__, ValueError):
            return False
        raise
    return True


def _sample(path: Path, channels: int) -> tuple[npt.NDArray[Any], tuple[float, float]]:
    """Return some pixels of an image, [N, C], and its smallest and largest value."""
    with naming_image(path):
        values = ImageFormat(channels).check(read_bands(path, channels))
    pixels = values.reshape(-1, values.shape[2])
    return pixels[:: max(1, len(pixels) // _SAMPLE)], (float(values.min()), float(values.max()))
