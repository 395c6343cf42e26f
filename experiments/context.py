"""The gain of context on real images: one network per potential, controls, seeds, intervals.

    python experiments/context.py msrc --data DATA/MSRC21 --work runs/context/msrc

trains what is not there yet, then evaluates all of it into results/context/<study>.json and .md. It may be stopped and
started again at any time, and several processes may share the work (set OMP_NUM_THREADS for each).

Every network is trained end to end from ImageNet, with augmentation, for one potential: three seeds of the unary, two
of each pairwise potential. Strengths of the messages are chosen on images that the networks have not seen and that are
not reported: each half of a test split takes what is best on its other half.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from contextcrf import ContextCRF, PairwisePotential, load, mean_field
from contextcrf.cli import build_parser
from contextcrf.cli import main as contextcrf
from contextcrf.comparison import paired_bootstrap, read_counts, write_counts
from contextcrf.data.dataset import open_dataset
from contextcrf.data.folds import write_folds
from contextcrf.evaluation import ConfusionMatrix
from contextcrf.model import UNARY, assemble, upsample
from locks import claim

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "context"
RELATIONS = ("surrounding", "above")
UNARY_SEEDS, SEEDS = (0, 1, 2), (0, 1)
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
)


@dataclass(frozen=True)
class Study:
    """A data set: the recipe of its networks, and the number of folds; with 1, its own train and val."""

    config: Path
    folds: int


STUDIES = {
    "msrc": Study(ROOT / "configs" / "msrc-context.yaml", folds=3),
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

    @property
    def counts(self) -> Path:
        """Where the confusion matrices of the fold's test images lie."""
        return self.folder / "counts.npz"


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
    networks = [(UNARY, seed) for seed in UNARY_SEEDS] + [(name, seed) for name in RELATIONS for seed in SEEDS]
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
    options = ["--config", study.config, "--data", fold.data, "--train_split", fold.train, "--val_split", "null"]
    options += ["--recipe.potentials", json.dumps([potential]), "--recipe.seed", seed]
    return ["fit", *map(str, options), "--out", str(fold.network(potential, seed))]


def _check(network: Path, command: list[str]) -> None:
    """Whether a network is there and was trained as the command says."""
    if not (network / "model" / "model.safetensors").exists():
        raise SystemExit(f"{network}: {BUSY}")
    parser = build_parser()
    wanted = parser.instantiate(parser.parse_args(command)).fit
    saved = json.loads((network / "model" / "config.json").read_text())
    for values, found in (
        (asdict(wanted.model), saved["model"]),
        (asdict(wanted.recipe), saved["about"]["fit"]["recipe"]),
    ):
        for key, value in found.items():
            if json.loads(json.dumps(values[key])) != value:
                raise SystemExit(f"{network}: was trained with {key} {value}, not {values[key]}: move it away")
    if saved["about"]["fit"]["split"] != wanted.train_split:
        raise SystemExit(f"{network}: was trained on {saved['about']['fit']['split']}: move it away")


