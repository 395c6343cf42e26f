"""Compare the interpolations that enlarge the messages of a coarse graph: nearest and bilinear.

    python experiments/message_upsampling.py runs/coarse --data DATA --split test

The trained model has a graph that is coarser than its unary (`ModelConfig.graph_stride`). Nothing is trained: both
interpolations have the same potentials, and the relation weights of the model. The command prints the mean IoU of the
system unary+pairwise with both, and the interval of the difference.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from contextcrf import Predictor, load
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.comparison import classes_in, paired_bootstrap
from contextcrf.evaluation.evaluate import evaluate
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.system import UNARY_PAIRWISE
from contextcrf.utils.progress import show_progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", default="val", help="split that is measured")
    parser.add_argument("--min-images", type=int, default=0, help="leave out classes that occur in fewer images")
    options = parser.parse_args()
    data = open_dataset(options.data, options.split)
    print("| model | nearest | bilinear | difference |\n|---|---:|---:|---|")
    for folder in options.models:
        model = load(folder)
        counts = []
        for upsampling in ("nearest", "bilinear"):
            predictor = Predictor(with_config(model, replace(model.config, message_upsampling=upsampling)))
            with show_progress():
                [found] = evaluate(predictor, data, [UNARY_PAIRWISE])
            counts.append(found.counts)
        classes = classes_in(counts[0], options.min_images) if options.min_images else None
        gain = paired_bootstrap(counts[0], counts[1], classes=classes)
        print(
            f"| {folder} | {100 * gain.first:.1f} | {100 * gain.second:.1f} | {100 * (gain.second - gain.first):+.2f} "
            f"[{100 * gain.low:+.2f}, {100 * gain.high:+.2f}] |",
            flush=True,
        )


if __name__ == "__main__":
    main()
