"""Measure the gain of context on real images: one network per potential, controls, several seeds, 95 % intervals.

    python experiments/context.py msrc --data DATA/MSRC21 --work runs/context/msrc

This command trains the networks that the work folder lacks. Then it measures all rows of the table and writes
results/context/<study>.json and .md. You may stop it and start it again at any time. Several processes may share the
work (set OMP_NUM_THREADS for each).

Every network is trained end to end from ImageNet weights, with augmentation, for one potential. There are three seeds
of the unary and two seeds of each pairwise potential. The rows with a shared trunk have pairwise heads, which are
trained on the frozen features of the first two unary networks. `--groups shared` trains only these heads and the
unaries. The weight of the messages is chosen on images that are neither trained on nor reported: the test images are
divided into two parts, and each part takes the weight that is best on the other part.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contextcrf import ContextCRF, PairwisePotential, Predictor, System, load, mean_field
from contextcrf.cli.main import read_command
from contextcrf.crf import CoarseGrid
from contextcrf.crf.coarse_grid import enlarge
from contextcrf.crf.meanfield import Pair, pairwise_logits
from contextcrf.crf.pair_table import PairTable
from contextcrf.data.cross_validation import make_folds
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.comparison import classes_in, paired_bootstrap, read_counts, write_counts
from contextcrf.evaluation.metrics import confusion, intersection_over_union, mean_iou
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.serialization import weights_digest
from contextcrf.modeling.system import UNARY_ONLY
from contextcrf.training.config import FitHeadsJob, FitJob, Job
from contextcrf.training.jobs import BusyError, check_finished, run
from contextcrf.utils.files import write_json, write_text
from contextcrf.utils.locks import claim
from contextcrf.utils.progress import show_progress, track
from contextcrf.utils.provenance import Provenance
from contextcrf.utils.resizing import upsample
from contextcrf.utils.tables import Table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "context"
CONFIGS = ROOT / "configs"
RELATIONS = ("surrounding", "above")
UNARY_SEEDS, SEEDS = (0, 1, 2), (0, 1)
# Stands in place of a potential's name for pairwise heads of both relations on the features of a unary network.
HEADS = "heads"
# Weights of the messages of all relations together, relative to the unary. Every relation gets an equal share.
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
VIDEO_BLOCK = 10

BUSY = "Another process is working on it. Start this command again when that process has ended."

# Ends the name of each row whose weight is chosen among WEIGHTS, on images that are not reported.
CHOSEN = "chosen weight"
THREE, SHARED = "three unaries", "shared trunk: "
# The rows of the table.
ROWS = (
    UNARY,
    "pairwise-surrounding",
    "pairwise-above",
    "1unary+2pair, plain sum",
    "1unary+2pair, weight 1",
    f"1unary+2pair, {CHOSEN}",
    f"1unary+surrounding, {CHOSEN}",
    f"1unary+above, {CHOSEN}",
    f"1unary + edge marginals, {CHOSEN}",
    THREE,
    f"three unaries+2pair, {CHOSEN}",
    f"{SHARED}pairwise-surrounding",
    f"{SHARED}pairwise-above",
    f"{SHARED}1unary+2pair, plain sum",
    f"{SHARED}1unary+2pair, weight 1",
    f"{SHARED}1unary+2pair, {CHOSEN}",
    f"{SHARED}1unary+surrounding, {CHOSEN}",
    f"{SHARED}1unary+above, {CHOSEN}",
    f"{SHARED}1unary + edge marginals, {CHOSEN}",
)
# Pairs of rows with the same networks: without and with the labels of the neighbors.
CONTRASTS = (
    (f"1unary + edge marginals, {CHOSEN}", f"1unary+2pair, {CHOSEN}"),
    (THREE, f"three unaries+2pair, {CHOSEN}"),
    (f"{SHARED}1unary + edge marginals, {CHOSEN}", f"{SHARED}1unary+2pair, {CHOSEN}"),
)


@dataclass(frozen=True)
class ContextStudy:
    """A data set and the training of its networks.

    Args:
        config: the config file of `contextcrf fit` for the networks.
        heads: the config file of `contextcrf fit-heads` for heads on the features of a unary network.
        folds: number of folds of the cross-validation. With 1, the splits train and val of the data set are used.
        video: whether the images are frames of a video. Neighboring frames resemble each other, so the bootstrap draws
            blocks of VIDEO_BLOCK images.
        min_images: a class that occurs in fewer test images is not scored, since its IoU is mostly noise.
    """

    config: Path
    heads: Path
    folds: int
    video: bool = False
    min_images: int = 0


CONTEXT_STUDIES = {
    "msrc": ContextStudy(CONFIGS / "msrc-context.yaml", CONFIGS / "msrc-heads.yaml", folds=3),
    "msrc-near": ContextStudy(CONFIGS / "msrc-near.yaml", CONFIGS / "msrc-heads.yaml", folds=3),
    "camvid": ContextStudy(CONFIGS / "camvid-context.yaml", CONFIGS / "camvid-heads.yaml", folds=1, video=True),
    "voc": ContextStudy(CONFIGS / "voc-context.yaml", CONFIGS / "msrc-heads.yaml", folds=1, min_images=10),
}


@dataclass(frozen=True)
class Fold:
    """A training split and a test split of a data set, and the folder of the networks that are trained on them."""

    data: Path
    train: str
    test: str
    folder: Path

    def network(self, potential: str, seed: int) -> Path:
        """Return the folder of the training of a network."""
        return self.folder / f"{potential}-{seed}"

    def model(self, potential: str, seed: int) -> Path:
        """Return the folder of the trained network."""
        return self.network(potential, seed) / "model"


def open_folds(study: ContextStudy, data: Path, work: Path) -> list[Fold]:
    """Return the folds of a data set, and make them unless the work folder has them.

    Raises:
        SystemExit: if another process is making them, or if the work folder has folds of other images.
    """
    if study.folds == 1:
        return [Fold(data, "train", "val", work)]
    folder = work / "data"
    with claim(folder) as mine:
        if mine:
            make_folds(data, folder, study.folds)
    if not folder.exists():
        raise SystemExit(f"{folder} is not finished. {BUSY}")
    folds = [Fold(folder, f"fold{k}-train", f"fold{k}-test", work / f"fold{k}") for k in range(study.folds)]
    found = {image.name for fold in folds for image, _ in open_dataset(folder, fold.test).pairs}
    expected = {image.name for split in ("train", "val") for image, _ in open_dataset(data, split).pairs}
    if found != expected:
        raise SystemExit(
            f"{folder} has folds of other images than {data}: {min(found ^ expected)} is in only one of them. Move the "
            "folder, or choose another folder with --work."
        )
    return folds


def training_job(study: ContextStudy, fold: Fold, potential: str, seed: int) -> Job:
    """Return the training job of one network: for a potential, given by its name, or for `HEADS`."""
    out = fold.network(potential, seed)
    if potential == HEADS:
        heads = FitHeadsJob(**_options("fit-heads", fold.model(UNARY, seed), study.heads, fold, out))
        return replace(heads, training=replace(heads.training, seed=seed))
    network = FitJob(**_options("fit", None, study.config, fold, out))
    return replace(network, val_split=None, training=replace(network.training, potentials=[potential], seed=seed))


def _options(command: str, model: Path | None, config: Path, fold: Fold, out: Path) -> dict[str, Any]:
    """Return the options of a training command from its config file, for a fold."""
    positional = [] if model is None else [model]
    options = ["--config", config, "--data", fold.data, "--train-split", fold.train, "--out", out]
    return read_command([command, *map(str, [*positional, *options])])[1]


def train_networks(study: ContextStudy, folds: Sequence[Fold], networks: Sequence[tuple[str, int]]) -> None:
    """Train the given networks (potential, seed) that do not exist yet and that no other process is training.

    Raises:
        BusyError: if another process has not finished one of them.
        OtherSettingsError: if one of them was trained with other settings.
    """
    jobs = [training_job(study, fold, *network) for network in networks for fold in folds]
    for job in jobs:
        with suppress(BusyError):
            run(job)
    for job in jobs:
        check_finished(job)


def potential_features(network: ContextCRF, potential: str, images: Tensor) -> Tensor:
    """Return the feature map of one potential for images float [1, 3, H, W], in single precision."""
    system = UNARY_ONLY if potential == UNARY else System(unary=False, relations=(potential,))
    return Predictor(network).extract_features(images, [system])[potential].float()


def unary_marginals(network: ContextCRF, features: Tensor) -> Tensor:
    """Return the marginals [1, K, h, w] of the unary alone, in single precision."""
    return Predictor(network, replace(network.inference, precision="32-true")).mean_field({UNARY: features}, UNARY_ONLY)


class UnaryNetworks:
    """The unary networks of a fold, one for each seed."""

    def __init__(self, fold: Fold) -> None:
        self.networks = [load(fold.model(UNARY, seed)) for seed in UNARY_SEEDS]

    def marginals(self, images: Tensor) -> list[Tensor]:
        """Return the marginals [1, K, h, w] of every seed for one image float [1, 3, H, W]."""
        return [unary_marginals(network, potential_features(network, UNARY, images)) for network in self.networks]

    def rows(self, images: Tensor) -> Iterator[dict[str, Tensor]]:
        """Yield the marginals [1, K, h, w] by row, seed by seed, for one image float [1, 3, H, W]."""
        unaries = self.marginals(images)
        for seed, unary in enumerate(unaries):
            yield {UNARY: unary, **({THREE: torch.stack(unaries).mean(0)} if seed == 0 else {})}


class SeparateTrunks:
    """The networks of a fold, one for each potential; `rows` is as in `UnaryNetworks`.

    A unary network and the pairwise networks of the same seed were trained on the same crops in the same order.
    Therefore networks of different seeds are combined, as in the mean of three unaries.
    """

    def __init__(self, fold: Fold) -> None:
        self.unaries = UnaryNetworks(fold)
        self.networks = {(name, seed): load(fold.model(name, seed)) for name in RELATIONS for seed in SEEDS}

    def rows(self, images: Tensor) -> Iterator[dict[str, Tensor]]:
        """Marginals by row, for one seed after the other."""
        unaries = self.unaries.marginals(images)
        three = torch.stack(unaries).mean(0)
        maps = {key: potential_features(network, key[0], images) for key, network in self.networks.items()}
        for seed in SEEDS:
            other = SEEDS[SEEDS.index(seed) - 1]
            pairs = {
                name: (self.networks[name, other].pairwise_potential(name), maps[name, other]) for name in RELATIONS
            }
            factor = self.unaries.networks[seed].config.coarse_factor
            yield marginals_by_row(pairs, {"1unary": unaries[seed], THREE: three}, factor)


class SharedTrunk:
    """Unary networks of a fold with pairwise heads on their features; `rows` is as in `UnaryNetworks`.

    Raises:
        SystemExit: if the trunk of the heads differs from the trunk of the unary network.
    """

    def __init__(self, fold: Fold) -> None:
        self.models = [load(fold.model(HEADS, seed)) for seed in SEEDS]
        for seed, model in zip(SEEDS, self.models, strict=True):
            trunk = load(fold.model(UNARY, seed)).trunks.state_dict()
            if any(not torch.equal(value, trunk[name]) for name, value in model.trunks.state_dict().items()):
                raise SystemExit(
                    f"{fold.network(HEADS, seed)} has another trunk than {UNARY}-{seed}. Move the folder, so that the "
                    "heads are trained again."
                )

    def rows(self, images: Tensor) -> Iterator[dict[str, Tensor]]:
        """Marginals by row, for one seed after the other."""
        for model in self.models:
            fine = potential_features(model, UNARY, images)
            pairs = {name: (model.pairwise_potential(name), model.pool(fine)) for name in RELATIONS}
            unary = unary_marginals(model, fine)
            rows = marginals_by_row(pairs, {"1unary": unary}, model.config.coarse_factor)
            yield {f"{SHARED}{row}": marginals for row, marginals in rows.items()}


@dataclass(frozen=True)
class NetworkGroup:
    """Networks, given as (potential, seed), and the class that computes rows from them."""

    networks: Sequence[tuple[str, int]]
    open: Callable[[Fold], UnaryNetworks | SeparateTrunks | SharedTrunk]


_UNARIES = [(UNARY, seed) for seed in UNARY_SEEDS]
# The groups in the order of the work. Each name is part of the name of the file of the confusion matrices.
GROUPS = {
    "unaries": NetworkGroup(_UNARIES, UnaryNetworks),
    "own": NetworkGroup([*_UNARIES, *((name, seed) for seed in SEEDS for name in RELATIONS)], SeparateTrunks),
    "shared": NetworkGroup([(HEADS, seed) for seed in SEEDS], SharedTrunk),
}


def group_of(row: str) -> str:
    """Return the name of the group whose networks a row needs."""
    if row.startswith(SHARED):
        return "shared"
    return "unaries" if row in (UNARY, THREE) else "own"


def marginals_by_row(
    heads: Mapping[str, tuple[PairwisePotential, Tensor]], unaries: Mapping[str, Tensor], factor: int
) -> dict[str, Tensor]:
    """Return marginals by row: of the pairwise potentials alone, and combined with each unary, at all weights.

    In the rows with "edge marginals", the pairwise networks are additional classifiers. Their mean edge marginals do
    not depend on the labels of the neighbors and are multiplied by the marginals of the unary.

    Args:
        heads: the potential of each relation and its feature map of one image.
        unaries: marginals [1, K, h, w] of each unary, by name.
        factor: number of nodes of the unary's grid along a side of a node of the pairwise graphs.
    """
    tables = {name: PairTable(head, maps) for name, (head, maps) in heads.items()}
    pairs: dict[str, Pair] = {name: (CoarseGrid(table, factor), table.features) for name, table in tables.items()}
    edges = {name: table.edge_marginals() for name, table in tables.items()}
    rows = {
        f"pairwise-{name}": mean_field(torch.zeros_like(start), [tables[name].pair], start=start)
        for name, start in edges.items()
    }
    mean = torch.stack(list(edges.values())).mean(0).clamp(min=1e-9).log()
    for unary, marginals in unaries.items():
        logits = marginals.clamp(min=1e-9).log()
        rows[f"{unary}+2pair, plain sum"] = mean_field(logits, list(pairs.values()))
        alone = {name: [pair] for name, pair in pairs.items()} if unary == "1unary" else {}
        for relations, chosen in {"2pair": list(pairs.values()), **alone}.items():
            for weight, found in marginals_by_weight(logits, chosen).items():
                rows[f"{unary}+{relations}, weight {weight:g}"] = found
        classifiers = enlarge(mean, factor, logits.shape[-2:])
        for weight in WEIGHTS:
            rows[f"{unary} + edge marginals, weight {weight:g}"] = (logits + weight * classifiers).softmax(1)
    return rows


def marginals_by_weight(logits: Tensor, pairs: Sequence[Pair]) -> dict[float, Tensor]:
    """Return the marginals after two iterations of mean field, for every weight of all messages together."""
    shares = [1 / len(pairs) / max(1.0, potential.graph(maps).mean_degree()) for potential, maps in pairs]
    weights = torch.tensor(WEIGHTS)[:, None, None, None]
    # The first messages do not depend on the weight. The second messages are computed for all weights at once.
    first = pairwise_logits(pairs, logits.softmax(1), shares)
    second = pairwise_logits(pairs, (logits + weights * first).softmax(1), shares)
    return dict(zip(WEIGHTS, (logits + weights * second).softmax(1).split(1), strict=True))


def counts_path(fold: Fold, name: str) -> Path:
    """Return the file of a group's confusion matrices; its name depends on the weights of the networks."""
    weights = {
        f"{potential}-{seed}": weights_digest(fold.model(potential, seed)) for potential, seed in GROUPS[name].networks
    }
    return fold.folder / f"{name}-{Provenance.of(weights=weights).digest[:8]}.npz"


