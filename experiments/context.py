"""The gain of context on real images: one network per potential, controls, seeds, intervals.

    python experiments/context.py msrc --data DATA/MSRC21 --work runs/context/msrc

trains what is not there yet, then evaluates all of it into results/context/<study>.json and .md. It may be stopped and
started again at any time, and several processes may share the work (set OMP_NUM_THREADS for each).

Every network is trained end to end from ImageNet, with augmentation, for one potential: three seeds of the unary, two
of each pairwise potential. For the rows with a shared trunk, heads of both pairwise potentials are trained on what the
first two unary networks see, which stay as they are. Strengths of the messages are chosen on images that the networks
have not seen and that are not reported: each half of a test split takes what is best on its other half.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from contextcrf import ContextCRF, PairwisePotential, load, mean_field
from contextcrf.cli import build_parser
from contextcrf.cli import main as contextcrf
from contextcrf.comparison import paired_bootstrap, read_counts, write_counts
from contextcrf.crf.meanfield import enlarge, pairwise_logits
from contextcrf.data.dataset import open_dataset
from contextcrf.data.folds import write_folds
from contextcrf.evaluation import confusion, intersection_over_union
from contextcrf.model import UNARY, assemble, upsample
from locks import claim

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "context"
RELATIONS = ("surrounding", "above")
UNARY_SEEDS, SEEDS = (0, 1, 2), (0, 1)
# Trained on the features of a unary network, both relations together.
HEADS = "heads"
# Of the messages of both relations together, in unary votes.
STRENGTHS = (0.5, 1.0, 2.0, 4.0)

BUSY = "another process is still at it: start again when it has ended"

# The rows of the table. "?" stands for a strength: that of the row is chosen among STRENGTHS.
UNARY_ROW, THREE = "unary-3scales", "three unaries"
ROWS = (
    UNARY_ROW,
    "pairwise-surrounding",
    "pairwise-above",
    "1unary+2pair, plain sum",
    "1unary+2pair, strength 1",
    "1unary+2pair, strength ?",
    "1unary + edge marginals, strength ?",
    THREE,
    "three unaries+2pair, strength ?",
    "shared trunk: 1unary+2pair, plain sum",
    "shared trunk: 1unary+2pair, strength 1",
    "shared trunk: 1unary+2pair, strength ?",
)


@dataclass(frozen=True)
class Study:
    """A data set: recipes of its networks and of heads on them; the number of folds, with 1 its own train and val."""

    config: Path
    heads: Path
    folds: int


CONFIGS = ROOT / "configs"
STUDIES = {
    "msrc": Study(CONFIGS / "msrc-context.yaml", CONFIGS / "msrc-heads.yaml", folds=3),
    "msrc-near": Study(CONFIGS / "msrc-near.yaml", CONFIGS / "msrc-heads.yaml", folds=3),
    "camvid": Study(CONFIGS / "camvid-context.yaml", CONFIGS / "camvid-heads.yaml", folds=1),
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

    def counts(self, networks: str) -> Path:
        """Where the confusion matrices of the fold's test images lie, as some of the networks label them."""
        return self.folder / f"{networks}.npz"


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
    return [Fold(dealt, f"fold{k}-train", f"fold{k}-test", work / f"fold{k}") for k in range(study.folds)]


def train(study: Study, folds: Sequence[Fold]) -> None:
    """Train the networks that are not there and that nobody else is at."""
    networks = [(UNARY, seed) for seed in UNARY_SEEDS]
    networks += [(name, seed) for name in (*RELATIONS, HEADS) for seed in SEEDS]
    wanted = [(fold, *network) for network in sorted(networks, key=lambda network: network[1]) for fold in folds]
    for fold, potential, seed in wanted:
        out = fold.network(potential, seed)
        with claim(out / "model" / "model.safetensors") as mine:
            if mine:
                resume = ["--ckpt_path", "last"] if (out / "checkpoints" / "last.ckpt").exists() else []
                contextcrf([*_command(study, fold, potential, seed), *resume])
    for fold, potential, seed in wanted:
        _check(fold.network(potential, seed), _command(study, fold, potential, seed))


