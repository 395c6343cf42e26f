"""Compare ways to train pairwise heads on a shared trunk; each hypothesis is compared with the same base.

    python experiments/hypotheses.py shared --data DATA/MSRC21 --work runs/context/msrc

This command needs the networks of `experiments/context.py msrc` (seed 0 of every fold) in the work folder. The table
"shared" needs the unary; the table "own" also needs the pairwise networks. The test images of a fold, on which its
networks were not trained, are divided into two parts, and the second part is measured. Heads are trained on the
features of the frozen unary network: of the images of the first part ("unseen"), or of the images that the network was
trained on ("seen"). The weights of the messages are chosen on the measured images of the other folds, and combinations
are learned on them. A hypothesis whose results are in the work folder is not run again. Several processes may share the
work.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from context import (
    CHOSEN,
    CONTEXT_STUDIES,
    HEADS,
    RELATIONS,
    RESULTS,
    WEIGHTS,
    Fold,
    format_gain,
    gain_of,
    mean_iou_by_seed,
    open_folds,
    training_job,
    two_parts,
)
from contextcrf import ContextCRF, PairwisePotential, Predictor, RangeBox, load, mean_field
from contextcrf.crf import Relation
from contextcrf.crf.pair_table import PairTable
from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.metrics import confusion
from contextcrf.modeling.config import UNARY, paper_relations
from contextcrf.modeling.merging import merge_potentials
from contextcrf.training import CachedFeatures, StoredFeatures, TrainingConfig, augmentation, cache_features, fit_heads
from contextcrf.utils.files import atomic_write, write_json, write_text
from contextcrf.utils.locks import claim
from contextcrf.utils.progress import show_progress, track
from contextcrf.utils.resizing import downsample, upsample
from contextcrf.utils.tables import Table

COPIES = 2
# Rows whose weight is chosen, for three ways to combine the pairwise potentials with the unary.
WEIGHTED = ("mean field", "sum-product", "edge marginals")
# Rows with one learned weight for each class and kind of evidence, and their kinds in addition to the unary.
LEARNED: Mapping[str, tuple[str, ...]] = {
    "learned: unary": (),
    "learned: unary, edges": ("edges",),
    "learned: unary, messages": ("message",),
    "learned: unary, sum-products": ("sum-product",),
    "learned: unary, edges, messages": ("edges", "message"),
}


class BalancedEdges(PairwisePotential):
    """A potential trained on as many edges between different labels as between equal labels, which most edges join."""

    def _labeled_edges(self, features: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
        image, p, q = super()._labeled_edges(features, labels, ignore_index)
        between = labels[image, p] != labels[image, q]
        within = (~between).nonzero()[:, 0]
        kept = within[torch.randperm(len(within))[: max(1, int(between.sum()))]]
        chosen = torch.cat([between.nonzero()[:, 0], kept])
        return image[chosen], p[chosen], q[chosen]


class DropoutFeatures(PairwisePotential):
    """A potential that is trained with dropout of half of the features."""

    def nll(self, features: Tensor, *rest: Any, **options: Any) -> Tensor:
        return super().nll(F.dropout(features, training=self.training), *rest, **options)


@dataclass(frozen=True)
class Hypothesis:
    """Heads and their training, as in `configs/msrc-heads.yaml` except for the differences given here.

    Args:
        name: the name of the hypothesis, which its rows show.
        seen: whether to train on the images that the trunk was trained on.
        own: whether to train nothing here and use the networks of the study, one for each potential.
        relations: the relations of the heads, by name.
        hidden: the number of units of the hidden layer.
        head: the class of the heads.
        stages: the stages of the training, each as its differences from the config.
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
        """Whether the messages were trained together with the unary. If so, only their plain sum is measured."""
        return "objective" in self.stages[-1]


