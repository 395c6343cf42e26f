"""Reading of masks: which value or color of a file belongs to which class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from contextcrf.data.classes import IGNORE_INDEX, Classes, Color
from contextcrf.data.decoding import DECODING_ERRORS
from contextcrf.data.stored_mask import (
    Codes,
    Runs,
    StoredMask,
    code_color,
    color_code,
    decode_mask,
    find_runs,
)
from contextcrf.utils.errors import DataError

#: Color masks: a color counts as the nearest class color if each channel differs by at most this, in units of 0..255.
COLOR_TOLERANCE = 32
#: The largest share of the pixels of a color mask that may have no class color. These pixels are unlabeled.
STRAY_SHARE = 0.1
#: One color that forms areas with a larger share of a mask, and with at least 32 pixels, must be a class color or an
#: ignored color.
UNKNOWN_COLOR_SHARE = 0.01
_UNKNOWN_PIXELS = 32
# Compression makes lines of one color at borders, which may have some pixels of width.
_LOSSY_COLOR_SHARE = 0.05
# A color forms areas if this share of its pixels begins a square of 2 x 2 pixels of the color.
_AREA_SHARE = 0.25

_LISTED = 8
# The position of values and colors that have no class.
_UNKNOWN = -1


@dataclass(frozen=True)
class MaskFormat:
    """How the pixels of mask files become class indices 0..K-1 and `IGNORE_INDEX` (255).

    Index masks have one value per pixel. Color masks have one color per pixel: RGB, RGBA or palette images. An object
    can be pickled and compared.

    Args:
        kind: "index" or "color".
        values: the values of each class in index masks, K tuples. Empty for color masks.
        colors: the color of each class in color masks, K colors. Empty for index masks.
        ignore_values: the values of unlabeled pixels in index masks.
        ignore_colors: the colors of unlabeled pixels in color masks.
        tolerance: the largest difference in each channel between a pixel and its class color, in units of 0..255. The
            limit is half of the smallest difference between two class colors; a larger value is reduced to this limit.
            Pixels of color masks without a class color within the tolerance are unlabeled.

    Raises:
        ValueError: If a value or a color belongs to two classes, or to a class and to the unlabeled pixels, or if there
            are fewer than 2 classes.

    Example:
        >>> binary = MaskFormat(values=((0,), (255,)), ignore_values=())
        >>> Image.fromarray(np.array([[0, 255]], np.uint8)).save("mask.png")
        >>> binary.read(Path("mask.png"))
        tensor([[0, 1]])
    """

    kind: Literal["index", "color"] = "index"
    values: tuple[tuple[int, ...], ...] = ()
    colors: tuple[Color, ...] = ()
    ignore_values: tuple[int, ...] = ()
    ignore_colors: tuple[Color, ...] = ()
    tolerance: int = COLOR_TOLERANCE

    def __post_init__(self) -> None:
        if len(self) < 2:
            raise ValueError(f"The mask format has {len(self)} classes, but at least 2 are expected.")
        keys: list[object] = [*self.colors, *self.ignore_colors] if self.kind == "color" else []
        if self.kind == "index":
            keys = [value for values in (*self.values, self.ignore_values) for value in values]
        if repeated := [key for key, times in Counter(keys).items() if times > 1]:
            what = "color" if self.kind == "color" else "value"
            shown = list(repeated[0]) if isinstance(repeated[0], tuple) else repeated[0]
            raise ValueError(
                f"The {what} {shown} occurs more than once in the mask format, but each {what} of the masks must "
                "belong to one class or to the unlabeled pixels."
            )

    @classmethod
    def indices(cls, count: int, ignore_index: int | None = IGNORE_INDEX) -> "MaskFormat":
        """Return the format of index masks whose values are the class indices.

        Args:
            count: the number of classes K. The values of the masks are 0..K-1 and `ignore_index`.
            ignore_index: the value of unlabeled pixels; None if there is no such value. If it is below K, the class
                with this index has no pixels.

        Example:
            >>> MaskFormat.indices(3, ignore_index=None).values
            ((0,), (1,), (2,))
        """
        values = tuple(() if value == ignore_index else (value,) for value in range(count))
        return cls(values=values, ignore_values=() if ignore_index is None else (ignore_index,))

    def __len__(self) -> int:
        """Return the number of classes K."""
        return len(self.values if self.kind == "index" else self.colors)

    @property
    def is_plain(self) -> bool:
        """Whether the values of the masks are the class indices, with at most one value of unlabeled pixels."""
        if self.kind != "index" or len(self.ignore_values) > 1:
            return False
        return self.values == MaskFormat.indices(len(self), next(iter(self.ignore_values), None)).values

    def read(self, path: Path) -> Tensor:
        """Read a mask file as class indices.

        Args:
            path: the file. JPEG files and other files with lossy compression must be color masks.

        Returns:
            An int64 tensor [H, W] with values 0..K-1 and `IGNORE_INDEX`.

        Raises:
            DataError: If the file cannot be decoded, or if it is not a mask of the format's `kind`. For index masks,
                also if a value belongs to no class. For color masks, also if more than 10% of the pixels
                (`STRAY_SHARE`) have no class color, or if the connected areas of a single color that is not a class
                color together cover more than 1% of all pixels (`UNKNOWN_COLOR_SHARE`; 5% in a JPEG file).
        """
        positions, _ = self.positions(decode_mask(path))
        return torch.from_numpy(positions)

    def positions(self, mask: StoredMask) -> "tuple[npt.NDArray[np.int64], StrayColors]":
        """Return the class indices of a decoded mask, int64 [H, W], and its pixels without exact class colors.

        Raises:
            DataError: In the same cases as `read`.
        """
        if self.kind == "index":
            return self._index_positions(mask), StrayColors()
        return self._color_positions(mask)

    def _index_positions(self, mask: StoredMask) -> npt.NDArray[np.int64]:
        values = index_values(mask)
        if values.dtype == np.uint8:
            positions = np.take(_byte_table(self), values)
            unknown = positions.size > 0 and positions.min() < 0
        else:
            runs = find_runs(values)
            table = _value_table(self)
            found = np.array([table.get(int(value), _UNKNOWN) for value in runs.codes], np.int64)
            positions, unknown = runs.map(found, mask.shape).astype(np.int64, copy=False), bool((found < 0).any())
        if unknown:
            raise DataError(self._unknown_values(mask.path, values, positions))
        return positions

    def _unknown_values(self, path: Path, values: Codes, positions: Codes) -> str:
        wrong = values[positions < 0]
        labels = [str(int(value)) for value in np.unique(wrong)]
        shown = ", ".join(labels[:_LISTED]) + (", ..." if len(labels) > _LISTED else "")
        return (
            f"{path} contains the label{'s' if len(labels) > 1 else ''} {shown} at {wrong.size} "
            f"pixel{'s' if wrong.size > 1 else ''}, but {self.describe_values()} is expected. Add the missing classes, "
            "or correct the mask."
        )

    def describe_values(self) -> str:
        """Return the expected values of index masks in words, such as "0 to 20 or 255 (ignore_index)"."""
        known = sorted(value for values in self.values for value in values)
        if self.is_plain or known == list(range(len(self))):
            text = f"0 to {len(self) - 1}"
        else:
            text = ", ".join(map(str, known))
        ignored = " or ".join(map(str, self.ignore_values))
        return f"{text} or {ignored} (ignore_index)" if ignored else text

    def describe_class(self, position: int) -> str:
        """Return the values or the color of a class in words, such as "value 3" or "color [128, 0, 0]"."""
        if self.kind == "color":
            return f"color {list(self.colors[position])}"
        values = self.values[position]
        return f"value{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"

    def _color_positions(self, mask: StoredMask) -> "tuple[npt.NDArray[np.int64], StrayColors]":
        if mask.palette is None and mask.values is not None and self._holds_indices(mask.values):
            raise DataError(
                f"{mask.path} is a gray image with the values of class indices (at most {mask.values.max()}), but the "
                "masks are read by color. Write a classes.yaml with `masks: index` and the classes in the order of "
                "their values."
            )
        runs = find_runs(mask.color_codes())
        positions, distances = self.nearest(runs.codes)
        strays = StrayColors.of(runs, positions, distances)
        strays.check(mask, self)
        known = np.where(positions < 0, IGNORE_INDEX, positions)
        return runs.map(known, mask.shape).astype(np.int64, copy=False), strays

    def _holds_indices(self, values: Codes) -> bool:
        """Return whether gray values are rather class indices than colors: small values that are not class colors."""
        found = np.unique(values)
        known = {color[0] for color in (*self.colors, *self.ignore_colors) if len({*color}) == 1}
        return bool(found.size) and found[-1] < len(self.colors) and not {*found.tolist()} <= known

    @cached_property
    def _tolerance(self) -> int:
        """The tolerance, or half of the smallest difference of two known colors if that is less."""
        known = np.array([*self.colors, *self.ignore_colors], np.int32)
        differences = np.abs(known[:, None] - known).max(axis=2)
        return min(self.tolerance, int(differences[~np.eye(len(known), dtype=bool)].min()) // 2)

    def nearest(self, codes: Codes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the class indices of color codes [N] and the largest channel differences to their class colors.

        The position is `IGNORE_INDEX` for the colors of unlabeled pixels, and -1 for colors beyond the tolerance.
        """
        known = np.array([*self.colors, *self.ignore_colors], np.int32)
        labels = np.array([*range(len(self.colors)), *[IGNORE_INDEX] * len(self.ignore_colors)], np.int64)
        positions, distances = np.empty(len(codes), np.int64), np.empty(len(codes), np.int64)
        for start in range(0, len(codes), 4096):  # bounds the memory
            part = codes[start : start + 4096].astype(np.int32)
            colors = np.stack([part >> 16, part >> 8 & 255, part & 255], axis=1)
            differences = np.abs(colors[:, None] - known)
            best = (differences**2).sum(axis=2).argmin(axis=1)
            distance = differences[np.arange(len(part)), best].max(axis=1)
            distances[start : start + 4096] = distance
            positions[start : start + 4096] = np.where(distance <= self._tolerance, labels[best], _UNKNOWN)
        return positions, distances


