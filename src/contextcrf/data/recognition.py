"""The recognition of masks: which values or colors of a set of mask files are classes, for `contextcrf init`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from contextcrf.data.classes import IGNORE_INDEX, Classes, Color, voc_palette
from contextcrf.data.classes_file import ClassesFile
from contextcrf.data.labelmap import UNLABELED_COLOR
from contextcrf.data.masks import COLOR_TOLERANCE, MaskFormat, palette_conflict, used_palette
from contextcrf.data.stored_mask import Codes, StoredMask, code_color, count_solid, decode_mask, find_runs
from contextcrf.utils.errors import DataError
from contextcrf.utils.progress import track

# A color without an area of 2 x 2 pixels is a mixed color of a smoothed border if it lies between two other colors,
# and if one of them has this many times its pixels.
_MIXED_FACTOR = 10
# A color is a class if this share of its pixels begins an area of 2 x 2 pixels.
_SOLID_SHARE = 0.05
# The smallest share of all pixels for other colors without such an area, and for colors of lossy files.
_RARE_SHARE = 0.001
# More different colors than this are a sign of lossy compression at some time.
_MANY_COLORS = 256
_LISTED = 10
# Compression changes the color of an area by at most this. Other similar colors with more than this share of the pixels
# in areas are rather classes of their own.
_NOISE, _MERGED_SHARE = 8, 0.01


@dataclass(frozen=True)
class Recognized:
    """The classes and the format of a set of masks, with the findings that led to them.

    Attributes:
        file: the classes and the format of the masks.
        findings: sentences that state what was found and what follows from it.

    Example:
        >>> classes = Classes(("background", "leaf"), ((0, 0, 0), (128, 0, 0)))
        >>> Recognized(ClassesFile(classes, MaskFormat.indices(2)), ["The masks have the values 0 and 1."]).findings
        ['The masks have the values 0 and 1.']
    """

    file: ClassesFile
    findings: list[str]


@dataclass
class _Codes:
    """The number of pixels, and of solid squares of 2 x 2 pixels, of each value or color."""

    pixels: Counter[int] = field(default_factory=Counter)
    solid: Counter[int] = field(default_factory=Counter)

    def add(self, keys: Sequence[int], counts: Codes, solid: Codes) -> None:
        for key, count, squares in zip(keys, counts.tolist(), solid.tolist(), strict=True):
            self.pixels[key] += count
            self.solid[key] += squares


@dataclass
class _Survey:
    """What the decoded masks contain."""

    values: _Codes = field(default_factory=_Codes)
    colors: _Codes = field(default_factory=_Codes)
    color_of: dict[int, tuple[Color, Path]] = field(default_factory=dict)
    value_of: dict[Color, int] = field(default_factory=dict)
    # The first value with two colors in two files, and whether a color has two values.
    conflict: str | None = None
    reordered: bool = False
    colored: Path | None = None  # the first file with several channels and colors
    lossy: Path | None = None
    transparent: Path | None = None  # the first file with an alpha channel
    deep: bool = False  # whether a value is above 255 or negative
    # The first masks with the values 0 and 1 alone, with 0 and 255 alone, and with 1 and 255.
    ones: Path | None = None
    white: Path | None = None
    both: Path | None = None

    def add(self, mask: StoredMask) -> None:
        if mask.lossy:
            self.lossy = self.lossy or mask.path
        if mask.transparent:
            self.transparent = self.transparent or mask.path
        codes = mask.color_codes() if mask.values is None else mask.values
        runs = find_runs(codes)
        keys, counts, solid = runs.codes.tolist(), runs.counts, count_solid(codes, runs)
        if mask.values is None:
            self.colored = self.colored or mask.path
            self.colors.add(keys, counts, solid)
        else:
            self.values.add(keys, counts, solid)
            if {1, 255} <= {*keys}:
                self.both = self.both or mask.path
            elif keys in ([0, 1], [1]):
                self.ones = self.ones or mask.path
            elif keys in ([0, 255], [255]):
                self.white = self.white or mask.path
            self.deep |= keys[-1] > 255 or keys[0] < 0
        if mask.values is not None and not self.deep:
            table = StoredMask(mask.path, runs.codes, mask.palette).color_codes()
            self.colors.add(table.tolist(), counts, solid)
        for value, color in used_palette(mask).items():
            first, where = self.color_of.setdefault(value, (color, mask.path))
            if first != color and self.conflict is None:
                self.conflict = palette_conflict(value, (first, where), (color, mask.path))
            self.reordered |= self.value_of.setdefault(color, value) != value


def recognize_masks(masks: Sequence[Path], ignore_index: int | None = None) -> Recognized:
    """Find the classes of a set of masks from the values and colors in the files.

    Args:
        masks: the paths of the masks. All of them are decoded.
        ignore_index: the value of unlabeled pixels in index masks. If None, it is determined from the masks.

    Returns:
        The classes, the format and the findings.

    Raises:
        DataError: If a mask cannot be read, if the palettes of the masks do not agree, or if there are fewer than two
            classes or more than 255.

    Example:
        >>> from PIL import Image
        >>> Image.fromarray(np.array([[0, 0], [255, 255]], np.uint8)).save("mask.png")
        >>> recognize_masks([Path("mask.png")]).file.classes.names
        ('background', 'foreground')
    """
    survey = _Survey()
    for path in track(masks, "Reading the masks", transient=True):
        survey.add(decode_mask(path))
    if survey.colored is not None or survey.lossy is not None or (survey.conflict and survey.reordered):
        return _by_color(survey, ignore_index)
    if survey.conflict:
        raise DataError(survey.conflict)
    if _is_smoothed(survey):
        return _by_color(survey, ignore_index)
    return _by_value(survey, ignore_index)


def _is_smoothed(survey: _Survey) -> bool:
    """Return whether gray masks are smoothed: most of their values are mixed values at borders."""
    if survey.deep or survey.color_of:
        return False
    classes, _ = _class_colors(survey)
    mixed = len(survey.values.pixels) - len(classes)
    solid = sum(survey.colors.pixels[code] for code in classes)
    return mixed >= 8 and mixed >= len(classes) and solid >= 0.8 * survey.colors.pixels.total()


def _by_value(survey: _Survey, ignore_index: int | None) -> Recognized:
    pixels = survey.values.pixels
    if sorted(pixels) == [0, 1, 255] and survey.both is None and ignore_index is None:
        raise DataError(
            f"{survey.ones} has the values 0 and 1, but {survey.white} has the values 0 and 255, so that 255 may be "
            "the foreground or unlabeled. Save all masks with the values 0 and 1, or give --ignore-index 255."
        )
    ignored = _unlabeled_values(sorted(pixels), ignore_index)
    values = [value for value in sorted(pixels) if value not in ignored]
    if len(values) > IGNORE_INDEX:
        raise DataError(
            f"The masks contain {len(values)} different values, but at most {IGNORE_INDEX} classes are possible. The "
            f"smallest values are {values[:_LISTED]}. Merge classes in a classes.yaml: a class can have several values "
            "(`values: [3, 7]`). If the values are numbers of objects, convert them to classes first."
        )
    if len(values) < 2:
        raise DataError(
            f"Without the unlabeled values {list(ignored)}, the masks contain the values {values}, but two or more "
            "values are expected. If unlabeled pixels have another value, set it with --ignore-index. If an unlabeled "
            "value is a class, write a classes.yaml with `ignore_index: null` and the `value` of each class."
        )
    findings = [f"The masks contain {len(values)} classes as values: {_listed(values)}."]
    palette = _palette_of(survey, values)
    if values in ([0, 255], [0, 65535]):
        names: tuple[str, ...] = ("background", "foreground")
        findings.append(
            f"The value {values[1]} is the class foreground, because the masks have only the values 0 and {values[1]}."
        )
    else:
        names = tuple(f"class {value}" for value in values)
    for value in ignored:
        if pixels[value]:
            share = 100 * pixels[value] / pixels.total()
            findings.append(f"The value {value} means unlabeled pixels: {share:.2g} % of all pixels.")
        elif value == ignore_index:
            findings.append(f"No pixel has the value {value}, which would mean an unlabeled pixel.")
    if len(values) != values[-1] + 1:
        findings.append("The values are not 0, 1, 2, ..., so classes.yaml gives the value of each class.")
    masks = MaskFormat(values=tuple((value,) for value in values), ignore_values=ignored)
    return Recognized(ClassesFile(Classes(names, palette), masks), findings)


def _unlabeled_values(values: Sequence[int], ignore_index: int | None) -> tuple[int, ...]:
    """Return the values of unlabeled pixels: the given value, 255, 65535 and negative values."""
    given = () if ignore_index is None else (ignore_index,)
    rest = [value for value in values if value not in given]
    found = [value for value in rest if value < 0 or value in (IGNORE_INDEX, 65535)]
    if _is_evenly_spaced(rest):
        found = []
    if not found and not given:
        # Masks of the other splits may contain the usual value.
        return () if IGNORE_INDEX in values or values[-1] > IGNORE_INDEX else (IGNORE_INDEX,)
    return (*given, *found)


def _is_evenly_spaced(values: Sequence[int]) -> bool:
    """Return whether values such as 0, 85, 170, 255 spread the classes over a range, so that all are classes."""
    if len(values) == 2:
        return list(values) in ([0, 255], [0, 65535])
    steps = np.diff(values)
    return len(values) > 2 and steps.min() > 1 and steps.max() - steps.min() <= 1


def _palette_of(survey: _Survey, values: Sequence[int]) -> tuple[Color, ...]:
    """Return the colors of the values in the palettes of the files, or VOC's colors if they are not distinct."""
    colors = [survey.color_of[value][0] for value in values if value in survey.color_of]
    return tuple(colors) if len({*colors}) == len(values) else voc_palette(len(values))


