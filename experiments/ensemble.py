"""Measure an ensemble: the mean of the marginals of several networks, such as unaries with different seeds.

    python experiments/ensemble.py MODEL MODEL MODEL --data DATA --out runs/three-unaries
    contextcrf compare runs/three-unaries runs/other --first-system unary --second-system unary+pairwise

The confusion matrices of the images are written as `contextcrf evaluate` writes them.
"""

import argparse
from pathlib import Path

import torch

from contextcrf import Predictor, load
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.comparison import COUNTS, write_counts
from contextcrf.evaluation.metrics import ConfusionMatrix, confusion
from contextcrf.modeling.system import System
from contextcrf.utils.progress import show_progress, track


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="trained networks of the same classes")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", default="val", help="split that is measured")
    parser.add_argument("--system", default="unary", help="system of each network")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    options = parser.parse_args()
    data, system = open_dataset(options.data, options.split), System.from_name(options.system)
    predictors = [Predictor(load(model)) for model in options.models]
    counts = []
    with show_progress():
        for image, mask in track(data.without_transform(), "Evaluating", total=len(data)):
            marginals = [predictor.predict(image, [system])[0].marginals for predictor in predictors]
            counts.append(confusion(torch.stack(marginals).mean(0).argmax(0), mask, len(data.classes)))
    write_counts(options.out / COUNTS, data.names(options.data), {system.name: torch.stack(counts)})
    print(f"mean IoU {100 * ConfusionMatrix.of(torch.stack(counts).sum(0)).mean_iou():.1f}")


if __name__ == "__main__":
    main()
