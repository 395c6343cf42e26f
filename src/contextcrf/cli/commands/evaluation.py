"""Commands that measure models."""

import json
import shlex
from pathlib import Path

from contextcrf.utils.runtime import Precision


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
    """Measure a model at full resolution: a table on the terminal, OUT/results.json and .md, a page and pictures.

    OUT/report.html stands by itself: scores, confusions, the best, middle and worst images. OUT/images.npz holds the
    confusion matrix of every image, for `compare`.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        data: folder of the data set.
        out: folder for the results.
        split: any split of the data set.
        systems: what to evaluate, as in '[unary, unary+pairwise, unary+pairwise+dense]'; a part is "unary", "pairwise"
            (all relations), the name of a relation, or "dense". If null each potential that has been trained,
            unary+pairwise, and unary+pairwise+dense where `tune --dense` has chosen a dense CRF.
        pictures: images to draw, with the truth and the first and last system.
        precision: of the networks.
        scales: test-time augmentation: average the marginals of the image at these scales; the model's own if null.
        flip: test-time augmentation: average the marginals of the mirrored image too.
    """
    from dataclasses import replace

    from rich.console import Console

    from contextcrf.data.layouts import open_dataset
    from contextcrf.data.validation import check_dataset, check_same_classes
    from contextcrf.evaluation.comparison import COUNTS, gains, write_counts
    from contextcrf.evaluation.evaluate import EvaluationResults, default_systems
    from contextcrf.evaluation.evaluate import evaluate as run
    from contextcrf.evaluation.report import write_report
    from contextcrf.inference.predictor import Predictor
    from contextcrf.modeling.model import load
    from contextcrf.modeling.serialization import fingerprint
    from contextcrf.utils.runtime import default_device, resolve_precision

    resolved = resolve_precision(precision)  # warns first if it is slow here
    network = load(model).to(default_device())
    inference = network.inference
    inference = replace(inference, precision=precision, scales=scales or inference.scales, flip=flip or inference.flip)
    predictor = Predictor(network, inference)
    wanted = default_systems(network) if systems is None else [predictor.system(name) for name in systems]
    dataset = open_dataset(data, split)
    check_same_classes(network.classes, dataset.classes)
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
    counts = {system.name: system.counts for system in measured}
    results = EvaluationResults(dataset.classes.names, measured, metadata, gains(counts))
    results.write(out)
    write_counts(out / COUNTS, dataset.names(data), counts)
    write_report(dataset, results, out, pictures)
    Console().print(results.to_rich())
    print(*results.gains, f"written to {out}", sep="\n")


def compare(
    first: Path,
    second: Path,
    first_system: str | None = None,
    second_system: str | None = None,
    block: int = 1,
    min_images: int = 0,
) -> None:
    """Compare two systems on the same images: both mean IoU, the difference and its 95 % interval.

    The interval is a paired bootstrap over images: it covers the draw of the images, not that of the training.

    Args:
        first: folder that `evaluate` wrote.
        second: another, or the same.
        first_system: name of the system in `first`; may be left out where there is only one.
        second_system: name of the system in `second`.
        block: draw this many neighboring images together; more than 1 for frames of a video, which repeat each other.
        min_images: average only over the classes that occur in at least this many images; those of rare ones are noise.
    """
    from contextcrf.evaluation.comparison import compare as run

    print(run(first, second, first_system, second_system, block, min_images))


def reproduce(study: str, data: Path, out: Path, rows: list[str] | None = None) -> None:
    """Train and measure the paper's systems and their competitors on a data set; write its tables and figures.

    Give the command again to go on: finished parts are kept. OUT gets table1 to table3 as .md, .tex and .json, with the
    paper's numbers beside those found here, fig6.png to fig10.png, results.json, and images.npz for `compare`.

    Args:
        study: "camvid", "voc" (the paper's own), "voc-small", or a YAML file with model and training.
        data: folder of the data set.
        out: folder for networks and results.
        rows: of the tables, as in '[unary-3scales, full]'; all if null.
    """
    from rich.console import Console

    from contextcrf.reproduction import Runner, open_study, rows_of, write_all

    wanted, runner = rows_of(rows), Runner(open_study(study), data, out)
    Console().print(write_all(runner, wanted).to_rich())
    print(f"written to {out}")
