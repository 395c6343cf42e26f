"""Commands that predict with models and explain or refine predictions."""

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

if TYPE_CHECKING:
    from contextcrf.inference.files import Outcome
    from contextcrf.inference.predictor import Predictor

logger = logging.getLogger(__name__)

# A larger share of changed labels is a reason to doubt the parameters of `refine`, and these are the way out.
_MUCH = 0.1
_GENTLE = "--spatial-compat 0 --bilateral-sxy 30 --bilateral-srgb 5 --bilateral-compat 2"


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
    batch_size: int | None = None,
) -> None:
    """Predict the labels of images and write them as PNG files, or as georeferenced TIFF files, with overlays.

    For each image, the command writes OUT/STEM.png, a palette PNG with the predicted labels, and OUT/STEM_overlay.png,
    the image with the colors of the labels and a legend. The labels of a georeferenced TIFF file are OUT/STEM.tif, with
    the same CRS and transform; this needs pip install "contextcrf[geo]". An image that cannot be read does not stop the
    command, but the exit status is then 1.

    Args:
        model: Trained model: a folder, or the name of a bundled model.
        images: Images, and folders of images. The subfolders of a folder are not searched.
        out: Folder for the results. It must not be one of the folders in IMAGES.
        opacity: Opacity of the colors in the overlays, from 0 to 1.
        dense: Refine the labels with the dense CRF and the parameters that `tune --dense` wrote to the model.
        scales: Factors of the image size in test-time augmentation. The marginals of all sizes are averaged. If null,
            the factors of the model are used.
        flip: Average the marginals of the image and the mirrored image (test-time augmentation).
        tile: Side in pixels of the tiles into which large images are divided. If null, the value of the model is used.
            By default, images above 2.1 megapixels are large, and the overlap of the tiles is 128 pixels.
        resume: Skip the images whose labels exist in OUT. Several processes with the same command share the work.
        batch_size: Largest number of images that the network processes at once. Only consecutive images of one size are
            processed together. If null, it is 8 on a GPU and 1 on the CPU.

    Example:
        contextcrf predict camvid photo.jpg --out labels
        contextcrf predict runs/heads photos --out labels --dense --resume
    """
    from contextcrf.data.pairing import DATA_SUFFIXES
    from contextcrf.inference.files import find_files, plan_outputs, predict_files

    _check_outside(out, images)
    files = find_files(images, DATA_SUFFIXES)
    # Arrays beside images are seldom images, for example marginals that `refine` wrote.
    arrays = [path for path in files if path.suffix.lower() == ".npy" and path not in images]
    if arrays and len(arrays) < len(files):
        logger.warning("%d arrays beside images are not labeled, such as %s. Give their paths.", len(arrays), arrays[0])
        files = [path for path in files if path not in arrays]
    plan_outputs(files, out)  # conflicts of file names are reported before the model is loaded
    outcome = predict_files(_predictor(model, dense, scales, flip, tile), files, out, opacity, resume, batch_size)
    _report(len(files), outcome, "images labeled", out)


