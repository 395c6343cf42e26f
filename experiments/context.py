"""The gain of context on real images: one network per potential, controls, seeds, intervals.

    python experiments/context.py msrc --data DATA/MSRC21 --work runs/context/msrc

trains what is not there yet, then evaluates all of it into results/context/<study>.json and .md. It may be stopped and
started again at any time, and several processes may share the work (set OMP_NUM_THREADS for each).

Every network is trained end to end from ImageNet, with augmentation, for one potential: three seeds of the unary, two
of each pairwise potential. For the rows with a shared trunk, heads of both pairwise potentials are trained on what the
first two unary networks see, which stay as they are; `--groups shared` makes only these and the unaries. Strengths of
the messages are chosen on images that the networks have not seen and that are not reported: each half of a test split
takes what is best on its other half.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contextcrf import ContextCRF, PairwisePotential, load, mean_field
from contextcrf.cli.main import read_command
from contextcrf.crf.meanfield import Pair, enlarge, pairwise_logits
from contextcrf.crf.pair_table import PairTable
from contextcrf.data.cross_validation import write_folds
from contextcrf.data.dataset import open_dataset
from contextcrf.evaluation.comparison import classes_in, paired_bootstrap, read_counts, write_counts
from contextcrf.evaluation.evaluate import confusion, intersection_over_union
from contextcrf.modeling.config import UNARY
from contextcrf.training.jobs import BusyError, check_trained, train_once
from contextcrf.utils.locks import claim
from contextcrf.utils.resizing import upsample

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "context"
CONFIGS = ROOT / "configs"
RELATIONS = ("surrounding", "above")
UNARY_SEEDS, SEEDS = (0, 1, 2), (0, 1)
# Trained on the features of a unary network, both relations together.
HEADS = "heads"
# Of the messages of both relations together, in unary votes.
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
VIDEO_BLOCK = 10

BUSY = "another process is still at it: start again when it has ended"

# The rows of the table. "?" stands for a strength: that of the row is chosen among STRENGTHS.
THREE, SHARED = "three unaries", "shared trunk: "
ROWS = (
    UNARY,
    "pairwise-surrounding",
    "pairwise-above",
    "1unary+2pair, plain sum",
    "1unary+2pair, strength 1",
    "1unary+2pair, strength ?",
    "1unary+surrounding, strength ?",
    "1unary+above, strength ?",
    "1unary + edge marginals, strength ?",
    THREE,
    "three unaries+2pair, strength ?",
    f"{SHARED}pairwise-surrounding",
    f"{SHARED}pairwise-above",
    f"{SHARED}1unary+2pair, plain sum",
    f"{SHARED}1unary+2pair, strength 1",
    f"{SHARED}1unary+2pair, strength ?",
    f"{SHARED}1unary+surrounding, strength ?",
    f"{SHARED}1unary+above, strength ?",
    f"{SHARED}1unary + edge marginals, strength ?",
)
# What the neighbors' labels are worth: rows with them, against the same networks without.
CONTRASTS = (
    ("1unary + edge marginals, strength ?", "1unary+2pair, strength ?"),
    (THREE, "three unaries+2pair, strength ?"),
    (f"{SHARED}1unary + edge marginals, strength ?", f"{SHARED}1unary+2pair, strength ?"),
)


@dataclass(frozen=True)
class Study:
    """A data set and how its networks are trained.

    Args:
        config, heads: recipes of networks, and of heads on the features of one.
        folds: of the cross-validation; with 1, the data's own train and val.
        least: classes in fewer test images than this are not scored; what they add is noise.
        video: neighbors in the list of images are alike; intervals are those of blocks of VIDEO_BLOCK images.
    """

    config: Path
    heads: Path
    folds: int
    video: bool = False
    least: int = 0


STUDIES = {
    "msrc": Study(CONFIGS / "msrc-context.yaml", CONFIGS / "msrc-heads.yaml", folds=3),
    "msrc-near": Study(CONFIGS / "msrc-near.yaml", CONFIGS / "msrc-heads.yaml", folds=3),
    "camvid": Study(CONFIGS / "camvid-context.yaml", CONFIGS / "camvid-heads.yaml", folds=1, video=True),
    "voc": Study(CONFIGS / "voc-context.yaml", CONFIGS / "msrc-heads.yaml", folds=1, least=10),
}


@dataclass(frozen=True)
class Fold:
    """Networks trained on one split of a data set and tested on another; all of it lies in one folder."""

    data: Path
    train: str
    test: str
    folder: Path

    def network(self, potential: str, seed: int) -> Path:
        """Where a network's training lies."""
        return self.folder / f"{potential}-{seed}"

    def model(self, potential: str, seed: int) -> Path:
        """Where the trained network lies."""
        return self.network(potential, seed) / "model"


