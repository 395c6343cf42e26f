"""Probability maps or label maps of any network through the dense CRF: the `refine` command."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from contextcrf.crf import DenseCRF, logits_from_labels, logits_from_probabilities
from contextcrf.data.classes import IGNORE_INDEX, Classes, Color, voc_palette
from contextcrf.data.images import ARRAY_ERRORS, read_image
from contextcrf.data.layouts import list_images
from contextcrf.data.visualization import index_png
from contextcrf.inference.files import Outcome
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import atomic_write
from contextcrf.utils.progress import track

MAP_SUFFIXES = (".npy", ".npz", ".png")
NO_COUNT = "the number of classes of a label map is unknown: give --classes or --num-classes"


@dataclass(frozen=True)
class MapFormat:
    """How map files are read.

    Args:
        kind: the meaning of the numbers in .npy and .npz files: "probabilities" or "logits", [K, H, W].
        classes: names and colors; None is numbers and the colors of PASCAL VOC.
        num_classes: K of label maps (.png); the classes' number if there are classes.
        confidence: the probability that a label of a label map is right.
        ignore_index: the value of a label map that means "unknown".
    """

    kind: Literal["probabilities", "logits"] = "probabilities"
    classes: Classes | None = None
    num_classes: int | None = None
    confidence: float = 0.7
    ignore_index: int = IGNORE_INDEX

    def palette(self, count: int) -> Sequence[Color]:
        """Colors of this many classes."""
        return self.classes.palette if self.classes is not None else voc_palette(count)

    def read(self, path: Path) -> Tensor:
        """Logits [1, K, H, W] of a map file.

        Raises:
            ValueError: the content of the file is not as expected.
            OSError: the file cannot be decoded (and the other errors of `ARRAY_ERRORS`).
        """
        if path.suffix.lower() == ".png":
            return self._read_labels(path)
        content = _array(path)
        if content.ndim != 3 or not np.issubdtype(content.dtype, np.floating):
            raise ValueError(f"{content.dtype} {list(content.shape)}: expected floating [K, H, W]")
        wanted = self._count()
        if wanted is not None and len(content) != wanted:
            raise ValueError(f"{list(content.shape)}: expected [K, H, W] of {wanted} classes")
        # A copy: the bytes of the file may be in another order, or read-only.
        logits = torch.from_numpy(content.astype(np.float64 if content.dtype == np.float64 else np.float32))[None]
        return logits if self.kind == "logits" else logits_from_probabilities(logits)

    def _count(self) -> int | None:
        return len(self.classes) if self.classes is not None else self.num_classes

    def _read_labels(self, path: Path) -> Tensor:
        count = self._count()
        if count is None:
            raise ValueError(NO_COUNT)
        with Image.open(path) as file:
            if file.mode not in ("L", "P", "1"):
                raise ValueError(f"mode {file.mode}: expected an index mask, one number per pixel")
            labels = torch.from_numpy(np.array(file, dtype=np.int64))[None]
        return logits_from_labels(labels, count, self.confidence, self.ignore_index)


def _array(path: Path) -> npt.NDArray[Any]:
    """The one array of a .npy or .npz file."""
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        if len(names := list(content)) != 1:
            raise ValueError(f"arrays {names}: expected one")
        return content[names[0]]


def match_maps(maps: Sequence[Path], images: Path) -> list[tuple[Path, Path]]:
    """Each map with the image of the same stem in a folder; overlays that lie beside their labels are left out.

    Raises:
        DataError: a map without an image or with several, two maps of one stem, or an unknown kind of file; all listed.
    """
    if not images.is_dir():
        raise DataError(f"{images}: expected a folder of images")
    # `predict` writes an overlay beside its labels.
    stems = {path.stem for path in maps}
    maps = [path for path in maps if path.stem.removesuffix("_overlay") not in stems - {path.stem}]
    by_stem: dict[str, list[Path]] = {}
    for path in list_images(images):
        by_stem.setdefault(path.stem, []).append(path)
    problems, pairs, owner = [], [], dict[str, Path]()
    for path in maps:
        found = by_stem.get(path.stem, [])
        if path.suffix.lower() not in MAP_SUFFIXES:
            problems.append(f"{path}: expected a file {', '.join(MAP_SUFFIXES)}")
        elif path.stem in owner:
            problems.append(f"{path}: would be written where {owner[path.stem]} is; rename one")
        elif len(found) != 1:
            which = ", ".join(str(image) for image in found) or "none"
            problems.append(f"{path}: expected one image {path.stem}.* in {images}, found {which}")
        else:
            pairs.append((path, found[0]))
        owner.setdefault(path.stem, path)
    if problems:
        raise DataError("\n".join(problems))
    return pairs


@torch.inference_mode()
def refine_files(
    pairs: Sequence[tuple[Path, Path]],
    crf: DenseCRF,
    maps: MapFormat,
    out: Path,
    marginals: bool = False,
    device: torch.device | None = None,
) -> Outcome:
    """Write `STEM.png` (palette PNG of labels), and `STEM.npy` (marginals, float32 [K, H, W]) if asked for.

    A pair that cannot be read, or does not fit together, is noted and does not stop the others.

    Args:
        pairs: maps with their images.
        crf: the dense CRF, on `device`.
        maps: how the maps are read.
        out: folder for the results, made if missing.
        marginals: write the marginals too.
        device: where the dense CRF runs.

    Raises:
        DataError: a result would be written over an input.
    """
    targets = [out / f"{path.stem}{suffix}" for path, _ in pairs for suffix in (".png", ".npy")]
    sources = {source.resolve() for pair in pairs for source in pair}
    for target in targets:
        if target.resolve() in sources:
            raise DataError(f"{target} would be written over an input; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    outcome = Outcome()
    for path, image in track(pairs, "refine"):
        try:
            logits, pixels = maps.read(path), read_image(image)
            if logits.shape[2:] != pixels.shape[1:]:
                raise ValueError(
                    f"{list(logits.shape[1:])}, the image {image} {list(pixels.shape[1:])}: expected [K, H, W] of the "
                    "image's height and width"
                )
            if logits.shape[1] > 256:
                raise ValueError(f"{logits.shape[1]} classes: expected at most 256, which is what a label PNG can hold")
            refined = crf(logits.to(device), pixels[None].to(device))[0].cpu()
        except ARRAY_ERRORS as error:
            # A DataError begins with the name of the image.
            outcome.failed.append((path, str(error) if isinstance(error, DataError) else f"{path}: {error}"))
            continue
        labels = out / f"{path.stem}.png"
        with atomic_write(labels) as partial:
            index_png(refined.argmax(0), maps.palette(len(refined))).save(partial, "PNG")
        outcome.written.append(labels)
        if marginals:
            with atomic_write(labels.with_suffix(".npy")) as partial:
                np.save(partial, refined.float().numpy())
            outcome.written.append(labels.with_suffix(".npy"))
    return outcome
