"""Refinement of probability maps or label maps of any network with the dense CRF: the command `refine`."""

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
NO_COUNT = "The number of classes of a label map is not known. Give --classes or --num-classes."


@dataclass(frozen=True)
class MapFormat:
    """The format of map files.

    Args:
        kind: the content of .npy and .npz files, "probabilities" or "logits", with shape [K, H, W].
        classes: the names and colors of the classes. None uses the colors of PASCAL VOC.
        num_classes: the number of classes K of label maps (.png). It is not used if `classes` is given.
        confidence: the assumed probability that a label of a label map is correct.
        ignore_index: the value of unlabeled pixels in a label map.
    """

    kind: Literal["probabilities", "logits"] = "probabilities"
    classes: Classes | None = None
    num_classes: int | None = None
    confidence: float = 0.7
    ignore_index: int = IGNORE_INDEX

    def palette(self, count: int) -> Sequence[Color]:
        """Return the colors of `count` classes."""
        return self.classes.palette if self.classes is not None else voc_palette(count)

    def read(self, path: Path) -> Tensor:
        """Read a map file as logits [1, K, H, W].

        Args:
            path: the map, a .npy, .npz or .png file.

        Raises:
            ValueError: If the content of the file is not valid.
            OSError: If the file cannot be decoded. Other errors of `ARRAY_ERRORS` are possible too.
        """
        if path.suffix.lower() == ".png":
            return self._read_labels(path)
        content = _array(path)
        if content.ndim != 3 or not np.issubdtype(content.dtype, np.floating):
            raise ValueError(
                f"The array has dtype {content.dtype} and shape {list(content.shape)}, but a floating-point array "
                "[K, H, W] is expected."
            )
        wanted = self._count()
        if wanted is not None and len(content) != wanted:
            raise ValueError(
                f"The array has shape {list(content.shape)}, but [K, H, W] with {wanted} classes is expected."
            )
        # The array is copied, because it can be read-only or have another byte order.
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
                raise ValueError(
                    f"The map has mode {file.mode}, but a mask with one class index per pixel is expected."
                )
            labels = torch.from_numpy(np.array(file, dtype=np.int64))[None]
        return logits_from_labels(labels, count, self.confidence, self.ignore_index)


def _array(path: Path) -> npt.NDArray[Any]:
    """Return the only array of a .npy or .npz file."""
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        if len(names := list(content)) != 1:
            raise ValueError(f"The file contains the arrays {names}, but exactly one array is expected.")
        return content[names[0]]


def match_maps(maps: Sequence[Path], images: Path) -> list[tuple[Path, Path]]:
    """Pair each map with the image of the same stem in a folder. Overlays in the folder of their labels are left out.

    Args:
        maps: the map files.
        images: the folder of the images.

    Returns:
        The path of the map and the path of the image for each pair.

    Raises:
        DataError: If a map has no image or several images, if two maps have the same stem, or if a map has an unknown
            suffix. The message lists all of these maps.
    """
    if not images.is_dir():
        raise DataError(f"{images} is not a folder, but the folder of the images is expected.")
    # `predict` writes the overlays and the labels to the same folder.
    stems = {path.stem for path in maps}
    maps = [path for path in maps if path.stem.removesuffix("_overlay") not in stems - {path.stem}]
    by_stem: dict[str, list[Path]] = {}
    for path in list_images(images):
        by_stem.setdefault(path.stem, []).append(path)
    problems, pairs, owner = [], [], dict[str, Path]()
    for path in maps:
        found = by_stem.get(path.stem, [])
        if path.suffix.lower() not in MAP_SUFFIXES:
            problems.append(f"{path} is not a map. Expected a file with the suffix {', '.join(MAP_SUFFIXES)}.")
        elif path.stem in owner:
            problems.append(f"{path} and {owner[path.stem]} would have the same output file. Rename one of them.")
        elif len(found) != 1:
            which = ", ".join(str(image) for image in found) or "none"
            problems.append(f"{path} needs exactly one image {path.stem}.* in {images}, but these were found: {which}.")
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
    """Refine maps with the dense CRF and write the labels as palette PNGs `STEM.png`.

    If a pair cannot be read, or if its sizes do not match, it is listed in the outcome, and the other pairs are
    processed.

    Args:
        pairs: the path of the map and the path of the image for each pair.
        crf: the dense CRF, on `device`.
        maps: the format of the maps.
        out: the folder for the results, which is created if necessary.
        marginals: also write the marginals as `STEM.npy`, float32 [K, H, W].
        device: the device of the dense CRF.

    Returns:
        The files that were written, and the maps that could not be refined.

    Raises:
        DataError: If a result would overwrite an input.
    """
    targets = [out / f"{path.stem}{suffix}" for path, _ in pairs for suffix in (".png", ".npy")]
    sources = {source.resolve() for pair in pairs for source in pair}
    for target in targets:
        if target.resolve() in sources:
            raise DataError(f"The result {target} would overwrite an input. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    outcome = Outcome()
    for path, image in track(pairs, "Refining maps"):
        try:
            logits, pixels = maps.read(path), read_image(image)
            if logits.shape[2:] != pixels.shape[1:]:
                raise ValueError(
                    f"The map has shape {list(logits.shape[1:])} and the image {image} has {list(pixels.shape[1:])}, "
                    "but a map [K, H, W] of the image's height and width is expected."
                )
            if logits.shape[1] > 256:
                raise ValueError(f"The map has {logits.shape[1]} classes, but a label PNG can have at most 256.")
            refined = crf(logits.to(device), pixels[None].to(device))[0].cpu()
        except ARRAY_ERRORS as error:
            # The message of a DataError already names the image.
            reason = str(error) if isinstance(error, DataError) else f"{path} cannot be refined: {error}"
            outcome.failed.append((path, reason))
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
