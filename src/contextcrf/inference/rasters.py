"""Prediction of georeferenced TIFF files part by part, with the labels as a TIFF file of the same georeference."""

import math
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import torch
from torch import Tensor

from contextcrf.data.classes import IGNORE_INDEX, Classes
from contextcrf.data.raster import Raster, georeference_optional, open_raster, raster_errors, window
from contextcrf.data.visualization import IGNORED_COLOR
from contextcrf.inference.predictor import Predictor
from contextcrf.inference.tiling import Region, within
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import atomic_write, write_text

#: The suffix of the labels of georeferenced files.
RASTER_SUFFIX = ".tif"
# The longest side in pixels of the overlay of a scene.
_PREVIEW = 2048
# The largest side in pixels of the blocks of the labels.
_BLOCK = 512


def label_raster(
    predictor: Predictor, path: Path, labels: Path, draw: Callable[[Tensor, Tensor], None] | None = None
) -> None:
    """Label a TIFF file part by part, and write the labels as a TIFF file.

    Neither the image nor its labels are in memory as a whole. The parts are those of `Predictor.regions`, so that the
    labels are those of `Predictor.label` for the whole image.

    The file has one channel of 8 bits with the size, the CRS and the transform (or the ground control points) of the
    image, in compressed blocks. Its values are the class indices, or 255, its nodata value, where the image has no
    data. It has the colors of the classes as its palette, and their names as the tags `class_0`, `class_1` and so on.
    The file `STEM.tif.aux.xml` beside it has the names in the form that QGIS and GDAL show. It is written before the
    labels.

    Args:
        predictor: the predictor.
        path: the image. It need not be georeferenced.
        labels: the file to write, with the suffix .tif.
        draw: a function that gets a preview of the image, uint8 [C, h, w], and of the labels, uint8 [h, w], before the
            labels are complete, for example to draw an overlay. Their longer side has at most 2048 pixels. They contain
            every n-th row and column, and pixels without data are black and have the label 255.

    Raises:
        DataError: If the image cannot be read or labeled. The message begins with its path.
        OSError: If the labels cannot be written completely.

    Example:
        >>> import numpy as np, rasterio
        >>> from contextcrf import load
        >>> grid = {"width": 64, "height": 48, "crs": "EPSG:32632", "transform": rasterio.Affine(2, 0, 6e5, 0, -2, 5e6)}
        >>> with rasterio.open("scene.tif", "w", driver="GTiff", count=3, dtype="uint8", **grid) as scene:
        ...     scene.write(np.full((3, 48, 64), 90, np.uint8))
        >>> label_raster(Predictor(load("camvid")), Path("scene.tif"), Path("labels.tif"))
        >>> with rasterio.open("labels.tif") as found:
        ...     print(found.count, found.shape, found.crs, found.res)
        1 (48, 64) EPSG:32632 (2.0, 2.0)
    """
    with open_raster(path, predictor.model.image_format) as raster, atomic_write(labels) as partial:
        preview = _Preview(raster, predictor.model.image_format.channels)
        # GDAL writes this file if a CRS does not fit into the tags of a TIFF file.
        auxiliary = partial.with_name(f"{partial.name}.aux.xml")
        try:
            sums = _write_labels(predictor, path, raster, partial, preview)
            _check_written(partial, sums)
            if draw is not None:
                draw(preview.image, preview.labels)
            stored = auxiliary.read_text(encoding="utf-8") if auxiliary.is_file() else "<PAMDataset>\n</PAMDataset>\n"
            write_text(labels.with_name(f"{labels.name}.aux.xml"), _with_names(stored, predictor.model.classes))
        finally:
            auxiliary.unlink(missing_ok=True)