class Networks:
    """The networks of a fold as models that share them: one per seed of the pairwise potentials."""

    def __init__(self, fold: Fold) -> None:
        self.unaries = [load(fold.network(UNARY, seed) / "model") for seed in UNARY_SEEDS]
        self.models = [
            assemble(self.unaries[seed], {name: load(fold.network(name, seed) / "model") for name in RELATIONS})
            for seed in SEEDS
        ]

    @torch.inference_mode()
    def rows(self, image: Tensor) -> dict[str, list[Tensor]]:
        """Marginals [1, K, h, w] of one image uint8 [3, H, W] by row, one for each seed."""
        pixels = image[None].float()
        unaries = [model.infer(model.features(pixels, [UNARY]), [UNARY]) for model in self.unaries]
        found: dict[str, list[Tensor]] = {UNARY_ROW: unaries, THREE: [torch.stack(unaries).mean(0)]}
        for model in self.models:
            features = model.features(pixels)
            for row, marginals in self._pairs(model, features, found[THREE][0]).items():
                found.setdefault(row, []).append(marginals)
        return found

    def _pairs(self, model: ContextCRF, features: dict[str, Tensor], three: Tensor) -> dict[str, Tensor]:
        heads = {name: head for name, head in model.pairwise.items() if isinstance(head, PairwisePotential)}
        pairs = [(head, features[name]) for name, head in heads.items()]
        degrees = [head.graph(maps).mean_degree() for head, maps in pairs]
        edges = torch.stack([head.edge_marginals(maps) for head, maps in pairs]).mean(0)
        unary, three, edges = (part.clamp(min=1e-9).log() for part in (model.infer(features, [UNARY]), three, edges))
        result = {f"pairwise-{name}": model.infer(features, [name]) for name in RELATIONS}
        weights = {strength: [strength / len(pairs) / degree for degree in degrees] for strength in STRENGTHS}
        combined = {"1unary+2pair": unary, "three unaries+2pair": three}
        for name, logits in combined.items():
            # The first iteration's messages are the same whatever they weigh.
            first = [head.messages(maps, logits.softmax(1)) for head, maps in pairs]
            for strength, each in weights.items():
                start = (logits + sum(w * message for w, message in zip(each, first, strict=True))).softmax(1)
                result[f"{name}, strength {strength:g}"] = mean_field(logits, pairs, 1, each, start=start)
        result["1unary+2pair, plain sum"] = mean_field(unary, pairs)
        for strength in STRENGTHS:
            # The pairwise networks as two more classifiers: what they say without the labels of the neighbours.
            result[f"1unary + edge marginals, strength {strength:g}"] = (unary + strength * edges).softmax(1)
        return result


def evaluate(fold: Fold) -> None:
    """Write confusion matrices of the fold's test images, for every row, seed and strength."""
    with claim(fold.counts) as mine:
        if not mine:
            return
        data = open_dataset(fold.data, fold.test)
        networks = Networks(fold)
        counts: dict[str, list[Tensor]] = {}
        for image, mask in track(data.without_transform(), fold.test, total=len(data)):
            for row, seeds in networks.rows(image).items():
                for seed, marginals in enumerate(seeds):
                    matrix = ConfusionMatrix(len(data.classes))
                    matrix.update(upsample(marginals, mask.shape).argmax(1), mask[None])
                    counts.setdefault(f"{row}|{seed}", []).append(matrix.counts)
        names = [image.stem for image, _ in data.pairs]
        write_counts(fold.counts, names, {row: torch.stack(images) for row, images in counts.items()})


@dataclass(frozen=True)
class Measured:
    """A row's confusion matrices [seeds, images, K, K] over all folds, and the strength chosen for each half fold."""

    counts: Tensor
    strengths: list[float]


def collect(folds: Sequence[Fold]) -> dict[str, Measured]:
    """All rows; the strength for each half of a fold's test images is that which is best on the other half."""
    parts = []
    for fold in folds:
        if not fold.counts.exists():
            raise SystemExit(f"{fold.counts}: {BUSY}")
        rows = _by_row(read_counts(fold.counts)[1])
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
            scores = {strength: mean_iou(other[name]) for strength, name in names.items()}
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


def mean_iou(counts: Tensor) -> float:
    """Of confusion matrices [seeds, images, K, K], the mean over the seeds."""
    total = counts.sum(1).double()
    hits = total.diagonal(dim1=1, dim2=2)
    return float((hits / (total.sum(1) + total.sum(2) - hits)).nanmean(1).mean())


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
        unaries = rows[UNARY_ROW].counts[: len(SEEDS) if row.startswith("1unary") else None]
        single = paired_bootstrap(unaries, measured.counts)
        three = paired_bootstrap(rows[THREE].counts, measured.counts)
        seeds = [mean_iou(seed[None]) for seed in measured.counts]
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