SIDES = {
    "above": RangeBox.above(),
    "below": RangeBox.below(),
    "left": RangeBox.leftward(),
    "right": RangeBox.rightward(),
}
UNROLLED = {"max_edges": None, "objective": "unrolled"}
BASE = Hypothesis("unseen images")
# The hypotheses of each table.
HYPOTHESES: Mapping[str, Sequence[Hypothesis]] = {
    "own": [Hypothesis("own networks", own=True)],
    "shared": [
        BASE,
        Hypothesis("seen images", seen=True),
        Hypothesis("balanced edges", head=BalancedEdges),
        Hypothesis("dropout", head=DropoutFeatures),
        Hypothesis("1024 hidden units", hidden=1024),
        Hypothesis("four sides", relations=SIDES),
        Hypothesis("and a ring", relations={**paper_relations(), "ring": RangeBox.ring()}),
        Hypothesis("then unrolled mean field", stages=[{}, {**UNROLLED, "epochs": 2, "lr": 5e-4}]),
        Hypothesis("pseudo-likelihood", stages=[{"max_edges": None, "objective": "pseudo-likelihood"}]),
        Hypothesis("four times the edges", stages=[{"max_edges": 4 * 8192}]),
        Hypothesis("24 epochs", stages=[{"epochs": 24}]),
    ],
}


class FoldRunner:
    """A runner that trains the models of all hypotheses on one fold.

    Args:
        fold: the fold with the networks of the study.
        training: the training configuration of the heads.

    Attributes:
        unseen: the first part of the test images, on which heads may be trained.
        measured: the second part, which is measured.
    """

    def __init__(self, fold: Fold, training: TrainingConfig) -> None:
        self.fold, self.training = fold, training
        test = open_dataset(fold.data, fold.test)
        self.unseen, self.measured = (test.with_pairs(test.pairs[part]) for part in two_parts(len(test), video=False))
        self._cached: dict[bool, CachedFeatures | StoredFeatures] = {}

    def features(self, network: ContextCRF, seen: bool) -> CachedFeatures | StoredFeatures:
        """Return features for training: of the images that the trunk was trained on (`seen`) or of unseen images."""
        if seen not in self._cached:
            data = self.unseen
            pairs = open_dataset(self.fold.data, self.fold.train).pairs if seen else data.pairs
            images = SegmentationDataset(
                pairs, data.classes, transform=augmentation(self.training), mask_format=data.mask_format
            )
            self._cached[seen] = cache_features(network, images, RELATIONS[0], COPIES, self.training)
        return self._cached[seen]

    def model(self, hypothesis: Hypothesis, out: Path) -> ContextCRF:
        """Return the trunk with the trained heads of a hypothesis."""
        network = load(self.fold.model(UNARY, 0))
        if hypothesis.own:
            return merge_potentials(network, {name: load(self.fold.model(name, 0)) for name in RELATIONS})
        config = replace(network.config, relations=dict(hypothesis.relations))
        inference = replace(network.inference, relation_weights={})
        model = ContextCRF(config, network.classes, pretrained=False, inference=inference)
        model.trunks.load_state_dict(network.trunks.state_dict())
        model.unary.load_state_dict(network.unary.state_dict())
        width = model.trunk(UNARY).out_channels
        for name, box in hypothesis.relations.items():
            model.pairwise[name] = head = hypothesis.head(width, model.num_classes, box, hypothesis.hidden)
            head.last.zero_()
        cached = self.features(network, hypothesis.seen)
        for number, stage in enumerate(hypothesis.stages):
            fit_heads(model, cached, replace(self.training, **stage), out / f"stage{number}")
        return model.eval()


@dataclass(frozen=True)
class Evidence:
    """The predictions of all potentials for the nodes of an image.

    Attributes:
        logs: log-probabilities [K, h, w] by kind: of the unary, and the mean message, the mean edge marginal and the
            mean sum-product message of each relation.
        rows: marginals [K, h, w] by row.
        labels: labels of the nodes, [h, w].
    """

    logs: dict[str, Tensor]
    rows: dict[str, Tensor]
    labels: Tensor