def explain(
    model: str, image: Path, row: int, column: int, out: Path, relation_weights: dict[str, float | None] | None = None
) -> None:
    """Draw the messages of the neighbors that raise or lower the score of a pixel's label.

    The figure shows the predicted labels, and for each relation a map of the neighbors. Neighbors in red raise the
    score of the label relative to the second most probable class, and neighbors in blue lower it.

    Args:
        model: Trained model with pairwise potentials: a folder, or the name of a bundled model.
        image: Image file.
        row: Row of the pixel, counted from 0 at the top.
        column: Column of the pixel, counted from 0 at the left.
        out: Image file to write, with a suffix such as .png.
        relation_weights: Relation weights that replace those of the model, as in '{"above": 1}'. Use them to see the
            messages of a relation whose weight in the model is 0. If null, the weights of the model are used.

    Example:
        contextcrf explain runs/heads photo.jpg --row 120 --column 300 --out why.png
        contextcrf explain camvid photo.jpg --row 120 --column 300 --out why.png --relation-weights '{"above": 1}'
    """
    from dataclasses import replace

    from contextcrf.data.images import read_image
    from contextcrf.evaluation.report import draw_explanation
    from contextcrf.inference.predictor import Predictor
    from contextcrf.modeling.model import load
    from contextcrf.utils.files import atomic_write
    from contextcrf.utils.runtime import default_device

    _check_picture(out)
    network = load(model).to(default_device())
    if not network.pairwise:
        raise ValueError(
            f"{model} has no pairwise potentials, so there are no messages to draw. Use a model with relations."
        )
    weights = {**network.inference.relation_weights, **(relation_weights or {})}
    predictor = Predictor(network, replace(network.inference, relation_weights=weights))
    picture = draw_explanation(predictor, read_image(image, network.image_format), (row, column))
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
    bilateral_srgb: float | list[float] = 13,
    bilateral_compat: float = 10,
    iterations: int = 10,
    marginals: bool = False,
    layout: Literal["khw", "hwk", "hw"] | None = None,
    resize: bool = False,
    foreground: int | None = None,
    image_format: Path | None = None,
    resume: bool = False,
    tile: int | None = None,
) -> None:
    """Refine the probabilities, logits or labels of any network with the dense CRF.

    The command writes the refined labels of each map to OUT/STEM.png. It prints how the maps were read and the share of
    the pixels whose label was changed. A map that cannot be read does not stop the command, but the exit status is then
    1.

    Args:
        maps: Maps, and folders of maps: .png files with labels, or .npy or .npz files with an array. The array is
            [K, H, W] or [H, W, K] for all classes, or [H, W] for the foreground. It is floating-point, or uint8 for
            probabilities in 0..255.
        images: Folder with an image of the same stem for each map.
        out: Folder for the results.
        kind: Meaning of the values in .npy and .npz files.
        classes: File classes.yaml with the names and colors of the classes. If null, --num-classes gives their number.
        num_classes: Number of classes K of .png maps. If null, it is the number of classes in --classes.
        confidence: Probability that a label of a .png map is correct.
        ignore_index: Value of unknown pixels in .png maps. If null, it is the value in --classes, or 255 without this
            file. Maps with only 0 and 255 need this option or --foreground.
        spatial_sxy: Standard deviation of the spatial kernel in pixels.
        spatial_compat: Weight of the spatial kernel.
        bilateral_sxy: Standard deviation of the bilateral kernel in pixels.
        bilateral_srgb: Standard deviation of the bilateral kernel in color values of 0..255, or a list with one for
            each channel.
        bilateral_compat: Weight of the bilateral kernel.
        iterations: Number of mean-field iterations.
        marginals: Also write the marginals to OUT/STEM.npy, float32 [K, H, W].
        layout: Axes of .npy and .npz files: khw for [K, H, W], hwk for [H, W, K], hw for the foreground. If null, the
            size of the image and the sums of probabilities decide.
        resize: Resize maps to the size of the image, labels without interpolation and other maps bilinearly.
        foreground: Value of the foreground in .png maps of two classes, such as 255. The background is 0.
        image_format: File images.yaml with the channels and the range of images that are not RGB.
        resume: Skip the maps whose refined labels exist in OUT. Several processes with the same command share the work.
            The share of the changed pixels then covers only the maps of this process.
        tile: Side in pixels of the tiles into which maps of more than 8 megapixels are divided. If null, it is 1024. 0
            divides no map, which takes about 0.5 GB for each megapixel.

    Example:
        contextcrf refine maps --images photos --out refined
        contextcrf refine labels --images photos --out refined --num-classes 21 --confidence 0.8
        contextcrf refine masks --images photos --out refined --foreground 255
    """
    from contextcrf.crf import DenseCRF
    from contextcrf.data.classes_file import ClassesFile
    from contextcrf.data.image_format import RGB, ImageFormat
    from contextcrf.inference.files import find_files
    from contextcrf.inference.refinement import MAP_SUFFIXES, MapFormat, match_maps, refine_files
    from contextcrf.utils.runtime import default_device

    file = None if classes is None else ClassesFile.read(classes)
    if file is not None and ignore_index is not None and ignore_index not in file.mask_format.ignore_values:
        stored = ", ".join(map(str, file.mask_format.ignore_values)) or "null"
        raise ValueError(
            f"--ignore-index is {ignore_index}, but {classes} has the ignore_index {stored}. Remove the option, or "
            "change the file."
        )
    formats = MapFormat(
        kind,
        None if file is None else file.classes,
        num_classes,
        confidence,
        ignore_index,
        None if file is None else file.mask_format,
        foreground,
        layout,
        resize,
    )
    crf = DenseCRF(spatial_sxy, spatial_compat, bilateral_sxy, bilateral_srgb, bilateral_compat, iterations)
    pairs = match_maps(find_files(maps, MAP_SUFFIXES, "maps"), images)
    device = default_device()
    read_as = RGB if image_format is None else ImageFormat.read_file(image_format)
    outcome = refine_files(pairs, crf.to(device), formats, out, marginals, device, read_as, resume, tile)
    for reading, count in outcome.readings.items():
        print(f"{count} map{'s' if count > 1 else ''} read as {reading}")
    if outcome.pixels:
        print(f"{100 * outcome.share:.1f} % of the labeled pixels changed their label")
    if outcome.share > _MUCH:
        logger.warning(
            "The dense CRF changed more than %.0f %% of the labels, which is seldom right for the maps of a modern "
            "network. Compare with gentle parameters: %s.",
            100 * _MUCH,
            _GENTLE,
        )
    for image in outcome.dark:
        logger.warning(
            "%s is almost black, with no value above 2. If it was saved from values in 0..1, save it with values in "
            "0..255.",
            image,
        )
    _report(len(pairs), outcome, "maps refined", out)


