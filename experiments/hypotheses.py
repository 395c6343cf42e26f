"""What pairwise heads on a shared trunk need: one row with its number for every hypothesis.

    python experiments/hypotheses.py shared --data DATA/MSRC21 --work runs/context/msrc

stands on the networks of `experiments/context.py msrc` (seed 0 of every fold), which must be there: the unary for the
table "shared", the pairwise ones too for the table "own". Of the images that a fold's networks were not trained on
every second one is measured. Heads are trained on the features of the unary network, which stays as it is: on the other
half of those images ("unseen"), or on the network's own ("seen"). Strengths are chosen and combinations learned on what
the other folds measured. Trials that are there are not run again, and several processes may share the work.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from context import CONFIGS, RELATIONS, RESULTS, STRENGTHS, STUDIES, Fold, change_of, deal, halves, mean_iou, shown
from contextcrf import ContextCRF, PairwisePotential, RangeBox, load, mean_field
from contextcrf.cli.main import read_command
from contextcrf.crf import Relation
from contextcrf.crf.pair_table import PairTable
from contextcrf.crf.potentials import IGNORE_INDEX
from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.evaluation.evaluate import confusion
from contextcrf.modeling.config import UNARY, paper_relations
from contextcrf.modeling.merging import assemble
from contextcrf.training import CachedFeatures, augmentation, cache_features, fit_heads
from contextcrf.training.config import Recipe
from contextcrf.utils.locks import claim
from contextcrf.utils.resizing import downsample, upsample

VIEWS = 2
# Rows whose strength is chosen, by how the pairwise potentials speak: with "edge marginals", without the labels.
KINDS = ("mean field", "sum-product", "edge marginals")
# Rows whose weights, one for each class and kind of evidence, are learned.
LEARNED: Mapping[str, tuple[str, ...]] = {
    "learned: unary": (),
    "learned: unary, edges": ("edges",),
    "learned: unary, messages": ("message",),
    "learned: unary, sum-products": ("sum-product",),
    "learned: unary, edges, messages": ("edges", "message"),
}


class BalancedEdges(PairwisePotential):
    """Trained on as many edges between two labels as within one, where most edges of an image lie within one."""

    def _known_edges(self, features: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
        image, p, q = super()._known_edges(features, labels, ignore_index)
        between = labels[image, p] != labels[image, q]
        within = (~between).nonzero()[:, 0]
        kept = within[torch.randperm(len(within))[: max(1, int(between.sum()))]]
        chosen = torch.cat([between.nonzero()[:, 0], kept])
        return image[chosen], p[chosen], q[chosen]


class DropoutFeatures(PairwisePotential):
    """Trained on features of which every second one is dropped."""

    def nll(self, features: Tensor, *rest: Any, **options: Any) -> Tensor:
        return super().nll(F.dropout(features, training=self.training), *rest, **options)


@dataclass(frozen=True)
class Trial:
    """Heads, and how they are trained: by the recipe of `configs/msrc-heads.yaml` but for what is said here.

    Args:
        name: of its rows.
        seen: trained on the images of the trunk.
        own: not trained here at all, but each with its own network, those of the study.
        relations: by name.
        hidden: units of the hidden layer.
        head: the class of the heads.
        stages: of the training, each with what differs from the recipe.
    """

    name: str
    seen: bool = False
    own: bool = False
    relations: Mapping[str, Relation] = field(default_factory=paper_relations)
    hidden: int = 512
    head: type[PairwisePotential] = PairwisePotential
    stages: Sequence[Mapping[str, Any]] = ({},)

    @property
    def coupled(self) -> bool:
        """Whether the messages were trained together with the unary: then they are summed as they are."""
        return "objective" in self.stages[-1]


SIDES = {
    "above": RangeBox.above(),
    "below": RangeBox.below(),
    "left": RangeBox.leftward(),
    "right": RangeBox.rightward(),
}
UNROLLED = {"max_edges": None, "objective": "unrolled"}
BASE = Trial("unseen images")
# By table.
TRIALS: Mapping[str, Sequence[Trial]] = {
    "own": [Trial("own networks", own=True)],
    "shared": [
        BASE,
        Trial("seen images", seen=True),
        Trial("balanced edges", head=BalancedEdges),
        Trial("dropout", head=DropoutFeatures),
        Trial("1024 hidden units", hidden=1024),
        Trial("four sides", relations=SIDES),
        Trial("and a ring", relations={**paper_relations(), "ring": RangeBox.ring()}),
        Trial("then unrolled mean field", stages=[{}, {**UNROLLED, "epochs": 2, "lr": 5e-4}]),
        Trial("pseudo-likelihood", stages=[{"max_edges": None, "objective": "pseudo-likelihood"}]),
        Trial("four times the edges", stages=[{"max_edges": 4 * 8192}]),
        Trial("24 epochs", stages=[{"epochs": 24}]),
    ],
}


class Ground:
    """What all trials of a fold stand on: the trunk, its test images in two halves, features for training."""

    def __init__(self, fold: Fold, recipe: Recipe) -> None:
        self.fold, self.recipe = fold, recipe
        test = open_dataset(fold.data, fold.test)
        self.learning, self.measured = (
            SegmentationDataset(test.pairs[part], test.classes, test.void) for part in halves(len(test), video=False)
        )
        self._cached: dict[bool, CachedFeatures] = {}

    def features(self, network: ContextCRF, seen: bool) -> CachedFeatures:
        """For training on the trunk's own images, or on a half of the others."""
        if seen not in self._cached:
            pairs = open_dataset(self.fold.data, self.fold.train).pairs if seen else self.learning.pairs
            images = SegmentationDataset(pairs, self.learning.classes, self.learning.void, augmentation(self.recipe))
            self._cached[seen] = cache_features(network, images, RELATIONS[0], VIEWS, self.recipe, progress=False)
        return self._cached[seen]

    def model(self, trial: Trial, out: Path) -> ContextCRF:
        """The trunk with a trial's heads."""
        network = load(self.fold.model(UNARY, 0))
        if trial.own:
            return assemble(network, {name: load(self.fold.model(name, 0)) for name in RELATIONS})
        config = replace(network.config, relations=dict(trial.relations), strengths={})
        model = ContextCRF(config, network.classes, pretrained=False)
        model.trunks.load_state_dict(network.trunks.state_dict())
        model.unary.load_state_dict(network.unary.state_dict())
        width = model.trunk(UNARY).out_channels
        for name, box in trial.relations.items():
            model.pairwise[name] = head = trial.head(width, model.num_classes, box, trial.hidden)
            head.last.silence()
        cached = self.features(network, trial.seen)
        for number, stage in enumerate(trial.stages):
            fit_heads(model, cached, replace(self.recipe, **stage), out / f"stage{number}", progress=False)
        return model.eval()


