"""The formats by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from contextcrf.data.importers import (
    ade20k,
    camvid32,
    cityscapes,
    class_masks,
    coco,
    cvat,
    huggingface,
    label_studio,
    labelme,
    roboflow,
    supervisely,
    voc,
)
from contextcrf.data.importers.options import FormatName, Options, Unlabeled
from contextcrf.data.importers.records import Findings, Source

# Options of all formats whose annotations are shapes.
_SHAPES = frozenset({"classes", "unlabeled", "order"})


@dataclass(frozen=True)
class Format:
    """A format of data sets.

    Args:
        read: the function that reads a source.
        options: the names of the options that the format has.
        unlabeled: the default for pixels without a class.
        local: whether the source must be a file or a folder of this machine.
    """

    read: Callable[[Path, Options, Findings], Source]
    options: frozenset[str]
    unlabeled: Unlabeled = "background"
    local: bool = True


FORMATS: dict[FormatName, Format] = {
    "coco": Format(coco.read, _SHAPES | {"images", "crowd"}),
    "labelme": Format(labelme.read, _SHAPES | {"images"}),
    "cvat": Format(cvat.read, _SHAPES | {"images"}),
    "label-studio": Format(label_studio.read, _SHAPES | {"images"}),
    "supervisely": Format(supervisely.read, _SHAPES | {"images"}),
    "class-masks": Format(class_masks.read, _SHAPES | {"images"}),
    "voc": Format(voc.read, frozenset({"unlabeled", "images", "label_map", "ignore_index"}), "ignore"),
    "roboflow": Format(roboflow.read, frozenset({"unlabeled"})),
    "cityscapes": Format(cityscapes.read, frozenset({"unlabeled", "images", "ids"}), "ignore"),
    "ade20k": Format(ade20k.read, frozenset({"unlabeled", "images"}), "ignore"),
    "camvid32": Format(camvid32.read, frozenset({"unlabeled", "images", "label_map"}), "ignore"),
    "huggingface": Format(
        huggingface.read, frozenset({"classes", "image_column", "label_column", "ignore_index"}), "ignore", local=False
    ),
}
