"""Measure the gain of the pairwise potentials that a newcomer gets: the configs of `init`, budgets, default settings.

    python experiments/default_gain.py --data DATA --work runs/default-gain

DATA has the folders CamVid, MSRC21 and VOCdevkit. Each data set is used as a whole ("all") and with 60 training images
("few"). The relation weights are those that `fit-heads` chooses on the images that the network has left out
(training.held_out). Finished parts are kept, so the command may be stopped and started again. The table goes to
WORK/default-gain.md.

With `--held-out-cost`, each network is trained again for the same number of epochs on all images to the end. The table
of what this gains goes to WORK/held-out.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from contextcrf.data.classes_file import ClassesFile
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.comparison import compare
from contextcrf.utils.files import write_json, write_text
from contextcrf.utils.tables import Table

DATA = {"CamVid": "CamVid", "MSRC-21": "MSRC21", "part of VOC": "VOCdevkit"}
FEW = 60
HEADER = ["data", "training images", "seed", "relation weights", "unary", "unary+pairwise", "gain, 95% interval"]
HELD_OUT_HEADER = ["data", "training images", "seed", "epochs", "with held-out images", "all images", "difference"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="the folder of all outputs")
    parser.add_argument("--data-sets", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--sizes", nargs="+", choices=("few", "all"), default=["few", "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fit", default="6m", help="the budget of `fit`")
    parser.add_argument("--fit-heads", default="3m", help="the budget of `fit-heads`")
    parser.add_argument("--held-out-cost", action="store_true", help="also train each network on all images to the end")
    args = parser.parse_args()
    rows, costs, out = [], [], args.work.resolve()
    for seed in args.seeds:
        for size in args.sizes:
            for name in args.data_sets:
                data = (args.data / DATA[name]).resolve()
                work = out / f"{DATA[name]}-{size}-{seed}"
                work.mkdir(parents=True, exist_ok=True)
                data = choose_few(data, work / "data") if size == "few" else data
                found = measure(data, work, seed, args.fit, args.fit_heads)
                rows.append(row(name, found, seed))
                write_text(out / "default-gain.md", Table(HEADER, rows).to_markdown())
                if args.held_out_cost:
                    costs.append([name, str(found["images"]), str(seed), *held_out_cost(data, work)])
                    write_text(out / "held-out.md", Table(HELD_OUT_HEADER, costs).to_markdown())
    print(Table(HEADER, rows).to_markdown())
    if costs:
        print(Table(HELD_OUT_HEADER, costs).to_markdown())


def choose_few(source: Path, folder: Path) -> Path:
    """Make a data set of links with 60 training images and all validation images."""
    if folder.exists():
        return folder
    train, val = open_dataset(source, "train"), open_dataset(source, "val")
    for part in ("images", "masks", "splits"):
        (folder / part).mkdir(parents=True)
    for split, data in (("train", train.spread(FEW)), ("val", val)):
        for image, mask in data.pairs:
            (folder / "images" / image.name).symlink_to(image)
            (folder / "masks" / f"{image.stem}{mask.suffix}").symlink_to(mask)
        write_text(folder / "splits" / f"{split}.txt", "".join(f"{image.stem}\n" for image, _ in data.pairs))
    ClassesFile(train.classes, train.mask_format).write(folder / "classes.yaml")
    return folder


def measure(data: Path, work: Path, seed: int, fit: str, fit_heads: str) -> dict[str, Any]:
    """Run the commands of a newcomer, and return the result."""
    done, seeds = work / "done.json", ["--training.seed", str(seed)]
    if not done.exists():
        if not (work / "recipe.yaml").exists():
            run(work, "init", str(data), "--out", "recipe.yaml")
        run(work, "fit", "--config", "recipe.yaml", "--data", str(data), "--out", "unary", "--budget", fit, *seeds)
        heads = ["--config", "recipe-heads.yaml", "--data", str(data), "--out", "heads", "--budget", fit_heads, *seeds]
        run(work, "fit-heads", "unary", *heads)
        systems = ["--systems", "[unary, unary+pairwise]", "--pictures", "0"]
        run(work, "evaluate", "heads", "--data", str(data), "--split", "val", "--out", "val", *systems)
        results = json.loads((work / "val" / "results.json").read_text())
        model = json.loads((work / "heads" / "model" / "config.json").read_text())
        [gain] = results["gains"]
        write_json(done, {
            "images": len(open_dataset(data, "train")),
            "weights": model["inference"]["relation_weights"],
            "unary": results["systems"][0]["mean_iou"],
            "pairwise": results["systems"][1]["mean_iou"],
            "gain": gain,
        })  # fmt: skip
    return json.loads(done.read_text())


def held_out_cost(data: Path, work: Path) -> list[str]:
    """Train the network of `measure` again without held-out images, and return the epochs and both mean IoUs."""
    training = json.loads((work / "unary" / "model" / "config.json").read_text())["metadata"]["fit"]["training"]
    if not (work / "whole-val" / "results.json").exists():
        same = ["--training.epochs", str(training["epochs"]), "--training.seed", str(training["seed"])]
        whole = ["--config", "recipe.yaml", "--data", str(data), "--out", "whole", "--training.held-out", "0", *same]
        run(work, "fit", *whole)
        unary = ["--systems", "[unary]", "--pictures", "0"]
        run(work, "evaluate", "whole", "--data", str(data), "--split", "val", "--out", "whole-val", *unary)
    found = compare(work / "val", work / "whole-val", "unary", "unary")
    scores = [f"{100 * value:.1f}" for value in (found.first, found.second)]
    difference = f"{100 * (found.second - found.first):+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    return [str(training["epochs"]), *scores, difference]


def run(folder: Path, *command: str) -> None:
    """Run a command of the tool in a folder."""
    subprocess.run([sys.executable, "-m", "contextcrf", *command], cwd=folder, check=True)


def row(name: str, found: dict[str, Any], seed: int) -> list[str]:
    """Return a row of the table."""
    gain = found["gain"]
    weights = ", ".join(f"{name} {value:g}" for name, value in found["weights"].items())
    interval = f"{100 * gain['gain']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]"
    scores = [f"{100 * found[key]:.1f}" for key in ("unary", "pairwise")]
    return [name, str(found["images"]), str(seed), weights, *scores, interval]


if __name__ == "__main__":
    main()
