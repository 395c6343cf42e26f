"""Files that somebody drops on the page: looked at before they are decoded, and what they are is seen by decoding."""

import io

from PIL import Image, ImageOps
from torch import Tensor

from contextcrf.data.images import DECODING_ERRORS, DEEP_IMAGE_MODES, as_pixels
from contextcrf.webapp.limits import Limits, Refusal

# Formats whose decoders are small and guarded; Pillow would read dozens, some by calling other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_upload(data: bytes, limits: Limits) -> tuple[Tensor, tuple[int, int]]:
    """The picture in a file, upright, shrunk to `limits.side`.

    Args:
        data: all bytes of the file; its name tells nothing.
        limits: of size.

    Returns:
        uint8 RGB [3, H, W], and width and height before it was shrunk.

    Raises:
        Refusal: no picture, a broken one, or one beyond the limits.
    """
    if len(data) > limits.bytes:
        raise Refusal(f"The file has {len(data) / 1e6:.1f} MB: this page takes at most {limits.megabytes:g} MB.")
    try:
        file = Image.open(io.BytesIO(data), formats=FORMATS)
    except _BOMBS as error:
        raise _too_large("more pixels than any camera's picture", limits) from error
    except DECODING_ERRORS as error:
        raise Refusal("This is no picture that the page can read: it takes JPEG, PNG, WebP and BMP.") from error
    with file:
        if file.width * file.height > limits.pixels:
            raise _too_large(f"{file.width} x {file.height} pixels", limits)
        try:
            ImageOps.exif_transpose(file, in_place=True)
            size = file.size
            # What has more than 8 bits a channel stays as it is, to be refused.
            image = file if file.mode in DEEP_IMAGE_MODES else file.convert("RGB")
            if max(size) > limits.side:
                image.thumbnail((limits.side, limits.side), Image.Resampling.LANCZOS)
            return as_pixels(image), size
        except DECODING_ERRORS as error:
            raise Refusal(f"The picture is broken or of an unusual kind and could not be decoded: {error}.") from error


def _too_large(found: str, limits: Limits) -> Refusal:
    return Refusal(
        f"The picture declares {found} and was not decoded: this page takes at most {limits.pixels / 1e6:g} megapixels."
    )