def tune_refine(
    maps: list[Path],
    images: Path,
    masks: Path,
    classes: Path | None = None,
    num_classes: int | None = None,
    kind: Literal["probabilities", "logits"] = "probabilities",
    layout: Literal["khw", "hwk", "hw"] | None = None,
    resize: bool = False,
    confidence: float = 0.7,
    image_format: Path | None = None,
    limit: int = 100,
) -> None:
    """Tune the options of `refine` for the maps of any network, on images with masks.

    The command prints the mean IoU of each dense CRF and its gain with a 95% confidence interval. It ends with the
    options of the best one for `refine`, or with the advice not to refine the maps if no interval is above 0. Use
    images that the network was not trained on, and do not report results on them.

    Args:
        maps: Maps, and folders of maps, as for `refine`.
        images: Folder with an image of the same stem for each map.
        masks: Folder with a mask of the same stem for each map.
        classes: File classes.yaml with the names of the classes and the values or colors of the masks.
        num_classes: Number of classes K, without the file classes.yaml. The values of the masks are then the class
            indices, and 255 for unlabeled pixels.
        kind: Meaning of the values in .npy and .npz files.
        layout: Axes of .npy and .npz files, as for `refine`.
        resize: Resize maps to the size of the image.
        confidence: Probability that a label of a .png map is correct.
        image_format: File images.yaml with the channels and the range of images that are not RGB.
        limit: Largest number of maps, at least 2, which are spread evenly over all maps.

    Example:
        contextcrf tune-refine maps --images photos --masks masks --classes data/classes.yaml
        contextcrf tune-refine maps --images photos --masks masks --num-classes 21 --limit 30
    """
    from contextcrf.cli.trials import print_trials
    from contextcrf.data.classes import Classes, voc_palette
    from contextcrf.data.classes_file import ClassesFile
    from contextcrf.data.dataset import SegmentationDataset
    from contextcrf.data.image_format import RGB, ImageFormat
    from contextcrf.data.pairing import files_by_stem
    from contextcrf.data.validation import check_dataset
    from contextcrf.evaluation.map_tuning import tune_maps
    from contextcrf.evaluation.tuning import reliable_trial
    from contextcrf.inference.files import find_files
    from contextcrf.inference.refinement import MAP_SUFFIXES, MapFormat, match_maps
    from contextcrf.utils.errors import DataError
    from contextcrf.utils.runtime import default_device

    if limit < 2:
        raise ValueError(f"--limit is {limit}, but at least 2 maps are needed for an interval of the gain.")
    if (classes is None) == (num_classes is None):
        raise ValueError("Give either --classes or --num-classes, so that the values of the masks have a meaning.")
    if classes is not None:
        file = ClassesFile.read(classes)
        named, mask_format = file.classes, file.mask_format
    else:
        count = num_classes or 0
        named, mask_format = Classes(tuple(f"class {k}" for k in range(count)), voc_palette(count)), None
    pairs = match_maps(find_files(maps, MAP_SUFFIXES, "maps"), images)
    used = min(limit, len(pairs))
    pairs = [pairs[i * len(pairs) // used] for i in range(used)]
    truths = {path.stem: path for path in files_by_stem(masks, "masks").values()}
    if missing := [path for path, _ in pairs if path.stem not in truths]:
        raise DataError(f"{missing[0]} has no mask {missing[0].stem}.* in {masks}. Give every map a mask, or move it.")
    if len(pairs) < 2:
        raise ValueError(f"There is {len(pairs)} map, but the interval of a gain needs at least 2.")
    read_as = RGB if image_format is None else ImageFormat.read_file(image_format)
    data = SegmentationDataset(
        [(image, truths[path.stem]) for path, image in pairs], named, mask_format=mask_format, image_format=read_as
    )
    check_dataset(data)
    form = MapFormat(kind, named, confidence=confidence, masks=mask_format, layout=layout, resize=resize)
    trials = tune_maps([path for path, _ in pairs], data, form, device=default_device())
    best, _ = reliable_trial(trials)
    print_trials(trials, best)
    if best.off:
        print("No dense CRF raises the mean IoU of these maps reliably. Use the maps as they are.")
        return
    options = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in best.settings.items())
    print(f"options for refine: {options}")


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
    """Predict the labels of PASCAL VOC 2012 and pack them for its evaluation server.

    Args:
        model: Trained model with the 21 classes of VOC: a folder, or the name of a bundled model.
        root: Folder that contains the development kit with the images of the split.
        out: Archive to write, with the suffix .tgz or .tar.gz.
        split: Split whose labels are predicted: "test", or "val" for a trial.
        competition: Competition on the server: comp5 for models that were trained on the masks of VOC only, and comp6
            for all others.
        dense: Refine the labels with the dense CRF and the parameters that `tune --dense` wrote to the model.
        scales: Factors of the image size in test-time augmentation. The marginals of all sizes are averaged. If null,
            the factors of the model are used.
        flip: Average the marginals of the image and the mirrored image (test-time augmentation).

    Example:
        contextcrf voc-submission runs/voc VOC --out results.tgz --dense
    """
    from contextcrf.inference.voc_submission import write_submission

    count = write_submission(_predictor(model, dense, scales, flip), root, out, split, competition)
    print(f"{count} images of {split} labeled, written to {out}")


def demo(
    model: str | None = None,
    port: int = 7860,
    max_mb: float = 10,
    max_pixels: int = 50_000_000,
    side: int = 640,
    seconds: float = 60,
    no_browser: bool = False,
) -> None:
    """Open a web page on this machine to label images and explain the labels.

    On the page, you can drop an image, change the settings with sliders, and click a pixel for an explanation of its
    label. Ctrl-C ends the command.

    Args:
        model: Trained model: a folder, or the name of a bundled model. If null, the page has a menu of all bundled
            models.
        port: Port of the page on 127.0.0.1. 0 chooses a free port.
        max_mb: Size of the largest file that the page accepts, in megabytes.
        max_pixels: Width times height of the largest image that the page decodes.
        side: Largest side of an image in pixels; an image with a longer side is shrunk to it.
        seconds: Time limit of one computation, in seconds.
        no_browser: Do not open the page in a browser.

    Example:
        contextcrf demo
        contextcrf demo runs/heads --port 8000 --no-browser
    """
    if find_spec("gradio") is None:
        raise ValueError('The page needs the package gradio. Install it with pip install "contextcrf[demo]".')
    from contextcrf.modeling.model import load
    from contextcrf.modeling.serialization import bundled_models
    from contextcrf.utils.runtime import default_device
    from contextcrf.webapp.limits import Limits
    from contextcrf.webapp.server import serve
    from contextcrf.webapp.session import Session

    limits = Limits(max_mb, max_pixels, side, seconds)
    names = bundled_models() if model is None else [model]
    serve({name: Session(load(name).to(default_device()), limits) for name in names}, port, not no_browser)


def _check_outside(out: Path, images: Sequence[Path]) -> None:
    """Raise a ValueError if results would be written to a folder of the images. Its subfolders are not searched."""
    for path in images:
        folder = path if path.is_dir() else path.parent
        if out.resolve() == folder.resolve():
            raise ValueError(
                f"--out {out} is the folder of the images {folder}, so the next run could take the predicted labels "
                f"for images. Choose another folder, such as --out {_beside(folder.resolve())}."
            )


def _beside(folder: Path) -> Path:
    """A folder for the labels of a folder of images, relative to the working directory if it is below."""
    proposal = folder.parent / f"{folder.name or 'images'}-labels"
    with suppress(ValueError):
        return proposal.relative_to(Path.cwd())
    return proposal


def _check_picture(path: Path) -> None:
    """Raise a ValueError if Pillow cannot write a file with this suffix."""
    Image.init()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        found = f"the suffix {path.suffix}" if path.suffix else "no suffix"
        raise ValueError(
            f"--out {path} has {found}, but the suffix of an image file is expected. Choose --out "
            f"{path.with_suffix('.png')}."
        )


def _predictor(model: str, dense: bool, scales: list[float] | None, flip: bool, tile: int | None = None) -> "Predictor":
    """Return the predictor of a saved model. Options that are given replace the settings of the model."""
    from dataclasses import replace

    from contextcrf.inference.predictor import Predictor
    from contextcrf.modeling.model import load
    from contextcrf.modeling.system import System
    from contextcrf.utils.runtime import default_device

    network = load(model).to(default_device())
    own = network.inference
    system = System.from_name(own.system)
    system = replace(system, dense=True) if dense else system
    if system.dense and network.dense is None and own.dense_is_off:
        logger.warning(
            "The dense CRF of %s is switched off, because no parameters raised the mean IoU reliably when it was "
            "tuned. The labels are those without it.",
            model,
        )
        system = replace(system, dense=False)
    elif system.dense and network.dense is None and not own.dense:
        logger.warning(
            "The dense CRF of %s has not been tuned, so it has the default parameters of pydensecrf. They often lower "
            "the accuracy. Choose parameters with `contextcrf tune --dense`.",
            model,
        )
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
