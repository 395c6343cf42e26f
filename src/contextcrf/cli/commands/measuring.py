"""Measuring models."""

import json
import shlex
from pathlib import Path

from contextcrf.data.preparation import check, device, same_classes
from contextcrf.training.config import Precision


def evaluate(
    model: str,
    data: Path,
    out: Path,
    split: str = "val",
    rows: list[str] | None = None,
    pictures: int = 6,
    precision: Precision = "32-true",
    scales: list[float] = [1.0],  # noqa: B006 - read by the command line, never changed
    flip: bool = False,
) -> None:
    """Measure a model at full resolution: a table on the terminal, OUT/results.json and .md, a page and pictures.

    OUT/report.html stands by itself: scores, what is taken for what, the best, middle and worst images. OUT/images.npz
    holds the confusion matrix of every image, for `compare`.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        data: folder of the data set.
        out: folder for the results.
        split: any split of the data set.
        rows: what to evaluate: "unary", names of relations, "crf" (all potentials), "full" (then the dense CRF), or
            several joined by "+". If null each potential that has been trained, "crf", and "full" where `tune --dense
            true` has chosen a dense CRF.
        pictures: images to draw, with the truth and the first and last row.
        precision: of the networks.
        scales: average the marginals of the image at these scales.
        flip: and of the mirrored image.
    """
    import torch
    from rich.console import Console

    from contextcrf.data.dataset import open_dataset
    from contextcrf.evaluation.comparison import COUNTS, gains, write_counts
    from contextcrf.evaluation.evaluate import Results, systems
    from contextcrf.evaluation.evaluate import evaluate as run
    from contextcrf.evaluation.report import draw, write_page
    from contextcrf.inference.tta import Views
    from contextcrf.modeling.config import UNARY
    from contextcrf.modeling.serialization import fingerprint, load

    network, views = load(model).to(device()), Views(scales, flip)
    wanted = systems(network, rows)
    dataset = open_dataset(data, split)
    same_classes(network, dataset)
    check(dataset)
    measured = run(network, dataset, wanted, precision, views=views)
    command = ["contextcrf", "evaluate", model, "--data", str(data), "--split", split, "--precision", precision]
    command += ["--out", str(out), *(["--rows", json.dumps(rows)] if rows else [])]
    command += ["--scales", json.dumps(scales), "--flip", json.dumps(flip)] if len(views) > 1 else []
    about = {"data": f"{data.name} {split}, {len(dataset)} images", "command": f"`{shlex.join(command)}`"}
    about["model"] = fingerprint(network)
    results = Results(dataset.classes.names, measured, about)
    results.write(out)
    counts = {row.name: torch.stack(row.images) for row in measured}
    write_counts(out / COUNTS, dataset.names(data), counts)
    draw(network, dataset.spread(pictures), wanted, results, out, precision, views)
    write_page(network, dataset, wanted, results, out, pictures, precision, views)
    Console().print(results.to_rich())
    print(*gains(counts, UNARY), f"written to {out}", sep="\n")


def reproduce(study: str, data: Path, out: Path, rows: list[str] | None = None) -> None:
    """Train and measure the paper's systems and their competitors on a data set; write its tables and figures.

    Give the command again to go on: what is finished is kept. OUT gets table1 to table3 as .md, .tex and .json, with
    the paper's numbers beside those found here, fig6.png to fig10.png, results.json, and images.npz for `compare`.

    Args:
        study: "camvid", "voc" (the paper's own), "voc-small", or a YAML file with model and recipe.
        data: folder of the data set.
        out: folder for networks and results.
        rows: of the tables, as in '[unary-3scales, full]'; all if null.
    """
    from rich.console import Console

    from contextcrf.reproduction import Workshop, open_study, rows_of, write_all

    wanted, shop = rows_of(rows), Workshop(open_study(study), data, out)
    Console().print(write_all(shop, wanted).to_rich())
    print(f"written to {out}")


def compare(
    first: Path,
    second: Path,
    first_row: str | None = None,
    second_row: str | None = None,
    block: int = 1,
    least: int = 0,
) -> None:
    """Say whether one row beats another on the same images: both mean IoU, the difference and its 95 % interval.

    The interval is a paired bootstrap over images: what another draw of images could change, not another training.

    Args:
        first: folder that `evaluate` wrote.
        second: another, or the same.
        first_row: name of the row in `first`; may be left out where there is but one.
        second_row: name of the row in `second`.
        block: draw so many neighboring images together; more than 1 for frames of a video, which repeat each other.
        least: average over the classes alone that at least so many images show: of rare ones the mean is noise.
    """
    from contextcrf.evaluation.comparison import compare as run

    print(run(first, second, first_row, second_row, block, least))