@dataclass(frozen=True)
class Evidence:
    """What is known of the nodes of an image.

    Attributes:
        logs: [K, h, w] by name: the unary, every relation's mean message, mean edge marginal and mean sum-product.
        rows: marginals [K, h, w] by row.
        labels: of the nodes, [h, w].
    """

    logs: dict[str, Tensor]
    rows: dict[str, Tensor]
    labels: Tensor


def sum_product(table: PairTable, marginals: Tensor) -> Tensor:
    """Mean log-messages [1, K, h, w] of sum-product in place of mean field: log sum_j P(k, j | x) Q(j) for each edge.

    Mean field averages the logarithms, sum_j Q(j) log P(k, j | x), so that a neighbor's doubt forbids what any of its
    labels forbids; here what the edge itself knows of the neighbor's label counts too.

    Args:
        table: of a potential, whose edges have the joint P_V(y_p, y_q | x) of eq. (11).
        marginals: Q, [1, K, h, w].
    """
    beliefs = marginals[0].flatten(1).T
    total, count = torch.zeros_like(beliefs), torch.zeros(len(beliefs), 1)
    for p, q, logits in zip(*(part.split(8192) for part in (*table.edges, table.logits)), strict=True):
        joint = logits.flatten(1).softmax(1).view_as(logits)
        for to, message in ((p, joint @ beliefs[q, :, None]), (q, joint.mT @ beliefs[p, :, None])):
            total.index_add_(0, to, message[..., 0].clamp(min=1e-9).log())
            count += to.bincount(minlength=len(count))[:, None]
    return (total / count.clamp(min=1)).T.unflatten(1, marginals.shape[-2:])[None]