class _Preview:
    """Every n-th row and column of an image and of its labels, filled part by part."""

    def __init__(self, raster: Raster, channels: int) -> None:
        self.step = math.ceil(max(raster.height, raster.width, 1) / _PREVIEW)
        size = -(-raster.height // self.step), -(-raster.width // self.step)
        self.image = torch.zeros(channels, *size, dtype=torch.uint8)
        self.labels = torch.full(size, IGNORE_INDEX, dtype=torch.uint8)

    def add(self, kept: Region, pixels: Tensor, labels: Tensor) -> None:
        """Add the pixels [C, h, w] and the labels [h, w] of a part."""
        firsts = [-(-part.start // self.step) for part in kept]
        rows, columns = (slice(first, -(-part.stop // self.step)) for first, part in zip(firsts, kept, strict=True))
        top, left = (first * self.step - part.start for first, part in zip(firsts, kept, strict=True))
        chosen = labels[top :: self.step, left :: self.step]
        self.labels[rows, columns] = chosen
        self.image[:, rows, columns] = pixels[:, top :: self.step, left :: self.step] * (chosen != IGNORE_INDEX)


def _write_labels(
    predictor: Predictor, path: Path, raster: Raster, partial: Path, preview: _Preview
) -> list[tuple[Region, int]]:
    """Write the labels of all parts, and return the checksum of each."""
    sums = []
    with _writing(partial):
        file = _create(partial, raster, predictor)
    with file:
        for computed, kept in predictor.regions(raster.height, raster.width):
            valid = raster.valid(kept)
            if valid.any():
                pixels = raster.read(computed)
                found = _label(predictor, path, pixels, computed, kept)
                found[~valid] = IGNORE_INDEX
                preview.add(kept, pixels[:, *within(kept, computed)], found)
            else:
                found = torch.full(valid.shape, IGNORE_INDEX, dtype=torch.uint8)
            with _writing(partial):
                file.write(found.numpy(), 1, window=window(kept))
            sums.append((kept, zlib.crc32(found.numpy().tobytes())))
    return sums


def _label(predictor: Predictor, path: Path, pixels: Tensor, computed: Region, kept: Region) -> Tensor:
    try:
        # A copy, because tensors of the inference mode cannot be changed.
        return predictor.label_region(pixels, computed, kept).clone()
    except (ValueError, RuntimeError) as error:
        # Networks raise these errors for images that they do not take, and PyTorch if memory is short.
        size, reason = f"{pixels.shape[2]} x {pixels.shape[1]} pixels", " ".join(str(error).split())
        raise DataError(f"{path} (a part of {size}) cannot be labeled: {reason}") from error


def _create(partial: Path, raster: Raster, predictor: Predictor) -> Any:
    """Create the file of the labels."""
    import rasterio

    # Each part consists of whole blocks, so that no block is compressed twice.
    block = math.gcd(_BLOCK, predictor.inference.tile // 32 * 32)
    classes = predictor.model.classes
    with georeference_optional():
        file = rasterio.open(
            partial,
            "w",
            driver="GTiff",
            width=raster.width,
            height=raster.height,
            count=1,
            dtype="uint8",
            nodata=IGNORE_INDEX,
            compress="deflate",
            tiled=True,
            blockxsize=block,
            blockysize=block,
            BIGTIFF="IF_SAFER",
            **raster.georeference,
        )
    file.write_colormap(1, {**dict(enumerate(classes.palette)), IGNORE_INDEX: IGNORED_COLOR})
    file.update_tags(1, **{f"class_{index}": name for index, name in enumerate(classes.names)})
    return file


def _check_written(partial: Path, sums: list[tuple[Region, int]]) -> None:
    """Read the labels again, because rasterio does not report errors that occur when it closes a file."""
    import rasterio

    with _writing(partial), georeference_optional(), rasterio.open(partial) as file:
        for region, expected in sums:
            if zlib.crc32(file.read(1, window=window(region)).tobytes()) != expected:
                raise _incomplete(partial, "the labels that were read again differ")


def _writing(partial: Path) -> AbstractContextManager[None]:
    """Name the file of the labels in the errors of rasterio within the block."""
    return raster_errors(lambda reason: _incomplete(partial, reason))


def _incomplete(partial: Path, reason: str) -> OSError:
    return OSError(
        f"The labels cannot be written completely to {partial.parent}: {reason}. Check whether the disk is full, or "
        "choose another disk."
    )


def _with_names(stored: str, classes: Classes) -> str:
    """Add the names of the classes to the text of a file .aux.xml of GDAL."""
    names = "".join(f"      <Category>{escape(name)}</Category>\n" for name in classes.names)
    element = f'  <PAMRasterBand band="1">\n    <CategoryNames>\n{names}    </CategoryNames>\n  </PAMRasterBand>\n'
    return stored.replace("</PAMDataset>", f"{element}</PAMDataset>")
