"""Commands that evaluate models."""

import json
import logging
import shlex
from pathlib import Path

from contextcrf.utils.runtime import Precision

logger = logging.getLogger(__name__)


def evaluate(
    model: str,
    data: Path,
    out: Path,
    split: str = "val",
    systems: list[str] | None = None,
    pictures: int = 6,
    precision: Precision = "auto",
    scales: list[float] | None = None,
    flip: bool = False,
) -> None:
    """Evaluate the systems of a model on a split, at the full resolution of the images.

    The command prints a table and writes it to OUT/results.json and OUT/results.md. OUT/report.html has the scores, the
    confusion matrices, and the best, median and worst images. OUT/images.npz has the confusion matrix of every image
    for `compare`.

    Args:
        model: Trained model: a folder, or the name of a bundled model.
        data: Folder of the data set.
        out: Folder for the results.
        split: Split whose images are evaluated.
        systems: Systems to evaluate, as in '[unary, unary+pairwise, unary+pairwise+dense]'. The parts of a name are
            "unary", "pairwise" (all relations), names of relations, and "dense". If null, these are evaluated: the
            unary, each trained relation alone, unary+pairwise if a relation was trained, and unary+pairwise+dense if
            the dense CRF was tuned or learned.
        pictures: Number of example images in the report, with the ground truth and the labels of the first and the last
            system. 0 draws none.
        precision: Numeric precision of the networks. "auto" is bfloat16 where it is faster, and single precision
            elsewhere.
        scales: Factors of the image size in test-time augmentation. The marginals of all sizes are averaged. If null,
            the factors of the model are used.
        flip: Average the marginals of the image and the mirrored image (test-time augmentation).

    Example:
        contextcrf evaluate runs/heads --data data --out runs/heads/val
        contextcrf evaluate camvid --data CamVid --split test --out results --systems '[unary, unary+pairwise]'
        contextcrf evaluate camvid --data CamVid --out results --scales '[0.75, 1, 1.25]' --flip
    """
    from collections import Counter
    from dataclasses import replace

    from rich.console import Console

    from contextcrf.data.image_format import check_same_images
    from contextcrf.data.layouts import open_dataset
    from contextcrf.data.validation import check_dataset, check_same_classes
    from contextcrf.evaluation.comparison import COUNTS, gains, write_counts
    from contextcrf.evaluation.evaluate import EvaluationResults, default_systems
    from contextcrf.evaluation.evaluate import evaluate as run
    from contextcrf.evaluation.report import write_report
    from contextcrf.evaluation.tuning import TUNED, earlier_use
    from contextcrf.inference.predictor import Predictor
    from contextcrf.modeling.model import load
    from contextcrf.modeling.serialization import fingerprint
    from contextcrf.utils.runtime import default_device, resolve_precision

    if pictures < 0:
        raise ValueError(f"--pictures is {pictures}, but a number of images is expected. Give 0 to draw none.")
    resolved = resolve_precision(precision)  # a warning about a slow precision comes first
    network = load(model).to(default_device())
    inference = network.inference
    inference = replace(inference, precision=precision, scales=scales or inference.scales, flip=flip or inference.flip)
    predictor = Predictor(network, inference)
    wanted = default_systems(network) if systems is None else [predictor.system(name) for name in systems]
    if repeated := [name for name, times in Counter(system.name for system in wanted).items() if times > 1]:
        raise ValueError(f"--systems has the system {repeated[0]} twice. Give every system once.")
    if network.dense is None and inference.dense_is_off:
        logger.warning(
            "The dense CRF of %s is switched off, because no parameters raised the mean IoU reliably when it was "
            "tuned. Systems with it are not evaluated.",
            model,
        )
        if not (wanted := [system for system in wanted if not system.dense]):
            raise ValueError("--systems has only systems with a dense CRF that is switched off. Add unary+pairwise.")
    dataset = open_dataset(data, split)
    check_same_classes(network.classes, dataset.classes)
    check_same_images(network.image_format, dataset.image_format)
    check_dataset(dataset)
    measured = run(predictor, dataset, wanted, keep_labels=(wanted[0], wanted[-1]))
    command = ["contextcrf", "evaluate", model, "--data", str(data), "--split", split, "--out", str(out)]
    command += ["--precision", precision, *(["--systems", json.dumps(systems)] if systems else [])]
    command += [*(["--scales", json.dumps(scales)] if scales else []), *(["--flip"] if flip else [])]
    metadata = {
        "data": f"{data.name} {split}, {len(dataset)} images",
        "command": f"`{shlex.join(command)}`",
        "model": fingerprint(network),
        "inference": replace(inference, precision="auto").changes(),
        "precision": resolved,
    }
    if caveat := earlier_use(network, data.name, split):
        logger.warning("%s Evaluate the model on other images.", caveat)
        metadata["caveat"] = caveat
    counts = {system.name: system.counts for system in measured}
    results = EvaluationResults(dataset.classes.names, measured, metadata, gains(counts, TUNED in network.metadata))
    results.write(out)
    write_counts(out / COUNTS, dataset.names(data), counts)
    write_report(dataset, results, out, pictures)
    Console().print(results.to_rich())
    print(*results.gains, f"written to {out}", sep="\n")