@dataclass(frozen=True)
class StrayColors:
    """The pixels of color masks that do not have the exact color of a class.

    Attributes:
        near: number of pixels within the tolerance of a class color. They have this class.
        far: number of other pixels. They are unlabeled.
        pixels: number of all pixels.
        example: the most frequent color of the unlabeled pixels and its number of pixels; None if there are none.
    """

    near: int = 0
    far: int = 0
    pixels: int = 0
    example: tuple[Color, int] | None = None

    @classmethod
    def of(cls, runs: Runs, positions: Codes, distances: Codes) -> "StrayColors":
        """Count the stray pixels of a mask with the positions and distances of `MaskFormat.nearest`."""
        counts, unknown = runs.counts, positions < 0
        far = int(counts[unknown].sum())
        example = None
        if far:
            most = int(np.where(unknown, counts, 0).argmax())
            example = code_color(int(runs.codes[most])), int(counts[most])
        return cls(int(counts[(distances > 0) & ~unknown].sum()), far, int(counts.sum()), example)

    def __add__(self, other: "StrayColors") -> "StrayColors":
        """Return the counts of both, with the more frequent example."""
        examples = [item.example for item in (self, other) if item.example is not None]
        example = max(examples, key=lambda found: found[1], default=None)
        return StrayColors(self.near + other.near, self.far + other.far, self.pixels + other.pixels, example)

    @property
    def share(self) -> float:
        """The share of the unlabeled pixels among all pixels, from 0 to 1."""
        return self.far / self.pixels if self.pixels else 0.0

    def check(self, mask: StoredMask, expected: MaskFormat) -> None:
        """Raise a DataError if the colors of a mask do not fit the class colors."""
        if self.example is None:
            return
        color, count = self.example
        smallest = max(_UNKNOWN_PIXELS, (_LOSSY_COLOR_SHARE if mask.lossy else UNKNOWN_COLOR_SHARE) * self.pixels)
        one = count > smallest and _forms_areas(mask.color_codes() == color_code(color))
        if not one and self.share <= STRAY_SHARE:
            return
        found = (
            f"has the color {list(color)} at {count} pixels"
            if one
            else f"has other colors than the class colors at {100 * self.share:.0f} % of its pixels, such as "
            f"{list(color)}"
        )
        raise DataError(
            f"{mask.path} {found}, but one of the {len(expected.colors)} class colors, or a color in ignore_colors, is "
            f"expected (tolerance {expected.tolerance}). Add the color to classes.yaml, or correct the mask."
        )


