"""What pairwise heads on a shared trunk need: one row with its number for every hypothesis.

    python experiments/hypotheses.py --work runs/context/msrc

stands on the unary networks of `experiments/context.py msrc` (seed 0 of every fold), which must be there. Heads are
trained on the features of these networks, which stay as they are: on the images that the networks were trained on
("seen"), or on the first half of those they were not ("unseen"). Strengths are chosen, and combinations learned, on
that first half; all rows are measured on the second. Trials whose result is there are not run again, and several
processes may share the work.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from context import CONFIGS, RELATIONS, RESULTS, STRENGTHS, STUDIES, Fold, deal, mean_iou
from contextcrf import ContextCRF, PairwisePotential, RangeBox, load, mean_field
from contextcrf.cli import build_parser
from contextcrf.comparison import paired_bootstrap, read_counts, write_counts
from contextcrf.crf import Relation
from contextcrf.crf.potentials import IGNORE_INDEX
from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.evaluation import confusion
from contextcrf.model import UNARY, assemble, downsample, paper_relations, upsample
from contextcrf.recipe import Recipe
from contextcrf.training import CachedFeatures, augmentation, cache_features, fit_heads
from locks import claim

VIEWS = 4
UNARY_ROW = "unary"


class BalancedEdges(PairwisePotential):
    """Trained on as many edges between two labels as within one, where most edges of an image lie within one."""

    def _known_edges(self, features: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
        image, p, q = super()._known_edges(features, labels, ignore_index)
        between = labels[image, p] != labels[image, q]
        within = (~between).nonzero()[:, 0]
        kept = within[torch.randperm(len(within))[: max(1, int(between.sum()))]]
        chosen = torch.cat([between.nonzero()[:, 0], kept])
        return image[chosen], p[chosen], q[chosen]


@dataclass(frozen=True)
class Trial:
    """Heads, and how they are trained; all of it as `configs/msrc-heads.yaml` has it where nothing is said.

    Args:
        name: of its rows.
        seen: trained on the images of the trunk.
        own: not trained here at all, but each with its own network, those of the study.
        relations: by name.
        hidden: units of the hidden layer.
        head: the class of the heads.
        recipe: what differs from the recipe.
    """

    name: str
    seen: bool = False
    own: bool = False
    relations: Mapping[str, Relation] = field(default_factory=paper_relations)
    hidden: int = 512
    head: type[PairwisePotential] = PairwisePotential
    recipe: Mapping[str, Any] = field(default_factory=dict)


SIDES = {
    "above": RangeBox.above(),
    "below": RangeBox.below(),
    "left": RangeBox.leftward(),
    "right": RangeBox.rightward(),
}
COUPLED = {"max_edges": None, "epochs": 4}
TRIALS = (
    Trial("own networks", own=True),
    Trial("seen images", seen=True),
    Trial("unseen images"),
    Trial("24 epochs", recipe={"epochs": 24}),
    Trial("four times the edges", recipe={"max_edges": 4 * 8192}),
    Trial("1024 hidden units", hidden=1024),
    Trial("balanced edges", head=BalancedEdges),
    Trial("four sides", relations=SIDES),
    Trial("and a ring", relations={**paper_relations(), "ring": RangeBox.ring()}),
    Trial("pseudo-likelihood", recipe={**COUPLED, "objective": "pseudo-likelihood"}),
    Trial("mean field in the loop", recipe={**COUPLED, "objective": "mean-field"}),
    Trial("unrolled mean field", recipe={**COUPLED, "objective": "unrolled"}),
)


class Ground:
    """What all trials of a fold stand on: the trunk, its test images, features for training."""

    def __init__(self, fold: Fold, recipe: Recipe) -> None:
        self.fold, self.recipe = fold, recipe
        self.network = load(fold.network(UNARY, 0) / "model")
        self.test = open_dataset(fold.data, fold.test)
        self.middle = len(self.test) // 2
        self._cached: dict[bool, CachedFeatures] = {}

    def features(self, seen: bool) -> CachedFeatures:
        """For training on the trunk's own images, or on the first half of the test images."""
        if seen not in self._cached:
            pairs = open_dataset(self.fold.data, self.fold.train).pairs if seen else self.test.pairs[: self.middle]
            images = SegmentationDataset(pairs, self.test.classes, self.test.void, augmentation(self.recipe))
            views = 1 if seen else VIEWS
            self._cached[seen] = cache_features(self.network, images, RELATIONS[0], views, self.recipe, progress=False)
        return self._cached[seen]

    def model(self, trial: Trial, out: Path) -> ContextCRF:
        """The trunk with a trial's heads."""
        if trial.own:
            return assemble(self.network, {name: load(self.fold.network(name, 0) / "model") for name in RELATIONS})
        config = replace(self.network.config, relations=dict(trial.relations), strengths={})
        model = ContextCRF(config, self.network.classes, pretrained=False)
        model.trunks.load_state_dict(self.network.trunks.state_dict())
        model.unary.load_state_dict(self.network.unary.state_dict())
        width = model.trunk(UNARY).out_channels
        for name, box in trial.relations.items():
            model.pairwise[name] = head = trial.head(width, model.num_classes, box, trial.hidden)
            head.last.silence()
        recipe = replace(self.recipe, **trial.recipe)
        fit_heads(model, self.features(trial.seen), recipe, out, progress=False)
        return model.eval()


