"""Refinement of probability maps or label maps of any network with the dense CRF: the command `refine`."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contextcrf.crf import DenseCRF
from contextcrf.crf.checks import whole_number
from contextcrf.crf.colors import almost_black
from contextcrf.data.image_format import RGB, ImageFormat
from contextcrf.data.images import ARRAY_ERRORS, read_image
from contextcrf.data.layouts import list_images
from contextcrf.data.visualization import index_png
from contextcrf.inference.files import Outcome, prepare_labels
from contextcrf.inference.maps import MAP_SUFFIXES as MAP_SUFFIXES
from contextcrf.inference.maps import MapFormat as MapFormat
from contextcrf.inference.tiling import Region, tiles, within
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import atomic_write
from contextcrf.utils.labels import most_probable
from contextcrf.utils.locks import claim
from contextcrf.utils.memory import release_freed_memory
from contextcrf.utils.progress import track
from contextcrf.utils.provenance import Provenance

# The default side of a tile, and the number of pixels above which maps are divided into tiles.
_TILE, _LEAST_TILE, _TILE_ABOVE = 1024, 32, 8_000_000


@dataclass
class Refinement(Outcome):
    """The result of `refine_files`. The numbers count the maps that this process has refined.

    Attributes:
        written: the files that were written.
        failed: the maps that could not be refined, each with a reason that names the file.
        readings: the number of maps for each way in which maps were read, in words.
        changed: the number of pixels whose label was changed.
        pixels: the number of pixels with a known label.
        dark: the images that are almost black, which may have been saved from values in 0..1.

    Example:
        >>> Refinement(changed=3, pixels=12).share
        0.25
    """

    readings: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    pixels: int = 0
    dark: list[Path] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of the pixels whose label was changed, from 0 to 1."""
        return self.changed / self.pixels if self.pixels else 0.0


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
    image_format: ImageFormat = RGB,
    resume: bool = False,
    tile: int | None = None,
) -> Refinement:
    """Refine maps with the dense CRF and write the labels as palette PNGs `STEM.png`.

    Maps of more than 8 megapixels are divided into tiles, so that the memory of the dense CRF depends on the size of a
    tile. The tiles overlap by two standard deviations of the larger kernel. With three, the labels are no closer to
    those of the whole map, because the lattice of each tile has other vertices.

    If a pair cannot be read, or if its sizes do not match, it is listed in the outcome, and the other pairs are
    processed.

    Args:
        pairs: the path of the map and the path of the image for each pair.
        crf: the dense CRF, on `device`.
        maps: the format of the maps.
        out: the folder for the results, which is created if necessary.
        marginals: also write the marginals as `STEM.npy`, float32 [K, H, W].
        device: the device of the dense CRF.
        image_format: how the images are read.
        resume: skip maps whose refined labels exist, and maps that another process with `resume` is refining.
        tile: the side of a tile in pixels, at least 32. None is 1024, and 0 divides no map.

    Returns:
        The files that were written, the maps that could not be refined, and how the others were read and changed.

    Raises:
        DataError: If a result would overwrite an input, or if the meaning of the label maps is unclear (see
            `MapFormat.for_labels`). With `resume`, also if the existing labels were made from other folders or with
            other settings.
        ValueError: If `tile` is from 1 to 31 or negative.

    Example:
        >>> from PIL import Image
        >>> Image.new("RGB", (64, 48)).save("photo.png")
        >>> np.save("photo.npy", np.full((2, 48, 64), 0.5, np.float32))
        >>> outcome = refine_files([(Path("photo.npy"), Path("photo.png"))], DenseCRF(), MapFormat(), Path("refined"))
        >>> [path.name for path in outcome.written], outcome.share
        (['photo.png'], 0.0)
    """
    tile = _TILE if tile is None else whole_number("tile", tile, 0)
    if 0 < tile < _LEAST_TILE:
        raise ValueError(f"tile is {tile}, but 0 or a number of at least {_LEAST_TILE} pixels is expected.")
    targets = [out / f"{path.stem}{suffix}" for path, _ in pairs for suffix in (".png", ".npy")]
    sources = {source.resolve() for pair in pairs for source in pair}
    for target in targets:
        if target.resolve() in sources:
            raise DataError(f"The result {target} would overwrite an input. Choose another --out.")
    maps = maps.for_labels([path for path, _ in pairs])
    provenance = Provenance.of(
        maps=_folders(path for path, _ in pairs),
        images=_folders(image for _, image in pairs),
        map_format=maps,
        image_format=image_format,
        dense=_settings(crf),
        marginals=marginals,
        tile=tile,
    )
    prepare_labels([out / f"{path.stem}.png" for path, _ in pairs], out, provenance, resume)
    outcome = Refinement()
    missing = [(path, image) for path, image in pairs if not (out / f"{path.stem}.png").exists()]
    for path, image in track(missing, "Refining maps"):
        labels = out / f"{path.stem}.png"
        with claim(labels) if resume else nullcontext(True) as mine:
            if not mine:
                continue
            try:
                pixels = read_image(image, image_format)
                found = maps.read(path, (pixels.shape[1], pixels.shape[2]))
                if (count := found.logits.shape[1]) > 256:
                    raise ValueError(f"The map has {count} classes, but a label PNG can have at most 256.")
                refined, kept = _refine(crf, found.logits, pixels, device, tile, marginals)
            except ARRAY_ERRORS as error:
                # The message of a DataError already names the file.
                reason = str(error) if isinstance(error, DataError) else f"{path} cannot be refined. {error}"
                outcome.failed.append((path, reason))
                continue
            outcome.readings[found.reading] += 1
            outcome.dark += [image] if almost_black(pixels) else []
            known = found.labels >= 0
            outcome.pixels += int(known.sum())
            outcome.changed += int((known & (refined != found.labels)).sum())
            if kept is not None:
                with atomic_write(labels.with_suffix(".npy")) as partial:
                    np.save(partial, kept.numpy())
                outcome.written.append(labels.with_suffix(".npy"))
            # The labels are written last, because their existence marks the map as done.
            with atomic_write(labels) as partial:
                index_png(refined, maps.palette(count)).save(partial, "PNG")
            outcome.written.append(labels)
    return outcome


