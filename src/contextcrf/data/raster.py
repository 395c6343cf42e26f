"""Georeferenced TIFF files, which are read part by part with rasterio, as `read_image` reads whole files."""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image
from torch import Tensor

from contextcrf.data.conversion import check_16_bits, check_fractions, check_packed, scale_fractions, to_rgb8
from contextcrf.data.decoding import naming_image
from contextcrf.data.georeference import tiff_tags
from contextcrf.data.image_format import IMAGES_FILE, RGB, ImageFormat
from contextcrf.utils.errors import DataError
from contextcrf.utils.progress import track

Region = tuple[slice, slice]

_PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES = 262, 284, 338
# The values of the TIFF tag PhotometricInterpretation that are read: gray, RGB, palettes, and the colors of JPEG.
_COLORS = {1: "gray", 2: "RGB", 3: "palette", 6: "YCbCr"}
_OTHER_COLORS = {0: "MinIsWhite (white is 0)", 5: "CMYK", 8: "CIELab", 9: "ICCLab"}
# Bytes of decoded blocks that GDAL keeps. Its default is a share of the memory of the machine.
_CACHE = 256 * 2**20
# The number of values that are read at once to find their range.
_SCANNED = 4_000_000


def check_support(path: Path) -> None:
    """Check that rasterio is installed, which reads georeferenced files.

    Args:
        path: the georeferenced file, which the error names.

    Raises:
        DataError: If rasterio is not installed.
    """
    try:
        import rasterio  # noqa: F401
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path} is georeferenced, but rasterio is not installed, without which its labels would lose the "
            'georeference. Run pip install "contextcrf[geo]". If you do not need the georeference, save the image as '
            "PNG."
        ) from error