def deal(study: Study, data: Path, work: Path) -> list[Fold]:
    """The folds of a data set, made if they are not there."""
    if study.folds == 1:
        return [Fold(data, "train", "val", work)]
    dealt = work / "data"
    with claim(dealt) as mine:
        if mine:
            write_folds(data, dealt, study.folds)
    if not dealt.exists():
        raise SystemExit(f"{dealt}: {BUSY}")
    folds = [Fold(dealt, f"fold{k}-train", f"fold{k}-test", work / f"fold{k}") for k in range(study.folds)]
    have = {image.name for fold in folds for image, _ in open_dataset(dealt, fold.test).pairs}
    if have != (want := {image.name for split in ("train", "val") for image, _ in open_dataset(data, split).pairs}):
        raise SystemExit(f"{dealt}: was dealt from other data than {data}, see {min(have ^ want)}: move it away")
    return folds


def train(study: Study, folds: Sequence[Fold], networks: Sequence[tuple[str, int]]) -> None:
    """Train the networks, by potential and seed, that are not there and that nobody else is at."""
    wanted = [_training(study, fold, *network) for network in networks for fold in folds]
    for training in wanted:
        with suppress(BusyError):
            train_once(*training)
    for training in wanted:
        check_trained(*training)


def _training(study: Study, fold: Fold, potential: str, seed: int) -> tuple[str, dict[str, Any]]:
    if potential == HEADS:
        command = ["fit-heads", fold.model(UNARY, seed), "--config", study.heads]
    else:
        command = ["fit", "--config", study.config, "--recipe.potentials", json.dumps([potential])]
        command += ["--val_split", "null"]
    command += ["--data", fold.data, "--train_split", fold.train, "--recipe.seed", seed]
    return read_command([*map(str, command), "--out", str(fold.network(potential, seed))])


