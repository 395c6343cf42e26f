"""The first recipe for a folder of images and masks: `contextcrf init`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from contextcrf.data.classes import IGNORE_INDEX, Classes
from contextcrf.data.statistics import MaskStatistics, guess_classes, mask_statistics, pair_files
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import write_text
from contextcrf.utils.runtime import default_batch_size

# Steps after which a network of this size no longer improves; with few images these are many epochs.
STEPS, HEADS_STEPS, COPIES = 2400, 1000, 2
RARE = 0.02


@dataclass(frozen=True)
class Start:
    """The findings of `init`, and the files that it wrote.

    Attributes:
        classes: of the data.
        ignore_index: the value of the masks that means "no label".
        statistics: of all masks.
        images: by split.
        written: files that are new.
        recipe: the text of the recipe.
    """

    classes: Classes
    ignore_index: int
    statistics: MaskStatistics
    images: Mapping[str, int]
    written: list[Path]
    recipe: str


def start(data: Path, recipe: Path, ignore_index: int = IGNORE_INDEX, val_every: int = 5) -> Start:
    """Make a folder with `images` and `masks` a data set, and write a recipe for it.

    Existing files (`classes.yaml`, `splits`) are kept.

    Args:
        data: the folder.
        recipe: the file to write; the recipe of the second stage goes into another beside it, `heads_path`.
        ignore_index: the value of the masks that means "no label", where there is no classes.yaml.
        val_every: every n-th image goes to the split "val", the others to "train".

    Raises:
        DataError: as `pair_files`, `mask_statistics` and `guess_classes`.
        FileExistsError: the recipe exists.
        ValueError: no image would be left to train on.
    """
    if val_every < 2:
        raise ValueError(f"val_every {val_every}: expected 2 or more, since every n-th image is not trained on")
    for path in (recipe, heads_path(recipe)):
        if path.exists():
            raise FileExistsError(f"{path} exists already; move it away or name another --out")
    pairs = pair_files(data / "images", data / "masks")
    if len(pairs) < 2:
        raise DataError(f"{data}: {len(pairs)} image; expected two or more, to train on and to measure on")
    found = mask_statistics([mask for _, mask in pairs])
    written = []
    if (names := data / "classes.yaml").exists():
        classes, ignore_index = Classes.from_yaml(names)
        if unknown := [label for label in found.shares(ignore_index) if not 0 <= label < len(classes)]:
            raise DataError(
                f"{names}: {len(classes)} classes, ignore_index {ignore_index}; the masks have other labels too: "
                f"{unknown[:10]}"
            )
    else:
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
        raise DataError(f"{splits / 'train.txt'}: expected the names of the images to train on")
    text = recipe_for(classes, ignore_index, found, images["train"])
    write_text(recipe, text)
    write_text(heads_path(recipe), heads_recipe_for(found, images["train"]))
    return Start(classes, ignore_index, found, images, [*written, recipe, heads_path(recipe)], text)


def heads_path(recipe: Path) -> Path:
    """The file of the second stage's recipe: recipe-heads.yaml beside recipe.yaml."""
    return recipe.with_name(f"{recipe.stem}-heads{recipe.suffix}")


def recipe_for(classes: Classes, ignore_index: int, found: MaskStatistics, images: int) -> str:
    """The commented YAML of a recipe: for the size and the balance of the data, and for this machine."""
    fast = torch.accelerator.is_available()
    height, width = found.size
    batch = min(default_batch_size(), images)
    epochs = max(8, min(200, round(STEPS * batch / images)))
    crop = [min(512 if fast else 320, max(64, side // 32 * 32)) for side in (height, width)]
    shares = found.shares(ignore_index)
    rarest = min(shares, key=lambda label: shares[label])
    balance = 0.4 if shares[rarest] < RARE else 0.0
    frozen = "" if fast else "  frozen_stages: 2 # on a CPU: the first stages cost most and change least\n"
    filters = "" if fast else "  frozen_filters: true\n"
    return f"""# A first recipe: {len(classes)} classes, {images} training images of about {width} x {height} pixels.
# contextcrf fit --config THIS --data DATA --out runs/mine
model:
  backbone: tf_efficientnet_lite0 # any timm backbone with feature maps; resnet50 is larger
  stride: 8 # pixels per node of the unary's map: 4 for thin objects, 16 for speed
  output_stride: 32
  channels: 128
  graph_stride: 16 # pixels per node of the pairwise graphs: not larger than your objects
training:
  potentials: [unary] # the pairwise heads follow: contextcrf fit-heads
  epochs: {epochs} # about {epochs * images // batch} steps
  batch_size: {batch}
  lr: 0.002
  weight_decay: 0.02
  class_balance: {balance} # {classes.names[rarest]} has {100 * shares[rarest]:.2g} % of the pixels; 0 is the plain mean
  ema: {0.99 if epochs * images // batch >= 500 else 0.9}
  color: 0.3
  crop: [{crop[0]}, {crop[1]}]
  scale: [0.7, 1.7]
{frozen}{filters}  val_every: {max(1, epochs // 4)}
"""


def heads_recipe_for(found: MaskStatistics, images: int) -> str:
    """The commented YAML of the second stage, with settings of good gain for their price (results/context.md)."""
    batch = min(default_batch_size(), images)
    epochs = max(8, min(100, round(HEADS_STEPS * batch / (COPIES * images))))
    crop = [min(512, -(-side // 32) * 32) for side in found.size]
    return f"""# Second stage: the pairwise heads, on features of the trained network that are computed once.
# contextcrf fit-heads runs/mine --config THIS --data DATA --out runs/heads
training:
  epochs: {epochs} # about {epochs * COPIES * images // batch} steps
  batch_size: {batch}
  lr: 0.001
  weight_decay: 0.05
  max_edges: 8192 # pairs of nodes a step, drawn at random
  color: 0.3
  crop: [{crop[0]}, {crop[1]}] # whole images: the heads learn from their context
  scale: [0.8, 1.5]
copies: {COPIES} # augmented copies of each image
# The messages of all relations together have the weight of the unary. contextcrf tune changes that; let it choose on
# images that the network was not trained on, since it is overconfident on its training images.
"""