def _refine(
    crf: DenseCRF, logits: Tensor, pixels: Tensor, device: torch.device | None, side: int, marginals: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the refined labels [H, W], and the marginals [K, H, W] if they are wanted."""
    classes, height, width = logits.shape[1:]
    whole = (slice(0, height), slice(0, width))
    regions: Iterable[tuple[Region, Region]] = [(whole, whole)]
    in_tiles = side > 0 and height * width > _TILE_ABOVE
    if in_tiles:
        reach = max(float(crf.spatial_sxy.max()), float(crf.bilateral_sxy.max()))
        regions = tiles(height, width, side, math.ceil(2 * reach))
    labels = torch.empty(height, width, dtype=torch.int64)
    wanted = torch.empty(classes, height, width) if marginals else None
    for computed, kept in regions:
        rows, columns = computed
        # Files are read with 8 bits, so their unit is known.
        image = pixels[None, :, rows, columns].to(device)
        found = crf(logits[:, :, rows, columns].to(device), image, image_range=(0, 255))[0].cpu()
        inner = within(kept, computed)
        labels[kept] = most_probable(found)[inner]
        if wanted is not None:
            wanted[:, *kept] = found[:, *inner]
        if in_tiles:
            # Small maps of one size reuse the memory.
            del found
            release_freed_memory()
    return labels, wanted


def _folders(files: Iterable[Path]) -> list[Path]:
    """Return the folders of files. Maps of several networks often have the same names, but not the same folder."""
    return sorted({file.parent.resolve() for file in files})


def _settings(crf: DenseCRF) -> dict[str, Any]:
    """Return everything that determines the result of a dense CRF, for the provenance record."""
    kernels = ("spatial_sxy", "spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat")
    plain = ("iterations", "normalization", "tolerance", "stop_below")
    return {name: getattr(crf, name).tolist() for name in kernels} | {name: getattr(crf, name) for name in plain}
