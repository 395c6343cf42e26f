"""Cityscapes: images in leftImg8bit/ and masks in gtFine/, with the 19 classes of its benchmark."""

from functools import partial
from pathlib import Path

from contextcrf.data.classes import Color
from contextcrf.data.importers.files import split_name
from contextcrf.data.importers.label_maps import from_values, read_values
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import IGNORED, UNLABELED, Findings, Labels, Record, Source
from contextcrf.utils.errors import DataError

# The class, its id in labelIds and its color, in the order of the trainIds.
CLASSES: tuple[tuple[str, int, Color], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_ENDS = {"labelIds": "_gtFine_labelIds.png", "trainIds": "_gtFine_labelTrainIds.png"}
_IMAGE_END = "_leftImg8bit.png"


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png."""
    ids = options.ids or "labelIds"
    root = options.images or source / "leftImg8bit"
    for folder in (root, source / "gtFine"):
        if not folder.is_dir():
            raise DataError(f"The folder {folder} does not exist, but {source} must contain leftImg8bit and gtFine.")
    end = _ENDS[ids]
    masks = {
        path.relative_to(source / "gtFine").as_posix().removesuffix(end): path
        for path in sorted((source / "gtFine").rglob(f"*{end}"))
    }
    if not masks:
        other = next(name for name in _ENDS if name != ids)
        raise DataError(
            f"{source / 'gtFine'} contains no files *{end}. If it contains files *{_ENDS[other]}, give --ids {other}."
        )
    table = _table(ids)
    records = []
    for path in sorted(root.rglob(f"*{_IMAGE_END}")):
        place = path.relative_to(root).as_posix().removesuffix(_IMAGE_END)
        if place not in masks:
            findings.drop("images without a mask", path.name)
            continue
        content = partial(_labels, masks.pop(place), table)
        records.append(Record(path, path.name, None, content, (split_name(Path(place).parts[0]),)))
    for path in masks.values():
        findings.drop("masks without an image", path.name)
    return Source(tuple(name for name, _, _ in CLASSES), records, {name: color for name, _, color in CLASSES})


def _table(ids: str) -> dict[int, int]:
    """Return the label of each value. Ids outside the 19 classes are excluded, and id 0 is unlabeled."""
    if ids == "trainIds":
        return {**{index: index for index in range(len(CLASSES))}, 255: IGNORED}
    table = dict.fromkeys(range(34), IGNORED) | {0: UNLABELED}
    return table | {value: index for index, (_, value, _) in enumerate(CLASSES)}


def _labels(path: Path, table: dict[int, int], findings: Findings) -> Labels:
    return from_values(read_values(path), table, path.name, findings)
