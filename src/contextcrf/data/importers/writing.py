"""The images of a source: their names, their sizes, and their copies in the new data set."""

import io
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import ExifTags, Image

from contextcrf.data.decoding import SIDEWAYS, TURNED
from contextcrf.data.images import DECODING_ERRORS, describe_error
from contextcrf.data.importers.records import Record
from contextcrf.data.layouts import IMAGE_SUFFIXES
from contextcrf.utils.errors import DataError

# The suffixes of embedded images by Pillow's name of their format.
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}


@dataclass(frozen=True)
class Picture:
    """An image of the source.

    Args:
        content: the file, or the bytes of an embedded image.
        suffix: the suffix of the copy.
        stored: the width and the height as they are stored.
        orientation: the EXIF orientation; 1 is upright.
    """

    content: Path | bytes
    suffix: str
    stored: tuple[int, int]
    orientation: int

    @property
    def turned(self) -> bool:
        """Whether the EXIF data rotate or reflect the image."""
        return self.orientation in TURNED

    @property
    def upright(self) -> tuple[int, int]:
        """The width and the height of the upright image."""
        return self.stored[::-1] if self.orientation in SIDEWAYS else self.stored

    def copy(self, target: Path, link: bool) -> None:
        """Write an unchanged copy, or make a hard link.

        Raises:
            DataError: If the system does not allow a link.
        """
        if isinstance(self.content, bytes):
            target.write_bytes(self.content)
        elif link:
            try:
                target.hardlink_to(self.content.resolve())
            except OSError as error:
                raise DataError(
                    f"{self.content} cannot be hard-linked to {target.parent}: {error.strerror}. Leave out --link."
                ) from error
        else:
            shutil.copyfile(self.content, target)


def open_picture(record: Record) -> Picture:
    """Read the format, the size and the EXIF orientation of an image, without its pixels.

    Raises:
        DataError: If the file cannot be read, or if data sets cannot contain files of its format.
    """
    content = record.image() if callable(record.image) else record.image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
                orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
                size, kind = file.size, str(file.format)
    except DECODING_ERRORS as error:
        raise DataError(f"{record.name}: {describe_error(error)}") from error
    suffix = _SUFFIXES.get(kind, "") if isinstance(content, bytes) else content.suffix
    if suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{record.name}: the format {kind} is not supported; convert the image to PNG")
    return Picture(content, suffix, size, orientation)


class Stems:
    """Gives each image a name without suffix that no other image has, also where upper and lower case are the same."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def choose(self, name: str) -> tuple[str, bool]:
        """Return a free name, and whether it differs from that of the source.

        The folders of the image are added to its name if the name is used. If this is not enough, a number is added.
        """
        path = PurePosixPath(name.replace("\\", "/"))
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        parts = [part for part in (*path.parts[:-1], stem) if part not in ("/", "..", ".")]
        candidates = ["_".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        candidates = [_clean(candidate) for candidate in candidates] or ["image"]
        chosen = next((candidate for candidate in candidates if candidate.casefold() not in self._used), None)
        number = 2
        while chosen is None:
            candidate = f"{candidates[-1]}_{number}"
            chosen = candidate if candidate.casefold() not in self._used else None
            number += 1
        self._used.add(chosen.casefold())
        return chosen, chosen != stem


def _clean(name: str) -> str:
    """Return a name that a line of a split can hold and that is not hidden."""
    return re.sub(r"[\x00-\x1f<>:\"/\\|?*]", "_", name).strip().lstrip(".") or "image"
