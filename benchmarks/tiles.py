"""Large pictures in tiles: memory, time, and what the seams cost.

    python benchmarks/tiles.py --data DATA/CamVid

A frame of CamVid, enlarged, is labeled at once and in tiles; then a picture of 12,000 x 9,000 pixels in tiles alone.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from contextcrf import load
from contextcrf.data.dataset import open_dataset, read_image
from contextcrf.inference.tiling import Tiles, label
from contextcrf.utils.resizing import upsample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid")
    parser.add_argument("--frames", type=int, default=4)
    options = parser.parse_args()
    model = load("camvid")
    frames = [read_image(image) for image, _ in open_dataset(options.data, "val").spread(options.frames).pairs]
    tiles = Tiles(side=768, margin=256, above=0)
    everywhere, near, far = [], [], []
    for frame in frames:
        picture = upsample(frame[None].float(), (1440, 1920))[0].byte()
        whole, cut = label(model, picture), label(model, picture, tiles=tiles)
        wrong = whole != cut
        seam = torch.zeros_like(wrong)
        for at in range(tiles.side, 1920, tiles.side):
            seam[:, at - 16 : at + 16] = True
            seam[at - 16 : at + 16] = True
        for found, part in ((everywhere, wrong), (near, wrong[seam]), (far, wrong[~seam])):
            found.append(100 * part.float().mean().item())
    print("1920 x 1440, labels that differ between tiles and the whole, %:")
    for name, found in (("everywhere", everywhere), ("within 16 pixels of a seam", near), ("elsewhere", far)):
        print(f"  {name}: {sum(found) / len(found):.2f}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    photo = Image.fromarray(frames[0].permute(1, 2, 0).numpy()).resize((12000, 9000))
    large = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    start = time.perf_counter()
    label(model, large, tiles=Tiles())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"12000 x 9000: {time.perf_counter() - start:.0f} s, peak {after:.1f} GiB (before it {before:.1f} GiB)")


if __name__ == "__main__":
    main()
