"""Pairs of an image file and a mask file: the one place that decides which files belong together."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from contextcrf.data.dataset import Pair, SegmentationDataset
from contextcrf.utils.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
# The images of a data set may also be arrays.
DATA_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
# Formats of images that folders may contain, but that are not read.
OTHER_SUFFIXES = (
    ".gif",
    ".ppm",
    ".pgm",
    ".tga",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".jxl",
    ".dng",
    ".cr2",
    ".nef",
    ".arw",
)

_LISTED = 10
# The number of masks whose names are compared with those of all images to find their common suffix.
_TRIED = 20


def list_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the sorted files of a folder that have one of the suffixes, without hidden files and subfolders.

    Args:
        folder: the folder.
        suffixes: the suffixes in lower case. By default, they are the suffixes of images.
    """
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def unused_images(pairs: Sequence[Pair]) -> list[str]:
    """Return a sentence on images in subfolders beside the used images, and one on images in unsupported formats.

    Args:
        pairs: the used images and masks, whose folders are not reported. The images are in one folder.

    Example:
        >>> Path("photos").mkdir()
        >>> Path("photos/a.heic").touch()
        >>> unused_images([(Path("photos/b.jpg"), Path("masks/b.png"))])
        ['1 file in photos is not used, because its format is not supported, such as a.heic. Convert it to PNG.']
    """
    folder = pairs[0][0].parent
    used = {file.parent for pair in pairs for file in pair}
    sentences = []
    if others := list_images(folder, OTHER_SUFFIXES):
        files, its, it = ("files", "their", "them") if len(others) > 1 else ("file", "its", "it")
        sentences.append(
            f"{len(others)} {files} in {folder} {'are' if len(others) > 1 else 'is'} not used, because {its} format is "
            f"not supported, such as {others[0].name}. Convert {it} to PNG."
        )
    inner = [
        path
        for path in sorted(folder.rglob("*"))
        if path.parent not in used
        and path.suffix.lower() in DATA_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if inner:
        images, it = ("images", "them") if len(inner) > 1 else ("image", "it")
        sentences.append(
            f"{len(inner)} {images} in subfolders of {folder} {'are' if len(inner) > 1 else 'is'} not used, such as "
            f"{inner[0].relative_to(folder)}. Move {it} into {folder}."
        )
    return sentences


def files_by_stem(folder: Path, what: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return the path of each stem in a folder, sorted by name.

    Args:
        folder: the folder.
        what: the files in words, such as "images".
        suffixes: the suffixes in lower case. Files may have them in upper case.

    Raises:
        DataError: If the folder does not exist or has no such files, or if two files have the same stem.
    """
    if not folder.is_dir():
        raise DataError(f"The folder {folder} does not exist, but it is expected to contain the {what}.")
    paths = list_images(folder, suffixes)
    if not paths:
        inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
        hint = (
            f" Move the files out of its folders {', '.join(inner[:_LISTED])}, and list the images of each split in "
            "splits/."
            if inner
            else ""
        )
        raise DataError(f"{folder} contains no {what}. Expected files with the suffixes {', '.join(suffixes)}.{hint}")
    # Names with accents may be composed, or decomposed as on macOS.
    stems = {path: unicodedata.normalize("NFC", path.stem) for path in paths}
    if repeated := [stem for stem, times in Counter(stems.values()).items() if times > 1]:
        names = ", ".join(path.name for path in paths if stems[path] == repeated[0])
        raise DataError(
            f"{folder} contains more than one file with the same stem: {', '.join(repeated[:_LISTED])} ({names}). Keep "
            "one file for each stem."
        )
    for path in paths:
        _check_name(path)
    return {stem: path for path, stem in stems.items()}


def _check_name(path: Path) -> None:
    if path.stem != path.stem.strip() or "\n" in path.stem or "\r" in path.stem:
        raise DataError(
            f"The name {path.name!r} in {path.parent} begins or ends with a space, or has a line break, so that a list "
            "cannot name the file. Rename it."
        )
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The name {path.name!r} in {path.parent} is not valid text in UTF-8, as after unpacking an archive of an "
            "older Windows program. Rename the file."
        ) from error


def pair_files(images: Path, masks: Path, mask_suffix: str | None = None, skip_unlabeled: bool = False) -> list[Pair]:
    """Pair the images and masks of two folders by their stems.

    Args:
        images: the folder of the images.
        masks: the folder of the masks.
        mask_suffix: the text after the image's stem in the stems of the masks, such as "_mask". If None, it is
            determined from the files.
        skip_unlabeled: leave out images without a mask. Otherwise, they are an error.

    Returns:
        The paths of the image and of the mask for each stem, sorted by stem.

    Raises:
        DataError: If a folder does not exist or is empty, if a file has no partner, or if two files of a folder have
            the same stem.
    """
    image_of = files_by_stem(images, "images", DATA_SUFFIXES)
    mask_of = files_by_stem(masks, "masks", MASK_SUFFIXES)
    suffix = common_suffix(image_of, mask_of) if mask_suffix is None else mask_suffix
    own = {stem.removesuffix(suffix): path for stem, path in mask_of.items() if stem.endswith(suffix)}
    unlabeled = {*image_of} - {*own}
    single = sorted(({*own} - {*image_of}) | {stem for stem in mask_of if not stem.endswith(suffix)})
    if not skip_unlabeled:
        single = sorted({*single} | unlabeled)
    if single:
        sides = [f"{stem} ({'no mask' if stem in image_of else 'no image'})" for stem in single[:_LISTED]]
        more = f" and {len(single) - _LISTED} more" if len(single) > _LISTED else ""
        same = "stem" if not suffix else f"stem and {suffix!r} after it"
        skip = " `contextcrf init --skip-unlabeled` leaves out images without a mask." if unlabeled == {*single} else ""
        raise DataError(
            f"Some files in {images} and {masks} have no partner: {', '.join(sides)}{more}. Every image needs a mask "
            f"with the same {same}. Rename the files, or move those without a partner to another folder.{skip}"
        )
    return [(image_of[stem], own[stem]) for stem in sorted({*image_of} & {*own})]


def common_suffix(images: Iterable[str], masks: Iterable[str]) -> str:
    """Return the text that most stems of masks have after the stem of their image; "" if there is no such text.

    Example:
        >>> common_suffix(["a", "b"], ["a_mask", "b_mask"])
        '_mask'
    """
    stems, masks = {*images}, list(masks)
    # The stems of images may be prefixes of each other, such as x and x_1. A mask may have no image, so some are tried.
    tried = sorted(masks, key=len)[:_TRIED]
    candidates = {mask[len(stem) :] for stem in stems for mask in tried if mask.startswith(stem)}

    def paired(suffix: str) -> int:
        return sum(mask.endswith(suffix) and mask.removesuffix(suffix) in stems for mask in masks)

    best = max(sorted(candidates), key=paired, default="")
    return best if paired(best) * 2 > len(masks) else ""


def masks_digest(data: SegmentationDataset) -> str:
    """Return a digest of the content and the format of all masks, which differs after a correction of them.

    Missing masks, which the validation reports, do not count.
    """
    digest = hashlib.sha256(repr(data.mask_format).encode())
    for _, mask in data.pairs:
        digest.update(mask.read_bytes() if mask.is_file() else b"")
    return digest.hexdigest()[:16]


def pair_stems(
    names: Sequence[str], images: Mapping[str, Path], masks: Mapping[str, Path], folders: tuple[Path, Path], suffix: str
) -> list[Pair]:
    """Pair the images that a split lists with their masks.

    Args:
        names: the lines of the split: stems, file names, or paths with forward or backward slashes.
        images: the path of each stem in the folder of the images (`files_by_stem`).
        masks: the path of each stem in the folder of the masks.
        folders: both folders. A file that does not exist gets a path in its folder, so that the validation before the
            training lists all missing files.
        suffix: the text after the image's stem in the stems of the masks.

    Raises:
        DataError: If two lines name the same image, which would then count twice.
    """
    stems = [split_stem(name, images) for name in names]
    check_listed_once(stems, names, folders[0])
    pairs = []
    for stem in stems:
        image = images.get(stem, folders[0] / f"{stem}.png")
        pairs.append((image, masks.get(f"{stem}{suffix}", folders[1] / f"{stem}{suffix}.png")))
    return pairs


def check_listed_once(images: Sequence[str], lines: Sequence[str], folder: Path) -> None:
    """Check that a split lists no image twice, which would then count twice.

    Args:
        images: the image that each line names.
        lines: the lines of the split.
        folder: the folder of the images, for the message.

    Raises:
        DataError: If two lines name the same image.
    """
    first: dict[str, str] = {}
    for image, line in zip(images, lines, strict=True):
        if image in first:
            same = f"the line {line!r} twice" if first[image] == line else f"the lines {first[image]!r} and {line!r}"
            raise DataError(
                f"A split of the images in {folder} has {same}, so that the image {image!r} would count twice. Remove "
                "one of the lines. If they are images of two folders, give the files different names. To give rare "
                "classes more weight in the training, use training.class_balance."
            )
        first[image] = line


def split_stem(name: str, images: Mapping[str, Path]) -> str:
    """Return the stem of an image that a line of a split names."""
    name = unicodedata.normalize("NFC", name)
    last = PurePosixPath(name.replace("\\", "/")).name
    if name in images or last in images:
        return name if name in images else last
    path = PurePosixPath(last)
    return path.stem if path.suffix.lower() in DATA_SUFFIXES else last
