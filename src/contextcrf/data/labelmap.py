"""The file `labelmap.txt` of annotation tools: the classes of a folder in VOC's layout, with their colors."""

from collections.abc import Iterator
from pathlib import Path

from contextcrf.data.classes import Classes, Color, is_color, voc_palette
from contextcrf.data.classes_file import ClassesFile
from contextcrf.data.masks import MaskFormat
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import read_text

LABELMAP = "labelmap.txt"
# The color and the names of unlabeled pixels.
UNLABELED_COLOR = voc_palette(256)[255]
_UNLABELED_NAMES = ("ignored", "void")


def read_labelmap(path: Path) -> ClassesFile:
    r"""Read a `labelmap.txt` with lines "label:red,green,blue:parts:actions", whose masks are read by color.

    The color [224, 224, 192] and the labels "ignored" and "void" mean unlabeled pixels.

    Args:
        path: the file.

    Raises:
        DataError: If a line is not valid, if two labels have the same name or color, or if there are too few labels.

    Example:
        >>> _ = Path("labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:9,0,0::\n")
        >>> read_labelmap(Path("labelmap.txt")).mask_format.colors
        ((0, 0, 0), (9, 0, 0))
    """
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8: {error}. Save it in UTF-8.") from error
    names: list[str] = []
    colors: list[Color] = []
    ignored: list[Color] = []
    for name, color in _entries(lines, path):
        if color == UNLABELED_COLOR or name.lower() in _UNLABELED_NAMES:
            ignored.append(color)
        else:
            names.append(name)
            colors.append(color)
    try:
        classes = Classes(tuple(names), tuple(colors))
        return ClassesFile(classes, MaskFormat("color", colors=tuple(colors), ignore_colors=tuple(ignored)))
    except ValueError as error:
        raise DataError(f"{path} has no valid labels. {error}") from error


def _entries(lines: list[str], path: Path) -> Iterator[tuple[str, Color]]:
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        parts = rest.split(":")[0].split(",")
        color = [int(part) for part in parts if part.strip().isdecimal()]
        if not name or len(color) != len(parts) or not is_color(color):
            raise DataError(
                f"{path} contains the line {line!r}, but 'label:red,green,blue:parts:actions' with values from 0 to "
                "255 is expected."
            )
        yield name, (color[0], color[1], color[2])