def _command(study: Study, fold: Fold, potential: str, seed: int) -> list[str]:
    if potential == HEADS:
        command = ["fit-heads", fold.network(UNARY, seed) / "model", "--config", study.heads]
    else:
        command = ["fit", "--config", study.config, "--recipe.potentials", json.dumps([potential])]
        command += ["--val_split", "null"]
    command += ["--data", fold.data, "--train_split", fold.train, "--recipe.seed", seed]
    return [*map(str, command), "--out", str(fold.network(potential, seed))]


def _check(network: Path, command: list[str]) -> None:
    """Whether a network is there and was trained as the command says."""
    if not (network / "model" / "model.safetensors").exists():
        raise SystemExit(f"{network}: {BUSY}")
    parser = build_parser()
    wanted = parser.instantiate(parser.parse_args(command))[command[0]]
    saved = json.loads((network / "model" / "config.json").read_text())
    about = saved["about"][command[0]]
    pairs = [(asdict(wanted.recipe), about["recipe"]), ({"split": wanted.train_split}, {"split": about["split"]})]
    if command[0] == "fit":
        pairs.append((asdict(wanted.model), saved["model"]))
    for values, found in pairs:
        for key, value in found.items():
            if json.loads(json.dumps(values[key])) != value:
                raise SystemExit(f"{network}: was trained with {key} {value}, not {values[key]}: move it away")


class OwnTrunks:
    """The networks of a fold, one for each potential, as models that share them: one per seed of the pairwise ones."""

    def __init__(self, fold: Fold) -> None:
        self.unaries = [load(fold.network(UNARY, seed) / "model") for seed in UNARY_SEEDS]
        self.models = [
            assemble(self.unaries[seed], {name: load(fold.network(name, seed) / "model") for name in RELATIONS})
            for seed in SEEDS
        ]

    def rows(self, pixels: Tensor) -> Iterator[dict[str, Tensor]]:
        """Marginals [1, K, h, w] of one image float [1, 3, H, W] by row, seed after seed."""
        unaries = [model.infer(model.features(pixels, [UNARY]), [UNARY]) for model in self.unaries]
        three = torch.stack(unaries).mean(0)
        for seed, unary in enumerate(unaries):
            rows = {UNARY_ROW: unary, **({THREE: three} if seed == 0 else {})}
            if seed in SEEDS:
                model = self.models[seed]
                features = model.features(pixels)
                rows |= {f"pairwise-{name}": model.infer(features, [name]) for name in RELATIONS}
                rows |= combinations(model, features, {"1unary": unary, "three unaries": three})
            yield rows


class SharedTrunk:
    """Unary networks of a fold with pairwise heads on their features; rows as those of `OwnTrunks`."""

    def __init__(self, fold: Fold) -> None:
        self.models = [load(fold.network(HEADS, seed) / "model") for seed in SEEDS]

    def rows(self, pixels: Tensor) -> Iterator[dict[str, Tensor]]:
        for model in self.models:
            features = model.features(pixels)
            yield combinations(model, features, {"shared trunk: 1unary": model.infer(features, [UNARY])})


# By the name of the file of their confusion matrices.
NETWORKS: dict[str, Callable[[Fold], OwnTrunks | SharedTrunk]] = {"own": OwnTrunks, "shared": SharedTrunk}


