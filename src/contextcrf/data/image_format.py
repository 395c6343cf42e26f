"""How the values of image files become uint8 tensors: the channels and their ranges (`images.yaml`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from contextcrf.data.classes import yaml_text
from contextcrf.data.conversion import check_16_bits, check_fractions
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import read_text
from contextcrf.utils.yaml_files import parse_yaml

IMAGES_FILE = "images.yaml"
# More channels than this are rather a wrong axis of an array.
_MOST_CHANNELS = 512


@dataclass(frozen=True)
class ImageFormat:
    """How images are read as uint8 tensors [C, H, W].

    The default reads all kinds of color and gray images as RGB (see `as_pixels`). Images of other sensors, such as near
    infrared, depth or microscopy, need the number of their channels or the range of their values. `contextcrf init`
    finds both.

    Args:
        channels: the number of channels C. With 3, gray images are repeated for all channels.
        ranges: the values (low, high) that become 0 and 255, one pair for each channel or one pair for all channels.
            Values in between are scaled linearly, and values outside are clipped. Without ranges, 16 bits are scaled
            from 0..65535 and floating-point values from 0..1.
        mean: the mean of each channel, in 0..255, with which networks normalize. Without values, the channel means of
            the backbone's training images are used, repeated in order until every channel has one.
        std: the standard deviation of each channel, in 0..255, as for `mean`.

    Raises:
        ValueError: If a value is outside its range, or if the number of values does not fit the channels.

    Example:
        >>> import numpy as np
        >>> infrared = ImageFormat(channels=4, ranges=((0, 4095),))
        >>> infrared.scale(np.full((2, 3, 4), 4095, np.uint16))[0, 0].tolist()
        [255, 255, 255, 255]
    """

    channels: int = 3
    ranges: tuple[tuple[float, float], ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.channels, int) or not 1 <= self.channels <= _MOST_CHANNELS:
            raise ValueError(f"channels is {self.channels!r}, but a number from 1 to {_MOST_CHANNELS} is expected.")
        for name in ("ranges", "mean", "std"):
            values = getattr(self, name)
            counts = (0, 1, self.channels) if name == "ranges" else (0, self.channels)
            if len(values) not in counts:
                raise ValueError(f"{name} has {len(values)} values, but the images have {self.channels} channels.")
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std belong together, but only one of them is given.")
        for pair in self.ranges:
            if len(pair) != 2 or not all(math.isfinite(value) for value in pair) or not pair[0] < pair[1]:
                raise ValueError(f"ranges has {list(pair)}, but two numbers low < high are expected.")
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"mean is {list(self.mean)}, but numbers in 0..255 are expected.")
        if self.mean and max(*self.mean, *self.std) <= 1:
            raise ValueError(
                f"mean is {list(self.mean)} and std is {list(self.std)}, which seem to be in 0..1, but values in "
                "0..255 are expected. Multiply them by 255."
            )
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std is {list(self.std)}, but numbers above 0 are expected.")

    @property
    def is_rgb(self) -> bool:
        """Whether images are read as RGB, with the range that their type defines."""
        return self.channels == 3 and not self.ranges

    def scale(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Convert the values of an image to 8 bits.

        Args:
            values: the stored values [H, W, C], or [H, W, 1] for a gray image.

        Returns:
            The scaled values, [H, W, C].

        Raises:
            ValueError: If the number of channels is different, if a value is not a finite number, or if the range of
                the values is not known: without `ranges`, 16 bits with only values below 16384, fractions outside 0..1,
                or values of another type.
        """
        values = self.check(values)
        if not self.ranges and values.dtype == np.uint16:
            check_16_bits(int(values.max(initial=0)))
        elif not self.ranges and values.dtype.kind == "f" and values.size:
            check_fractions(values.min(), values.max())
        return self.rescale(values)

    def rescale(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Convert values whose range has been checked, as `scale` does, such as those of a part of an image.

        Args:
            values: the result of `check`.

        Raises:
            ValueError: If the range of the values is not known.
        """
        ranges = self.ranges or _known_range(values.dtype)
        if ranges is None:
            return values
        low, high = np.array(ranges, dtype=np.float64).T
        scaled = 255 * (values.astype(np.float64) - low) / (high - low)
        return np.rint(scaled.clip(0, 255)).astype(np.uint8)

    def check(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Check the values of an image and repeat a gray image for the three channels of RGB.

        Args:
            values: as for `scale`.

        Returns:
            The values as stored, [H, W, C].

        Raises:
            ValueError: If the number of channels is different, or if a value is not a finite number.
        """
        if values.shape[2] == 1 and self.channels == 3:
            values = np.repeat(values, 3, axis=2)
        if values.shape[2] != self.channels:
            raise ValueError(
                f"The image has {values.shape[2]} channels, but {self.channels} are expected. The file {IMAGES_FILE} "
                "of a data set sets the number of channels."
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(
                f"The image has {int((~np.isfinite(values)).sum())} values that are not finite numbers. Replace them, "
                "for example by 0."
            )
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the values that differ from the default, as JSON values."""
        values = {name: value for name, value in asdict(self).items() if value not in ((), 3)}
        return {
            name: [list(v) for v in value] if name == "ranges" else _listed(value) for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageFormat:
        """Build a format from the values of `to_dict`.

        Raises:
            ValueError: If a key or a value is not valid.
        """
        if unknown := sorted(set(values) - {"channels", "ranges", "mean", "std"}):
            raise ValueError(f"The key {unknown[0]!r} is unknown. Expected channels, ranges, mean or std.")
        given = dict(values)
        for name in ("ranges", "mean", "std"):
            found = given.get(name, [])
            if name == "ranges" and isinstance(found, list) and len(found) == 2 and not _is_pairs(found):
                found = [found]  # one range for all channels
            numbers = [v for pair in found for v in pair] if name == "ranges" and _is_pairs(found) else found
            if not isinstance(numbers, list) or not all(isinstance(v, int | float) for v in numbers):
                kind = "pairs of numbers" if name == "ranges" else "numbers"
                raise ValueError(f"{name} is {found!r}, but a list of {kind} is expected.")
            given[name] = tuple(map(tuple, found)) if name == "ranges" else tuple(found)
        return cls(**given)

    @classmethod
    def read(cls, folder: Path) -> ImageFormat:
        """Read the `images.yaml` in a folder, as `read_file` does. Without this file, images are RGB."""
        path = folder / IMAGES_FILE
        return cls.read_file(path) if path.is_file() else RGB

    @classmethod
    def read_file(cls, path: Path) -> ImageFormat:
        """Read a file `images.yaml`.

        Raises:
            FileNotFoundError: If the file does not exist.
            DataError: If the content is not valid. The message names the file, the key and the expected value.
        """
        try:
            content = parse_yaml(read_text(path))
            if not isinstance(content, dict):
                raise ValueError("Keys such as `channels: 4` are expected")
            return cls.from_dict(content)
        except (yaml.YAMLError, ValueError) as error:
            raise DataError(f"{path} does not describe images: {str(error).rstrip('.')}.") from error

    def text(self) -> str:
        """Return the content of `images.yaml`."""
        return yaml_text({"channels": self.channels, **self.to_dict()})

    def describe(self) -> str:
        """Return the format in words.

        Example:
            >>> ImageFormat(channels=4, ranges=((0, 4095),)).describe()
            '4 channels with values in [0, 4095]'
        """
        ranges = ", ".join(f"[{low:g}, {high:g}]" for low, high in self.ranges)
        return f"{self.channels} channels" + (f" with values in {ranges}" if ranges else "")


RGB = ImageFormat()


def check_same_images(model: ImageFormat, data: ImageFormat) -> None:
    """Check that a model and a data set read images in the same way.

    Raises:
        ValueError: If the number or the ranges of the channels differ.
    """
    if (model.channels, model.ranges) != (data.channels, data.ranges):
        raise ValueError(
            f"The model reads images with {model.describe()}, but the data set has images with {data.describe()}. Use "
            f"images of the same kind, and the {IMAGES_FILE} with which the model was trained."
        )


def _known_range(dtype: np.dtype[Any]) -> tuple[tuple[float, float], ...] | None:
    """Return the range that a type defines; None if its values need no scaling."""
    if dtype == np.uint8:
        return None
    if dtype == np.uint16:
        return ((0, 65535),)
    if dtype.kind == "f":
        return ((0, 1),)
    raise ValueError(
        f"The image has values of type {dtype}, whose range is unknown. Add their smallest and largest value to "
        f"{IMAGES_FILE}, such as `ranges: [[0, 4095]]`."
    )


def _is_pairs(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in values)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
