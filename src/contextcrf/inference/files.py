"""Pictures in, label files out: the `predict` command."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track
from torch import Tensor

from contextcrf.data.dataset import IMAGE_SUFFIXES
from contextcrf.data.images import DECODING_ERRORS, read_picture
from contextcrf.evaluation.figures import index_png, overlay
from contextcrf.inference.tiling import Tiles, label
from contextcrf.inference.tta import ONE_VIEW, Views
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import fingerprint
from contextcrf.utils.errors import DataError
from contextcrf.utils.locks import claim

_NOTE = "predict.json"
_STRIPE = 1024


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


@dataclass(frozen=True)
class Look:
    """How pictures are labeled, and drawn.

    Args:
        dense, views: as for `ContextCRF.segment`.
        tiles: for large pictures.
        opacity: of the colors in overlays.
    """

    dense: bool = False
    views: Views = ONE_VIEW
    tiles: Tiles = field(default_factory=Tiles)
    opacity: float = 0.5


def predict_files(
    model: ContextCRF,
    files: Sequence[Path],
    out: Path,
    look: Look | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Outcome:
    """Write `STEM.png` (palette PNG of labels) and `STEM_overlay.png` for every file.

    A file that cannot be read is noted and does not stop the others. Each result is written whole or not at all.

    Args:
        look: how.
        resume: leave out the files whose labels are there; and those that another process, which resumes too, is at.

    Raises:
        DataError: what `plan_outputs` finds; or, to resume, results that were made in another way.
    """
    look = look or Look()
    planned = plan_outputs(files, out)
    if not resume:
        # What is left of them must not be taken for this model's, should this run be stopped and resumed.
        for labels, _ in planned:
            labels.unlink(missing_ok=True)
    _same_way(out, _way(model, look), [labels for labels, _ in planned])
    outcome = Outcome()
    todo = [(path, outputs) for path, outputs in zip(files, planned, strict=True) if not outputs[0].exists()]
    for path, (labels, drawn) in track(todo, "predict", disable=not progress):
        with claim(labels) if resume else nullcontext(True) as mine:
            if not mine:
                continue
            try:
                image = read_picture(path)
            except DECODING_ERRORS as error:
                outcome.failed.append((path, str(error)))
                continue
            found = label(model, image, look.dense, look.views, look.tiles, progress)
            _write(_overlay(image, found, model, look.opacity), drawn)
            _write(index_png(found, model.classes.palette), labels)  # last: it says that the picture is done
            outcome.written += [labels, drawn]
    return outcome


def _way(model: ContextCRF, look: Look) -> dict[str, Any]:
    """What decides the labels, as plain values."""
    return json.loads(json.dumps({"model": fingerprint(model), **asdict(look)}))


def _same_way(out: Path, way: dict[str, Any], results: Sequence[Path]) -> None:
    """Note in OUT how its results are made; DataError if some of `results` are there and were made otherwise."""
    path = out / _NOTE
    if any(result.exists() for result in results):
        before = json.loads(path.read_text()) if path.exists() else {}
        for key, value in way.items():
            if before.get(key) != value:
                raise DataError(
                    f"{out}: its labels were made with {key} {before.get(key)}, not {value}; choose another --out, or "
                    "do not resume"
                )
    out.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    unfinished.write_text(json.dumps(way, indent=1) + "\n")
    unfinished.rename(path)


def _overlay(pixels: Tensor, labels: Tensor, model: ContextCRF, opacity: float) -> Image.Image:
    """In stripes: of a large picture no more than one copy is made."""
    result = Image.new("RGB", (pixels.shape[2], pixels.shape[1]))
    for top in range(0, pixels.shape[1], _STRIPE):
        rows = slice(top, top + _STRIPE)
        stripe = Image.fromarray(pixels[:, rows].permute(1, 2, 0).contiguous().numpy())
        result.paste(overlay(stripe, labels[rows], model.classes.palette, opacity), (0, top))
    return result


def _write(image: Image.Image, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    image.save(unfinished, "PNG")
    unfinished.rename(path)