def combinations(model: ContextCRF, features: dict[str, Tensor], unaries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Marginals by row: those of unaries, by name, with the model's pairwise potentials at all strengths.

    With "edge marginals" the pairwise networks are as many more classifiers: what they say without the labels of the
    neighbours.
    """
    heads = {name: head for name, head in model.pairwise.items() if isinstance(head, PairwisePotential)}
    pairs = [(head, features[name]) for name, head in heads.items()]
    # One vote of all relations together.
    vote = [1 / len(pairs) / max(1.0, head.graph(maps).mean_degree()) for head, maps in pairs]
    edges = torch.stack([head.edge_marginals(maps) for head, maps in pairs]).mean(0)
    result = {}
    for name, marginals in unaries.items():
        logits = marginals.clamp(min=1e-9).log()
        classifiers = enlarge(edges.clamp(min=1e-9).log(), model.cell, logits.shape[-2:])
        result[f"{name}+2pair, plain sum"] = mean_field(logits, pairs, cell=model.cell)
        # The first iteration's messages are the same whatever they weigh.
        first = pairwise_logits(pairs, logits.softmax(1), vote, model.cell)
        for strength in STRENGTHS:
            weights, start = [strength * weight for weight in vote], (logits + strength * first).softmax(1)
            result[f"{name}+2pair, strength {strength:g}"] = mean_field(
                logits, pairs, 1, weights, cell=model.cell, start=start
            )
            result[f"{name} + edge marginals, strength {strength:g}"] = (logits + strength * classifiers).softmax(1)
    return result


def evaluate(fold: Fold) -> None:
    """Write confusion matrices of the fold's test images, for every row, seed and strength."""
    for name, open_networks in NETWORKS.items():
        with claim(fold.counts(name)) as mine:
            if mine:
                _evaluate(fold, open_networks(fold), fold.counts(name))


@torch.inference_mode()
def _evaluate(fold: Fold, networks: OwnTrunks | SharedTrunk, path: Path) -> None:
    data = open_dataset(fold.data, fold.test)
    counts: dict[str, list[Tensor]] = {}
    for image, mask in track(data.without_transform(), f"{fold.test}, {path.stem}", total=len(data)):
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


def collect(folds: Sequence[Fold]) -> dict[str, Measured]:
    """All rows; the strength for each half of a fold's test images is that which is best on the other half."""
    parts = []
    for fold in folds:
        arrays: dict[str, Tensor] = {}
        for name in NETWORKS:
            if not fold.counts(name).exists():
                raise SystemExit(f"{fold.counts(name)}: {BUSY}")
            arrays |= read_counts(fold.counts(name))[1]
        rows = _by_row(arrays)
        middle = rows[UNARY_ROW].shape[1] // 2
        halves = [{row: c[:, part] for row, c in rows.items()} for part in (slice(None, middle), slice(middle, None))]
        parts += [(halves[0], halves[1]), (halves[1], halves[0])]
    result = {}
    for row in ROWS:
        if not row.endswith("?"):
            result[row] = Measured(torch.cat([half[row] for half, _ in parts], 1), [])
            continue
        names = {strength: f"{row[:-1]}{strength:g}" for strength in STRENGTHS}
        chosen = []
        for _, other in parts:
            scores = {strength: float(mean_iou(other[name]).mean()) for strength, name in names.items()}
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


def mean_iou(counts: Tensor) -> Tensor:
    """Of confusion matrices [seeds, images, K, K], for each seed [seeds]."""
    return intersection_over_union(counts.sum(1)).nanmean(-1)


def report(name: str, folds: Sequence[Fold]) -> None:
    """Write the table: mean IoU of each seed, differences to single unaries and to three together.

    A row with two seeds that stands on the first two unaries is compared with these.
    """
    rows = collect(folds)
    images = rows[UNARY_ROW].counts.shape[1]
    lines = [f"| row ({images} images) | mean IoU | seeds | over one unary | over three unaries | strength |"]
    lines.append("|---|---:|---|---|---|---|")
    found = []
    for row, measured in rows.items():
        on_two = "1unary" in row
        unaries = rows[UNARY_ROW].counts[: len(SEEDS) if on_two else None]
        single = paired_bootstrap(unaries, measured.counts)
        three = paired_bootstrap(rows[THREE].counts, measured.counts)
        seeds = mean_iou(measured.counts).tolist()
        found.append(
            {
                "row": row,
                "mean_iou": single.second,
                "seeds": seeds,
                "over one unary": [single.second - single.first, single.low, single.high],
                "over three unaries": [three.second - three.first, three.low, three.high],
                "strengths": measured.strengths,
            }
        )
        changes = (
            f"{100 * (d.second - d.first):+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]" for d in (single, three)
        )
        each = ", ".join(f"{100 * seed:.1f}" for seed in seeds)
        chosen = ", ".join(f"{strength:g}" for strength in measured.strengths)
        lines.append(f"| {row} | {100 * single.second:.1f} | {each} | {' | '.join(changes)} | {chosen} |")
    print("\n".join(lines))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work", type=Path, required=True, help="folder for networks and what they say")
    options = parser.parse_args()
    study = STUDIES[options.study]
    folds = deal(study, options.data, options.work)
    train(study, folds)
    for fold in folds:
        evaluate(fold)
    report(options.study, folds)


if __name__ == "__main__":
    main()
