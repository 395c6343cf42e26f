"""The report of an import: what was imported, what was dropped, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_SHOWN = 3


@dataclass(frozen=True)
class ImportReport:
    """The report of `import_dataset`.

    Args:
        format: the format of the source.
        source: the path or the name of the source.
        images: the number of imported images.
        shapes: the number of drawn shapes; None for formats that store complete masks and no shapes.
        pixels: the number of pixels of each class, in the order of the class indices.
        ignored: the number of pixels with the ignore_index.
        splits: the number of images of each split.
        dropped: the dropped images and shapes by reason. A shape is listed by the name of its image.
        notes: additional remarks, each with the names of the images that it concerns.

    Example:
        >>> report = ImportReport("coco", "ann.json", 1, 2, {"cat": 5, "dog": 3}, 0, {"train": 1}, {}, {})
        >>> print(report.text())
        imported from coco: ann.json
          1 image
          2 shapes
          train: 1 image
           62.50 % of the labeled pixels  cat
           37.50 % of the labeled pixels  dog
        nothing was dropped
    """

    format: str
    source: str
    images: int
    shapes: int | None
    pixels: Mapping[str, int]
    ignored: int
    splits: Mapping[str, int]
    dropped: Mapping[str, Sequence[str]]
    notes: Mapping[str, Sequence[str]]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary, which can be stored as JSON. It lists every dropped item."""
        return asdict(self)

    def text(self) -> str:
        """Return the report as lines of text. At most three items are listed for each reason."""
        lines = [f"imported from {self.format}: {self.source}", f"  {_count(self.images, 'image')}"]
        if self.shapes is not None:
            lines.append(f"  {_count(self.shapes, 'shape')}")
        lines += [f"  {split}: {_count(number, 'image')}" for split, number in self.splits.items()]
        labeled = max(1, sum(self.pixels.values()))
        lines += [f"  {100 * n / labeled:6.2f} % of the labeled pixels  {name}" for name, n in self.pixels.items() if n]
        if absent := [name for name, number in self.pixels.items() if not number]:
            lines.append(f"  classes without pixels: {', '.join(absent)}")
        if self.ignored:
            share = 100 * self.ignored / (self.ignored + sum(self.pixels.values()))
            lines.append(f"  {share:6.2f} % of all pixels have no label (ignore_index)")
        lines += _listed("note: ", self.notes)
        lines += _listed("dropped: ", self.dropped) if self.dropped else ["nothing was dropped"]
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(start: str, items: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for reason, found in items.items():
        names = list(dict.fromkeys(found))
        more = ", ..." if len(names) > _SHOWN else ""
        lines.append(f"{start}{reason}: {len(found)} ({', '.join(names[:_SHOWN])}{more})")
    return lines
