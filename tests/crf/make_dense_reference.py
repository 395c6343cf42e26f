"""Make dense_reference.npz, the marginals of pydensecrf that tests/crf/test_dense.py compares with.

Run in any environment with numpy and pydensecrf2 (1.1 made the stored file):

    python tests/crf/make_dense_reference.py
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
    """Noisy logits, float32 [K, H, W], of the regions of an image, uint8 [H, W, 3]. Integer arithmetic only."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    labels = (x > 20).astype(np.int64) + (y > 30)
    labels[(x - 40) ** 2 + (y - 18) ** 2 < 130] = 3
    labels[(y - x + 30) ** 2 < 6] = 4
    palette = np.array([[90, 140, 60], [120, 130, 150], [60, 60, 70], [200, 90, 40], [220, 210, 190]])
    image = palette[labels] + noise(1, HEIGHT, WIDTH, 3) // 16 + (x // 4)[..., None]
    evidence = noise(2, CLASSES, HEIGHT, WIDTH) / 64 + 1.25 * (labels == np.arange(CLASSES)[:, None, None])
    return evidence.astype(np.float32), image.astype(np.uint8)


# A smaller piece of the same scene (again a multiple of 4 pixels) for every normalization and kind of compatibility.
PIECE = (20, 24)
DIAGONAL = [-1.0, -3.0, -2.0, 0.5, -1.5]
MATRIX = [[-2.0 if i == j else 0.3 * ((i + j) % 3) for j in range(CLASSES)] for i in range(CLASSES)]
VARIANTS: dict[str, dict] = {
    "before": {"normalization": "before"},
    "after": {"normalization": "after"},
    "none": {"normalization": "none", "spatial_compat": 0.05, "bilateral_compat": 0.02},
    "diagonal": {"bilateral_compat": DIAGONAL},
    "matrix": {"bilateral_compat": MATRIX, "spatial_compat": 1},
    "axes and channels": {"spatial_sxy": (2, 5), "bilateral_sxy": (15, 30), "bilateral_srgb": (9, 20, 14)},
}


def refine(logits: np.ndarray, image: np.ndarray, normalization: str = "symmetric", **parameters) -> np.ndarray:
    """The marginals of pydensecrf, float32 [K, H, W], with the parameters named as in `DenseCRF`."""
    from pydensecrf import densecrf  # type: ignore
    from pydensecrf.utils import unary_from_softmax  # type: ignore

    p = {**PARAMETERS, **parameters}
    kind = {
        "symmetric": densecrf.NORMALIZE_SYMMETRIC,
        "before": densecrf.NORMALIZE_BEFORE,
        "after": densecrf.NORMALIZE_AFTER,
        "none": densecrf.NO_NORMALIZATION,
    }[normalization]

    def compat(value):
        return value if np.ndim(value) == 0 else np.array(value, dtype=np.float32)

    classes, height, width = logits.shape
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    if np.any(p["spatial_compat"]):  # otherwise the kernel changes nothing
        crf.addPairwiseGaussian(sxy=p["spatial_sxy"], compat=compat(p["spatial_compat"]), normalization=kind)
    crf.addPairwiseBilateral(
        p["bilateral_sxy"],
        p["bilateral_srgb"],
        np.ascontiguousarray(image),
        compat(p["bilateral_compat"]),
        normalization=kind,
    )
    return np.array(crf.inference(p["iterations"]), dtype=np.float32).reshape(logits.shape)


def main() -> None:
    logits, image = inputs()
    height, width = PIECE
    piece = logits[:, 12 : 12 + height, 22 : 22 + width], image[12 : 12 + height, 22 : 22 + width]
    marginals = refine(logits, image)
    variants = {name: refine(*piece, **parameters) for name, parameters in VARIANTS.items()}
    # The last class is one minus the others.
    np.savez_compressed(PATH, **{name: values[:-1] for name, values in {"marginals": marginals, **variants}.items()})  # type: ignore[arg-type]
    for name, values in {"whole": marginals, **variants}.items():
        start = np.exp(logits if name == "whole" else piece[0])
        change = np.abs(values - start / start.sum(0)).mean()
        print(f"{name}: mean change of the marginals {change:.3f}")
    print(f"{PATH.name}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