def sum_product(table: PairTable, marginals: Tensor) -> Tensor:
    """Return the mean log-messages [1, K, h, w] of sum-product: log sum_j P(k, j | x) Q(j) for each edge.

    Mean field averages the logarithms instead: sum_j Q(j) log P(k, j | x). An unlikely label of an uncertain neighbor
    can then rule out a label of the node. In sum-product, the edge's own probabilities of the neighbor's labels count
    too.

    Args:
        table: the table of a potential. Its edges have the joint distribution P_V(y_p, y_q | x) of eq. (11).
        marginals: Q, [1, K, h, w].
    """
    by_node = marginals[0].flatten(1).T
    total, count = torch.zeros_like(by_node), torch.zeros(len(by_node), 1)
    for p, q, logits in zip(*(part.split(8192) for part in (*table.edges, table.logits)), strict=True):
        joint = logits.flatten(1).softmax(1).view_as(logits)
        for to, message in ((p, joint @ by_node[q, :, None]), (q, joint.mT @ by_node[p, :, None])):
            total.index_add_(0, to, message[..., 0].clamp(min=1e-9).log())
            count += to.bincount(minlength=len(count))[:, None]
    return (total / count.clamp(min=1)).T.unflatten(1, marginals.shape[-2:])[None]


@torch.inference_mode()
def collect_evidence(model: ContextCRF, image: Tensor, mask: Tensor, coupled: bool) -> Evidence:
    """Return the evidence of an image uint8 [3, H, W] with its mask [H, W], in single precision."""
    predictor = Predictor(model, replace(model.inference, precision="32-true"))
    features = predictor.extract_features(image[None].float())
    unary = model.unary(features[UNARY]).log_softmax(1)
    tables = {name: PairTable(model.pairwise_potential(name), features[name]) for name in model.pairwise}
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
        for weight in WEIGHTS:
            shares = [weight / len(pairs) / degree for degree in degrees.values()]
            rows[f"mean field, weight {weight:g}"] = mean_field(unary, pairs, weights=shares)
            rows[f"sum-product, weight {weight:g}"] = (unary + weight * sums).softmax(1)
            rows[f"edge marginals, weight {weight:g}"] = (unary + weight * edges).softmax(1)
    labels = downsample(mask[None], unary.shape[-2:])[0]
    return Evidence({name: part[0] for name, part in logs.items()}, {n: p[0] for n, p in rows.items()}, labels)


def learn_weights(images: Sequence[Evidence], names: Sequence[str], decay: float = 1e-3) -> Tensor:
    """Learn weights [len(names), K] of evidence kinds and classes by logistic regression that starts at the unary."""
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


def weighted_marginals(image: Evidence, names: Sequence[str], weights: Tensor) -> Tensor:
    """Return the marginals [K, h, w] of the weighted sum of some kinds of evidence."""
    logs = torch.stack([image.logs[name] for name in names])
    return (weights[..., None, None] * logs).sum(0).softmax(0)


def write_evidence(runner: FoldRunner, hypothesis: Hypothesis, path: Path) -> None:
    """Train the heads of a hypothesis and write the evidence of the fold's measured images.

    Raises:
        ValueError: if the graph is coarser than the unary's grid.
    """
    torch.manual_seed(runner.training.seed)
    model = runner.model(hypothesis, path.parent)
    if model.config.coarse_factor != 1:
        raise ValueError(f"graph_stride is {model.config.graph_stride}, but it must be the stride of the unary's grid.")
    samples = track(runner.measured.without_transform(), "evidence", total=len(runner.measured))
    images = [collect_evidence(model, image, mask, hypothesis.coupled) for image, mask in samples]
    with atomic_write(path) as partial:
        torch.save([vars(image) for image in images], partial)


