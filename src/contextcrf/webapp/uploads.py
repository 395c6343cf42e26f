"""Reading of uploaded files. Size and header are checked first, and the content determines the format."""

import io

from PIL import Image
from torch import Tensor

from contextcrf.data.images import DECODING_ERRORS, as_pixels, describe_error, pixels_of, to_picture
from contextcrf.webapp.limits import Limits, Refusal

# Formats with small, hardened decoders. Pillow has dozens of other decoders, and some of them run external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_upload(data: bytes, limits: Limits) -> tuple[Tensor, tuple[int, int]]:
    """Return the image in an uploaded file, turned upright and shrunk to `limits.side`.

    Args:
        data: all bytes of the file. The name of the file is not used.
        limits: the limits on the size.

    Returns:
        The image, uint8 RGB [3, H, W], and its width and height before it was shrunk.

    Raises:
        Refusal: the file is not an image, is broken, or exceeds the limits.
    """
    if len(data) > limits.bytes:
        raise Refusal(f"The file has {len(data) / 1e6:.1f} MB, but the page accepts at most {limits.megabytes:g} MB.")
    try:
        file = Image.open(io.BytesIO(data), formats=FORMATS)
    except _BOMBS as error:
        raise _too_large("more pixels than Pillow decodes", limits) from error
    except DECODING_ERRORS as error:
        raise Refusal("The file is not an image that the page can read. It accepts JPEG, PNG, WebP and BMP.") from error
    with file:
        if file.width * file.height > limits.pixels:
            raise _too_large(f"{file.width} x {file.height} pixels", limits)
        try:
            image = to_picture(pixels_of(file))
            size = image.size
            if max(size) > limits.side:
                image.thumbnail((limits.side, limits.side), Image.Resampling.LANCZOS)
            return as_pixels(image), size
        except DECODING_ERRORS as error:
            raise Refusal(
                f"The image is broken or has an unusual format, so it was not decoded: {describe_error(error)}."
            ) from error


def _too_large(size: str, limits: Limits) -> Refusal:
    return Refusal(
        f"According to its header, the image has {size}, but the page accepts at most {limits.pixels / 1e6:g} "
        "megapixels. It was not decoded."
    )
