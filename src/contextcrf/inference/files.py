"""Prediction of image files, with the labels written to files: the command `predict`."""

import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from contextcrf.crf.checks import whole_number
from contextcrf.data.classes import Classes
from contextcrf.data.georeference import is_georeferenced
from contextcrf.data.images import read_image, to_picture
from contextcrf.data.layouts import IMAGE_SUFFIXES, list_images
from contextcrf.data.pairing import OTHER_SUFFIXES
from contextcrf.data.raster import check_support
from contextcrf.data.visualization import index_png, legend_strip, overlay
from contextcrf.inference.predictor import Predictor
from contextcrf.inference.rasters import RASTER_SUFFIX, label_raster
from contextcrf.modeling.serialization import fingerprint
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import atomic_write
from contextcrf.utils.locks import claim
from contextcrf.utils.pipeline import Writer, read_ahead, same_key
from contextcrf.utils.progress import Task, task
from contextcrf.utils.provenance import Provenance

# The number of rows of an overlay that are drawn at once.
_STRIPE = 1024
# The width in pixels from which an overlay has a legend.
_LEGEND_WIDTH = 120

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The result of a command that processes several files.

    Attributes:
        written: the files that were written.
        failed: the files that could not be processed, each with a reason that names the file.

    Example:
        >>> outcome = Outcome(written=[Path("labels/photo.png")])
        >>> len(outcome.written), outcome.failed
        (1, [])
    """

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def find_files(inputs: Sequence[Path], suffixes: Sequence[str] = IMAGE_SUFFIXES, kind: str = "images") -> list[Path]:
    """Return the files in `inputs` and the files with the given suffixes in the folders in `inputs`.

    The order is the order of `inputs`. The files of a folder are sorted, and its subfolders are not searched.

    Args:
        inputs: files and folders.
        suffixes: the suffixes in lower case. By default, they are the suffixes of images.
        kind: the kind of files, which the errors name.

    Raises:
        DataError: If an input does not exist, or if a folder contains no file with one of the suffixes.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = list_images(path, suffixes)
            others = list_images(path, [suffix for suffix in OTHER_SUFFIXES if suffix not in suffixes])
            if others and kind == "images":
                logger.warning(
                    "%d files in %s are not labeled, because their format is not supported, such as %s. Convert them "
                    "to PNG.",
                    len(others),
                    path,
                    others[0].name,
                )
            if not found:
                inner = sorted({file.parent for file in path.rglob("*") if file.suffix.lower() in suffixes} - {path})
                hint = f" Subfolders are not searched. Give them too, such as {inner[0]}." if inner else ""
                raise DataError(
                    f"{path} contains no {kind}. Expected files with the suffixes {', '.join(suffixes)}.{hint}"
                )
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path} does not exist. Check the path of this file or folder.")
    return files