class Raster:
    """An opened TIFF file whose parts are read as uint8 tensors, as `read_image` reads the whole file.

    `open_raster` opens it. Pixels without data are those that the nodata value, the internal mask or the alpha channel
    of the file marks. If nodata is NaN, a pixel that is NaN in any channel has no data. An alpha channel that
    `ImageFormat.channels` counts is a channel, and marks no pixels.

    Attributes:
        height: the height in pixels.
        width: the width in pixels.
        georeference: the CRS and the transform or the ground control points, as arguments of `rasterio.open`.

    Example:
        >>> Image.new("L", (6, 4), 200).save("scene.tif")
        >>> with open_raster(Path("scene.tif")) as raster:
        ...     raster.height, raster.width, raster.valid((slice(0, 1), slice(0, 2))).tolist()
        (4, 6, [[True, True]])
    """

    def __init__(self, path: Path, file: Any, image_format: ImageFormat) -> None:
        tags = tiff_tags(path)
        _check_kind(file, tags)
        self._path, self._file, self._format = path, file, image_format
        self.height, self.width = int(file.height), int(file.width)
        points, crs = file.gcps
        self.georeference = {"gcps": points, "crs": crs} if points else {"transform": file.transform, "crs": file.crs}
        names = [color.name for color in file.colorinterp]
        self._dtype = np.dtype(file.dtypes[0])
        self._has_alpha = file.count > 1 and names[-1] == "alpha"
        # As in `read_bands`, alpha is a channel if it is counted.
        self._drops_alpha = self._has_alpha and file.count != image_format.channels
        self._premultiplied = tags.get(_EXTRA_SAMPLES) == 1
        self._palette = _palette(file) if file.count == 1 and names == ["palette"] else None
        # Pillow decodes the upper 8 bits of such files.
        self._packed = (
            image_format.is_rgb
            and self._dtype == np.uint16
            and tags.get(_PHOTOMETRIC) == 2
            and tags.get(_PLANAR, 1) == 1
            and file.count - self._drops_alpha == 3
        )
        self._check_channels()

    def read(self, region: Region) -> Tensor:
        """Read a part of the image as a uint8 tensor [C, h, w].

        Pixels without data have their stored values, or black if these cannot be converted.

        Args:
            region: the rows and the columns.

        Raises:
            DataError: If the file cannot be decoded. The message begins with the path.
        """
        with _naming(self._path):
            pixels = self._to_8_bits(*self._stored(region))
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def valid(self, region: Region) -> Tensor:
        """Return which pixels of a part have data, bool [h, w].

        Args:
            region: the rows and the columns.

        Raises:
            DataError: If the file cannot be decoded. The message begins with the path.
        """
        with _naming(self._path):
            return torch.from_numpy(self._stored(region)[1])

    def check_values(self) -> None:
        """Check that the values of the whole file can be converted, which a part alone may not show.

        Raises:
            DataError: If the file cannot be decoded, or if the range of its values is unclear.
        """
        floating = self._dtype.kind == "f"
        if self._palette is not None or not (floating or (not self._format.ranges and self._dtype == np.uint16)):
            return
        with _naming(self._path):
            if (extremes := self._extremes()) is None:
                return
            smallest, largest = extremes
            if floating and not (np.isfinite(smallest) and np.isfinite(largest)):
                raise ValueError(
                    "The image has values that are not finite numbers, but are not marked as nodata. Set the nodata "
                    "value of the file, or replace these values"
                )
            if floating and not self._format.ranges:
                check_fractions(smallest, largest)
            elif self._packed:
                check_packed(int(largest) >> 8)
            elif self._dtype == np.uint16 and not self._format.ranges:
                check_16_bits(int(largest))

    def _extremes(self) -> tuple[Any, Any] | None:
        """Return the smallest and the largest value of the pixels with data; None if there are no such pixels."""
        rows = max(1, _SCANNED // (self.width * self._file.count))
        extremes = []
        for top in track(range(0, self.height, rows), "Reading the range of the values", transient=True):
            region = slice(top, min(top + rows, self.height)), slice(0, self.width)
            values, valid = self._stored(region)
            known = (values[..., :-1] if self._drops_alpha else values)[valid]
            if known.size:
                extremes.append((known.min(), known.max()))
        if not extremes:
            return None
        lows, highs = zip(*extremes, strict=True)
        return np.min(lows), np.max(highs)  # unlike `min`, they are NaN if a value is

    def _stored(self, region: Region) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Read the stored values [h, w, bands], and which pixels have data, [h, w]."""
        part = window(region)
        values = self._file.read(window=part)
        nodata = self._file.nodata
        if self._drops_alpha:
            # The mask of GDAL would round small values of more than 8 bits to 0, such as 255 of 65535.
            valid = values[-1] > 0
        elif self._has_alpha:
            # The mask of GDAL would take the channel for alpha.
            valid = np.ones(values.shape[1:], bool) if nodata is None else (values != nodata).any(0)
        else:
            valid = self._file.dataset_mask(window=part) > 0
        if nodata is not None and np.isnan(nodata):
            valid &= ~np.isnan(values).any(0)
        return values.transpose(1, 2, 0), valid

    def _to_8_bits(self, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        """Convert stored values to 8 bits, [h, w, C]."""
        if self._palette is not None:
            values = self._palette[values[..., 0]]
        pictured = self._format.is_rgb and (values.dtype == np.uint8 or self._packed)
        if pictured:
            return self._to_rgb8((values >> 8).astype(np.uint8) if self._packed else values)
        if self._drops_alpha:
            values = values[..., :-1]
        if values.dtype.kind == "f":
            values = self._without_nodata(values, valid)
        if self._format.is_rgb and values.dtype.kind == "f":
            values = scale_fractions(values)
        # Unlike `as_pixels`, this does not look at the values, whose range was checked for the whole file.
        return self._format.rescale(self._format.check(values))

    def _to_rgb8(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Convert 8 bits to RGB, with the transparency and the color profile that Pillow would find in the file."""
        height, width, bands = values.shape
        mode = ("L", "La" if self._premultiplied else "LA", "RGB", "RGBa" if self._premultiplied else "RGBA")[bands - 1]
        image = Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())
        if profile := self._file.tags(ns="COLOR_PROFILE").get("SOURCE_ICC_PROFILE"):
            image.info["icc_profile"] = base64.b64decode(profile)
        return to_rgb8(image)

    def _without_nodata(self, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Replace the values of pixels without data that cannot be converted by the low end of the range."""
        usable = (values >= 0) & (values <= 1) if self._format.is_rgb else np.isfinite(values)
        low = np.array([low for low, _ in self._format.ranges] or [0], values.dtype)
        # One range of a gray image that is repeated for three channels is enough.
        low = low[:1] if values.shape[2] == 1 else low
        return np.where(usable | valid[..., None], values, low)

    def _check_channels(self) -> None:
        bands = 3 if self._palette is not None else self._file.count - self._drops_alpha
        if self._format.is_rgb and bands not in (1, 3):
            raise ValueError(
                f"The file has {bands} channels, but an RGB or gray image is expected. If they are the channels of one "
                f"image, put the file {IMAGES_FILE} with the line `channels: {bands}` into the folder of the data set, "
                "and train a model with it. Otherwise, save the red, green and blue channels alone"
            )
        # An image of one pixel shows a wrong number of channels, and a type of unknown range.
        self._format.scale(np.zeros((1, 1, bands), np.uint8 if self._palette is not None else self._dtype))


@contextmanager
def open_raster(path: Path, image_format: ImageFormat = RGB) -> Iterator[Raster]:
    """Open a TIFF file whose parts are read as uint8 tensors, so that it may be larger than the memory.

    The values of the whole file are read once if only they show that the range of the values is clear.

    Args:
        path: the TIFF file, with or without a georeference, also larger than `read_image` allows.
        image_format: the channels and the range of the values.

    Yields:
        The opened file.

    Raises:
        DataError: If rasterio is not installed, if the file cannot be decoded or has several pages, if it has another
            number of channels, or if the range of its values is unclear. The message begins with the path.

    Example:
        >>> Image.new("RGB", (6, 4), (10, 20, 30)).save("scene.tif")
        >>> with open_raster(Path("scene.tif")) as raster:
        ...     raster.read((slice(0, 2), slice(0, 6)))[:, 0, 0].tolist()
        [10, 20, 30]
    """
    check_support(path)
    import rasterio

    # The limit of the user has priority.
    limit = {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": _CACHE}
    with rasterio.Env(**limit):
        with _naming(path), georeference_optional():
            file = rasterio.open(path, driver="GTiff")
        with file:
            with _naming(path):
                raster = Raster(path, file, image_format)
            raster.check_values()
            yield raster


@contextmanager
def georeference_optional() -> Iterator[None]:
    """Suppress rasterio's warning about files without a transform, which may have a CRS or control points alone."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def raster_errors(convert: Callable[[str], Exception]) -> Iterator[None]:
    """Convert the errors of rasterio and of GDAL within the block.

    Args:
        convert: a function that makes the error to raise from the reason, which has no final period.

    Raises:
        Exception: The result of `convert`, if the block raises an error of rasterio.
    """
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        # rasterio's own message only refers to the error of GDAL that caused it.
        raise convert(" ".join(str(error.__cause__ or error).split()).rstrip(".")) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the path of a file to the errors of reading within the block."""
    with naming_image(path), raster_errors(OSError):
        yield


def window(region: Region) -> Any:
    """Return the rows and columns of a region as a window of rasterio."""
    from rasterio.windows import Window

    rows, columns = region
    return Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)


def _palette(file: Any) -> npt.NDArray[np.uint8]:
    """Return the colors of a palette, [values, 3]."""
    colors = file.colormap(1)
    table = np.zeros((np.iinfo(file.dtypes[0]).max + 1, 3), np.uint8)
    table[list(colors)] = [color[:3] for color in colors.values()]
    return table


def _check_kind(file: Any, tags: dict[int, int]) -> None:
    """Raise a ValueError for the kinds of files that rasterio decodes in another way than `read_image`."""
    if file.dtypes[0].startswith("complex"):
        raise ValueError(
            f"The file has complex numbers ({file.dtypes[0]}), but real numbers are expected. Save a real quantity, "
            "such as the magnitude"
        )
    photometric = tags.get(_PHOTOMETRIC, 1)
    if photometric not in _COLORS:
        raise ValueError(
            f"The TIFF file has the colors {_OTHER_COLORS.get(photometric, photometric)}, but gray (MinIsBlack), RGB "
            "or a palette is expected. Convert it"
        )
    orientation = tags.get(ExifTags.Base.Orientation.value, 1)
    if orientation != 1:
        raise ValueError(
            f"The TIFF file has the orientation {orientation}, but 1 (upright) is expected. Save the image upright"
        )
    if file.subdatasets:
        raise ValueError(
            f"The TIFF file has {len(file.subdatasets)} pages, but a single image is expected. Save each page in its "
            "own file, or all as the channels of one page"
        )
    if bits := file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"):
        raise ValueError(
            f"The TIFF file stores {bits} bits per value, but 8, 16, 32 or 64 bits are expected. Save it with 8 or 16 "
            "bits, for example with gdal_translate -co NBITS=8 or NBITS=16"
        )
