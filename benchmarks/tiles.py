"""Measure large images in tiles: memory, time, and the labels that differ from those of the whole image.

    python benchmarks/tiles.py --data DATA/CamVid

Enlarged frames of CamVid are labeled as a whole and in tiles. Then an image of 12,000 x 9,000 pixels is labeled in
tiles.
"""

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from contextcrf import ContextCRF, Predictor, load
from contextcrf.data.images import read_image
from contextcrf.data.layouts import open_dataset
from contextcrf.utils.memory import reuse_freed_memory
from contextcrf.utils.progress import show_progress
from contextcrf.utils.resizing import upsample

HEIGHT, WIDTH = 1440, 1920


def differences(model: ContextCRF, frames: list[Tensor], tile: int, overlap: int) -> dict[str, float]:
    """Return the percentages of the labels that differ between tiles and the whole image."""
    inference = replace(model.inference, precision="32-true")
    whole = Predictor(model, replace(inference, tile_above=HEIGHT * WIDTH))
    tiled = Predictor(model, replace(inference, tile=tile, overlap=overlap, tile_above=0))
    found: dict[str, list[float]] = {"everywhere": [], "within 16 pixels of a seam": [], "elsewhere": []}
    for frame in frames:
        enlarged = upsample(frame[None].float(), (HEIGHT, WIDTH))[0].byte()
        wrong = whole.label(enlarged) != tiled.label(enlarged)
        seam = torch.zeros_like(wrong)
        for at in range(tile, WIDTH, tile):
            seam[:, at - 16 : at + 16] = True
            seam[at - 16 : at + 16] = True
        for values, part in zip(found.values(), (wrong, wrong[seam], wrong[~seam]), strict=True):
            values.append(100 * part.float().mean().item())
    return {name: sum(values) / len(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the CamVid data set")
    parser.add_argument("--frames", type=int, default=4, help="number of frames to label as a whole and in tiles")
    parser.add_argument(
        "--tiles", nargs="*", default=["768,128", "768,256"], help="sides and overlaps that are compared"
    )
    parser.add_argument("--size", nargs=2, type=int, default=(12000, 9000), help="size of the large image")
    parser.add_argument("--precision", default="32-true", help="precision of the large image")
    options = parser.parse_args()
    reuse_freed_memory()
    model = load("camvid")
    frames = [read_image(image) for image, _ in open_dataset(options.data, "val").spread(options.frames).pairs]
    for setting in options.tiles:
        tile, overlap = map(int, setting.split(","))
        print(f"{WIDTH} x {HEIGHT}, tile {tile}, overlap {overlap}, labels that differ from the whole image, %:")
        for name, value in differences(model, frames, tile, overlap).items():
            print(f"  {name}: {value:.2f}", flush=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    photo = Image.fromarray(frames[0].permute(1, 2, 0).numpy()).resize(tuple(options.size))
    large = torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()  # as read_image returns it
    start = time.perf_counter()
    with show_progress():
        Predictor(model, replace(model.inference, precision=options.precision)).label(large)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = " x ".join(map(str, options.size))
    print(f"{size}: {time.perf_counter() - start:.0f} s, peak {after:.1f} GiB ({before:.1f} GiB before it)")


if __name__ == "__main__":
    main()