def see(network: ContextCRF, potential: str, pixels: Tensor) -> Tensor:
    """What a network's trunk makes of an image float [1, 3, H, W] for one of its potentials."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        return network.features(pixels, [potential])[potential].float()


class Unaries:
    """The unary networks of a fold, one for each seed."""

    def __init__(self, fold: Fold) -> None:
        self.networks = [load(fold.model(UNARY, seed)) for seed in UNARY_SEEDS]

    def marginals(self, pixels: Tensor) -> list[Tensor]:
        """Of one image float [1, 3, H, W], [1, K, h, w] by seed."""
        return [network.infer({UNARY: see(network, UNARY, pixels)}, [UNARY]) for network in self.networks]

    def rows(self, pixels: Tensor) -> Iterator[dict[str, Tensor]]:
        """Marginals [1, K, h, w] of one image float [1, 3, H, W] by row, seed after seed."""
        unaries = self.marginals(pixels)
        for seed, unary in enumerate(unaries):
            yield {UNARY: unary, **({THREE: torch.stack(unaries).mean(0)} if seed == 0 else {})}


class OwnTrunks:
    """The networks of a fold, one for each potential; rows as those of `Unaries`.

    A unary and pairwise networks of one seed have seen the same crops at the same time: those of different seeds stand
    together, as in the mean of three unaries.
    """

    def __init__(self, fold: Fold) -> None:
        self.unaries = Unaries(fold)
        self.networks = {(name, seed): load(fold.model(name, seed)) for name in RELATIONS for seed in SEEDS}

    def rows(self, pixels: Tensor) -> Iterator[dict[str, Tensor]]:
        unaries = self.unaries.marginals(pixels)
        three = torch.stack(unaries).mean(0)
        maps = {key: see(network, key[0], pixels) for key, network in self.networks.items()}
        for seed in SEEDS:
            other = SEEDS[SEEDS.index(seed) - 1]
            pairs = {name: (_head(self.networks[name, other], name), maps[name, other]) for name in RELATIONS}
            cell = self.unaries.networks[seed].cell
            yield combinations(pairs, {"1unary": unaries[seed], "three unaries": three}, cell)


class SharedTrunk:
    """Unary networks of a fold with pairwise heads on their features; rows as those of `Unaries`."""

    def __init__(self, fold: Fold) -> None:
        self.models = [load(fold.model(HEADS, seed)) for seed in SEEDS]
        for seed, model in zip(SEEDS, self.models, strict=True):
            trunk = load(fold.model(UNARY, seed)).trunks.state_dict()
            if any(not torch.equal(value, trunk[name]) for name, value in model.trunks.state_dict().items()):
                raise SystemExit(
                    f"{fold.network(HEADS, seed)}: stands on another trunk than {UNARY}-{seed}: move it away"
                )

    def rows(self, pixels: Tensor) -> Iterator[dict[str, Tensor]]:
        for model in self.models:
            fine = see(model, UNARY, pixels)
            pairs = {name: (_head(model, name), model.pool(fine)) for name in RELATIONS}
            rows = combinations(pairs, {"1unary": model.infer({UNARY: fine}, [UNARY])}, model.cell)
            yield {f"{SHARED}{row}": marginals for row, marginals in rows.items()}


@dataclass(frozen=True)
class Group:
    """Networks, by potential and seed, and the rows that they make."""

    networks: Sequence[tuple[str, int]]
    open: Callable[[Fold], Unaries | OwnTrunks | SharedTrunk]


_UNARIES = [(UNARY, seed) for seed in UNARY_SEEDS]
# By the name of the file of their confusion matrices, in the order of the work.
GROUPS = {
    "unaries": Group(_UNARIES, Unaries),
    "own": Group([*_UNARIES, *((name, seed) for seed in SEEDS for name in RELATIONS)], OwnTrunks),
    "shared": Group([(HEADS, seed) for seed in SEEDS], SharedTrunk),
}


def _group(row: str) -> str:
    """Whose row it is."""
    if row.startswith(SHARED):
        return "shared"
    return "unaries" if row in (UNARY, THREE) else "own"


def _head(model: ContextCRF, name: str) -> PairwisePotential:
    head = model.potential(name)
    assert isinstance(head, PairwisePotential)
    return head


def combinations(
    heads: Mapping[str, tuple[PairwisePotential, Tensor]], unaries: Mapping[str, Tensor], cell: int
) -> dict[str, Tensor]:
    """Marginals by row of pairwise potentials, by name, alone and with each of the unaries, at all strengths.

    With "edge marginals" the pairwise networks are as many more classifiers: what they say without the labels of the
    neighbors.
    """
    tables = {name: PairTable(head, maps) for name, (head, maps) in heads.items()}
    both = [table.pair for table in tables.values()]
    edges = {name: table.edge_marginals() for name, table in tables.items()}
    rows = {
        f"pairwise-{name}": mean_field(torch.zeros_like(start), [tables[name].pair], start=start)
        for name, start in edges.items()
    }
    mean = torch.stack(list(edges.values())).mean(0).clamp(min=1e-9).log()
    for unary, marginals in unaries.items():
        logits = marginals.clamp(min=1e-9).log()
        rows[f"{unary}+2pair, plain sum"] = mean_field(logits, both, cell=cell)
        alone = {name: [table.pair] for name, table in tables.items()} if unary == "1unary" else {}
        systems = {"2pair": both, **alone}
        for system, chosen in systems.items():
            for strength, found in at_strengths(logits, chosen, cell).items():
                rows[f"{unary}+{system}, strength {strength:g}"] = found
        classifiers = enlarge(mean, cell, logits.shape[-2:])
        for strength in STRENGTHS:
            rows[f"{unary} + edge marginals, strength {strength:g}"] = (logits + strength * classifiers).softmax(1)
    return rows


def at_strengths(logits: Tensor, pairs: Sequence[Pair], cell: int) -> dict[float, Tensor]:
    """Marginals after two iterations of mean field, by the votes that all messages together have."""
    vote = [1 / len(pairs) / max(1.0, potential.graph(maps).mean_degree()) for potential, maps in pairs]
    strengths = torch.tensor(STRENGTHS)[:, None, None, None]
    # The first iteration's messages are the same whatever they weigh; those of the second are sent all at once.
    first = pairwise_logits(pairs, logits.softmax(1), vote, cell)
    second = pairwise_logits(pairs, (logits + strengths * first).softmax(1), vote, cell)
    return dict(zip(STRENGTHS, (logits + strengths * second).softmax(1).split(1), strict=True))


def counts_path(fold: Fold, name: str) -> Path:
    """Where the confusion matrices of some networks lie; other weights have another path."""
    digest = hashlib.sha256()
    for potential, seed in GROUPS[name].networks:
        digest.update((fold.model(potential, seed) / "model.safetensors").read_bytes())
    return fold.folder / f"{name}-{digest.hexdigest()[:8]}.npz"


def evaluate(fold: Fold, name: str) -> None:
    """Write confusion matrices of the fold's test images, for every row, seed and strength of a group of networks."""
    path = counts_path(fold, name)
    with claim(path) as mine:
        if mine:
            _evaluate(fold, GROUPS[name].open(fold), path)