def _by_color(survey: _Survey, ignore_index: int | None) -> Recognized:
    if survey.deep:
        raise DataError(
            f"{survey.colored or survey.lossy} shows the classes as colors, but other masks have values above 255. "
            "Save all masks in one format."
        )
    if ignore_index is not None:
        raise DataError(
            f"--ignore-index is {ignore_index}, but the masks show the classes as colors. Remove the option. If a "
            "color means unlabeled pixels, move it from the classes to ignore_colors in classes.yaml, and run init "
            "again."
        )
    codes, mixed = _class_colors(survey)
    pixels = survey.colors.pixels
    if survey.lossy is not None:
        _check_merged(survey, codes, mixed)
    codes.sort(key=lambda code: (-pixels[code], code))
    colors = [code_color(code) for code in codes]
    known = {*voc_palette(256)}
    ignored = tuple(color for color in colors if color == UNLABELED_COLOR and {*colors} <= known)
    colors = [color for color in colors if color not in ignored]
    if not 2 <= len(colors) <= IGNORE_INDEX:
        hint = ""
        if survey.lossy is not None:
            hint = f" {survey.lossy} has lossy compression, which changes labels. Save the masks as PNG."
        if survey.transparent is not None:
            hint = f" {survey.transparent} has an alpha channel. If it has the classes, save it as a gray image."
        raise DataError(
            f"The number of class colors in the masks is {len(colors)}, but 2 to {IGNORE_INDEX} are expected. The most "
            f"frequent colors are {[list(color) for color in colors[:_LISTED]]}.{hint} If the masks are right, write a "
            "classes.yaml with the color of each class and `masks: color`."
        )
    if len(colors) == 2 and max(min(colors)) <= COLOR_TOLERANCE and min(max(colors)) >= 255 - COLOR_TOLERANCE:
        colors.sort()
        names: tuple[str, ...] = ("background", "foreground")
    else:
        names = tuple(f"class {index}" for index in range(len(colors)))
    why = "list the same colors in another order" if survey.reordered and survey.colored is None else ""
    findings = [f"The masks contain {len(colors)} classes as colors."]
    if why:
        findings.append(f"The palettes of the masks {why}, so the masks are read by color.")
    masks = MaskFormat("color", colors=tuple(colors), ignore_colors=ignored)
    if ignored:
        findings.append(f"The color {list(UNLABELED_COLOR)} means unlabeled pixels, as in PASCAL VOC.")
    else:
        findings.append(
            "If a color means unlabeled pixels, move it from the classes to ignore_colors in classes.yaml, and run "
            "init again."
        )
    if mixed:
        findings += _describe_strays(mixed, pixels, masks)
    return Recognized(ClassesFile(Classes(names, tuple(colors)), masks), findings)