def counts_by_row(evidence: Sequence[Sequence[Evidence]], truths: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Return the confusion matrices [images, K, K] by row, for the measured images of all folds in order.

    Args:
        evidence: the evidence by fold and image.
        truths: the masks int64 [H, W] by fold and image.
    """
    fixed = {
        row: [_counts(truth, [image.rows[row] for image in part]) for part, truth in zip(evidence, truths, strict=True)]
        for row in evidence[0][0].rows
    }
    found = {row: torch.cat(counts) for row, counts in fixed.items()}
    if len(evidence[0][0].logs) == 1:
        return found
    chosen: dict[str, list[Tensor]] = {row: [] for row in (*(f"{kind}, {CHOSEN}" for kind in WEIGHTED), *LEARNED)}
    for number, (part, truth) in enumerate(zip(evidence, truths, strict=True)):
        others = [k for k in range(len(evidence)) if k != number]
        for kind in WEIGHTED:
            options = [row for row in fixed if row.startswith(f"{kind}, ")]
            scores = [float(mean_iou_by_seed(torch.cat([fixed[row][k] for k in others])[None])) for row in options]
            chosen[f"{kind}, {CHOSEN}"].append(fixed[options[scores.index(max(scores))]][number])
        for row, kinds in LEARNED.items():
            names = [UNARY, *(name for name in part[0].logs if name.split()[0] in kinds)]
            weights = learn_weights([image for k in others for image in evidence[k]], names)
            chosen[row].append(_counts(truth, [weighted_marginals(image, names, weights) for image in part]))
    return found | {row: torch.cat(counts) for row, counts in chosen.items()}


def _counts(truth: Sequence[Tensor], marginals: Sequence[Tensor]) -> Tensor:
    """Return the confusion matrices [images, K, K] of marginals [K, h, w] and masks [H, W]."""
    labels = [upsample(q[None], mask.shape)[0].argmax(0) for q, mask in zip(marginals, truth, strict=True)]
    return torch.stack([confusion(label, mask, len(marginals[0])) for label, mask in zip(labels, truth, strict=True)])


def write_table(name: str, runners: Sequence[FoldRunner], work: Path) -> None:
    """Write the table of the hypotheses that all folds have: gains over the unary and over the same row of the base."""
    truths = [[mask for _, mask in runner.measured.without_transform()] for runner in runners]
    done: dict[str, dict[str, Tensor]] = {}
    for hypothesis in track(HYPOTHESES[name], "table"):
        paths = [evidence_path(work, hypothesis, runner.fold) for runner in runners]
        if all(path.exists() for path in paths):
            loaded = [torch.load(path, weights_only=True) for path in paths]
            done[hypothesis.name] = counts_by_row([[Evidence(**image) for image in part] for part in loaded], truths)
    cells, found = [], []
    for hypothesis_name, rows in done.items():
        for row, counts in rows.items():
            if row in (UNARY, "learned: unary") and hypothesis_name != next(iter(done)):
                continue  # these rows are the same for every hypothesis
            base = done.get(BASE.name, {}).get(row)
            gains = [gain_of(against, counts) for against in (rows[UNARY], base) if against is not None]
            score = float(mean_iou_by_seed(counts[None]))
            found.append({"hypothesis": hypothesis_name, "row": row, "mean_iou": score, "over unary, base": gains})
            columns = [*map(format_gain, gains), ""][:2]
            cells.append([hypothesis_name, row, f"{100 * score:.1f}", *columns])
    images = sum(map(len, truths))
    header = ["heads", f"row ({images} images)", "mean IoU", "over the unary", f"over the row of *{BASE.name}*"]
    text = Table(header, cells).to_markdown()
    if missing := [hypothesis.name for hypothesis in HYPOTHESES[name] if hypothesis.name not in done]:
        text += f"\nMissing in some fold: {', '.join(missing)}.\n"
    print(text)
    write_json(RESULTS / f"hypotheses-{name}.json", found)
    write_text(RESULTS / f"hypotheses-{name}.md", text)


def evidence_path(work: Path, hypothesis: Hypothesis, fold: Fold) -> Path:
    """Return the file of the evidence of a fold's measured images."""
    return work / "hypotheses" / fold.folder.name / hypothesis.name.replace(" ", "-") / "evidence.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=HYPOTHESES, help="heads on the unary's trunk, or one network per potential")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work", type=Path, required=True, help="work folder of `context.py msrc`")
    options = parser.parse_args()
    study = CONTEXT_STUDIES["msrc"]
    folds = open_folds(study, options.data, options.work)
    runners = [FoldRunner(fold, training_job(study, fold, HEADS, seed=0).training) for fold in folds]
    for hypothesis in HYPOTHESES[options.table]:
        for runner in runners:
            path = evidence_path(options.work, hypothesis, runner.fold)
            with claim(path) as mine:
                if mine:
                    write_evidence(runner, hypothesis, path)
                    print(runner.fold.folder.name, hypothesis.name, "done", flush=True)
    write_table(options.table, runners, options.work)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    with show_progress():
        main()
