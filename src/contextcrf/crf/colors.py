"""The range of the colors of images: the dense CRF needs 0..255, and wrong units are recognized by evidence."""

from collections.abc import Callable

import torch
from torch import Tensor

# An image whose values are whole numbers up to this one has at most three gray levels. A cast of 0..1 to integers looks
# so; the noise of a camera has more levels, even in the dark.
WHOLE_LIMIT = 2
# Images of 8 bits have whole values. Values with fractions up to this one are in another unit, or would be all but
# black.
FRACTION_LIMIT = 16
# The largest difference between a whole number and its float16 value after a division and a multiplication by 255.
_ROUNDING = 0.02
# Values of 16 bits below this limit may come from a camera of 8, 10, 12 or 14 bits.
SIXTEEN_BIT_LIMIT = 1 << 14

_DARK = "If the image is really almost black, pass image_range=(0, 255)."

Range = tuple[float, float]
# A function from an image [C, ...], its minimum, its maximum and whether it has contrast to its fault, if any.
_Fault = Callable[[Tensor, float, float, bool], str | None]


def to_colors(images: Tensor, image_range: Range | None = None) -> Tensor:
    """Convert images to colors in 0..255. Images that are in 0..255 are returned as they are.

    Without `image_range`, each image of a batch must be in 0..255, or have the dtype uint16 and be in 0..65535. If the
    values of an image have any contrast, they are also compared with what 8 bits look like. These images are refused,
    since they would be almost black and are probably in another unit:

    - floating values that are all <= 1;
    - whole numbers that are all <= 2, which a cast of 0..1 or 0..2 to integers yields;
    - values with fractions that are all <= 16, since dark images of 8 bits have whole values;
    - uint16 values that are all < 16384, which may come from a camera of 8 to 14 bits.

    Args:
        images: the images, [B, C, ...] with any dtype except bool and complex dtypes.
        image_range: the values of black and white. They are mapped to 0 and 255, and nothing else is checked than that
            the values lie between them.

    Returns:
        The colors, with the shape of `images`.

    Raises:
        ValueError: if the values are outside of the range, or if an image is refused for one of the reasons above.

    Example:
        >>> to_colors(torch.tensor([[[0.0, 0.5, 1.0]]]), (0, 1)).tolist()
        [[[0.0, 127.5, 255.0]]]
    """
    if image_range is not None:
        return _mapped(images, *_checked(image_range))
    if images.dtype == torch.uint16:
        values = images.float()
        _check_each(values, _sixteen_bit_fault)
        return values * (255 / 65535)
    if images.dtype in (torch.uint32, torch.uint64):
        images = images.long()  # torch has no minimum for these dtypes.
    _check_each(images, _fault)
    return images


def almost_black(image: Tensor) -> bool:
    """Return whether the values of a uint8 image have contrast, but at most the three gray levels 0, 1 and 2.

    Example:
        >>> almost_black(torch.tensor([[[0, 1]]], dtype=torch.uint8))
        True
    """
    return int(image.min()) < int(image.max()) <= WHOLE_LIMIT


def _checked(image_range: Range) -> Range:
    try:
        low, high = (float(value) for value in image_range)
    except (TypeError, ValueError):
        low, high = 0.0, float("inf")
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(
            f"image_range must be two finite numbers (low, high) with low < high, the values of black and white, but "
            f"is {image_range!r}."
        )
    return low, high


def _mapped(images: Tensor, low: float, high: float) -> Tensor:
    values = images if images.dtype in (torch.float32, torch.float64) else images.float()
    margin = 1e-3 * (high - low)  # interpolation and half precision may overshoot
    # One transfer for the whole batch, since each transfer waits for the device.
    ranges = torch.stack(values.detach().flatten(1).aminmax(dim=1), 1).tolist()
    for index, (least, most) in enumerate(ranges):
        if not low - margin <= least <= most <= high + margin:
            raise ValueError(
                f"The values of {_name(values, index)} must be in image_range=({low:g}, {high:g}), but range from "
                f"{least:.4g} to {most:.4g}."
            )
    return images if (low, high) == (0, 255) and images.dtype != torch.uint16 else (values - low) * (255 / (high - low))


def _check_each(images: Tensor, fault: _Fault) -> None:
    """Raise ValueError for the first image with a fault."""
    spatial = tuple(range(2, images.ndim))
    lows, highs = images.detach().amin(spatial), images.detach().amax(spatial)
    # An image without contrast is valid in any unit, since the kernels depend only on differences of colors.
    found = [values.tolist() for values in (lows.amin(1), highs.amax(1), (highs > lows).any(1))]
    for index, (image, low, high, contrast) in enumerate(zip(images.detach(), *found, strict=True)):
        reason = fault(image, low, high, contrast)
        if reason:
            raise ValueError(f"The values of {_name(images, index)} {reason}")


def _name(images: Tensor, index: int) -> str:
    return "images" if len(images) == 1 else f"images[{index}]"


def _fault(image: Tensor, low: float, high: float, contrast: bool) -> str | None:
    # This form of the test also fails for NaN.
    if not (low >= 0 and high <= 255):
        return f"must be in 0..255, but range from {low:.4g} to {high:.4g}. {_outside(low)}"
    if not contrast or high > FRACTION_LIMIT:
        return None
    if image.is_floating_point() and high <= 1:
        return "seem to be in 0..1, but colors must be in 0..255. Multiply images by 255, or pass image_range=(0, 1)."
    whole = not image.is_floating_point() or bool(((image - image.round()).abs() <= _ROUNDING).all())
    if whole and high <= WHOLE_LIMIT:
        return (
            f"are only whole numbers from {low:.0f} to {high:.0f}, but colors must be in 0..255. If fractions were "
            "cast to integers, multiply the fractions by 255 before. If the values are in another unit, pass "
            f"image_range=(low, high) with the values of black and white. {_DARK}"
        )
    if not whole:
        return (
            f"are fractions from {low:.4g} to {high:.4g}, but colors must be in 0..255. Pass image_range=(low, high) "
            f"with the values of black and white. {_DARK}"
        )
    return None


def _outside(low: float) -> str:
    if low < 0:
        return (
            "Undo any normalization by mean and standard deviation (images * std + mean), or pass image_range=(low, "
            "high) with the values of black and white."
        )
    return "Pass image_range=(low, high) with the values of black and white, such as (0, 65535) for 16 bits."


def _sixteen_bit_fault(image: Tensor, low: float, high: float, contrast: bool) -> str | None:
    if not contrast or high >= SIXTEEN_BIT_LIMIT:
        return None
    bits = next(bits for bits in (8, 10, 12, 14) if high < 1 << bits)
    return (
        f"have the dtype uint16, but range only from {low:.0f} to {high:.0f}. If they have {bits} bits, pass "
        f"image_range=(0, {(1 << bits) - 1}). If the image is dark, pass image_range=(0, 65535)."
    )
