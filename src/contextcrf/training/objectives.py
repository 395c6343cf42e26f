"""What is minimized: the modules that Lightning trains."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from contextcrf.crf import PairwisePotential
from contextcrf.data.classes import IGNORE_INDEX
from contextcrf.evaluation.evaluate import ConfusionMatrix
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import OBJECTIVES, ContextCRF
from contextcrf.training.config import Recipe
from contextcrf.utils.resizing import channels_last, upsample

CRF_RNN = "crf-rnn"
# Sorting all pixels of a step, once for every class, would cost as much as the networks.
LOVASZ_PIXELS = 65_536


class Objective(L.LightningModule):
    """What both stages share: named losses that are added up, and the optimizer of a recipe."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        super().__init__()
        self.recipe, self.steps = recipe, steps
        self.trained = False  # in this process

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The negative log-likelihood of each potential that is trained."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters with their learning rates."""
        raise NotImplementedError

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.trained = True
        # Edge sampling draws from the global generator: bound to the step, it is the same after a resume.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.global_step + (self.global_rank << 40))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()}, batch_size=len(batch[0]))
        self.log("loss", total, prog_bar=True, batch_size=len(batch[0]), logger=False)
        return total

    def configure_optimizers(self) -> Any:
        recipe, groups = self.recipe, self.parameter_groups()
        if recipe.optimizer == "sgd":
            sgd = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
            return [sgd], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(sgd, 0.97), "interval": "epoch"}]
        adamw = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
        steps = max(4, self.steps)
        # The rise must have a length: with 1 / steps of the run torch divides by zero.
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            adamw, [group["lr"] for group in groups], total_steps=steps, pct_start=max(0.1, 1.5 / steps)
        )
        return [adamw], [{"scheduler": cycle, "interval": "step"}]