def _forms_areas(chosen: npt.NDArray[np.bool_]) -> bool:
    squares = chosen[:-1, :-1] & chosen[1:, :-1] & chosen[:-1, 1:] & chosen[1:, 1:]
    return bool(squares.sum() > _AREA_SHARE * chosen.sum())


def index_values(mask: StoredMask) -> Codes:
    """Return the values [H, W] of an index mask.

    Raises:
        DataError: If the mask has colors, or if its file format is lossy.
    """
    if mask.values is None:
        raise DataError(
            f"{mask.path} has several channels with colors, but a mask with one channel of class indices is expected. "
            "If the colors show the classes, set `masks: color` in classes.yaml and give each class its color; "
            "`contextcrf init` does so if there is no classes.yaml."
        )
    if mask.lossy:
        raise DataError(
            f"{mask.path} has lossy compression, which changes labels, but a mask of class indices is expected. Save "
            "it as PNG, or use black and white or other distinct colors for the classes and set `masks: color`."
        )
    return mask.values


def read_mask(path: Path, ignore_index: int) -> Tensor:
    """Read a mask of class indices as an int64 tensor [H, W].

    `MaskFormat.read` also reads masks with other values and with colors.

    Args:
        path: an image file with one channel.
        ignore_index: the value of unlabeled pixels in the file. It is mapped to `IGNORE_INDEX` (255).

    Raises:
        DataError: If the file cannot be decoded, or if it has several channels. The message begins with the path.

    Example:
        >>> Image.fromarray(np.array([[0, 9]], np.uint8)).save("mask.png")
        >>> read_mask(Path("mask.png"), ignore_index=9)
        tensor([[  0, 255]])
    """
    mask = torch.from_numpy(index_values(decode_mask(path)).astype(np.int64))
    return mask.masked_fill(mask == ignore_index, IGNORE_INDEX)


