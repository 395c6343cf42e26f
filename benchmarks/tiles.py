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

from contextcrf import Predictor, load
from contextcrf.data.images import read_image
from contextcrf.data.layouts import open_dataset
from contextcrf.utils.progress import show_progress
from contextcrf.utils.resizing import upsample

HEIGHT, WIDTH, TILE = 1440, 1920, 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the CamVid data set")
    parser.add_argument("--frames", type=int, default=4, help="number of frames to label as a whole and in tiles")
    options = parser.parse_args()
    model = load("camvid")
    inference = replace(model.inference, precision="32-true")
    whole = Predictor(model, replace(inference, tile_above=HEIGHT * WIDTH))
    tiled = Predictor(model, replace(inference, tile=TILE, overlap=256, tile_above=0))
    frames = [read_image(image) for image, _ in open_dataset(options.data, "val").spread(options.frames).pairs]
    everywhere, near, far = [], [], []
    for frame in frames:
        enlarged = upsample(frame[None].float(), (HEIGHT, WIDTH))[0].byte()
        wrong = whole.label(enlarged) != tiled.label(enlarged)
        seam = torch.zeros_like(wrong)
        for at in range(TILE, WIDTH, TILE):
            seam[:, at - 16 : at + 16] = True
            seam[at - 16 : at + 16] = True
        for found, part in ((everywhere, wrong), (near, wrong[seam]), (far, wrong[~seam])):
            found.append(100 * part.float().mean().item())
    print(f"{WIDTH} x {HEIGHT}, labels that differ between tiles and the whole image, %:")
    for name, found in (("everywhere", everywhere), ("within 16 pixels of a seam", near), ("elsewhere", far)):
        print(f"  {name}: {sum(found) / len(found):.2f}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    photo = Image.fromarray(frames[0].permute(1, 2, 0).numpy()).resize((12000, 9000))
    large = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    start = time.perf_counter()
    with show_progress():
        Predictor(model, inference).label(large)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"12000 x 9000: {time.perf_counter() - start:.0f} s, peak {after:.1f} GiB ({before:.1f} GiB before it)")


if __name__ == "__main__":
    main()
