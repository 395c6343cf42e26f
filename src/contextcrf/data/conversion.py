"""The conversion of images to 8 bits per channel and RGB: bit depths, transparency, color profiles."""

import io
import logging
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from contextcrf.data.decoding import raw_mode

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]

_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
# Values below this limit may come from a camera of 8, 10, 12 or 14 bits, or from a dark image of 16 bits.
_AMBIGUOUS = 1 << 14
_CAMERA_BITS = (8, 10, 12, 14)


def has_packed_depth(image: Image.Image) -> bool:
    """Return whether an opened file stores 16 bits in each of several channels.

    Pillow decodes only the upper 8 bits of such files. The function must be called before the file is decoded.
    """
    return image.mode not in (*_SIXTEEN_BITS, "I", "F") and ";16" in raw_mode(image)


def to_rgb8(image: Image.Image, packed_depth: bool = False) -> Pixels:
    """Convert an image to a uint8 array [H, W, 3] in sRGB.

    - 16 bits are scaled by 255/65535. Fractions from 0 to 1 are scaled by 255.
    - Transparent pixels are composited over black, which is logged once.
    - Colors with an embedded ICC profile are converted to sRGB.

    Args:
        image: the image, in any mode of Pillow.
        packed_depth: whether the pixels are the upper 8 bits of 16 bits (see `has_packed_depth`).

    Raises:
        ValueError: If the range of the values is unclear.
    """
    if image.mode == "F":
        return _gray(scale_fractions(np.asarray(image)))
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and getattr(image, "format", None) == "PNG"):
        return _gray(scale_16_bits(np.asarray(image).astype(np.uint16)))
    if image.mode == "I":
        raise ValueError(
            "The image has 32-bit or signed 16-bit integers (mode I), but 8 bits or unsigned 16 bits per channel are "
            "expected. Scale its values to 0..255 and save it with 8 bits."
        )
    if packed_depth:
        check_packed(max(int(np.asarray(image.getchannel(band)).max()) for band in image.getbands() if band != "A"))
    profile = image.info.get("icc_profile")
    image = _without_alpha(image)
    if profile:
        image = _to_srgb(image, profile)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def scale_16_bits(values: npt.NDArray[np.uint16]) -> Pixels:
    """Scale unsigned 16-bit values from 0..65535 to 0..255.

    Raises:
        ValueError: If the largest value is so small that the image may have 8, 10, 12 or 14 bits.
    """
    check_16_bits(int(values.max(initial=0)))
    # 65535 = 255 * 257, and the addition rounds to the nearest integer.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def check_16_bits(largest: int) -> None:
    """Check that the largest value of an image with 16 bits shows that its range is 0..65535.

    Raises:
        ValueError: If the value is so small that the image may have 8, 10, 12 or 14 bits.
    """
    if 0 < largest < _AMBIGUOUS:
        bits = next(bits for bits in _CAMERA_BITS if largest < 1 << bits)
        raise ValueError(
            f"The image has 16 bits per channel, but its largest value is {largest}, so that its range may be "
            f"0..{(1 << bits) - 1} ({bits} bits) or 0..65535. Scale its values to 0..65535, or to 0..255 with 8 bits "
            f"per channel. In a data set, `ranges: [[0, {(1 << bits) - 1}]]` in images.yaml gives the range, which "
            "`contextcrf init` finds."
        )


def scale_fractions(values: npt.NDArray[np.floating]) -> Pixels:
    """Scale fractions from 0..1 to 0..255.

    Raises:
        ValueError: If a value is outside 0..1 or is not a number.
    """
    check_fractions(*((values.min(), values.max()) if values.size else (0.0, 0.0)))
    return np.rint(values * 255.0).astype(np.uint8)


def check_fractions(smallest: float, largest: float) -> None:
    """Check that the smallest and the largest value of an image are fractions.

    Raises:
        ValueError: If a value is outside 0..1 or is not a number.
    """
    # Comparisons with NaN are false.
    if not (smallest >= 0 and largest <= 1):
        raise ValueError(
            f"The image has fractions (floating-point numbers) from {smallest:g} to {largest:g}, but 0 to 1 is "
            "expected. Scale its values to 0..1, or to 0..255 with 8 bits per channel."
        )


def _gray(values: Pixels) -> Pixels:
    return np.repeat(values[..., None], 3, axis=2)


def check_packed(largest: int) -> None:
    """Check that the upper 8 bits of an image with 16 bits in each of several channels show its range.

    Args:
        largest: the largest value of the upper 8 bits.

    Raises:
        ValueError: If the value is so small that the image may have 8, 10, 12 or 14 bits.
    """
    # Zero is possible for values of 8 bits in 16 bits, whose upper 8 bits are zero.
    if largest < _AMBIGUOUS >> 8:
        raise ValueError(
            f"The image has 16 bits per channel, but all its values are below {(largest + 1) << 8}, so that its range "
            "may be that of a camera with 8, 10, 12 or 14 bits. Scale its values to 0..65535, or to 0..255 with 8 bits "
            "per channel."
        )


def _without_alpha(image: Image.Image) -> Image.Image:
    """Compose an image with transparency over black. The color channels of an opaque image do not change."""
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode in ("LA", "PA", "RGBA"):
        full = image
    elif image.mode == "P" and "transparency" in image.info:
        full = image.convert("RGBA")
    else:
        return image
    alpha = full.getchannel("A")
    plain = full.convert("L" if full.mode == "LA" else "RGB")
    if alpha.getextrema()[0] == 255:
        return plain
    _say_composed()
    return Image.composite(plain, Image.new(plain.mode, plain.size, 0), alpha)


@cache
def _say_composed() -> None:
    """Log once in a process that an image has transparent pixels."""
    logger.warning("Some images have transparent pixels. They are composited over black.")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    if image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    transform = _srgb_transform(profile, image.mode)
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=32)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a color profile to sRGB, or None if the profile is sRGB or cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("The color profile of an image cannot be used and is ignored: %s", error)
        return None
