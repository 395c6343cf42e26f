"""Look at every image and mask before training: hours later is a bad time to learn that one of them is broken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from contextcrf.data.images import DECODING_ERRORS, DEEP_IMAGE_MODES, is_turned, upright
from contextcrf.utils.errors import DataError

# One number per pixel. In every other mode (RGB, a gray image with alpha, ...) a value is not a class index.
_MASK_MODES = ("1", "L", "P", "I", "I;16")

_LISTED = 50


def check_pairs(pairs: Sequence[tuple[Path, Path]], num_classes: int, void: int, progress: bool = True) -> None:
    """Decode all images and masks in full and report everything that is wrong with them at once.

    Arguments:
        pairs: (image, mask) paths.
        num_classes: K; the labels of a mask are 0..K-1 and void.
        void: the value that means "no label" in these masks, as stored.
        progress: show a progress bar.

    Raises:
        DataError: a file is missing, cannot be decoded or has more than 8 bits a channel; a mask is not a
            single-channel image of class indices, is not as large as its image, or holds other labels. The message
            has one line per problem (the first 50, then how many more), each with the file, what was found and what
            was expected.
    """

    problems = [line for found in problems_of(pairs, num_classes, void, progress) for line in found]
    if problems:
        lines = problems[:_LISTED]
        if len(problems) > _LISTED:
            lines.append(f"... and {len(problems) - _LISTED} more")
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise DataError(
            f"{count} in {len(pairs)} pairs of image and mask:\n" + "\n".join(f"  {line}" for line in lines)
        )


def problems_of(
    pairs: Sequence[tuple[Path, Path]], num_classes: int, void: int, progress: bool = True
) -> list[list[str]]:
    """What is wrong with each pair, a line a problem; arguments as for `check_pairs`."""

    def check(pair: tuple[Path, Path]) -> list[str]:
        return _pair_problems(*pair, num_classes, void)

    # Threads are enough: decoding releases the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(check, pairs)
        return list(track(results, "Checking the data", len(pairs), transient=True, disable=not progress))


def _pair_problems(image_path: Path, mask_path: Path, num_classes: int, void: int) -> list[str]:
    image = _decode(image_path, "image")
    mask = _decode(mask_path, "mask")
    problems = [item for item in (image, mask) if isinstance(item, str)]
    if isinstance(image, Image.Image) and image.mode in DEEP_IMAGE_MODES:
        problems.append(f"{image_path}: the image has mode {image.mode}; expected 8 bits a channel")
    if isinstance(mask, Image.Image):
        if isinstance(image, Image.Image) and image.size != mask.size:
            found, expected = (f"{item.width} x {item.height}" for item in (mask, image))
            turned = image.size == mask.size[::-1] and is_turned(image_path)
            hint = "; EXIF data turn the image, and its mask must lie as the upright image does" if turned else ""
            problems.append(
                f"{mask_path}: the mask is {found} px; expected {expected} px as its image {image_path}{hint}"
            )
        problems += _mask_problems(mask, mask_path, num_classes, void)
    return problems


def _decode(path: Path, kind: str) -> Image.Image | str:
    """The decoded image, or what is wrong with the file."""
    if not path.is_file():
        return f"{path}: the {kind} is missing; expected a file"
    try:
        with Image.open(path) as image:
            image.load()  # opening reads the header only
            return image if kind == "mask" else upright(image)
    except DECODING_ERRORS as error:
        return f"{path}: the {kind} cannot be decoded ({error}); expected a complete image file"


def _mask_problems(mask: Image.Image, path: Path, num_classes: int, void: int) -> list[str]:
    if mask.mode not in _MASK_MODES:
        return [
            f"{path}: the mask has mode {mask.mode}; expected a single channel of class indices "
            "(an 8-bit gray or palette PNG)"
        ]
    values, counts = np.unique(np.asarray(mask), return_counts=True)
    wrong = ((values < 0) | (values >= num_classes)) & (values != void)
    if not wrong.any():
        return []
    labels = [str(int(value)) for value in values[wrong]]
    shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    return [
        f"{path}: the mask has label{'s' if len(labels) > 1 else ''} {shown} at {counts[wrong].sum()} pixels; "
        f"expected 0..{num_classes - 1} or {void} (void)"
    ]
