"""The common form of all formats: for each image its file, its size, and shapes or a map of labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from contextcrf.data.classes import Color
from contextcrf.data.importers.shapes import Shape

# The labels of pixels that no shape covers, and of pixels that the source excludes. Other labels are positions in
# `Source.names`.
UNLABELED, IGNORED = -1, -2

Labels = npt.NDArray[np.int32]


@dataclass
class Findings:
    """What an import drops, and what else the user must know.

    Args:
        dropped: the dropped items by reason.
        notes: the items of each remark.
    """

    dropped: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, item: str) -> None:
        """Record that an item is not imported."""
        self.dropped.setdefault(reason, []).append(item)

    def concerns(self, name: str) -> bool:
        """Return whether an item of an image has been dropped."""
        names = {item.partition(": ")[0] for found in self.dropped.values() for item in found}
        # The items may have the end of the path only.
        return any(name == item or name.endswith(f"/{item}") for item in names)

    def note(self, remark: str, item: str) -> None:
        """Record a remark on an item that is imported."""
        self.notes.setdefault(remark, []).append(item)


@dataclass(frozen=True)
class Record:
    """One image of the source.

    Args:
        image: the image file, or a function that returns its content.
        name: the path of the image as the source gives it.
        size: the width and the height to which the shapes refer; None if the source does not give them.
        content: the shapes, or a function that returns the labels [H, W] of all pixels. It adds its remarks to the
            findings.
        splits: the names of the splits that contain the image.
    """

    image: Path | Callable[[], bytes]
    name: str
    size: tuple[int, int] | None
    content: Sequence[Shape] | Callable[[Findings], Labels]
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set in the common form.

    Args:
        names: the names of the classes, in the order of their indices.
        records: the images.
        colors: the colors of the classes that have one in the source.
    """

    names: tuple[str, ...]
    records: Iterable[Record]
    colors: Mapping[str, Color] = field(default_factory=dict)


def without_shared_files(records: Iterable[Record], findings: Findings) -> list[Record]:
    """Return the records without those whose image file belongs to another record.

    A file belongs to the first record that gives its path. If no record gives its path, and records with different
    names fit it, nothing shows which of them it belongs to, so none is returned.
    """
    records = list(records)
    sharing: dict[Path, list[Record]] = {}
    for record in records:
        if isinstance(record.image, Path):
            # Links to one file are different images.
            sharing.setdefault(record.image.absolute(), []).append(record)
    left_out: set[int] = set()
    for file, those in sharing.items():
        if len(those) == 1:
            continue
        exact = [record for record in those if _ends_with(file, record.name)]
        kept = exact[0] if exact else those[0] if len({record.name for record in those}) == 1 else None
        for record in those:
            if record is kept:
                continue
            left_out.add(id(record))
            if kept is None:
                reason = "images of which several fit the same file, so that it is unclear which one the file is"
            elif record.name == kept.name or record in exact:
                reason = "images that are listed twice; their first entry is kept"
            else:
                reason = "missing images, whose name fits only the file of another image"
            findings.drop(reason, f"{record.name}: {file.name}")
    return [record for record in records if id(record) not in left_out]


def _ends_with(file: Path, name: str) -> bool:
    """Return whether a name in annotations is the end of the path of a file."""
    parts = tuple(part.casefold() for part in PurePosixPath(name.replace("\\", "/")).parts)
    return tuple(part.casefold() for part in file.parts[-len(parts) :]) == parts


def shape_names(records: Iterable[Record]) -> tuple[str, ...]:
    """Return the sorted names of the classes of all shapes, for formats that do not list the classes."""
    shapes = (shape for record in records if not callable(record.content) for shape in record.content)
    return tuple(sorted({shape.name for shape in shapes if shape.name is not None}))
