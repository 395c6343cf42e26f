"""Pictures in, label files out: the `predict` command."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track

from contextcrf.data.dataset import IMAGE_SUFFIXES
from contextcrf.errors import DataError
from contextcrf.figures import index_png
from contextcrf.model import ContextCRF
from contextcrf.pixels import DECODING_ERRORS, read_picture
from contextcrf.views import ONE_VIEW, Views


@dataclass
class Outcome:
    """What became of the pictures: files written, and (file, reason) for those that could not be read."""

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def find_files(inputs: Sequence[Path], suffixes: Sequence[str] = IMAGE_SUFFIXES, what: str = "images") -> list[Path]:
    """The files among `inputs`, and those with some suffixes in the folders among them (not in sub-folders), sorted.

    Args:
        inputs: files and folders.
        suffixes: lower case; those of images by default.
        what: the name of such files in errors.

    Raises:
        DataError: an input does not exist, or a folder holds no such file.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
            if not found:
                raise DataError(f"{path}: no {what} in this folder; expected files {', '.join(suffixes)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    return files


def plan_outputs(files: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """The two files, labels and overlay, that each image becomes.

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
    model: ContextCRF,
    files: Sequence[Path],
    out: Path,
    opacity: float = 0.5,
    dense: bool = False,
    progress: bool = True,
    views: Views = ONE_VIEW,
) -> Outcome:
    """Write `STEM.png` (palette PNG of labels) and `STEM_overlay.png` for every file; `dense`, `views` as in `segment`.

    A file that cannot be read is noted and does not stop the others.
    """
    planned = plan_outputs(files, out)
    out.mkdir(parents=True, exist_ok=True)
    outcome = Outcome()
    for path, (labels, overlay) in track(list(zip(files, planned, strict=True)), "predict", disable=not progress):
        try:
            image = read_picture(path)
        except DECODING_ERRORS as error:
            outcome.failed.append((path, str(error)))
            continue
        segmentation = model.segment(image, dense=dense, views=views)
        index_png(segmentation.labels, model.classes.palette).save(labels)
        segmentation.overlay(opacity).save(overlay)
        outcome.written += [labels, overlay]
    return outcome