def plan_outputs(files: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Return the two output files of each image: the labels and the overlay.

    The labels of a georeferenced TIFF file are a TIFF file, and those of other images are a PNG file.

    Args:
        files: the images.
        out: the folder for the output files.

    Raises:
        DataError: If two images have the same output file, or if an output file would overwrite an image. Also if an
            image is georeferenced, but rasterio is not installed.
    """
    planned = [(out / f"{path.stem}{_labels_suffix(path)}", out / f"{path.stem}_overlay.png") for path in files]
    sources = {path.resolve() for path in files}
    owner: dict[Path, Path] = {}
    for path, outputs in zip(files, planned, strict=True):
        for output in outputs:
            if output.resolve() in sources:
                raise DataError(f"The result {output} of {path} would overwrite an image. Choose another --out.")
            if output in owner:
                raise DataError(
                    f"The results of {owner[output]} and {path} would both be written to {output}. Rename one of "
                    "the images."
                )
            owner[output] = path
    return planned


def prepare_labels(labels: Sequence[Path], out: Path, provenance: Provenance, resume: bool) -> None:
    """Remove the label files of an earlier run, or check that they may be kept, and record the settings in `out`.

    Args:
        labels: the label files of this run. They are kept if `resume` is true, and removed otherwise.
        out: the folder of the label files, which is created if necessary.
        provenance: the settings of this run.
        resume: whether the run continues an earlier run, or shares its work with other processes.

    Raises:
        DataError: With `resume`, if the folder has the record of a run with other settings, or label files without a
            record.

    Example:
        >>> labels, settings = Path("flipped/photo.png"), Provenance.of(flip=True)
        >>> prepare_labels([labels], labels.parent, settings, resume=True)
        >>> Provenance.read(labels.parent) == settings
        True
    """
    if not resume:
        # If this run is stopped and resumed, labels of an earlier run must not be mistaken for labels of this run.
        for path in labels:
            path.unlink(missing_ok=True)
    # A process with other settings may have recorded them, but not have written its first labels.
    started = Provenance.read(out) is not None or any(path.exists() for path in labels)
    if resume and started and (mismatch := provenance.mismatch(out)):
        raise DataError(f"The labels in {out} were made {mismatch}. Choose another --out, or omit --resume.")
    provenance.write(out)


def predict_files(
    predictor: Predictor,
    files: Sequence[Path],
    out: Path,
    opacity: float = 0.5,
    resume: bool = False,
    batch_size: int | None = None,
) -> Outcome:
    """Write `STEM.png` (the labels as a palette PNG) and `STEM_overlay.png` for every image.

    Below the overlay is a legend of the classes that occur, if the image is at least 120 pixels wide. The labels of a
    georeferenced TIFF file are written to `STEM.tif`, and its overlay is reduced, as `label_raster` describes. The next
    image is read and the results of earlier images are written while the network computes.

    If an image cannot be read or labeled, it is listed in the outcome with the reason, and the other images are
    processed. An interrupted command leaves no incomplete files.

    Args:
        predictor: the predictor.
        files: the images.
        out: the folder for the results, which is created if necessary.
        opacity: the opacity of the colors in the overlays, from 0 to 1.
        resume: skip images whose labels exist, and images that another process with `resume` is processing.
        batch_size: the largest number of images that the network processes at once. Only consecutive images of one size
            are processed together. None is 8 on an accelerator, and 1 on the CPU, where batches are not faster.

    Returns:
        The files that were written, and the images that could not be read or labeled.

    Raises:
        DataError: As for `plan_outputs`. With `resume`, also if the existing labels were made with another model or
            other settings.
        ValueError: If the opacity is not in 0..1, or if the batch size is less than 1.

    Example:
        >>> from contextcrf import load
        >>> Image.new("RGB", (64, 48)).save("photo.png")
        >>> outcome = predict_files(Predictor(load("camvid")), [Path("photo.png")], Path("labels"))
        >>> [path.name for path in outcome.written]
        ['photo.png', 'photo_overlay.png']
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"The opacity is {opacity}, but a value from 0 to 1 is expected.")
    batch_size = predictor.images_at_once if batch_size is None else whole_number("batch_size", batch_size, 1)
    planned = plan_outputs(files, out)
    provenance = Provenance.of(model=fingerprint(predictor.model), inference=predictor.inference, opacity=opacity)
    prepare_labels([labels for labels, _ in planned], out, provenance, resume)
    missing = [_File(path, *outputs) for path, outputs in zip(files, planned, strict=True) if not outputs[0].exists()]
    with task("Labeling images", len(missing)) as running:
        return _Labeling(predictor, opacity, running).run(missing, resume, batch_size)


@dataclass(eq=False)
class _File:
    """An image file, its two output files, and the claim that keeps other processes from processing it."""

    path: Path
    labels: Path
    overlay: Path
    claim: ExitStack = field(default_factory=ExitStack)


# A file with its image, or with None if its tiles are read one after another.
_Read = tuple[_File, Tensor | None]


