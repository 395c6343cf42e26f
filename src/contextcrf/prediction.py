"""Pictures in, label files out: the `predict` command."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.progress import track

from contextcrf.data.dataset import IMAGE_SUFFIXES
from contextcrf.errors import DataError
from contextcrf.figures import index_png
from contextcrf.model import ContextCRF


@dataclass
class Outcome:
    """What became of the pictures: files written, and (file, reason) for those that could not be read."""

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """The files among `inputs`, and the images in the folders among them (not in sub-folders), sorted.

    Raises:
        DataError: an input does not exist, a folder holds no image, or two files share a stem and so an output.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DataError(f"{path}: no images in this folder; expected files {', '.join(IMAGE_SUFFIXES)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    stems: dict[str, Path] = {}
    for path in files:
        if path.stem in stems:
            raise DataError(f"{stems[path.stem]} and {path} would both be written as {path.stem}.png; rename one")
        stems[path.stem] = path
    return files


def predict_files(
    model: ContextCRF, files: Sequence[Path], out: Path, opacity: float = 0.5, progress: bool = True
) -> Outcome:
    """Write `STEM.png` (palette PNG of labels) and `STEM_overlay.png` for every file.

    A file that cannot be read is noted and does not stop the others.
    """
    out.mkdir(parents=True, exist_ok=True)
    outcome = Outcome()
    for path in _tracked(files, progress):
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        # Pillow's words for damaged data: OSError in general, SyntaxError for broken PNG chunks, ValueError for sizes.
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            outcome.failed.append((path, str(error)))
            continue
        segmentation = model.segment(image)
        labels, overlay = out / f"{path.stem}.png", out / f"{path.stem}_overlay.png"
        index_png(segmentation.labels, model.classes.palette).save(labels)
        segmentation.overlay(opacity).save(overlay)
        outcome.written += [labels, overlay]
    return outcome


def _tracked(files: Sequence[Path], progress: bool) -> Iterator[Path]:
    return iter(track(files, "predict", disable=not progress))
