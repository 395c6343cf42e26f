"""Where a study's networks are made: those that are not there are trained, those that were stopped go on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.data.preparation import device
from contextcrf.evaluation.tuning import adopt, best_of, tune_dense, tune_strengths
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.merging import assemble
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import WEIGHTS, fingerprint, load, save
from contextcrf.reproduction.study import Study, shape_of, through_dense
from contextcrf.training.config import Recipe
from contextcrf.training.jobs import train_once


class Workshop:
    """Where a study's networks are made, each once.

    Args:
        study: what to make.
        data: folder of the data set.
        out: folder for all of it.
    """

    def __init__(self, study: Study, data: Path, out: Path) -> None:
        self.study, self.data, self.out = study, data, out

    def unary(self, scales: int = 3) -> ContextCRF:
        """The unary network, of all scales or of the image alone."""
        if scales == 1:
            return self._fit("unary-1scale", {"scales": (1.0,)}, [UNARY])
        return self._fit("unary-3scales", {}, [UNARY])

    def pairwise(self, relation: str) -> ContextCRF:
        """The model that has learned a relation: with its own network, or heads on the unary's."""
        if self.study.model.shared_trunk:
            self.unary()
            return self._heads("unary-3scales")
        return self._fit(f"pairwise-{relation}", {}, [relation])

    def together(self, dense: bool = False) -> ContextCRF:
        """All potentials, with strengths that are chosen on the tuning split unless the study names them."""
        model = self._weighted("1unary+2pair", self._joined("unary-3scales", self.unary()))
        return load_here(self._tuned("full", model, dense=True)) if dense else model

    def baseline(self, network: str, dense: bool = False) -> ContextCRF:
        """A competitor, on the same backbone and by the same recipe; two images a step where that has one.

        DeepLabV3+ normalizes one number of each image over the step.
        """
        recipe = replace(self.study.recipe, batch_size=max(2, self.study.recipe.batch_size))
        model = self._fit(network, shape_of(network), [UNARY], recipe)
        return load_here(self._tuned(f"{network}+dense", model, dense=True)) if dense else model

    def on_baseline(self, network: str) -> ContextCRF:
        """Our pairwise heads on a competitor's features."""
        self.baseline(network)
        return self._weighted(f"{network}+2pair", self._heads(network))

    def crf_rnn(self) -> ContextCRF:
        """FCN-8s, its last epochs through its dense CRF."""
        shape = shape_of("fcn-8s")
        model = self._fit("crf-rnn-before", shape, [UNARY], self._first())
        return self._through("crf-rnn", shape, [UNARY], self._tuned("crf-rnn-before+dense", model, dense=True))

    def end_to_end(self) -> ContextCRF:
        """All potentials, the last epochs of all together through mean field and the dense CRF.

        The pairwise potentials are trained first, as those of "1unary+2pair" are.
        """
        before = "end-to-end-before"
        model = self._joined(before, self._fit(before, {}, [UNARY], self._first()))
        tuned = self._tuned(f"{before}+full", self._weighted(f"{before}+2pair", model), dense=True)
        return self._through("end-to-end", {}, model.potentials, tuned)

    def _joined(self, name: str, unary: ContextCRF) -> ContextCRF:
        """A unary, by its network's name too, with all pairwise potentials: heads on its trunk, or their networks."""
        if self.study.model.shared_trunk:
            return self._heads(name)
        return assemble(unary, {relation: self.pairwise(relation) for relation in self.study.model.relations})

    def _first(self) -> Recipe:
        """The first three quarters of the epochs, of what sees the others through its dense CRF."""
        return replace(self.study.recipe, epochs=max(1, self.study.recipe.epochs - self._last))

    @property
    def _last(self) -> int:
        return max(1, self.study.recipe.epochs // 4)

    def _through(self, name: str, shape: Mapping[str, Any], potentials: Sequence[str], tuned: Path) -> ContextCRF:
        """A model trained on through its dense CRF, which learns too, in the last epochs, at a tenth of the rate.

        So it sees as many images as the others. The dense CRF begins with tuned parameters, as there, and has five
        iterations.
        """
        recipe = replace(through_dense(self.study.recipe), epochs=self._last, lr=self.study.recipe.lr / 10)
        shape = {**shape, "learned_dense": True, "dense": {**load(tuned).config.dense, "iterations": 5}}
        return self._fit(name, shape, potentials, recipe, tuned)

    def _fit(
        self,
        name: str,
        shape: Mapping[str, Any],
        potentials: Sequence[str],
        recipe: Recipe | None = None,
        init: Path | None = None,
    ) -> ContextCRF:
        study = self.study
        arguments = {
            "model": replace(study.model, **shape),
            "recipe": replace(recipe or study.recipe, potentials=list(potentials)),
            "val_split": None,
            "pretrained": study.pretrained,
            "init": init,
        }
        return self._train("fit", name, arguments)

    def _heads(self, name: str) -> ContextCRF:
        arguments = {
            "model": self._network(name) / "model",
            "recipe": self.study.heads,
            "views": self.study.views,
            # That of the study's own network, since competitors have finer maps.
            "graph_stride": self.study.model.graph_stride or self.study.model.stride,
        }
        return self._train("fit-heads", f"{name}-heads", arguments)

    def _train(self, kind: str, name: str, arguments: Mapping[str, Any]) -> ContextCRF:
        if not (self._network(name) / "model" / WEIGHTS).exists():
            print(f"  training network {name}")
        places = {"data": self.data, "train_split": self.study.train_split, "out": self._network(name)}
        return load_here(train_once(kind, {**arguments, **places}))

    def _network(self, name: str) -> Path:
        return self.out / "networks" / name

    def _weighted(self, name: str, model: ContextCRF) -> ContextCRF:
        """A model with the study's strengths, with chosen ones where it names none."""
        model.config.strengths = dict(self.study.model.strengths)
        return model if model.config.strengths else load_here(self._tuned(name, model, dense=False))

    def _tuned(self, name: str, model: ContextCRF, dense: bool) -> Path:
        """The folder of a model with the strengths or the dense CRF that do best on the tuning split."""
        study, precision = self.study, self.study.recipe.precision
        data = self.tuning_images()
        folder = self.out / "tuned" / f"{name}-{digest(model, data, precision)}"
        if not (folder / WEIGHTS).exists():
            print(f"  choosing {'the dense CRF' if dense else 'strengths'} of {name}")
            trials = (tune_dense if dense else tune_strengths)(model, data, precision=precision)
            best = best_of(trials)
            adopt(model, best, dense)
            about = {"split": study.tune_split, "images": len(data), "settings": dict(best.settings)}
            save(model, folder, {**model.about, "tuned": about})
        return folder

    def tuning_images(self) -> SegmentationDataset:
        return open_dataset(self.data, self.study.tune_split).spread(self.study.tune_images)


def load_here(model: Path) -> ContextCRF:
    """A model on the device of this machine."""
    return load(model).to(device())


def digest(model: ContextCRF, data: SegmentationDataset, precision: str) -> str:
    """Of weights and settings, and of the images that they meet."""
    meeting = [fingerprint(model), data.pairs[0][0].parent.as_posix(), [path.name for path, _ in data.pairs], precision]
    return hashlib.sha256(json.dumps(meeting).encode()).hexdigest()[:8]
