"""Measure the training of heads on features on disk: resident memory against images, and two processes against one.

    python benchmarks/cache.py memory --folder /scratch
    python benchmarks/cache.py processes --data DATA/CamVid --folder /scratch

The part `memory` simulates the features of up to 10,582 images, the training images of PASCAL VOC 2012 with those of
SBD, with the paper's 1,536 channels. It trains both pairwise heads on them for one epoch and measures the peak of the
resident memory. The part `processes` trains the two pairwise heads of the bundled model `camvid` in one process with
two threads, and in two processes with one thread each, which share the features on disk. The weights of the two
processes must equal those of one process with one thread. Another number of threads adds numbers in another order, so
the weights with two threads are only similar.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from contextcrf import ContextCRF, ModelConfig, load
from contextcrf.data.layouts import VOC
from contextcrf.training import TrainingConfig, fit_heads
from contextcrf.training.feature_cache import StoredFeatures
from measure import cost_of, exponent, run_parts, store

FIGURES = Path(__file__).parent.parent / "results" / "cache" / "figures.json"
CHANNELS, SIDE = 1536, 8
COUNTS = (1_000, 3_250, 10_582)
HEADS = ("surrounding", "above")


def simulate(folder: Path, count: int) -> None:
    """Write random features of `count` images, with the labels and unary logits of their nodes."""
    random = np.random.default_rng(0)
    shapes = {
        "features.npy": (np.int16, (count, CHANNELS, SIDE, SIDE)),
        "labels.npy": (np.uint8, (count, SIDE, SIDE)),
        "unary.npy": (np.float32, (count, len(VOC), SIDE, SIDE)),
    }
    folder.mkdir(parents=True)
    for name, (kind, shape) in shapes.items():
        array = np.lib.format.open_memmap(folder / name, "w+", kind, shape)
        for start in range(0, count, 100):
            part = (min(100, count - start), *shape[1:])
            if kind is np.uint8:
                array[start : start + 100] = random.integers(0, len(VOC), part)
            else:
                values = torch.from_numpy(random.standard_normal(part, np.float32))
                array[start : start + 100] = values.bfloat16().view(torch.int16) if kind is np.int16 else values
        array.flush()


def train_on(folder: Path) -> Iterator[None]:
    """Train both pairwise heads for one epoch on stored features."""
    model = ContextCRF(ModelConfig(backbone="plain", channels=CHANNELS // 3), VOC, pretrained=False)
    config = TrainingConfig(epochs=1, batch_size=10, max_edges=256, precision="32-true", color=0)
    with tempfile.TemporaryDirectory() as out:
        yield
        fit_heads(model, StoredFeatures(folder), config, Path(out))
        yield


def measure_memory(options: argparse.Namespace) -> None:
    rows = []
    for count in options.counts:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            simulate(features := Path(scratch) / "features", count)
            size = sum(path.stat().st_size for path in features.iterdir())
            cost = cost_of(train_on, features)
        rows.append({"images": count, "features_gb": size / 1e9, "seconds": cost.seconds, "peak_mib": cost.total})
        print(f"{count} images, {size / 1e9:.2f} GB: {cost.seconds:.0f} s, resident memory {cost.total:.0f} MiB")
    power = exponent([row["images"] for row in rows], [row["peak_mib"] for row in rows])
    print(f"memory ~ images^{power:.2f}")
    store({"memory": {"rows": rows, "exponent": power}}, FIGURES)


def command(data: Path, cache: Path, out: Path, potentials: Sequence[str], epochs: int) -> list[str]:
    options = {
        "data": data,
        "out": out,
        "cache": cache,
        "copies": 1,
        "graph-stride": 32,
        "training.epochs": epochs,
        "training.potentials": json.dumps(list(potentials)),
        "training.crop": "[360, 480]",
        "training.seed": 0,
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "contextcrf", "fit-heads", "camvid", *arguments]


def run_together(commands: Sequence[list[str]], threads: int) -> float:
    """Run commands at the same time and return their seconds."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    running = [subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) for words in commands]
    for process in running:
        if process.wait():
            raise RuntimeError(f"The command {' '.join(process.args)} ended with status {process.returncode}.")
    return time.perf_counter() - start


def measure_processes(options: argparse.Namespace) -> None:
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        cache = Path(scratch) / "features"

        def words(names: Sequence[str], out: str, epochs: int = options.epochs) -> list[str]:
            return command(options.data, cache, Path(scratch) / out, names, epochs)

        features = run_together([words(HEADS, "first", 1)], threads=2)
        print(f"features and one epoch: {features:.0f} s")
        single = run_together([words(HEADS, "single")], threads=1)
        print(f"one process with one thread: {single:.1f} s")
        whole = load(Path(scratch) / "single").pairwise
        for repeat in range(options.repeats):
            one = run_together([words(HEADS, f"both-{repeat}")], threads=2)
            two = run_together([words([name], f"{name}-{repeat}") for name in HEADS], threads=1)
            difference = max(
                (value - whole[name].state_dict()[key]).abs().max().item()
                for name in HEADS
                for key, value in load(Path(scratch) / f"{name}-{repeat}").pairwise[name].state_dict().items()
            )
            rows.append({"one_process": one, "two_processes": two, "largest_difference": difference})
            print(f"one process {one:.1f} s, two processes {two:.1f} s, difference of weights {difference:.1e}")
    ratio = statistics.median(row["one_process"] / row["two_processes"] for row in rows)
    print(f"two processes take 1 / {ratio:.2f} of the time of one process with two threads")
    found = {"epochs": options.epochs, "one_thread": single, "rows": rows, "ratio": ratio}
    store({"processes": found}, FIGURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder for the features (default: the temporary folder)")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of simulated images")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of the part `processes`")
    run_parts(parser, {"memory": measure_memory, "processes": measure_processes}, {"processes"})


if __name__ == "__main__":
    main()