@dataclass(frozen=True)
class Evidence:
    """What is known of the nodes of one image: logs [K, h, w] by name, the truth on the graph and of the pixels."""

    logs: dict[str, Tensor]
    rows: dict[str, Tensor]
    labels: Tensor
    mask: Tensor


@torch.inference_mode()
def look(model: ContextCRF, image: Tensor, mask: Tensor, coupled: bool) -> Evidence:
    """An image's evidence, and its marginals [K, h, w] by row."""
    features = model.features(image[None].float())
    heads = {name: head for name, head in model.pairwise.items() if isinstance(head, PairwisePotential)}
    pairs = [(head, features[name]) for name, head in heads.items()]
    unary = model.unary(features[UNARY]).log_softmax(1)
    degrees = [max(1.0, head.graph(maps).mean_degree()) for head, maps in pairs]
    logs, rows = {UNARY_ROW: unary}, {UNARY_ROW: unary.softmax(1)}
    for (name, (head, maps)), degree in zip(zip(heads, pairs, strict=True), degrees, strict=True):
        logs[f"message {name}"] = head.messages(maps, unary.softmax(1)) / degree
        logs[f"edges {name}"] = head.edge_marginals(maps).clamp(min=1e-9).log()
    rows["plain sum"] = mean_field(unary, pairs)
    for strength in () if coupled else STRENGTHS:
        weights = [strength / len(pairs) / degree for degree in degrees]
        rows[f"strength {strength:g}"] = mean_field(unary, pairs, weights=weights)
    labels = downsample(mask[None], unary.shape[-2:])[0]
    return Evidence({name: part[0] for name, part in logs.items()}, {n: p[0] for n, p in rows.items()}, labels, mask)