@torch.inference_mode()
def _evaluate(fold: Fold, networks: Unaries | OwnTrunks | SharedTrunk, path: Path) -> None:
    data = open_dataset(fold.data, fold.test)
    counts: dict[str, list[Tensor]] = {}
    for number, (image, mask) in enumerate(data.without_transform()):
        # Not a bar: this runs for long, and its output is a file.
        if number % 20 == 0:
            print(f"{fold.folder.name}, {path.stem}: {number} of {len(data)} images", flush=True)
        for seed, rows in enumerate(networks.rows(image[None].float())):
            for row, marginals in rows.items():
                labels = upsample(marginals, mask.shape).argmax(1)
                counts.setdefault(f"{row}|{seed}", []).append(confusion(labels, mask[None], len(data.classes)))
    names = [image.stem for image, _ in data.pairs]
    write_counts(path, names, {row: torch.stack(images) for row, images in counts.items()})


@dataclass(frozen=True)
class Measured:
    """A row's confusion matrices [seeds, images, K, K] over all folds, and the strength chosen for each half fold."""

    counts: Tensor
    strengths: list[float]


def halves(count: int, video: bool) -> tuple[slice, slice]:
    """Which of a test split's images belong together: every second one, since lists of photographs are often sorted by
    their subject; of a video its beginning and its end."""
    return (slice(count // 2), slice(count // 2, None)) if video else (slice(0, None, 2), slice(1, None, 2))


def scored_classes(folds: Sequence[Fold], least: int) -> list[int]:
    """The classes that so many of all folds' test images show."""
    images = torch.cat([read_counts(counts_path(fold, "unaries"))[1][f"{UNARY}|0"] for fold in folds])
    return classes_in(images, least)


def collect(
    folds: Sequence[Fold], video: bool, groups: Sequence[str], classes: Sequence[int] | None = None
) -> dict[str, Measured]:
    """The rows of some groups; each half of a fold's test images takes the strength that is best on the other half."""
    parts = []
    for fold in folds:
        arrays: dict[str, Tensor] = {}
        for name in groups:
            if not (path := counts_path(fold, name)).exists():
                raise SystemExit(f"{path}: {BUSY}")
            arrays |= read_counts(path)[1]
        rows = _by_row(arrays)
        first, second = (
            {row: counts[:, part] for row, counts in rows.items()} for part in halves(rows[UNARY].shape[1], video)
        )
        parts += [(first, second), (second, first)]
    result = {}
    for row in ROWS:
        if _group(row) not in groups:
            continue
        if not row.endswith("?"):
            result[row] = Measured(torch.cat([half[row] for half, _ in parts], 1), [])
            continue
        names = {strength: f"{row[:-1]}{strength:g}" for strength in STRENGTHS}
        chosen = []
        for _, other in parts:
            scores = {strength: float(mean_iou(other[name], classes).mean()) for strength, name in names.items()}
            chosen.append(max(scores, key=lambda strength: scores[strength]))
        counts = [half[names[strength]] for (half, _), strength in zip(parts, chosen, strict=True)]
        result[row] = Measured(torch.cat(counts, 1), chosen)
    return result


def _by_row(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Arrays [images, K, K] named "row|seed" as [seeds, images, K, K] by row."""
    rows: dict[str, list[Tensor]] = {}
    for name in sorted(arrays):
        rows.setdefault(name.rpartition("|")[0], []).append(arrays[name])
    return {row: torch.stack(seeds) for row, seeds in rows.items()}


def mean_iou(counts: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Of confusion matrices [seeds, images, K, K], for each seed [seeds], over some classes or all."""
    iou = intersection_over_union(counts.sum(1))
    return (iou if classes is None else iou[:, list(classes)]).nanmean(-1)


def report(
    name: str, video: bool, folds: Sequence[Fold], groups: Sequence[str] = tuple(GROUPS), least: int = 0
) -> None:
    """Write the tables of some groups: mean IoU of each seed, differences to single unaries and to three; contrasts.

    A row with two seeds that stands on the first two unaries is compared with these. Where groups are missing, the last
    of those that are there is part of the files' names.
    """
    classes = scored_classes(folds, least) if least else None
    rows = collect(folds, video, groups, classes)
    images = f"{rows[UNARY].counts.shape[1]} images"
    if classes is not None:
        names = open_dataset(folds[0].data, folds[0].test).classes.names
        images += ", classes " + ", ".join(names[k] for k in classes)
    lines = [f"| row ({images}) | mean IoU | seeds | over one unary | over three unaries | strength |"]
    lines.append("|---|---:|---|---|---|---|")
    found: list[dict[str, Any]] = []
    for row, measured in rows.items():
        on_two = "1unary" in row
        unaries = rows[UNARY].counts[: len(SEEDS) if on_two else None]
        single = change_of(unaries, measured.counts, video, classes)
        three = change_of(rows[THREE].counts, measured.counts, video, classes)
        seeds = mean_iou(measured.counts, classes).tolist()
        mean = sum(seeds) / len(seeds)
        found.append({"row": row, "mean_iou": mean, "seeds": seeds, "strengths": measured.strengths})
        found[-1] |= {"over one unary": single, "over three unaries": three}
        each = ", ".join(f"{100 * seed:.1f}" for seed in seeds)
        chosen = ", ".join(f"{strength:g}" for strength in measured.strengths)
        lines.append(f"| {row} | {100 * mean:.1f} | {each} | {shown(single)} | {shown(three)} | {chosen} |")
    lines += ["", "| without the neighbors' labels | with them | difference |", "|---|---|---|"]
    for without, with_labels in CONTRASTS:
        if without not in rows or with_labels not in rows:
            continue
        change = change_of(rows[without].counts, rows[with_labels].counts, video, classes)
        found.append({"without": without, "with": with_labels, "difference": change})
        lines.append(f"| {without} | {with_labels} | {shown(change)} |")
    print("\n".join(lines))
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = name if len(groups) == len(GROUPS) else f"{name}-{groups[-1]}"
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


def change_of(first: Tensor, second: Tensor, video: bool = False, classes: Sequence[int] | None = None) -> list[float]:
    """The difference of mean IoU and its interval."""
    found = paired_bootstrap(first, second, block=VIDEO_BLOCK if video else 1, classes=classes)
    return [found.second - found.first, found.low, found.high]


def shown(change: Sequence[float]) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in change))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work", type=Path, required=True, help="folder for networks and what they say")
    others = [name for name in GROUPS if name != "unaries"]
    parser.add_argument("--groups", nargs="+", choices=others, default=others, help="beside the unaries")
    options = parser.parse_args()
    study = STUDIES[options.study]
    folds = deal(study, options.data, options.work)
    groups = [name for name in GROUPS if name == "unaries" or name in options.groups]
    for name in groups:
        train(study, folds, GROUPS[name].networks)
        for fold in folds:
            evaluate(fold, name)
    report(options.study, study.video, folds, groups, study.least)


if __name__ == "__main__":
    main()
