"""Using models."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from contextcrf.data.preparation import device


def predict(
    model: str,
    images: list[Path],
    out: Path,
    opacity: float = 0.5,
    dense: bool = False,
    scales: list[float] = [1.0],  # noqa: B006 - read by the command line, never changed
    flip: bool = False,
    tile: int = 1536,
    resume: bool = False,
) -> None:
    """Label images: OUT/STEM.png (palette PNG) and OUT/STEM_overlay.png for each; exit status 1 if any failed.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        images: files and folders.
        out: folder for the results.
        opacity: of the colors in the overlays.
        dense: run the dense CRF behind the model, with the parameters that `tune --dense true` wrote into it.
        scales: average the marginals of each image at these scales.
        flip: and of the mirrored image.
        tile: side in pixels of the tiles, seen with a margin of 256, in which pictures of more than 16 megapixels are
            labeled.
        resume: leave out pictures whose labels are in OUT already; several processes with the same command share the
            work.
    """
    from contextcrf.inference.files import Look, find_files, plan_outputs, predict_files
    from contextcrf.inference.tiling import Tiles
    from contextcrf.inference.tta import Views
    from contextcrf.modeling.serialization import load

    look = Look(dense, Views(scales, flip), Tiles(tile), opacity)
    files = find_files(images)
    plan_outputs(files, out)  # a clash is told before the model is loaded
    outcome = predict_files(load(model).to(device()), files, out, look, resume)
    _report(len(files), outcome, "images labeled", out)


def explain(
    model: str, image: Path, row: int, column: int, out: Path, strengths: dict[str, float | None] | None = None
) -> None:
    """Draw which neighbors push one pixel to its label and which away from it.

    Args:
        model: trained model with pairwise potentials: a folder, or the name of a bundled one.
        image: the picture.
        row: of the pixel, from the top.
        column: of the pixel, from the left.
        out: PNG to write: the labels, then for each relation the neighbors, red for the label and blue for the
            runner-up.
        strengths: of the relations, in place of the model's, as in '{"above": 1}': what they would say where tuning
            found it better not to listen to them.
    """
    from contextcrf.data.images import DECODING_ERRORS, read_picture
    from contextcrf.evaluation.report import draw_explanation
    from contextcrf.modeling.serialization import load

    network = load(model).to(device())
    if not network.pairwise:
        raise ValueError(f"{model}: the model has no pairwise potential to explain")
    network.config = replace(network.config, strengths={**network.config.strengths, **(strengths or {})})
    try:
        pixels = read_picture(image)
    except DECODING_ERRORS as error:
        raise ValueError(f"{image}: could not be read: {error}") from error
    picture = draw_explanation(network, pixels, (row, column))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    print(f"written to {out}")


def refine(
    maps: list[Path],
    images: Path,
    out: Path,
    kind: Literal["probabilities", "logits"] = "probabilities",
    classes: Path | None = None,
    num_classes: int | None = None,
    confidence: float = 0.7,
    void: int | None = None,
    spatial_sxy: float = 3,
    spatial_compat: float = 3,
    bilateral_sxy: float = 80,
    bilateral_srgb: float = 13,
    bilateral_compat: float = 10,
    iterations: int = 10,
    marginals: bool = False,
) -> None:
    """Refine the maps of any network with the dense CRF: OUT/STEM.png for each; exit status 1 if any failed.

    Args:
        maps: files or folders: .npy or .npz with floating [K, H, W], or .png label maps.
        images: folder with an image of the same stem for each.
        out: folder to write to.
        kind: what the numbers of .npy and .npz files are.
        classes: a classes.yaml with names and colors.
        num_classes: K of label maps, where there is no classes.yaml.
        confidence: the probability that a label of a label map is right.
        void: the value of a label map that means "unknown"; if null that of classes.yaml, 255 without one.
        spatial_sxy: standard deviation of the spatial kernel, pixels.
        spatial_compat: its weight.
        bilateral_sxy: standard deviation of the bilateral kernel in the image plane, pixels.
        bilateral_srgb: the same in color, in units of 0..255.
        bilateral_compat: its weight.
        iterations: of mean field.
        marginals: also write OUT/STEM.npy, float32 [K, H, W].
    """
    from contextcrf.crf import DenseCRF
    from contextcrf.data.classes import IGNORE_INDEX, Classes
    from contextcrf.inference.files import find_files
    from contextcrf.inference.refinement import MAP_SUFFIXES, NO_COUNT, Maps, pair_up, refine_files

    known = None
    if classes is not None:
        known, stored = Classes.from_yaml(classes)
        if void not in (None, stored):
            raise ValueError(f"--void {void}: {classes} has ignore_index {stored}; expected one of the two")
        void = stored
    crf = DenseCRF(spatial_sxy, spatial_compat, bilateral_sxy, bilateral_srgb, bilateral_compat, iterations)
    pairs = pair_up(find_files(maps, MAP_SUFFIXES, "maps"), images)
    labels = [path for path, _ in pairs if path.suffix.lower() == ".png"]
    if len(labels) == len(pairs) and known is None and num_classes is None:
        raise ValueError(f"{labels[0]}: {NO_COUNT}")
    reading = Maps(kind, known, num_classes, confidence, IGNORE_INDEX if void is None else void)
    outcome = refine_files(pairs, crf.to(device()), reading, out, marginals, device())
    _report(len(pairs), outcome, "maps refined", out)


def voc_submission(
    model: str,
    root: Path,
    out: Path,
    split: str = "test",
    competition: Literal["comp5", "comp6"] = "comp6",
    dense: bool = False,
    scales: list[float] = [1.0],  # noqa: B006 - read by the command line, never changed
    flip: bool = False,
) -> None:
    """Label a split of PASCAL VOC 2012 into an archive that its evaluation server takes.

    Args:
        model: trained model of VOC's classes.
        root: folder of, or above, the development kit with the images of the split.
        out: the archive, .tgz.
        split: "test", or "val" to try it.
        competition: comp5 for networks that have seen VOC's own masks only, comp6 for all others.
        dense: run the dense CRF behind the model.
        scales: average the marginals of each image at these scales.
        flip: and of the mirrored image.
    """
    from contextcrf.inference.tta import Views
    from contextcrf.inference.voc_submission import write_submission
    from contextcrf.modeling.serialization import load

    views = Views(scales, flip)
    count = write_submission(load(model).to(device()), root, out, split, competition, dense, views=views)
    print(f"{count} images of {split} labeled, written to {out}")


def demo(
    model: str = "camvid",
    port: int = 7860,
    max_mb: float = 10,
    max_pixels: int = 50_000_000,
    side: int = 640,
    seconds: float = 60,
    browser: bool = True,
) -> None:
    """A web page on this machine: drop a picture, move sliders, click a pixel to see who voted for its label.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        port: of 127.0.0.1, where the page is; 0 takes a free one.
        max_mb: size of the largest file it takes, megabytes.
        max_pixels: width times height of the largest picture it decodes.
        side: pictures are shrunk to this longer side, px.
        seconds: that one computation may take.
        browser: open a window on it.
    """
    if find_spec("gradio") is None:
        raise ValueError('the page needs gradio: pip install "contextcrf[demo]"')
    from contextcrf.modeling.serialization import load
    from contextcrf.webapp.limits import Limits
    from contextcrf.webapp.server import serve
    from contextcrf.webapp.session import Session

    limits = Limits(max_mb, max_pixels, side, seconds)
    serve(Session(load(model).to(device()), limits), model, port, browser)


def tour(out: Path = Path("tour"), epochs: int = 20, train_images: int = 160, val_images: int = 40) -> None:
    """The whole way on scenes that are drawn here: draw, train, tune, evaluate, pictures. A few minutes.

    Args:
        out: folder for everything it makes; what an earlier tour left there is replaced.
        epochs: of training.
        train_images: scenes to train on.
        val_images: scenes to evaluate on.
    """
    from contextcrf.cli.quickstart import run

    run(out, epochs, train_images, val_images)


def _report(count: int, outcome: Any, done: str, out: Path) -> None:
    print(f"{count - len(outcome.failed)} of {count} {done}, written to {out}")
    if outcome.failed:
        for path, reason in outcome.failed:
            print(f"could not be read: {path}: {reason}", file=sys.stderr)
        raise SystemExit(1)
