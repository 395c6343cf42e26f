"""The decoding of mask files: stored values, or stored colors, without any meaning."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from contextcrf.data.classes import Color
from contextcrf.data.conversion import has_packed_depth
from contextcrf.data.decoding import DECODING_ERRORS, describe_error, open_image, raw_mode, upright
from contextcrf.utils.errors import DataError

Codes = npt.NDArray[np.integer]

# Formats that change the colors of pixels. WebP also has a lossless variant, see `_is_lossless_webp`.
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP")
# Pillow spreads gray values of 2 and 4 bits over 0..255. Division by these numbers gives the stored values.
_GRAY_SCALES = {"L;2": 85, "L;4": 17}
_SINGLE = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F")
_ALPHA = ("LA", "PA", "RGBA")
# Tags of TIFF files, and the two values of Compression for JPEG.
_COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _JPEG = 259, 262, 277, 284, (6, 7)


@dataclass(frozen=True, eq=False)
class StoredMask:
    """The decoded content of a mask file.

    Attributes:
        path: the file.
        values: one value per pixel [H, W], or None if the pixels have colors that are not gray.
        palette: the color of each value of a palette image; None for other images.
        colors: one color code (65536 red + 256 green + blue) per pixel, int64 [H, W], for files with several channels.
        lossy: whether the format of the file changes the colors of pixels.
        transparent: whether the file has transparent pixels.
        channels: the number of channels of the file without alpha, 1 or 3. Files with 3 channels can have `values` too.
    """

    path: Path
    values: Codes | None
    palette: tuple[Color, ...] | None = None
    colors: Codes | None = None
    lossy: bool = False
    transparent: bool = False
    channels: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """The height and the width in pixels."""
        pixels = self.values if self.values is not None else self.colors
        assert pixels is not None
        return pixels.shape[0], pixels.shape[1]

    def color_codes(self) -> Codes:
        """Return one color code per pixel, int64 [H, W]. The colors of gray images are gray.

        Raises:
            DataError: If the values of a gray image are not in 0..255.
        """
        if self.colors is not None:
            return self.colors
        assert self.values is not None
        if self.palette is not None:
            table = np.zeros(256, np.int64)
            table[: len(self.palette)] = [color_code(color) for color in self.palette[:256]]
            return table[self.values]
        if self.values.size and not 0 <= self.values.min() <= self.values.max() <= 255:
            raise DataError(
                f"{self.path} has gray values from {self.values.min()} to {self.values.max()}, but colors have values "
                "from 0 to 255. Save the mask as an RGB image, or set `masks: index` in classes.yaml."
            )
        return self.values.astype(np.int64) * 0x010101


def color_code(color: Color) -> int:
    """Return the integer 65536 red + 256 green + blue."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def code_color(code: int) -> Color:
    """Return the color of a code that `color_code` returned."""
    return code >> 16, code >> 8 & 255, code & 255


@dataclass(frozen=True, eq=False)
class MaskPicture:
    """A decoded mask file as Pillow shows it.

    Attributes:
        image: the upright image. Bilevel and gray images have the values of the file, whatever it shows as black.
        raw_mode: Pillow's raw mode of the file, which gives the number of bits (see `decoding.raw_mode`).
        lossy: whether the format of the file changes the colors of pixels.
    """

    image: Image.Image
    raw_mode: str
    lossy: bool


