"""Measure how much reading, drawing and writing slow down prediction, and what further systems add to an evaluation.

    python benchmarks/prediction.py --data DATA/CamVid

The part `files` compares `predict_files` with the network alone on images that are in memory. The part `evaluation`
compares the evaluation of all systems of a model with that of its most expensive system. Both alternate in one run.
Figures go to results/prediction/figures.json.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from contextcrf import Predictor, load
from contextcrf.data.images import read_image
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.evaluate import evaluate
from contextcrf.inference.files import predict_files
from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE, System
from contextcrf.utils.memory import reuse_freed_memory
from measure import interleaved, run_parts, store

FIGURES = Path(__file__).parent.parent / "results" / "prediction" / "figures.json"
SYSTEMS = [
    UNARY_ONLY,
    System(unary=False, relations=("surrounding",)),
    System(unary=False, relations=("above",)),
    UNARY_PAIRWISE,
    FULL,
]


def files(options: argparse.Namespace) -> None:
    """Compare the command `predict` with the network alone."""
    predictor = Predictor(load(options.model))
    paths = [image for image, _ in open_dataset(options.data, "val").spread(options.images).pairs]
    images = [read_image(path) for path in paths]
    with tempfile.TemporaryDirectory() as out:
        seconds = interleaved(
            {
                "network": lambda: [predictor.label(image) for image in images],
                "files": partial(predict_files, predictor, paths, Path(out)),
            },
            options.repeats,
        )
    share = seconds["network"] / seconds["files"]
    for name, value in seconds.items():
        print(f"{name}: {len(paths) / value:.2f} images/s")
    print(f"predict reaches {100 * share:.0f} % of the images per second of the network")
    store({f"files, {options.model}": {"images": len(paths), "seconds": seconds, "share": share}}, FIGURES)


def evaluation(options: argparse.Namespace) -> None:
    """Compare the evaluation of all systems with that of the most expensive one."""
    predictor = Predictor(load(options.model))
    data = open_dataset(options.data, "val").spread(options.images)
    seconds = interleaved(
        {
            "all systems": partial(evaluate, predictor, data, SYSTEMS),
            "unary+pairwise+dense": partial(evaluate, predictor, data, [FULL]),
        },
        options.repeats,
    )
    ratio = seconds["all systems"] / seconds["unary+pairwise+dense"]
    print(f"all {len(SYSTEMS)} systems take {ratio:.2f} times the time of unary+pairwise+dense")
    store({f"evaluation, {options.model}": {"images": len(data), "seconds": seconds, "ratio": ratio}}, FIGURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="camvid", help="name of a bundled model, or a model folder")
    parser.add_argument("--images", type=int, default=32, help="number of images")
    reuse_freed_memory()
    run_parts(parser, {"files": files, "evaluation": evaluation}, {"files", "evaluation"})


if __name__ == "__main__":
    main()