def check_palettes(paths: Sequence[Path], expected: MaskFormat) -> None:
    """Check that each value of index masks has one color in the palettes of all files.

    Image editors list the same colors in another order, so that the same class has different values. The files are
    decoded only if their palettes differ. Other kinds of masks, and files that cannot be decoded, are not checked.

    Args:
        paths: the mask files.
        expected: the format of the masks.

    Raises:
        DataError: If a value has two colors. The message names two files.

    Example:
        >>> for name, palette in (("a.png", [0, 0, 0, 255, 0, 0]), ("b.png", [255, 0, 0, 0, 0, 0])):
        ...     image = Image.fromarray(np.array([[0, 1]], np.uint8))
        ...     image.putpalette(palette)
        ...     image.save(name)
        >>> check_palettes([Path("a.png"), Path("b.png")], MaskFormat.indices(2))
        Traceback (most recent call last):
        contextcrf.utils.errors.DataError: The palettes of the masks do not agree: the value 0 is [0, 0, 0] in a.png ...
    """
    if expected.kind != "index":
        return
    if len({palette for path in paths if (palette := _header_palette(path)) is not None}) < 2:
        return
    seen: dict[int, tuple[Color, Path]] = {}
    for path in dict.fromkeys(paths):
        try:
            mask = decode_mask(path)
        except DataError:
            continue  # The validation reports such files.
        for value, color in used_palette(mask).items():
            if value in expected.ignore_values:
                continue
            first, where = seen.setdefault(value, (color, path))
            if first != color:
                raise DataError(palette_conflict(value, (first, where), (color, path)))


def palette_conflict(value: int, first: tuple[Color, Path], second: tuple[Color, Path]) -> str:
    """Return the message about a value with two colors in two files."""
    return (
        f"The palettes of the masks do not agree: the value {value} is {list(first[0])} in {first[1]} and "
        f"{list(second[0])} in {second[1]}. If the colors show the classes, set `masks: color` in classes.yaml and "
        "give each class its color. If the values show the classes, save all masks with one palette."
    )


def used_palette(mask: StoredMask) -> dict[int, Color]:
    """Return the color of each value that occurs in a palette mask; an empty dictionary for other masks."""
    if mask.palette is None or mask.values is None:
        return {}
    used = np.flatnonzero(np.bincount(mask.values.ravel(), minlength=256))
    return {int(value): mask.palette[value] for value in used if value < len(mask.palette)}


def check_palette_order(mask: StoredMask, masks: MaskFormat, classes: Classes) -> None:
    """Raise a DataError if the palette of an index mask has the colors of the classes in another order.

    Args:
        mask: the decoded mask.
        masks: the format of index masks.
        classes: the classes with their colors.
    """
    owner = {color: index for index, color in enumerate(classes.palette)}
    table = _value_table(masks)
    for value, color in used_palette(mask).items():
        index = table.get(value, IGNORE_INDEX)
        if index != IGNORE_INDEX and color in owner and owner[color] != index:
            raise DataError(
                f"{mask.path} has the color {list(color)} of the class {classes.names[owner[color]]} for the value "
                f"{value}, which is the class {classes.names[index]}. If the colors show the classes, set `masks: "
                "color` in classes.yaml. If the values show the classes, correct the colors in classes.yaml."
            )


def _header_palette(path: Path) -> bytes | None:
    """Return the palette in the header of a file, or None if there is none or the file cannot be opened."""
    try:
        with Image.open(path) as file:
            return bytes(file.getpalette("RGB") or []) if file.mode == "P" else None
    except DECODING_ERRORS:
        return None  # The validation reports such files.


@lru_cache(maxsize=16)
def _value_table(expected: MaskFormat) -> dict[int, int]:
    table = {value: position for position, values in enumerate(expected.values) for value in values}
    return table | dict.fromkeys(expected.ignore_values, IGNORE_INDEX)


@lru_cache(maxsize=16)
def _byte_table(expected: MaskFormat) -> npt.NDArray[np.int64]:
    table = np.full(256, _UNKNOWN, np.int64)
    for value, position in _value_table(expected).items():
        if 0 <= value <= 255:
            table[value] = position
    return table