@torch.inference_mode()
def look(model: ContextCRF, image: Tensor, mask: Tensor, coupled: bool) -> Evidence:
    """An image's evidence."""
    features = model.features(image[None].float())
    unary = model.unary(features[UNARY]).log_softmax(1)
    tables = {
        name: PairTable(head, features[name])
        for name, head in model.pairwise.items()
        if isinstance(head, PairwisePotential)
    }
    pairs = [table.pair for table in tables.values()]
    logs, rows = {UNARY: unary}, {UNARY: unary.softmax(1), "plain sum": mean_field(unary, pairs)}
    if not coupled:
        degrees = {name: max(1.0, table.graph(table.features).mean_degree()) for name, table in tables.items()}
        for name, table in tables.items():
            logs[f"message {name}"] = table.messages(unary.softmax(1)) / degrees[name]
            logs[f"edges {name}"] = table.edge_marginals().clamp(min=1e-9).log()
            logs[f"sum-product {name}"] = sum_product(table, unary.softmax(1))
        sums = torch.stack([logs[f"sum-product {name}"] for name in tables]).mean(0)
        edges = torch.stack([logs[f"edges {name}"].exp() for name in tables]).mean(0).log()
        for strength in STRENGTHS:
            weights = [strength / len(pairs) / degree for degree in degrees.values()]
            rows[f"mean field, strength {strength:g}"] = mean_field(unary, pairs, weights=weights)
            rows[f"sum-product, strength {strength:g}"] = (unary + strength * sums).softmax(1)
            rows[f"edge marginals, strength {strength:g}"] = (unary + strength * edges).softmax(1)
    labels = downsample(mask[None], unary.shape[-2:])[0]
    return Evidence({name: part[0] for name, part in logs.items()}, {n: p[0] for n, p in rows.items()}, labels)