def _check_merged(survey: _Survey, classes: list[int], mixed: list[int]) -> None:
    """Raise a DataError if a color of lossy files that forms large areas is near a class color, but not the same."""
    pixels, solid = survey.colors.pixels, survey.colors.solid
    for code in mixed:
        near = [other for other in classes if _NOISE < _distance(code, other) <= COLOR_TOLERANCE]
        if near and solid[code] > _MERGED_SHARE * pixels.total() and solid[code] > pixels[code] / 2:
            first, second = list(code_color(near[0])), list(code_color(code))
            raise DataError(
                f"{survey.lossy} has lossy compression, and the masks have areas of the similar colors {first} and "
                f"{second}. Save the masks as PNG, or write a classes.yaml with `masks: color` and the color of each "
                "class."
            )


def _describe_strays(mixed: list[int], pixels: Counter[int], masks: MaskFormat) -> list[str]:
    positions, _ = masks.nearest(np.array(mixed, np.int64))
    counts = np.array([pixels[code] for code in mixed])
    near, far = int(counts[positions >= 0].sum()), int(counts[positions < 0].sum())
    share = 100 * far / pixels.total()
    text = [
        f"{len(mixed)} other colors are mixed colors at borders or come from compression. {near} of their pixels are "
        f"within {COLOR_TOLERANCE} units of a class color and get this class. The other {far} pixels ({share:.2g} % of "
        "all pixels) are unlabeled."
    ]
    if far:
        most = int(np.where(positions < 0, counts, 0).argmax())
        text.append(f"The most frequent color of the unlabeled pixels is {list(code_color(mixed[most]))}.")
    return text