class _Labeling:
    """The labeling of image files, in which reading and writing overlap with the computation."""

    def __init__(self, predictor: Predictor, opacity: float, running: Task) -> None:
        self.predictor, self.opacity, self.running = predictor, opacity, running
        self.outcome = Outcome()

    def run(self, missing: Sequence[_File], resume: bool, batch_size: int) -> Outcome:
        """Label files in batches of images of one size."""
        try:
            with Writer() as writer:
                for batch in same_key(self._read(self._claimed(missing, resume)), self._size, batch_size):
                    for file, image, labels in self._label(batch):
                        writer.submit(partial(self._write, file, image, labels), partial(self._written, file))
        finally:
            for file in missing:
                file.claim.close()
        return self.outcome

    def _claimed(self, files: Iterable[_File], resume: bool) -> Iterator[_File]:
        for file in files:
            if not resume or file.claim.enter_context(claim(file.labels)):
                yield file
            else:
                self._finish(file)

    def _read(self, files: Iterable[_File]) -> Iterator[_Read]:
        image_format = self.predictor.model.image_format

        def read(file: _File) -> Tensor | None:
            return None if file.labels.suffix == RASTER_SUFFIX else read_image(file.path, image_format)

        for file, image in read_ahead(files, read):
            try:
                yield file, image.result()
            except DataError as error:
                self._fail(file, str(error))

    def _size(self, read: _Read) -> tuple[int, ...] | None:
        image = read[1]
        return None if image is None or self.predictor.needs_tiles(*image.shape[1:]) else tuple(image.shape)

    def _label(self, batch: Sequence[_Read]) -> Iterator[tuple[_File, Tensor, Tensor]]:
        """Yield the files, images and labels of a batch. A georeferenced file is written here."""
        images = [image for _, image in batch if image is not None]
        if len(batch) > 1:
            try:
                found = self.predictor.label_batch(torch.stack(images))
            except (ValueError, RuntimeError) as error:
                # The memory may suffice for one image. If the cause is another one, it is reported for each image.
                logger.warning(
                    "%d images at once cannot be labeled (%s). They are labeled one by one. If the memory is short, "
                    "choose a smaller --batch-size.",
                    len(batch),
                    " ".join(str(error).split()),
                )
            else:
                yield from zip((file for file, _ in batch), images, found, strict=True)
                return
        for file, image in batch:
            if image is None:
                self._label_raster(file)
            elif (labels := self._label_one(file, image)) is not None:
                yield file, image, labels

    def _label_raster(self, file: _File) -> None:
        draw = partial(_draw, path=file.overlay, classes=self.predictor.model.classes, opacity=self.opacity)
        try:
            label_raster(self.predictor, file.path, file.labels, draw)
        except DataError as error:
            self._fail(file, str(error))
        else:
            self._written(file)

    def _label_one(self, file: _File, image: Tensor) -> Tensor | None:
        try:
            return self.predictor.label(image)
        except (ValueError, RuntimeError) as error:
            # Networks raise these errors for images that they do not take, and PyTorch if memory is short.
            size, reason = f"{image.shape[2]} x {image.shape[1]} pixels", " ".join(str(error).split())
            self._fail(file, f"{file.path} ({size}) cannot be labeled: {reason}")
            return None

    def _write(self, file: _File, image: Tensor, labels: Tensor) -> None:
        classes = self.predictor.model.classes
        _draw(image, labels, file.overlay, classes, self.opacity)
        # The labels are written last, because their existence marks the image as done.
        _save(index_png(labels, classes.palette), file.labels)

    def _written(self, file: _File) -> None:
        self.outcome.written += [file.labels, file.overlay]
        self._finish(file)

    def _fail(self, file: _File, reason: str) -> None:
        self.outcome.failed.append((file.path, reason))
        self._finish(file)

    def _finish(self, file: _File) -> None:
        file.claim.close()
        self.running.advance()


def _labels_suffix(path: Path) -> str:
    """Return the suffix of the labels of an image."""
    if not is_georeferenced(path):
        return ".png"
    check_support(path)
    return RASTER_SUFFIX


def _draw(image: Tensor, labels: Tensor, path: Path, classes: Classes, opacity: float) -> None:
    # The search for runs of equal bytes takes a fifth of the time of the usual search, and its files are 2% larger.
    _save(_overlay(image, labels, classes, opacity), path, strategy=zlib.Z_RLE)


def _overlay(image: Tensor, labels: Tensor, classes: Classes, opacity: float) -> Image.Image:
    """Draw the overlay of an image in stripes, so that a large image is copied only once, and a legend below it."""
    height, width = image.shape[1:]
    legend = legend_strip(width, classes, labels) if width >= _LEGEND_WIDTH else Image.new("RGB", (width, 0))
    result = Image.new("RGB", (width, height + legend.height))
    result.paste(legend, (0, height))
    for top in range(0, height, _STRIPE):
        rows = slice(top, top + _STRIPE)
        stripe = to_picture(image[:, rows])
        result.paste(overlay(stripe, labels[rows], classes.palette, opacity), (0, top))
    return result


def _save(image: Image.Image, path: Path, strategy: int = -1) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG", compress_type=strategy)
