"""Image files in, label files out: the `predict` command."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from contextcrf.data.classes import Color
from contextcrf.data.images import read_image, to_picture
from contextcrf.data.layouts import IMAGE_SUFFIXES, list_images
from contextcrf.data.visualization import index_png, overlay
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.serialization import fingerprint
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import atomic_write
from contextcrf.utils.locks import claim
from contextcrf.utils.progress import track
from contextcrf.utils.provenance import Provenance

# Rows of an overlay that are drawn at once.
_STRIPE = 1024


@dataclass
class Outcome:
    """The files that were written, and those that could not be read, each with a reason that names the file."""

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def find_files(inputs: Sequence[Path], suffixes: Sequence[str] = IMAGE_SUFFIXES, kind: str = "images") -> list[Path]:
    """The files among `inputs`, and those with some suffixes in the folders among them (not in sub-folders), sorted.

    Args:
        inputs: files and folders.
        suffixes: lower case; those of images by default.
        kind: the name of such files in errors.

    Raises:
        DataError: an input does not exist, or a folder holds no such file.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = list_images(path, suffixes)
            if not found:
                raise DataError(f"{path}: no {kind} in this folder; expected files {', '.join(suffixes)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    return files


def plan_outputs(files: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """The two files that are written for each image: labels and overlay.

    Raises:
        DataError: two images would be written to one file, or a file would be written over an image.
    """
    planned = [(out / f"{path.stem}.png", out / f"{path.stem}_overlay.png") for path in files]
    sources = {path.resolve() for path in files}
    owner: dict[Path, Path] = {}
    for path, outputs in zip(files, planned, strict=True):
        for output in outputs:
            if output.resolve() in sources:
                raise DataError(f"{path}: its result {output} would be written over an image; choose another --out")
            if output in owner:
                raise DataError(f"{owner[output]} and {path} would both be written as {output}; rename one")
            owner[output] = path
    return planned


def predict_files(
    predictor: Predictor, files: Sequence[Path], out: Path, opacity: float = 0.5, resume: bool = False
) -> Outcome:
    """Write `STEM.png` (palette PNG of labels) and `STEM_overlay.png` for every file.

    A file that cannot be read is noted and does not stop the others. Each result is written whole or not at all.

    Args:
        predictor: the model with its settings.
        files: the images.
        out: folder for the results, made if missing.
        opacity: of the colors in the overlays, 0..1.
        resume: skip the files whose labels exist, and those that another process, which resumes too, is working on.

    Raises:
        DataError: as `plan_outputs`; or, when resuming, the existing results were made by another model or with other
            settings.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity {opacity}: expected 0 to 1")
    planned = plan_outputs(files, out)
    if not resume:
        # Labels of an earlier run must not be taken for this model's when this run is stopped and resumed.
        for labels, _ in planned:
            labels.unlink(missing_ok=True)
    provenance = Provenance.of(model=fingerprint(predictor.model), inference=predictor.inference, opacity=opacity)
    if any(labels.exists() for labels, _ in planned) and (mismatch := provenance.mismatch(out)):
        raise DataError(f"{out}: its labels were made {mismatch}; choose another --out, or leave out --resume")
    provenance.write(out)
    outcome = Outcome()
    missing = [(path, outputs) for path, outputs in zip(files, planned, strict=True) if not outputs[0].exists()]
    palette = predictor.model.classes.palette
    for path, (labels, drawn) in track(missing, "predict"):
        with claim(labels) if resume else nullcontext(True) as mine:
            if not mine:
                continue
            try:
                image = read_image(path)
            except DataError as error:
                outcome.failed.append((path, str(error)))
                continue
            found = predictor.label(image)
            _write(_overlay(image, found, palette, opacity), drawn)
            _write(index_png(found, palette), labels)  # last: labels that exist mark the image as done
            outcome.written += [labels, drawn]
    return outcome


def _overlay(image: Tensor, labels: Tensor, palette: Sequence[Color], opacity: float) -> Image.Image:
    """The overlay of a picture of any size: drawn in stripes, so that one copy of it is made and no more."""
    result = Image.new("RGB", (image.shape[2], image.shape[1]))
    for top in range(0, image.shape[1], _STRIPE):
        rows = slice(top, top + _STRIPE)
        stripe = to_picture(image[:, rows])
        result.paste(overlay(stripe, labels[rows], palette, opacity), (0, top))
    return result


def _write(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as partial:
        image.save(partial, "PNG")