def _class_colors(survey: _Survey) -> tuple[list[int], list[int]]:
    """Divide the colors into class colors and mixed colors, most frequent first."""
    pixels, solid = survey.colors.pixels, survey.colors.solid
    ordered = sorted(pixels, key=lambda code: (-pixels[code], code))
    if survey.lossy is not None or len(pixels) > _MANY_COLORS:
        return _divide(ordered, _compressed_test(survey))
    classes = [code for code in ordered if solid[code] > _SOLID_SHARE * pixels[code]]
    chosen = {*classes}
    for code in ordered:
        if code not in chosen and not _is_mixed(code, classes, pixels):
            classes.append(code)
            chosen.add(code)
    return classes, [code for code in ordered if code not in chosen]


def _divide(ordered: list[int], is_class: Callable[[int, list[int]], bool]) -> tuple[list[int], list[int]]:
    classes: list[int] = []
    mixed: list[int] = []
    for code in ordered:
        (classes if is_class(code, classes) else mixed).append(code)
    return classes, mixed


def _compressed_test(survey: _Survey) -> Callable[[int, list[int]], bool]:
    """Return the test for colors that compression or smoothing has spread around the class colors."""
    pixels, solid, lossy = survey.colors.pixels, survey.colors.solid, survey.lossy is not None
    fewest = (_RARE_SHARE if lossy else _RARE_SHARE / 10) * pixels.total()

    def is_class(code: int, classes: list[int]) -> bool:
        if solid[code] < fewest or solid[code] <= _SOLID_SHARE * pixels[code]:
            return False
        close = [other for other in classes if _distance(code, other) <= COLOR_TOLERANCE]
        # Close colors that are both frequent in lossless files are different classes.
        return not any(lossy or pixels[code] * _MIXED_FACTOR < pixels[other] for other in close)

    return is_class


def _is_mixed(code: int, classes: list[int], pixels: Counter[int]) -> bool:
    """Return whether a color without an area is a mixture of two class colors, or is too rare for a class."""
    if pixels[code] < _RARE_SHARE * pixels.total():
        return True
    color = np.array(code_color(code), float)
    for index, first in enumerate(classes):
        for second in classes[:index]:
            a, b = np.array(code_color(first), float), np.array(code_color(second), float)
            share = float(np.dot(color - a, b - a) / np.dot(b - a, b - a))
            between = 0 < share < 1 and np.abs(a + share * (b - a) - color).max() <= 2
            if between and pixels[code] * _MIXED_FACTOR < max(pixels[first], pixels[second]):
                return True
    return False


def _distance(first: int, second: int) -> int:
    return max(abs(a - b) for a, b in zip(code_color(first), code_color(second), strict=True))


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[: 2 * _LISTED]))
    return f"{shown}, ..." if len(values) > 2 * _LISTED else shown