def open_mask(path: Path, content: bytes | None = None) -> MaskPicture:
    """Open a mask file.

    Args:
        path: the file.
        content: the content of the file, if it is in memory. The path is then only used in messages.

    Raises:
        DataError: If the file cannot be decoded, if it has several pages, or if Pillow does not decode all its channels
            and bits. The message begins with the path.
    """
    with _naming_mask(path), open_image(path, content) as file:
        raw, lossy = raw_mode(file), file.format in LOSSY_FORMATS or _is_lossy_tiff(file)
        if file.format == "WEBP":
            lossy = not _is_lossless_webp(path.read_bytes() if content is None else content)
        if has_packed_depth(file):
            raise DataError(
                f"{path} has several channels with 16 bits, but a mask with one channel, or with 8 bits per channel, "
                "is expected. Save one channel with the class of each pixel."
            )
        if isinstance(file, TiffImageFile) and (channels := file.tag_v2.get(_SAMPLES, 1)) > len(file.getbands()):
            raise DataError(
                f"{path} has {channels} channels, but a mask with one channel of classes, or with 3 channels of "
                "colors, is expected. Save one channel with the class of each pixel, or remove the channels after the "
                "third one."
            )
        if isinstance(file, TiffImageFile) and file.mode.startswith("I;16") and file.tag_v2.get(_PLANAR) == 2:
            raise DataError(
                f"{path} has 16 bits and PlanarConfiguration 2, which Pillow cannot decode. Save the mask with "
                "PlanarConfiguration 1 (in GDAL, INTERLEAVE=PIXEL)."
            )
        if (pages := getattr(file, "n_frames", 1)) > 1:
            raise DataError(
                f"{path} has {pages} pages or frames, but a mask with one is expected. Save the mask of each image in "
                "its own file."
            )
        inverted = _is_white_zero(file) and file.mode in ("1", "L")
        image = upright(file)
        return MaskPicture(ImageChops.invert(image) if inverted else image, raw, lossy)


def decode_mask(path: Path, content: bytes | None = None) -> StoredMask:
    """Decode a mask file.

    Gray images have one value per pixel, as stored in 1, 2, 4, 8, 16 or 32 bits. Palette images also have a palette.
    Images with several channels have colors. If all their colors are gray, they also have values.

    Args:
        path: as for `open_mask`.
        content: as for `open_mask`.

    Raises:
        DataError: As for `open_mask`, or if the channels have no clear meaning.
    """
    picture = open_mask(path, content)
    with _naming_mask(path):
        found = _stored(path, picture)
    image = picture.image
    transparent = image.mode in _ALPHA and bool((np.asarray(image.getchannel("A")) < 255).any())
    return replace(found, transparent=True) if transparent else found