def learn(images: Sequence[Evidence], names: Sequence[str], decay: float = 1e-3) -> Tensor:
    """Weights [len(names), K] for kinds of evidence and classes, by logistic regression that starts at the unary."""
    labels = torch.cat([image.labels.flatten() for image in images])
    evidence = torch.cat([torch.stack([image.logs[name].flatten(1) for name in names]) for image in images], -1)
    start = torch.zeros(evidence.shape[:2])
    start[names.index(UNARY_ROW)] = 1
    weights = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = (weights[..., None] * evidence).sum(0).T
        value = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX) + decay * ((weights - start) ** 2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach()


def combine(image: Evidence, names: Sequence[str], weights: Tensor) -> Tensor:
    """Marginals [K, h, w] of weighted evidence."""
    logs = torch.stack([image.logs[name] for name in names])
    return (weights[..., None, None] * logs).sum(0).softmax(0)


def measure(ground: Ground, trial: Trial, out: Path) -> dict[str, Tensor]:
    """Confusion matrices [images, K, K] of the second half of the test images, by row."""
    model = ground.model(trial, out)
    coupled = trial.recipe.get("objective", "piecewise") != "piecewise"
    images = [look(model, image, mask, coupled) for image, mask in ground.test.without_transform()]
    first, second = images[: ground.middle], images[ground.middle :]
    found = {row: _counts(second, [image.rows[row] for image in second]) for row in second[0].rows}
    if coupled:
        return found
    chosen = {row: _counts(first, [image.rows[row] for image in first]) for row in found if row.startswith("strength")}
    best = max(chosen, key=lambda row: float(mean_iou(chosen[row][None])))
    found["strength ?"] = found[best]
    for row, kinds in {
        "learned: unary": (),
        "learned: unary, edges": ("edges",),
        "learned: unary, messages": ("message",),
        "learned: unary, edges, messages": ("edges", "message"),
    }.items():
        names = [UNARY_ROW, *(f"{kind} {name}" for kind in kinds for name in model.pairwise)]
        weights = learn(first, names)
        found[row] = _counts(second, [combine(image, names, weights) for image in second])
    return found


def _counts(images: Sequence[Evidence], marginals: Sequence[Tensor]) -> Tensor:
    """Confusion matrices [images, K, K] of marginals [K, h, w]."""
    labels = [upsample(q[None], image.mask.shape)[0].argmax(0) for image, q in zip(images, marginals, strict=True)]
    return torch.stack(
        [confusion(label, image.mask, len(q)) for image, label, q in zip(images, labels, marginals, strict=True)]
    )


def report(folds: Sequence[Fold], work: Path) -> None:
    """Write the table: mean IoU over the second halves of all folds, the difference to the unary, its interval."""
    lines, found = [], []
    for trial in TRIALS:
        parts = [read_counts(_path(work, trial, fold))[1] for fold in folds]
        for row in parts[0]:
            if row == UNARY_ROW and trial is not TRIALS[0]:
                continue
            unary, ours = (torch.cat([part[name] for part in parts]) for name in (UNARY_ROW, row))
            change = paired_bootstrap(unary, ours)
            values = [change.second, change.second - change.first, change.low, change.high]
            found.append({"trial": trial.name, "row": row, "mean_iou": values[0], "over the unary": values[1:]})
            shown = "{:.1f} | {:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in values))
            lines.append(f"| {trial.name} | {row} | {shown} |")
    images = sum(len(read_counts(_path(work, TRIALS[0], fold))[0]) for fold in folds)
    lines = [f"| heads | row ({images} images) | mean IoU | over the unary |", "|---|---|---:|---|", *lines]
    print("\n".join(lines))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "hypotheses.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "hypotheses.md").write_text("\n".join(lines) + "\n")


def _path(work: Path, trial: Trial, fold: Fold) -> Path:
    return work / "hypotheses" / fold.folder.name / trial.name.replace(" ", "-") / "counts.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the work folder of `context.py msrc`")
    work = parser.parse_args().work
    if not (work / "data").exists():
        raise SystemExit(f"{work}: no data; expected the work folder of experiments/context.py msrc")
    folds = deal(STUDIES["msrc"], work / "data", work)
    heads = build_parser()
    config = ["fit-heads", ".", "--config", str(CONFIGS / "msrc-heads.yaml"), "--data", ".", "--out", "."]
    recipe = heads.instantiate(heads.parse_args(config))["fit-heads"].recipe
    for fold in folds:
        ground = Ground(fold, recipe)
        for trial in TRIALS:
            path = _path(work, trial, fold)
            with claim(path) as mine:
                if mine:
                    torch.manual_seed(recipe.seed)
                    names = [image.stem for image, _ in ground.test.pairs[ground.middle :]]
                    write_counts(path, names, measure(ground, trial, path.parent))
                    print(fold.folder.name, trial.name, "done", flush=True)
    report(folds, work)


if __name__ == "__main__":
    main()