def measure_group(fold: Fold, name: str) -> None:
    """Write the confusion matrices of the fold's test images for every row, seed and weight of a group of networks."""
    path = counts_path(fold, name)
    with claim(path) as mine:
        if mine:
            _measure_networks(fold, GROUPS[name].open(fold), path)


@torch.inference_mode()
def _measure_networks(fold: Fold, networks: UnaryNetworks | SeparateTrunks | SharedTrunk, path: Path) -> None:
    data = open_dataset(fold.data, fold.test)
    counts: dict[str, list[Tensor]] = {}
    for image, mask in track(data.without_transform(), f"{fold.folder.name}, {path.stem}", total=len(data)):
        for seed, rows in enumerate(networks.rows(image[None].float())):
            for row, marginals in rows.items():
                labels = upsample(marginals, mask.shape).argmax(1)
                counts.setdefault(f"{row}|{seed}", []).append(confusion(labels, mask[None], len(data.classes)))
    names = [image.stem for image, _ in data.pairs]
    write_counts(path, names, {row: torch.stack(images) for row, images in counts.items()})


@dataclass(frozen=True)
class RowResult:
    """The measurement of one row.

    Attributes:
        counts: confusion matrices [seeds, images, K, K] over all folds.
        weights: the weights that were chosen for the parts of the folds' test images; empty for a row without a choice.
    """

    counts: Tensor
    weights: list[float]


