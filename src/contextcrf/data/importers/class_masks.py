"""One mask file per class or per instance: masks/STEM/CLASS*.png, or masks/CLASS/STEM.png."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contextcrf.data.importers.files import by_stem
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import Findings, Record, Source
from contextcrf.data.importers.shapes import Bounds, Mask, Shape
from contextcrf.data.layouts import list_images
from contextcrf.data.stored_mask import open_mask
from contextcrf.utils.errors import DataError

# The number of an instance at the end of a name, such as in "cell_003" and "cell (3)".
_NUMBER = re.compile(r"[\s_\-.(]*\d+\)?$")
# Lossy compression changes values, so that black pixels are not exactly 0.
_LOSSY_THRESHOLD = 127


@dataclass(frozen=True)
class MaskFile:
    """The pixels of a mask file that are not 0 (above 127 in files with lossy compression). Transparent pixels are 0.

    Args:
        path: the file.
        size: the width and the height of the file.
    """

    path: Path
    size: tuple[int, int]

    def bounds(self) -> Bounds:
        """Return the ends of the mask."""
        return 0, 0, *self.size

    def mask(self, width: int, height: int) -> Mask:
        """Return the pixels."""
        if self.size != (width, height):
            raise DataError(
                f"{self.path.name} has {self.size[0]} x {self.size[1]} pixels, but {width} x {height} are expected"
            )
        opened = open_mask(self.path)
        image, threshold = opened.image, _LOSSY_THRESHOLD if opened.lossy else 0
        if image.mode == "P" or image.mode.endswith(("A", "a")):
            values = np.array(image.convert("RGBA"))
            if not (values[..., :3] > threshold).any():
                return values[..., 3] > threshold  # only the alpha channel has the mask
            return np.any(values[..., :3] > threshold, axis=2) & (values[..., 3] > 0)
        values = np.array(image)
        members: Mask = values > threshold
        return np.any(members, axis=2) if members.ndim == 3 else members


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read images/ and masks/. Either the folders in masks/ or the files in them have the names of the images."""
    root, masks = options.images or source / "images", source / "masks"
    if not masks.is_dir():
        raise DataError(f"The folder {masks} does not exist, but {source} must contain images/ and masks/.")
    images = by_stem(root, findings)
    if not images:
        raise DataError(f"{root} contains no images. Give their folder with --images FOLDER.")
    folders = [path for path in sorted(masks.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    by_image = [folder for folder in folders if folder.name in images]
    by_class = [folder for folder in folders if {path.stem for path in list_images(folder)} & images.keys()]
    if bool(by_image) == bool(by_class):
        both = "both the folders and the files in them" if by_image else "neither the folders nor the files in them"
        raise DataError(
            f"In {masks}, {both} have the names of images, but one of the layouts masks/IMAGE/CLASS.png and "
            "masks/CLASS/IMAGE.png is expected. Rename the folders or the files."
        )
    files = _by_image(folders, images, options, findings) if by_image else _by_class(folders, images, findings)
    _check_names(files, masks)
    records = []
    for stem, image in sorted(images.items()):
        if stem not in files:
            findings.drop("images without a mask", image.name)
        elif (record := _record(image, files[stem], findings)) is not None:
            records.append(record)
    return Source(tuple(sorted({name for found in files.values() for name, _ in found})), records)


def _check_names(files: dict[str, list[tuple[str, Path]]], masks: Path) -> None:
    """Raise a DataError if the names of the files are those of instances, which are different in each image."""
    images = Counter(name for found in files.values() for name in {name for name, _ in found})
    if len(files) > 1 and len(images) > len(files) and max(images.values()) == 1:
        raise DataError(
            f"The {len(images)} names of the files in {masks} are different in each image, such as "
            f"{next(iter(images))}, so they are rather names of instances than of classes. Give the class of all of "
            "them, as in --classes '[cell]'."
        )


def _by_image(
    folders: Iterable[Path], images: dict[str, Path], options: Options, findings: Findings
) -> dict[str, list[tuple[str, Path]]]:
    """Return the classes and files of each image from masks/STEM/CLASS*.png."""
    only = options.classes[0] if options.classes is not None and len(options.classes) == 1 else None
    files: dict[str, list[tuple[str, Path]]] = {}
    for folder in folders:
        if folder.name not in images:
            findings.drop("masks without an image", folder.name)
            continue
        files[folder.name] = []
        for path in list_images(folder):
            name = only or _NUMBER.sub("", path.stem).strip()
            if name:
                files[folder.name].append((name, path))
            else:
                findings.drop(
                    "mask files whose name has no class (give --classes '[CLASS]')", f"{folder.name}/{path.name}"
                )
    return files


def _by_class(
    folders: Iterable[Path], images: dict[str, Path], findings: Findings
) -> dict[str, list[tuple[str, Path]]]:
    """Return the classes and files of each image from masks/CLASS/STEM.png."""
    files: dict[str, list[tuple[str, Path]]] = {}
    for folder in folders:
        for path in list_images(folder):
            if path.stem in images:
                files.setdefault(path.stem, []).append((folder.name, path))
            else:
                findings.drop("masks without an image", f"{folder.name}/{path.name}")
    return files


def _record(image: Path, files: list[tuple[str, Path]], findings: Findings) -> Record | None:
    shapes, sizes = [], set()
    for name, path in files:
        try:
            size = open_mask(path).image.size
        except DataError as error:
            findings.drop("mask files that cannot be read", str(error))
            continue
        sizes.add(size)
        shapes.append(Shape(name, MaskFile(path, size)))
    if len(sizes) > 1:
        findings.drop("images whose masks have different sizes", image.name)
        return None
    return Record(image, image.name, next(iter(sizes), None), shapes)
