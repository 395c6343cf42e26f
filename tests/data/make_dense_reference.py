"""Make dense_reference.npz, the marginals of pydensecrf that tests/test_dense.py compares with.

Run in any environment with numpy and pydensecrf2 (1.1 made the stored file):

    python tests/data/make_dense_reference.py
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("dense_reference.npz")
# A multiple of 4 pixels: the SSE code of pydensecrf pads to one with points at the origin, which leave extra vertices
# in its lattice and change a few marginals a little.
HEIGHT, WIDTH, CLASSES = 48, 64, 5
PARAMETERS = {
    "spatial_sxy": 3,
    "spatial_compat": 3,
    "bilateral_sxy": 20,
    "bilateral_srgb": 9,
    "bilateral_compat": 4,
    "iterations": 5,
}


def noise(seed: int, *shape: int) -> np.ndarray:
    """Integers 0..255 from a linear congruential generator, so that no library version changes them."""
    state, values = seed, []
    for _ in range(int(np.prod(shape))):
        state = (1664525 * state + 1013904223) % 2**32
        values.append(state >> 24)
    return np.array(values, dtype=np.int64).reshape(shape)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Logits, float32 [K, H, W], that half know the regions of the image, uint8 [H, W, 3]. Integer arithmetic only."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    labels = (x > 20).astype(np.int64) + (y > 30)
    labels[(x - 40) ** 2 + (y - 18) ** 2 < 130] = 3
    labels[(y - x + 30) ** 2 < 6] = 4
    palette = np.array([[90, 140, 60], [120, 130, 150], [60, 60, 70], [200, 90, 40], [220, 210, 190]])
    image = palette[labels] + noise(1, HEIGHT, WIDTH, 3) // 16 + (x // 4)[..., None]
    evidence = noise(2, CLASSES, HEIGHT, WIDTH) / 64 + 1.25 * (labels == np.arange(CLASSES)[:, None, None])
    return evidence.astype(np.float32), image.astype(np.uint8)


def main() -> None:
    from pydensecrf.densecrf import DenseCRF2D  # type: ignore
    from pydensecrf.utils import unary_from_softmax  # type: ignore

    logits, image = inputs()
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    crf = DenseCRF2D(WIDTH, HEIGHT, CLASSES)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    p = PARAMETERS
    crf.addPairwiseGaussian(sxy=p["spatial_sxy"], compat=p["spatial_compat"])
    crf.addPairwiseBilateral(
        p["bilateral_sxy"], p["bilateral_srgb"], np.ascontiguousarray(image), p["bilateral_compat"]
    )
    marginals = np.array(crf.inference(p["iterations"]), dtype=np.float32).reshape(CLASSES, HEIGHT, WIDTH)
    # The last class is one minus the others.
    np.savez_compressed(PATH, marginals=marginals[:-1])
    change = np.abs(marginals - probabilities).mean()
    print(f"{PATH.name}: {PATH.stat().st_size} bytes, mean change of the marginals {change:.3f}")


if __name__ == "__main__":
    main()
