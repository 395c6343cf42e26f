"""The formats and the options of an import."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

FormatName = Literal[
    "coco",
    "labelme",
    "cvat",
    "voc",
    "label-studio",
    "supervisely",
    "roboflow",
    "cityscapes",
    "ade20k",
    "camvid32",
    "class-masks",
    "huggingface",
]
Unlabeled = Literal["background", "ignore"]
Order = Literal["listed", "area"]
Crowd = Literal["ignore", "class"]
CityscapesIds = Literal["labelIds", "trainIds"]


@dataclass(frozen=True)
class Options:
    """The options of an import. None is the default of the format. `import_dataset` describes them."""

    images: Path | None = None
    classes: tuple[str, ...] | None = None
    unlabeled: Unlabeled | None = None
    order: Order | None = None
    crowd: Crowd | None = None
    label_map: Path | None = None
    ids: CityscapesIds | None = None
    image_column: str | None = None
    label_column: str | None = None
    ignore_index: int | None = None

    def given(self) -> list[str]:
        """Return the names of the options that are not None."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]
