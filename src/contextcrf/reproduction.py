"""Every system of the paper, and its competitors, on one data set by one command: `contextcrf reproduce`.

A study is a model and a recipe. Each row of the tables needs networks: those that are not there are trained, those that
were stopped go on, what is measured is not measured again.
"""

import hashlib
import json
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from contextcrf.assembly import assemble
from contextcrf.baselines import BASELINES
from contextcrf.comparison import read_counts, write_counts
from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.evaluation import ConfusionMatrix, evaluate, systems
from contextcrf.evaluation import Row as Measured
from contextcrf.model import ContextCRF
from contextcrf.model_config import UNARY, ModelConfig
from contextcrf.preparation import check, device
from contextcrf.recipe import Recipe
from contextcrf.storage import WEIGHTS, fingerprint, load, save
from contextcrf.training.runs import train_once
from contextcrf.tuning import adopt, best_of, tune_dense, tune_strengths

STUDIES = Path(__file__).parent / "studies"


@dataclass
class Study:
    """What is trained, how, and on which splits.

    Args:
        model: its `shared_trunk` decides whether pairwise potentials have networks of their own, as in the paper, or
            are heads on the unary's.
        recipe: of every network.
        heads: of heads on a shared trunk.
        train_split: to train on.
        val_split: to measure on.
        tune_split: to choose strengths and dense CRFs on; strengths that the study names are kept.
        tune_images: of that split, at most.
        views: augmented copies of each image whose features heads are trained on, kept in memory.
        pretrained: ImageNet weights, or a file of them.
    """

    model: ModelConfig
    recipe: Recipe
    heads: Recipe = field(default_factory=Recipe)
    train_split: str = "train"
    val_split: str = "val"
    tune_split: str = "train"
    tune_images: int = 60
    views: int = 2
    pretrained: bool | Path = True


def open_study(name: str) -> Study:
    """A study by the name of a bundled one, or from a YAML file.

    Raises:
        ValueError: there is neither, or the file is no study.
    """
    path = Path(name) if Path(name).is_file() else STUDIES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in STUDIES.glob("*.yaml")))
        raise ValueError(f"study {name!r}: expected a YAML file, or one of {known}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--study", type=Study)
    try:
        content = yaml.safe_load(path.read_text())
        _check_groups(content)
        return parser.instantiate(parser.parse_object({"study": content})).study
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected the settings of a study: {error}") from error


def _check_groups(content: Any) -> None:
    """Whether what holds settings holds them by their names."""
    if not isinstance(content, dict):
        raise ValueError(f"the keys model and recipe, not {content!r}")
    for key in ("model", "recipe", "heads"):
        if key in content and not isinstance(content[key], dict):
            raise ValueError(f"under {key} names with values, as in 'stride: 8', not {content[key]!r}")


@dataclass(frozen=True)
class Row:
    """A system of the tables, and what it needs, which is looked at before anything is trained.

    Args:
        name: of the row.
        make: the system from the workshop: a model, and what of it is evaluated, as `systems` has it.
        networks: competitors it stands on, by their names in `BASELINES`.
        relations: of the study that it needs; None is all there are, at least one.
        dense: whether a dense CRF is chosen for it on the tuning split.
        val, test: the paper's mean IoU on PASCAL VOC 2012, in percent, where it has one.
    """

    name: str
    make: "Callable[[Workshop], tuple[ContextCRF, str]]"
    networks: Sequence[str] = ()
    relations: Sequence[str] | None = ()
    dense: bool = False
    val: float | None = None
    test: float | None = None


def _competitor(network: str, dense: bool = False, val: float | None = None, test: float | None = None) -> Row:
    what, name = (f"{UNARY}+dense", f"{network}+dense") if dense else (UNARY, network)
    return Row(name, lambda shop: (shop.baseline(network, dense), what), [network], dense=dense, val=val, test=test)


def _relation(name: str, val: float) -> Row:
    return Row(f"pairwise-{name}", lambda shop: (shop.pairwise(name), name), relations=[name], val=val)


ROWS = (
    Row("unary-1scale", lambda shop: (shop.unary(scales=1), UNARY), val=58.3),
    Row("unary-3scales", lambda shop: (shop.unary(), UNARY), val=65.5),
    _relation("surrounding", val=66.7),
    _relation("above", val=66.4),
    Row("1unary+2pair", lambda shop: (shop.together(), "crf"), relations=None, val=67.8),
    Row("full", lambda shop: (shop.together(dense=True), "full"), relations=None, dense=True, val=70.3, test=70.7),
    Row("full-end-to-end", lambda shop: (shop.end_to_end(), "full"), relations=None, dense=True),
    _competitor("fcn-8s", test=62.2),
    _competitor("fcn-8s", dense=True),
    Row("crf-rnn", lambda shop: (shop.crf_rnn(), f"{UNARY}+dense"), ["fcn-8s"], dense=True, test=65.2),
    _competitor("deeplab-largefov"),
    _competitor("deeplab-largefov", dense=True),
    _competitor("deeplab-msc-largefov"),
    # The paper's "DeepLab-M-C-L".
    _competitor("deeplab-msc-largefov", dense=True, val=68.7, test=71.6),
    _competitor("deeplabv3plus"),
    Row("deeplabv3plus+2pair", lambda shop: (shop.on_baseline("deeplabv3plus"), "crf"), ["deeplabv3plus"], None),
)


