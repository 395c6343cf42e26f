"""Commands that use models."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from contextcrf.inference.files import Outcome
    from contextcrf.inference.predictor import Predictor


def predict(
    model: str,
    images: list[Path],
    out: Path,
    opacity: float = 0.5,
    dense: bool = False,
    scales: list[float] | None = None,
    flip: bool = False,
    tile: int | None = None,
    resume: bool = False,
) -> None:
    """Label images: OUT/STEM.png (palette PNG) and OUT/STEM_overlay.png for each; exit status 1 if any failed.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        images: files and folders.
        out: folder for the results.
        opacity: of the colors in the overlays.
        dense: refine the labels with the dense CRF, with the parameters that `tune --dense` wrote into the model.
        scales: test-time augmentation: average the marginals of each image at these scales; the model's own if null.
        flip: test-time augmentation: average the marginals of the mirrored image too.
        tile: side of the tiles, pixels, in which large images are labeled; the model's own if null. Its settings
            `overlap` and `tile_above` are 256 pixels and 16 megapixels by default.
        resume: skip images whose labels are in OUT already; several processes with the same command share the work.
    """
    from contextcrf.inference.files import find_files, plan_outputs, predict_files

    files = find_files(images)
    plan_outputs(files, out)  # a clash is reported before the model is loaded
    outcome = predict_files(_predictor(model, dense, scales, flip, tile), files, out, opacity, resume)
    _report(len(files), outcome, "images labeled", out)


def explain(
    model: str, image: Path, row: int, column: int, out: Path, relation_weights: dict[str, float | None] | None = None
) -> None:
    """Draw the neighbors that raise or lower the score of one pixel's label.

    Args:
        model: trained model with pairwise potentials: a folder, or the name of a bundled one.
        image: the image.
        row: of the pixel, from the top.
        column: of the pixel, from the left.
        out: PNG to write: the labels, then for each relation the neighbors, red for the label and blue for the
            runner-up.
        relation_weights: in place of the model's, as in '{"above": 1}', to see the messages of relations whose weight
            is 0.
    """
    from dataclasses import replace

    from contextcrf.data.images import read_image
    from contextcrf.evaluation.report import draw_explanation
    from contextcrf.inference.predictor import Predictor
    from contextcrf.modeling.model import load
    from contextcrf.utils.files import atomic_write
    from contextcrf.utils.runtime import default_device

    network = load(model).to(default_device())
    if not network.pairwise:
        raise ValueError(f"{model}: the model has no pairwise potential to explain")
    weights = {**network.inference.relation_weights, **(relation_weights or {})}
    predictor = Predictor(network, replace(network.inference, relation_weights=weights))
    picture = draw_explanation(predictor, read_image(image), (row, column))
    with atomic_write(out) as partial:
        picture.save(partial)
    print(f"written to {out}")


def refine(
    maps: list[Path],
    images: Path,
    out: Path,
    kind: Literal["probabilities", "logits"] = "probabilities",
    classes: Path | None = None,
    num_classes: int | None = None,
    confidence: float = 0.7,
    ignore_index: int | None = None,
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
        kind: the meaning of the numbers of .npy and .npz files.
        classes: a classes.yaml with names and colors.
        num_classes: K of label maps, where there is no classes.yaml.
        confidence: the probability that a label of a label map is right.
        ignore_index: the value of a label map that means "unknown"; if null that of classes.yaml, 255 without one.
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
    from contextcrf.inference.refinement import MAP_SUFFIXES, NO_COUNT, MapFormat, match_maps, refine_files
    from contextcrf.utils.runtime import default_device

    known = None
    if classes is not None:
        known, stored = Classes.from_yaml(classes)
        if ignore_index not in (None, stored):
            raise ValueError(
                f"--ignore-index {ignore_index}: {classes} has ignore_index {stored}; expected one of the two"
            )
        ignore_index = stored
    crf = DenseCRF(spatial_sxy, spatial_compat, bilateral_sxy, bilateral_srgb, bilateral_compat, iterations)
    pairs = match_maps(find_files(maps, MAP_SUFFIXES, "maps"), images)
    labels = [path for path, _ in pairs if path.suffix.lower() == ".png"]
    if len(labels) == len(pairs) and known is None and num_classes is None:
        raise ValueError(f"{labels[0]}: {NO_COUNT}")
    value = IGNORE_INDEX if ignore_index is None else ignore_index
    formats, device = MapFormat(kind, known, num_classes, confidence, value), default_device()
    outcome = refine_files(pairs, crf.to(device), formats, out, marginals, device)
    _report(len(pairs), outcome, "maps refined", out)


def voc_submission(
    model: str,
    root: Path,
    out: Path,
    split: str = "test",
    competition: Literal["comp5", "comp6"] = "comp6",
    dense: bool = False,
    scales: list[float] | None = None,
    flip: bool = False,
) -> None:
    """Label a split of PASCAL VOC 2012 into an archive for its evaluation server.

    Args:
        model: trained model of VOC's classes.
        root: folder of, or above, the development kit with the images of the split.
        out: the archive, .tgz.
        split: "test", or "val" to try it.
        competition: comp5 for networks that were trained on VOC's own masks only, comp6 for all others.
        dense: refine the labels with the dense CRF.
        scales: test-time augmentation: average the marginals of each image at these scales; the model's own if null.
        flip: test-time augmentation: average the marginals of the mirrored image too.
    """
    from contextcrf.inference.voc_submission import write_submission

    count = write_submission(_predictor(model, dense, scales, flip), root, out, split, competition)
    print(f"{count} images of {split} labeled, written to {out}")


def demo(
    model: str = "camvid",
    port: int = 7860,
    max_mb: float = 10,
    max_pixels: int = 50_000_000,
    side: int = 640,
    seconds: float = 60,
    no_browser: bool = False,
) -> None:
    """Open a web page on this machine: drop an image, move sliders, click a pixel to see what decides its label.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        port: of 127.0.0.1, where the page is; 0 takes a free one.
        max_mb: size of the largest file it takes, megabytes.
        max_pixels: width times height of the largest image it decodes.
        side: images are shrunk to this longer side, px.
        seconds: limit of one computation.
        no_browser: do not open a window on the page.
    """
    if find_spec("gradio") is None:
        raise ValueError('the page needs gradio: pip install "contextcrf[demo]"')
    from contextcrf.modeling.model import load
    from contextcrf.utils.runtime import default_device
    from contextcrf.webapp.limits import Limits
    from contextcrf.webapp.server import serve
    from contextcrf.webapp.session import Session

    limits = Limits(max_mb, max_pixels, side, seconds)
    serve(Session(load(model).to(default_device()), limits), model, port, not no_browser)


def _predictor(model: str, dense: bool, scales: list[float] | None, flip: bool, tile: int | None = None) -> "Predictor":
    """The predictor of a saved model, with the options that were given in place of the model's own settings."""
    from dataclasses import replace

    from contextcrf.inference.predictor import Predictor
    from contextcrf.modeling.model import load
    from contextcrf.modeling.system import System
    from contextcrf.utils.runtime import default_device

    network = load(model).to(default_device())
    own = network.inference
    system = System.from_name(own.system)
    system = replace(system, dense=True) if dense else system
    settings = replace(
        own,
        system=system.name,
        scales=scales or own.scales,
        flip=flip or own.flip,
        tile=own.tile if tile is None else tile,
    )
    return Predictor(network, settings)


def _report(count: int, outcome: "Outcome", done: str, out: Path) -> None:
    print(f"{count - len(outcome.failed)} of {count} {done}, written to {out}")
    if outcome.failed:
        for _, reason in outcome.failed:
            print(reason, file=sys.stderr)
        raise SystemExit(1)
