"""`contextcrf init`: a data set and the first configs for a folder of images and masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from contextcrf.data.classes import IGNORE_INDEX, Classes
from contextcrf.data.statistics import MaskStatistics, guess_classes, mask_statistics, pair_files
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import write_text
from contextcrf.utils.runtime import default_batch_size

# More steps do not improve a network of this size. With few images, these steps are many epochs.
STEPS, HEADS_STEPS, COPIES = 2400, 1000, 2
# The unary loss gets class weights if the rarest class has a smaller share of the pixels.
RARE = 0.02


@dataclass(frozen=True)
class Start:
    """The findings of `start`, and the files that it has written.

    Args:
        classes: the classes of the data set.
        ignore_index: the value of unlabeled pixels in the mask files.
        statistics: statistics of all masks.
        images: number of images by split.
        written: the new files.
        recipe: text of the config for `contextcrf fit`.

    Example:
        >>> from collections import Counter
        >>> found = MaskStatistics([(2, 4)], Counter({0: 5, 1: 3}))
        >>> classes = guess_classes(found)
        >>> Start(classes, 255, found, {"train": 4, "val": 1}, [Path("recipe.yaml")], "model: ...").images["train"]
        4
    """

    classes: Classes
    ignore_index: int
    statistics: MaskStatistics
    images: Mapping[str, int]
    written: list[Path]
    recipe: str


def start(data: Path, recipe: Path, ignore_index: int | None = None, val_every: int = 5) -> Start:
    """Turn a folder with images and masks into a data set, and write configs for its training.

    Existing files (`classes.yaml` and `splits`) are kept.

    Args:
        data: folder with the subfolders `images` and `masks`.
        recipe: config for `contextcrf fit` to write. The config for `contextcrf fit-heads` is written beside it, to the
            path that `heads_path` returns.
        ignore_index: the value of unlabeled pixels in the mask files. None uses the value in `classes.yaml`, or 255 if
            this file does not exist.
        val_every: one of this many images is assigned to the split "val", the others to the split "train".

    Returns:
        The findings and the files that were written.

    Raises:
        DataError: `pair_files`, `mask_statistics` or `guess_classes` finds a problem, there are fewer than 2 images, or
            the masks have labels that `classes.yaml` does not define.
        FileExistsError: a config exists.
        ValueError: `val_every` is below 2, or `classes.yaml` has another `ignore_index`.

    Example:
        >>> from contextcrf.data.synthetic import write_scenes
        >>> scenes = write_scenes("scenes", train=4, val=1, height=64, width=96)
        >>> made = start(scenes, Path("recipe.yaml"))
        >>> made.images["train"], [path.name for path in made.written]
        (4, ['recipe.yaml', 'recipe-heads.yaml'])
    """
    if val_every < 2:
        raise ValueError(f"--val-every is {val_every}, but at least 2 is expected, so that images remain for training.")
    for path in (recipe, heads_path(recipe)):
        if path.exists():
            raise FileExistsError(f"{path} exists. Move the file, or choose another file with --out.")
    pairs = pair_files(data / "images", data / "masks")
    if len(pairs) < 2:
        raise DataError(
            f"{data} has {len(pairs)} image, but at least 2 are needed, for training and for evaluation. Add "
            "images and masks."
        )
    found = mask_statistics([mask for _, mask in pairs])
    written = []
    if (names := data / "classes.yaml").exists():
        classes, stored = Classes.from_yaml(names)
        if ignore_index not in (None, stored):
            raise ValueError(
                f"--ignore-index is {ignore_index}, but {names} has the ignore_index {stored}. Remove the option, or "
                "change the file."
            )
        ignore_index = stored
        if unknown := [label for label in found.shares(ignore_index) if not 0 <= label < len(classes)]:
            raise DataError(
                f"The masks contain the labels {unknown[:10]}, but {names} defines {len(classes)} classes (0 to "
                f"{len(classes) - 1}) and the ignore_index {ignore_index}. Add the missing classes to the file."
            )
    else:
        ignore_index = IGNORE_INDEX if ignore_index is None else ignore_index
        classes = guess_classes(found, ignore_index)
        classes.to_yaml(names, ignore_index)
        written.append(names)
    splits = data / "splits"
    if not splits.exists():
        stems = [image.stem for image, _ in pairs]
        val = stems[val_every // 2 :: val_every] or stems[-1:]
        for split, chosen in (("train", [stem for stem in stems if stem not in set(val)]), ("val", val)):
            write_text(splits / f"{split}.txt", "".join(f"{stem}\n" for stem in chosen))
            written.append(splits / f"{split}.txt")
    images = {
        path.stem: sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        for path in sorted(splits.glob("*.txt"))
    }
    if not images.get("train"):
        raise DataError(
            f"{splits / 'train.txt'} lists no images. Write the names of the training images to it, without suffix and "
            "one per line."
        )
    text = recipe_for(classes, ignore_index, found, images["train"])
    write_text(recipe, text)
    write_text(heads_path(recipe), heads_recipe_for(found, images["train"]))
    return Start(classes, ignore_index, found, images, [*written, recipe, heads_path(recipe)], text)


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
# The messages of all relations together have the same weight as the unary. contextcrf tune chooses other weights.
# Run it on images that the network was not trained on, since it is overconfident on its training images.
"""