def learn(images: Sequence[Evidence], names: Sequence[str], decay: float = 1e-3) -> Tensor:
    """Weights [len(names), K] for kinds of evidence and classes, by logistic regression that starts at the unary."""
    labels = torch.cat([image.labels.flatten() for image in images])
    evidence = torch.cat([torch.stack([image.logs[name].flatten(1) for name in names]) for image in images], -1)
    start = torch.zeros(evidence.shape[:2])
    start[names.index(UNARY)] = 1
    weights = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = (weights[..., None] * evidence).sum(0).T
        value = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX) + decay * ((weights - start) ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def combine(image: Evidence, names: Sequence[str], weights: Tensor) -> Tensor:
    """Marginals [K, h, w] of weighted evidence."""
    logs = torch.stack([image.logs[name] for name in names])
    return (weights[..., None, None] * logs).sum(0).softmax(0)


def run(ground: Ground, trial: Trial, path: Path) -> None:
    """Train a trial's heads and write the evidence of the fold's measured images."""
    torch.manual_seed(ground.recipe.seed)
    model = ground.model(trial, path.parent)
    if model.cell != 1:
        raise ValueError(f"graph_stride={model.config.graph_stride}: expected the unary's grid as the graph")
    images = [look(model, image, mask, trial.coupled) for image, mask in ground.measured.without_transform()]
    unfinished = path.with_suffix(".part")
    torch.save([vars(image) for image in images], unfinished)
    unfinished.rename(path)


def measure(evidence: Sequence[Sequence[Evidence]], truths: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Confusion matrices [images, K, K] by row of the measured images of all folds, one fold after the other.

    Args:
        evidence: by fold and image.
        truths: masks int64 [H, W], likewise.
    """
    fixed = {
        row: [_counts(truth, [image.rows[row] for image in part]) for part, truth in zip(evidence, truths, strict=True)]
        for row in evidence[0][0].rows
    }
    found = {row: torch.cat(counts) for row, counts in fixed.items()}
    if len(evidence[0][0].logs) == 1:
        return found
    chosen: dict[str, list[Tensor]] = {row: [] for row in (*(f"{kind}, strength ?" for kind in KINDS), *LEARNED)}
    for number, (part, truth) in enumerate(zip(evidence, truths, strict=True)):
        others = [k for k in range(len(evidence)) if k != number]
        for kind in KINDS:
            options = [row for row in fixed if row.startswith(f"{kind}, ")]
            scores = [float(mean_iou(torch.cat([fixed[row][k] for k in others])[None])) for row in options]
            chosen[f"{kind}, strength ?"].append(fixed[options[scores.index(max(scores))]][number])
        for row, kinds in LEARNED.items():
            names = [UNARY, *(name for name in part[0].logs if name.split()[0] in kinds)]
            weights = learn([image for k in others for image in evidence[k]], names)
            chosen[row].append(_counts(truth, [combine(image, names, weights) for image in part]))
    return found | {row: torch.cat(counts) for row, counts in chosen.items()}


def _counts(truth: Sequence[Tensor], marginals: Sequence[Tensor]) -> Tensor:
    """Confusion matrices [images, K, K] of marginals [K, h, w] against masks [H, W]."""
    labels = [upsample(q[None], mask.shape)[0].argmax(0) for q, mask in zip(marginals, truth, strict=True)]
    return torch.stack([confusion(label, mask, len(marginals[0])) for label, mask in zip(labels, truth, strict=True)])


def report(table: str, grounds: Sequence[Ground], work: Path) -> None:
    """Write a table of the trials that all folds have: differences to the unary, and to the base trial's same row."""
    truths = [[mask for _, mask in ground.measured.without_transform()] for ground in grounds]
    done: dict[str, dict[str, Tensor]] = {}
    for trial in track(TRIALS[table], "combine"):
        paths = [_path(work, trial, ground.fold) for ground in grounds]
        if all(path.exists() for path in paths):
            loaded = [torch.load(path, weights_only=True) for path in paths]
            done[trial.name] = measure([[Evidence(**image) for image in part] for part in loaded], truths)
    lines, found = [], []
    for name, rows in done.items():
        for row, counts in rows.items():
            if row in (UNARY, "learned: unary") and name != next(iter(done)):
                continue  # they are the same everywhere
            base = done.get(BASE.name, {}).get(row)
            values = [change_of(against, counts) for against in (rows[UNARY], base) if against is not None]
            score = float(mean_iou(counts[None]))
            found.append({"trial": name, "row": row, "mean_iou": score, "over unary, base": values})
            columns = [*map(shown, values), ""][:2]
            lines.append(f"| {name} | {row} | {100 * score:.1f} | {' | '.join(columns)} |")
    images = sum(map(len, truths))
    head = f"| heads | row ({images} images) | mean IoU | over the unary | over the row of *{BASE.name}* |"
    text = "\n".join([head, "|---|---|---:|---|---|", *lines]) + "\n"
    if missing := [trial.name for trial in TRIALS[table] if trial.name not in done]:
        text += f"\nNot there in all folds: {', '.join(missing)}.\n"
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"hypotheses-{table}.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / f"hypotheses-{table}.md").write_text(text)


def _path(work: Path, trial: Trial, fold: Fold) -> Path:
    return work / "hypotheses" / fold.folder.name / trial.name.replace(" ", "-") / "evidence.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TRIALS, help="heads on the unary's trunk, or networks of their own")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work", type=Path, required=True, help="the work folder of `context.py msrc`")
    options = parser.parse_args()
    config = ["fit-heads", ".", "--config", str(CONFIGS / "msrc-heads.yaml"), "--data", ".", "--out", "."]
    recipe = read_command(config)[1]["recipe"]
    grounds = [Ground(fold, recipe) for fold in deal(STUDIES["msrc"], options.data, options.work)]
    for trial in TRIALS[options.table]:
        for ground in grounds:
            path = _path(options.work, trial, ground.fold)
            with claim(path) as mine:
                if mine:
                    run(ground, trial, path)
                    print(ground.fold.folder.name, trial.name, "done", flush=True)
    report(options.table, grounds, options.work)


if __name__ == "__main__":
    main()