class Piecewise(Objective):
    """The piecewise objective (13), the sum of the potentials' negative log-likelihoods. A batch is (images, masks).

    Args:
        model: whose potentials are trained.
        recipe: how.
        steps: optimizer steps of the whole run, for the one-cycle schedule.
        class_weights: [K] for the unary loss, or None.
    """

    def __init__(self, model: ContextCRF, recipe: Recipe, steps: int, class_weights: Tensor | None = None) -> None:
        super().__init__(recipe, steps)
        self.model = model
        self.class_weights = class_weights
        self.names = model.select(recipe.potentials)
        self.lovasz = _lovasz_loss() if recipe.lovasz else None
        self.matrices = {row: ConfusionMatrix(model.num_classes) for row in (UNARY, "crf", "full")}
        model.requires_grad_(False)
        if recipe.objective == CRF_RNN and model.dense is not None:
            model.dense.requires_grad_(True)
        for name in self.names:
            model.trunk(name).requires_grad_(True)
            model.trunk(name).backbone.freeze(recipe.frozen_stages, recipe.frozen_filters)
            model.trunk(name).backbone.norm_eval = recipe.norm_eval
        _wake([model.potential(name) for name in self.names], recipe)

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, masks = batch
        weights = None if self.class_weights is None else self.class_weights.to(images.device)
        features = self.model.features(channels_last(images), self.names)
        if self.recipe.objective == CRF_RNN:
            return {CRF_RNN: self.model.refined_nll(features, images, masks)}
        if self.recipe.objective != "piecewise":
            return {self.recipe.objective: self.model.coupled_nll(features, masks, self.recipe.objective)}
        surrogate = None if self.lovasz is None else self._lovasz
        return self.model.nll(features, masks, self.recipe.max_edges, weights, self.recipe.loss_at, surrogate)

    def _lovasz(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The Lovász-Softmax loss of at most `LOVASZ_PIXELS` known places, weighted."""
        known = (labels != IGNORE_INDEX).flatten().nonzero()[:, 0]
        if len(known) == 0:
            return 0 * logits.sum()  # of void alone the library's loss is no number
        chosen = known[torch.randperm(len(known), device=known.device)[:LOVASZ_PIXELS]]
        logits = logits.float().movedim(1, -1).flatten(0, -2)[chosen]
        assert self.lovasz is not None
        return self.recipe.lovasz * self.lovasz(logits.T[None, ..., None], labels.flatten()[None, chosen, None])

    def parameter_groups(self) -> list[dict[str, Any]]:
        trunks = [self.model.trunk(name) for name in self.names]
        old = {id(p) for trunk in trunks for p in trunk.pretrained_parameters()}
        dense = [] if self.model.dense is None else [p for p in self.model.dense.parameters() if p.requires_grad]
        apart = {id(p) for p in dense}
        trained = [p for p in self.model.parameters() if p.requires_grad and id(p) not in apart]
        groups = [
            {"name": "new", "params": [p for p in trained if id(p) not in old], "lr": self.recipe.lr},
            {"name": "pretrained", "params": [p for p in trained if id(p) in old], "lr": self.recipe.lr / 10},
            # Standard deviations, by their logarithm, and energies: none of them wants to be 0.
            {"name": "dense", "params": dense, "lr": self.recipe.lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, masks = batch
        features = self.model.features(channels_last(images), self.names)
        rows: dict[str, tuple[str, ...]] = {"unary": (UNARY,)} if UNARY in self.names else {}
        if len(self.names) > 1 or not rows:
            rows["crf"] = self.names
        for row, names in rows.items():
            marginals = upsample(self.model.infer(features, names).float(), masks.shape[-2:])
            self.matrices[row].update(marginals.argmax(1), masks)
        if self.recipe.objective == CRF_RNN:
            self.matrices["full"].update(self.model.refine(marginals, images).argmax(1), masks)

    def on_validation_epoch_end(self) -> None:
        for row, matrix in self.matrices.items():
            if matrix.seen:
                self.log(f"val/{row}", matrix.mean_iou(), prog_bar=True)
                matrix.reset()


class CachedHeads(Objective):
    """A recipe's objective for pairwise heads over cached features. A batch is (features, labels, unary logits).

    Args:
        model: whose heads are trained.
        names: of the relations.
        recipe, steps: as in `Piecewise`.
    """

    def __init__(self, model: ContextCRF, names: Sequence[str], recipe: Recipe, steps: int) -> None:
        super().__init__(recipe, steps)
        self.heads = torch.nn.ModuleDict({name: model.pairwise[name] for name in names})
        _wake(self.heads.values(), recipe)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        features, labels, unary = batch[0].float(), batch[1], batch[2]
        heads = {name: head for name, head in self.heads.items() if isinstance(head, PairwisePotential)}
        if (objective := self.recipe.objective) != "piecewise":
            return {objective: OBJECTIVES[objective](unary, [(head, features) for head in heads.values()], labels)}
        return {name: head.nll(features, labels, max_edges=self.recipe.max_edges) for name, head in heads.items()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "new", "params": list(self.heads.parameters()), "lr": self.recipe.lr}]


def _wake(heads: Iterable[torch.nn.Module], recipe: Recipe) -> None:
    """Let heads be trained. Piecewise, silent ones start at random, since from 0 they learn late.

    Under objectives that couple the potentials they start silent, that is at the unary: random messages from a hundred
    neighbors would drown it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        for head in heads:
            head.requires_grad_(True)
            if isinstance(head, PairwisePotential) and head.last.silent and recipe.objective == "piecewise":
                head.last.reset_parameters()


def _lovasz_loss() -> torch.nn.Module:
    try:
        from segmentation_models_pytorch.losses import LovaszLoss
    except ModuleNotFoundError as error:
        raise ValueError(
            'lovasz needs segmentation_models_pytorch: pip install "contextcrf[baselines]", or set it to 0'
        ) from error
    return LovaszLoss("multiclass", ignore_index=IGNORE_INDEX)
