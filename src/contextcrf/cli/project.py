"""The first recipe for data of one's own: `contextcrf init`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from contextcrf.data.classes import IGNORE_INDEX, Classes
from contextcrf.data.statistics import Survey, guess_classes, pair_up, survey
from contextcrf.utils.errors import DataError
from contextcrf.utils.runtime import has_bfloat16, usual_batch

# Steps after which a network of this size has learned what there is to learn; with few images these are many epochs.
STEPS, HEADS_STEPS, VIEWS = 2400, 1000, 2
RARE = 0.02


@dataclass(frozen=True)
class Start:
    """What `init` found and wrote.

    Attributes:
        classes: of the data.
        void: the value of the masks that means "no label".
        found: the survey of all masks.
        images: by split.
        written: files that were not there before.
        recipe: the text of the recipe.
    """

    classes: Classes
    void: int
    found: Survey
    images: Mapping[str, int]
    written: list[Path]
    recipe: str


def start(data: Path, recipe: Path, void: int = IGNORE_INDEX, val_every: int = 5, progress: bool = True) -> Start:
    """Make a folder with `images` and `masks` a data set, and write a recipe for it.

    What is there already (`classes.yaml`, `splits`) is kept.

    Args:
        data: the folder.
        recipe: the file to write; the recipe of the second stage goes into another beside it, `heads_path`.
        void: the value of the masks that means "no label", where there is no classes.yaml.
        val_every: one image of so many goes to the split "val", the others to "train".
        progress: show a progress bar.

    Raises:
        DataError: what `pair_up`, `survey` and `guess_classes` find.
        FileExistsError: the recipe is there.
        ValueError: no image would be left to train on.
    """
    if val_every < 2:
        raise ValueError(f"val_every {val_every}: expected 2 or more, since one image of so many is not trained on")
    for path in (recipe, heads_path(recipe)):
        if path.exists():
            raise FileExistsError(f"{path} is there already; move it away or name another --out")
    pairs = pair_up(data / "images", data / "masks")
    if len(pairs) < 2:
        raise DataError(f"{data}: {len(pairs)} image; expected two or more, to train on and to measure on")
    found = survey([mask for _, mask in pairs], progress)
    written = []
    if (names := data / "classes.yaml").exists():
        classes, void = Classes.from_yaml(names)
        if unknown := [label for label in found.shares(void) if not 0 <= label < len(classes)]:
            raise DataError(
                f"{names}: {len(classes)} classes, void {void}; the masks have the labels {unknown[:10]} beside them"
            )
    else:
        classes = guess_classes(found, void)
        classes.to_yaml(names, void)
        written.append(names)
    splits = data / "splits"
    if not splits.exists():
        stems = [image.stem for image, _ in pairs]
        val = stems[val_every // 2 :: val_every] or stems[-1:]
        splits.mkdir()
        for split, chosen in (("train", [stem for stem in stems if stem not in set(val)]), ("val", val)):
            (splits / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in chosen))
            written.append(splits / f"{split}.txt")
    images = {
        path.stem: sum(1 for line in path.read_text().splitlines() if line.strip())
        for path in sorted(splits.glob("*.txt"))
    }
    if not images.get("train"):
        raise DataError(f"{splits / 'train.txt'}: expected the names of the images to train on")
    text = recipe_for(classes, void, found, images["train"])
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(text)
    heads_path(recipe).write_text(heads_recipe_for(found, images["train"]))
    return Start(classes, void, found, images, [*written, recipe, heads_path(recipe)], text)


def heads_path(recipe: Path) -> Path:
    """Where the recipe of the second stage lies: recipe-heads.yaml beside recipe.yaml."""
    return recipe.with_name(f"{recipe.stem}-heads{recipe.suffix}")


def recipe_for(classes: Classes, void: int, found: Survey, images: int) -> str:
    """The commented YAML of a recipe: for the size and the balance of the data, and for this machine."""
    fast, half = torch.accelerator.is_available(), has_bfloat16()
    height, width = found.size
    batch = min(usual_batch(), images)
    epochs = max(8, min(200, round(STEPS * batch / images)))
    crop = [min(512 if fast else 320, max(64, side // 32 * 32)) for side in (height, width)]
    shares = found.shares(void)
    rarest = min(shares, key=lambda label: shares[label])
    balance = 0.4 if shares[rarest] < RARE else 0.0
    frozen = "" if fast else "  frozen_stages: 2 # on a CPU: the first stages cost most and change least\n"
    filters = "" if fast else "  frozen_filters: true\n"
    known = "bfloat16 is fast here" if half else "this machine has no fast bfloat16"
    return f"""# A first recipe: {len(classes)} classes, {images} training images of about {width} x {height} pixels.
# contextcrf fit --config THIS --data DATA --out runs/mine
model:
  backbone: tf_efficientnet_lite0 # any timm backbone with feature maps; resnet50 is larger
  stride: 8 # pixels per node of the unary's map: 4 for thin objects, 16 for speed
  output_stride: 32
  channels: 128
  graph_stride: 16 # pixels per node of the pairwise graphs: no wider than your objects
recipe:
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
{frozen}{filters}  precision: {"bf16-mixed" if half else "32-true"} # {known}
  val_every: {max(1, epochs // 4)}
"""


def heads_recipe_for(found: Survey, images: int) -> str:
    """The commented YAML of the second stage, what gained most for its price in results/context.md."""
    batch = min(usual_batch(), images)
    epochs = max(8, min(100, round(HEADS_STEPS * batch / (VIEWS * images))))
    crop = [min(512, -(-side // 32) * 32) for side in found.size]
    return f"""# Second stage: the pairwise heads, on features of the trained network that are computed once.
# contextcrf fit-heads runs/mine/model --config THIS --data DATA --out runs/heads
recipe:
  epochs: {epochs} # about {epochs * VIEWS * images // batch} steps
  batch_size: {batch}
  lr: 0.001
  weight_decay: 0.05
  max_edges: 8192 # pairs of nodes a step, drawn at random
  color: 0.3
  crop: [{crop[0]}, {crop[1]}] # whole images: their context is what is learned
  scale: [0.8, 1.5]
  precision: {"bf16-mixed" if has_bfloat16() else "32-true"}
views: {VIEWS} # augmented copies of each image
# All messages together have one vote beside the unary's. contextcrf tune changes that; let it choose on images that the
# network was not trained on, since of those it was it is too sure.
"""
