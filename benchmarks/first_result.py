"""Time a newcomer's way from color-coded masks to the report: `init`, `fit`, `fit-heads` and `evaluate`.

    python benchmarks/first_result.py --data CamVid --out runs/first-result

The data are 72 images of CamVid at 683 x 512 pixels with 8 classes, as RGB masks without a list of classes. Of these,
`init` takes 60 for training. The commands are those that `init` prints, with budgets for both stages.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.utils.tables import Table

SIZE = (683, 512)
TRAIN, VAL = 60, 12
# The color of each class. A CamVid class that is not listed has the color of void, which is black.
COLORS = {
    "sky": (128, 255, 255),
    "building": (255, 0, 0),
    "pole": (128, 128, 0),
    "sign": (128, 128, 0),
    "fence": (128, 128, 0),
    "road": (128, 128, 128),
    "pavement": (255, 255, 0),
    "tree": (0, 255, 0),
    "car": (128, 0, 128),
    "pedestrian": (128, 64, 0),
    "bicyclist": (128, 64, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with CamVid")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the data and for all outputs")
    parser.add_argument("--fit", default="6m", help="the budget of `fit`")
    parser.add_argument("--fit-heads", default="2m", help="the budget of `fit-heads`")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = (args.out / "data").resolve()
    write_data(open_dataset(args.data, "train"), data)
    commands = [
        ["init", str(data), "--out", "recipe.yaml"],
        ["fit", "--config", "recipe.yaml", "--data", str(data), "--out", "unary", "--budget", args.fit],
        [
            *("fit-heads", "unary/model", "--config", "recipe-heads.yaml", "--data", str(data), "--out", "heads"),
            *("--budget", args.fit_heads),
        ],
        ["evaluate", "heads/model", "--data", str(data), "--split", "val", "--out", "."],
    ]
    seconds = [run(command, args.out) for command in commands]
    rows = [[f"`contextcrf {command[0]}`", f"{each / 60:.1f}"] for command, each in zip(commands, seconds, strict=True)]
    print(Table(["command", "minutes"], [*rows, ["all", f"{sum(seconds) / 60:.1f}"]]).to_markdown())


def write_data(source: SegmentationDataset, folder: Path) -> None:
    """Write images and color-coded masks. A folder of an earlier call is replaced."""
    if folder.exists():
        shutil.rmtree(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for index, name in enumerate(source.classes.names):
        palette[index] = COLORS[name]
    for index in np.linspace(0, len(source) - 1, TRAIN + VAL).astype(int).tolist():
        image, mask = source.sample(index)
        stem = source.pairs[index][0].stem
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(SIZE, Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{stem}.jpg", quality=92)
        labels = Image.fromarray(palette[mask.numpy()])
        labels.resize(SIZE, Image.Resampling.NEAREST).save(folder / "masks" / f"{stem}.png")


def run(command: list[str], folder: Path) -> float:
    """Run a command in a folder and return its time in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "contextcrf", *command], cwd=folder, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