@contextmanager
def _naming_mask(path: Path) -> Iterator[None]:
    """Add the path of a mask file to the `DECODING_ERRORS` of the block."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} cannot be read as a mask: Pillow cannot identify its format. Save the mask as PNG with 8 or 16 "
            "bits per pixel, for example with `Image.fromarray(mask.astype(np.uint8)).save(path)`."
        ) from error
    except DECODING_ERRORS as error:
        raise DataError(f"{path} cannot be read as a mask: {describe_error(error)}.") from error


def _is_lossless_webp(content: bytes) -> bool:
    """Return whether the content of a WebP file has lossless pixels, which Pillow does not report.

    The file is a RIFF container: chunks of 4 letters, a size and the data, after a header of 12 bytes.
    """
    place = 12
    while place + 8 <= len(content):
        name, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8L"
        place += 8 + size + size % 2
    return False


def _is_lossy_tiff(file: Image.Image) -> bool:
    return isinstance(file, TiffImageFile) and file.tag_v2.get(_COMPRESSION) in _JPEG


def _is_white_zero(file: Image.Image) -> bool:
    return isinstance(file, TiffImageFile) and file.tag_v2.get(_PHOTOMETRIC) == 0


def _stored(path: Path, picture: MaskPicture) -> StoredMask:
    file, lossy = picture.image, picture.lossy
    if file.mode in _ALPHA:
        file = _without_alpha(path, file)
    if file.mode in _SINGLE:
        return _single_channel(path, file, picture)
    pixels = np.asarray(file if file.mode == "RGB" else file.convert("RGB"))
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return StoredMask(path, red, lossy=lossy, channels=3)
    codes = red.astype(np.int64)
    for channel in (green, blue):
        codes <<= 8
        codes |= channel
    return StoredMask(path, None, None, codes, lossy, channels=3)


def _single_channel(path: Path, file: Image.Image, picture: MaskPicture) -> StoredMask:
    values, lossy = np.asarray(file), picture.lossy
    if values.dtype == bool:
        values = (values.view(np.uint8) > 0).view(np.uint8)  # Pillow stores True as 255.
    elif values.dtype.kind == "f":
        if not np.array_equal(values, np.rint(values)):
            raise DataError(
                f"{path} has fractions, such as {values[values != np.rint(values)][0]}, but a mask with one integer "
                "per pixel is expected. Save the class indices as integers."
            )
        values = values.astype(np.int64)
    elif scale := next((scale for mode, scale in _GRAY_SCALES.items() if picture.raw_mode.startswith(mode)), 0):
        values = values // scale
    if file.mode != "P":
        return StoredMask(path, values, lossy=lossy)
    flat = file.getpalette("RGB") or []
    palette = tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3))
    # GIF has no gray images. Software stores them as palette images with a gray palette in any order. The unused colors
    # count too: a single mask may use only the gray colors of a palette of classes.
    if picture.image.format == "GIF" and palette and all(len({*color}) == 1 for color in palette):
        table = np.arange(256, dtype=np.uint8)
        table[: len(palette)] = [red for red, _, _ in palette]
        return StoredMask(path, table[values], lossy=lossy)
    return StoredMask(path, values, palette, lossy=lossy)


def _without_alpha(path: Path, file: Image.Image) -> Image.Image:
    """Remove the alpha channel. Fully transparent pixels become black, since their colors are arbitrary."""
    plain = file.convert({"LA": "L", "PA": "P", "RGBA": "RGB"}[file.mode])
    alpha = np.asarray(file.getchannel("A"))
    clear = alpha == 0
    pixels = np.array(plain)
    if len(np.unique(alpha)) > 2 and (pixels == pixels[:1, :1]).all():
        raise DataError(
            f"{path} has one color, and only its alpha channel varies. Save the alpha channel as a gray image, if it "
            "has the classes."
        )
    if not clear.any():
        return plain
    black = (pixels == 0).all(axis=2) if pixels.ndim == 3 else pixels == 0
    if file.mode == "PA" or (black & ~clear).any():
        raise DataError(
            f"{path} has transparent pixels and opaque black pixels, so the label of the transparent pixels is "
            "unclear. Save the mask without transparency, with a color of its own for these pixels."
        )
    pixels[clear] = 0
    return Image.fromarray(pixels)


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of equal codes in the rows of a mask.

    Masks consist of a few areas, so that a computation for each run is much faster than one for each pixel.

    Attributes:
        codes: the different codes, sorted.
        index: the position in `codes` for each run.
        lengths: the length of each run in pixels.
        starts: the first pixel of each run.
    """

    codes: Codes
    index: Codes
    lengths: Codes
    starts: Codes

    @property
    def counts(self) -> Codes:
        """The number of pixels of each code."""
        return np.bincount(self.index, self.lengths, len(self.codes)).astype(np.int64)

    def map(self, values: Codes, shape: tuple[int, int]) -> Codes:
        """Return an array [H, W] with the value of each pixel's code."""
        return np.repeat(values[self.index], self.lengths).reshape(shape)


def find_runs(codes: Codes) -> Runs:
    """Divide the codes [H, W] of a mask into runs."""
    flat = codes.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(starts, append=flat.size)
    values, index = np.unique(flat[starts], return_inverse=True)
    return Runs(values, index, lengths, starts)


def count_solid(codes: Codes, runs: Runs) -> Codes:
    """Return the number of squares of 2 x 2 pixels that have one code, for each code.

    Classes form areas. The mixed colors of smoothed borders form lines, which contain no such squares.
    """
    solid = np.zeros(codes.shape, np.int64)
    corner = codes[:-1, :-1]
    solid[:-1, :-1] = (corner == codes[1:, :-1]) & (corner == codes[:-1, 1:]) & (corner == codes[1:, 1:])
    of_run = np.add.reduceat(solid.ravel(), runs.starts)
    return np.bincount(runs.index, of_run, len(runs.codes)).astype(np.int64)