def compare(
    first: Path | list[Path],
    second: Path | list[Path],
    first_system: str | None = None,
    second_system: str | None = None,
    block: int = 1,
    min_images: int = 0,
) -> None:
    """Compare the mean IoU of two systems on the same images, with a 95% confidence interval.

    The command prints the mean IoU of both systems, the difference, and its interval in percent. The interval is
    computed by a paired bootstrap over the images. It covers the choice of the images, but not the randomness of the
    training.

    Args:
        first: Folder with results of `evaluate`, or a list of folders, as in '[runs/a, runs/b]'. Folders with different
            images, such as the folds of a cross-validation, are pooled. Folders with the same images, such as training
            runs with different seeds, are averaged.
        second: Folder or folders with other results of `evaluate`, or the same as FIRST.
        first_system: Name of the system in FIRST. If null, FIRST must have a single system.
        second_system: Name of the system in SECOND. If null, SECOND must have a single system.
        block: Number of neighboring images that are drawn together. Use more than 1 for video frames, which are similar
            to their neighbors.
        min_images: Average the IoU of the classes that occur in at least this many images. The IoU of a rarer class is
            mostly noise. 0 averages all classes that occur.

    Example:
        contextcrf compare runs/heads/val runs/heads/val --first-system unary --second-system unary+pairwise
        contextcrf compare runs/a/val runs/b/val --first-system unary --second-system unary --block 30 --min-images 5
        contextcrf compare '[runs/a, runs/b]' '[runs/a, runs/b]' --first-system unary --second-system unary+pairwise
    """
    from contextcrf.evaluation.comparison import compare as run

    print(run(first, second, first_system, second_system, block, min_images))


def reproduce(study: str, data: Path, out: Path, rows: list[str] | None = None, seed: int | None = None) -> None:
    """Reproduce the tables and figures of the paper on a data set.

    The command trains and evaluates the systems of the paper and their competitors. Run the same command again to
    continue after an interruption: finished parts are kept. It writes table1 to table3 as .md, .tex and .json, with the
    numbers of the paper beside the new ones. It also writes fig6.png to fig10.png, results.json, and images.npz for
    `compare`.

    Args:
        study: Name of a study ("camvid", "voc" as in the paper, or "voc-small"), or a YAML file with the settings of
            the model and the training.
        data: Folder of the data set.
        out: Folder for the networks and the results.
        rows: Rows of the tables to compute, as in '[unary-3scales, full]'. If null, all rows are computed.
        seed: Seed of all training runs. If null, the seeds of the study are used.

    Example:
        contextcrf reproduce camvid --data CamVid --out runs/camvid
        contextcrf reproduce voc-small --data VOC --out runs/voc --rows '[unary-3scales, full]'
        contextcrf reproduce camvid --data CamVid --out runs/camvid-1 --rows '[crf-rnn]' --seed 1
    """
    from dataclasses import replace

    from rich.console import Console

    from contextcrf.reproduction import Runner, open_study, rows_of, write_all

    wanted, settings = rows_of(rows), open_study(study)
    if seed is not None:
        training, heads = (replace(config, seed=seed) for config in (settings.training, settings.heads))
        settings = replace(settings, training=training, heads=heads)
    runner = Runner(settings, data, out)
    Console().print(write_all(runner, wanted).to_rich())
    print(f"written to {out}")