def rows_of(names: Sequence[str] | None) -> list[Row]:
    """The rows of some names, all for None.

    Raises:
        ValueError: there is no such row.
    """
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"rows {unknown}: expected some of {', '.join(known)}")
    return [row for row in ROWS if names is None or row.name in names]


class Workshop:
    """Where a study's networks are made, each once.

    Args:
        study: what to make.
        data: folder of the data set.
        out: folder for all of it.
    """

    def __init__(self, study: Study, data: Path, out: Path) -> None:
        self.study, self.data, self.out = study, data, out

    def check(self, rows: Sequence[Row]) -> None:
        """Whether the networks of some rows can be made at all, before hours go into the first of them.

        Raises:
            ValueError: the study has not the relations that a row needs, or a shape that cannot be.
            DataError: an image that is measured, or chosen on, is broken.
        """
        study, measured = self.study, open_dataset(self.data, self.study.val_split)
        for row in rows:
            self._check_relations(row)
        networks = sorted({name for row in rows for name in row.networks})
        for shape in ({}, *(shape_of(name) for name in networks)):
            with torch.device("meta"):
                ContextCRF(replace(study.model, **shape), measured.classes, pretrained=False)
        pairs = list(measured.pairs)
        if any(row.dense or (row.relations is None and not study.model.strengths) for row in rows):
            pairs += self._tuning_images().pairs
        check(SegmentationDataset(list(dict.fromkeys(pairs)), measured.classes, measured.void))

    def _check_relations(self, row: Row) -> None:
        known = list(self.study.model.relations)
        if row.relations is None and not known:
            raise ValueError(f"row {row.name}: expected a relation in the study's model.relations; there is none")
        if missing := [name for name in row.relations or () if name not in known]:
            raise ValueError(f"row {row.name}: expected {missing} in the study's model.relations, which are {known}")

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

        DeepLabV3+ normalises one number of each image over the step.
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
        data = self._tuning_images()
        folder = self.out / "tuned" / f"{name}-{_digest(model, data, precision)}"
        if not (folder / WEIGHTS).exists():
            print(f"  choosing {'the dense CRF' if dense else 'strengths'} of {name}")
            trials = (tune_dense if dense else tune_strengths)(model, data, precision=precision)
            best = best_of(trials)
            adopt(model, best, dense)
            about = {"split": study.tune_split, "images": len(data), "settings": dict(best.settings)}
            save(model, folder, {**model.about, "tuned": about})
        return folder

    def _tuning_images(self) -> SegmentationDataset:
        return open_dataset(self.data, self.study.tune_split).spread(self.study.tune_images)

    def measure(self, row: Row) -> Measured:
        """A row on the validation split, from its file if these weights have been measured on these images."""
        model, what = row.make(self)
        data, precision = open_dataset(self.data, self.study.val_split), self.study.recipe.precision
        [system] = systems(model, [what])
        path = self.out / "rows" / f"{row.name}-{_digest(model, data, precision)}.npz"
        about = path.with_suffix(".json")
        if not about.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            [found] = evaluate(model, data, [replace(system, name=row.name)], precision)
            write_counts(path, [image.stem for image, _ in data.pairs], {row.name: torch.stack(found.images)})
            about.write_text(json.dumps({"row": row.name, "seconds": found.seconds}, indent=1) + "\n")
        counts = read_counts(path)[1][row.name]
        matrix = ConfusionMatrix(model.num_classes)
        matrix.metric.confmat = counts.sum(0)
        return Measured(row.name, matrix, json.loads(about.read_text())["seconds"], list(counts))


def load_here(model: Path) -> ContextCRF:
    """A model on the device of this machine."""
    return load(model).to(device())


def shape_of(network: str) -> dict[str, Any]:
    """What a competitor changes in the study's model."""
    kind = BASELINES[network]
    shape: dict[str, Any] = {"network": network, "stride": kind.stride, "output_stride": None, "graph_stride": None}
    shape |= {"channels": kind.width, "scales": (1.0,), "shared_trunk": True, "block6_per_scale": False, "pyramid": ()}
    return {**shape, "strengths": {}}


def through_dense(recipe: Recipe) -> Recipe:
    """A recipe with the objective "crf-rnn", which takes nothing that shapes the loss of a unary."""
    plain = replace(recipe, class_balance=0.0, max_edges=None, loss_at="nodes", lovasz=0.0)
    return replace(plain, objective="crf-rnn")


def _digest(model: ContextCRF, data: SegmentationDataset, precision: str) -> str:
    """Of weights and settings, and of the images that they meet."""
    meeting = [fingerprint(model), data.pairs[0][0].parent.as_posix(), [path.name for path, _ in data.pairs], precision]
    return hashlib.sha256(json.dumps(meeting).encode()).hexdigest()[:8]