def two_parts(count: int, video: bool) -> tuple[slice, slice]:
    """Divide the test images into two parts.

    Lists of photographs are often sorted by subject, so the images go to the two parts alternately. A video is cut in
    the middle.
    """
    return (slice(count // 2), slice(count // 2, None)) if video else (slice(0, None, 2), slice(1, None, 2))


def scored_classes(folds: Sequence[Fold], min_images: int) -> list[int]:
    """Return the classes that occur in at least `min_images` test images of all folds together."""
    images = torch.cat([read_counts(counts_path(fold, "unaries"))[1][f"{UNARY}|0"] for fold in folds])
    return classes_in(images, min_images)


def collect(
    folds: Sequence[Fold], video: bool, groups: Sequence[str], classes: Sequence[int] | None = None
) -> dict[str, RowResult]:
    """Return the rows of the given groups; each part of the test images takes the weight that is best on the other.

    Raises:
        SystemExit: if the measurements of a group are missing.
    """
    parts = []
    for fold in folds:
        arrays: dict[str, Tensor] = {}
        for name in groups:
            if not (path := counts_path(fold, name)).exists():
                raise SystemExit(f"{path} does not exist yet. {BUSY}")
            arrays |= read_counts(path)[1]
        rows = _by_row(arrays)
        first, second = (
            {row: counts[:, part] for row, counts in rows.items()} for part in two_parts(rows[UNARY].shape[1], video)
        )
        parts += [(first, second), (second, first)]
    result = {}
    for row in ROWS:
        if group_of(row) not in groups:
            continue
        if not row.endswith(CHOSEN):
            result[row] = RowResult(torch.cat([part[row] for part, _ in parts], 1), [])
            continue
        names = {weight: f"{row.removesuffix(CHOSEN)}weight {weight:g}" for weight in WEIGHTS}
        chosen = []
        for _, other in parts:
            scores = {weight: float(mean_iou_by_seed(other[name], classes).mean()) for weight, name in names.items()}
            chosen.append(max(scores, key=lambda weight: scores[weight]))
        counts = [part[names[weight]] for (part, _), weight in zip(parts, chosen, strict=True)]
        result[row] = RowResult(torch.cat(counts, 1), chosen)
    return result


def _by_row(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack arrays [images, K, K] with names "row|seed" to [seeds, images, K, K] for each row."""
    rows: dict[str, list[Tensor]] = {}
    for name in sorted(arrays):
        rows.setdefault(name.rpartition("|")[0], []).append(arrays[name])
    return {row: torch.stack(seeds) for row, seeds in rows.items()}


def mean_iou_by_seed(counts: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Return the mean IoU of each seed from confusion matrices [seeds, images, K, K], over the given classes or all."""
    pooled = counts.sum(1)
    return mean_iou(pooled) if classes is None else intersection_over_union(pooled)[:, list(classes)].nanmean(-1)


def write_tables(
    name: str, video: bool, folds: Sequence[Fold], groups: Sequence[str] = tuple(GROUPS), min_images: int = 0
) -> None:
    """Write the tables of the given groups: mean IoU of each seed, gains over one unary and over three, contrasts.

    A row with two seeds that uses the first two unaries is compared with these two. If groups are left out, the name of
    the last given group becomes a part of the file names.
    """
    classes = scored_classes(folds, min_images) if min_images else None
    rows = collect(folds, video, groups, classes)
    images = f"{rows[UNARY].counts.shape[1]} images"
    if classes is not None:
        names = open_dataset(folds[0].data, folds[0].test).classes.names
        images += ", classes " + ", ".join(names[k] for k in classes)
    header = [f"row ({images})", "mean IoU", "seeds", "over one unary", "over three unaries", "chosen weights"]
    cells = []
    found: list[dict[str, Any]] = []
    for row, result in rows.items():
        on_two = "1unary" in row
        unaries = rows[UNARY].counts[: len(SEEDS) if on_two else None]
        single = gain_of(unaries, result.counts, video, classes)
        three = gain_of(rows[THREE].counts, result.counts, video, classes)
        seeds = mean_iou_by_seed(result.counts, classes).tolist()
        mean = sum(seeds) / len(seeds)
        found.append({"row": row, "mean_iou": mean, "seeds": seeds, "weights": result.weights})
        found[-1] |= {"over one unary": single, "over three unaries": three}
        each = ", ".join(f"{100 * seed:.1f}" for seed in seeds)
        chosen = ", ".join(f"{weight:g}" for weight in result.weights)
        cells.append([row, f"{100 * mean:.1f}", each, format_gain(single), format_gain(three), chosen])
    contrasts = []
    for without, with_labels in CONTRASTS:
        if without not in rows or with_labels not in rows:
            continue
        gain = gain_of(rows[without].counts, rows[with_labels].counts, video, classes)
        found.append({"without": without, "with": with_labels, "difference": gain})
        contrasts.append([without, with_labels, format_gain(gain)])
    second = Table(["without the neighbors' labels", "with them", "difference"], contrasts)
    text = f"{Table(header, cells).to_markdown()}\n{second.to_markdown()}"
    print(text)
    name = name if len(groups) == len(GROUPS) else f"{name}-{groups[-1]}"
    write_json(RESULTS / f"{name}.json", found)
    write_text(RESULTS / f"{name}.md", text)


def gain_of(first: Tensor, second: Tensor, video: bool = False, classes: Sequence[int] | None = None) -> list[float]:
    """Return the difference in mean IoU, second - first, and the bounds of its 95 % confidence interval."""
    found = paired_bootstrap(first, second, block=VIDEO_BLOCK if video else 1, classes=classes)
    return [found.second - found.first, found.low, found.high]


def format_gain(gain: Sequence[float]) -> str:
    """Format a gain and its interval in points of mean IoU."""
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in gain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=CONTEXT_STUDIES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work", type=Path, required=True, help="folder for the networks and their confusion matrices")
    others = [name for name in GROUPS if name != "unaries"]
    parser.add_argument("--groups", nargs="+", choices=others, default=others, help="groups besides the unaries")
    options = parser.parse_args()
    study = CONTEXT_STUDIES[options.study]
    folds = open_folds(study, options.data, options.work)
    groups = [name for name in GROUPS if name == "unaries" or name in options.groups]
    for name in groups:
        train_networks(study, folds, GROUPS[name].networks)
        for fold in folds:
            measure_group(fold, name)
    write_tables(options.study, study.video, folds, groups, study.min_images)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    with show_progress():
        main()
