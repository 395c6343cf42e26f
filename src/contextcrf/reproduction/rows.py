"""The systems of the tables, one a row: what each is, what it needs, how it is measured."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.data.preparation import check as check_images
from contextcrf.evaluation.comparison import read_counts, write_counts
from contextcrf.evaluation.evaluate import ConfusionMatrix, evaluate, systems
from contextcrf.evaluation.evaluate import Row as Measured
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.reproduction.runner import Workshop, digest
from contextcrf.reproduction.study import Study, shape_of


@dataclass(frozen=True)
class Row:
    """A system of the tables, and what it needs, which is looked at before anything is trained.

    Args:
        name: of the row.
        make: the system from the workshop: a model, and what of it is evaluated, as `systems` has it.
        networks: competitors it stands on, by their names in `BASELINES`.
        relations: of the study that it needs; None is all there are, at least one.
        dense: whether a dense CRF is chosen for it on the tuning split.
        val: the paper's mean IoU on PASCAL VOC 2012 val, in percent, where it has one.
        test: likewise on VOC 2012 test.
    """

    name: str
    make: Callable[[Workshop], tuple[ContextCRF, str]]
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


def check(shop: Workshop, rows: Sequence[Row]) -> None:
    """Whether some rows can be made at all, before hours go into the networks of the first of them.

    Raises:
        ValueError: the study has not the relations that a row needs, or a shape that cannot be.
        DataError: an image that is measured, or chosen on, is broken.
    """
    study, measured = shop.study, open_dataset(shop.data, shop.study.val_split)
    for row in rows:
        _check_relations(study, row)
    networks = sorted({name for row in rows for name in row.networks})
    for shape in ({}, *(shape_of(name) for name in networks)):
        with torch.device("meta"):
            ContextCRF(replace(study.model, **shape), measured.classes, pretrained=False)
    pairs = list(measured.pairs)
    if any(row.dense or (row.relations is None and not study.model.strengths) for row in rows):
        pairs += shop.tuning_images().pairs
    check_images(SegmentationDataset(list(dict.fromkeys(pairs)), measured.classes, measured.void))


def _check_relations(study: Study, row: Row) -> None:
    known = list(study.model.relations)
    if row.relations is None and not known:
        raise ValueError(f"row {row.name}: expected a relation in the study's model.relations; there is none")
    if missing := [name for name in row.relations or () if name not in known]:
        raise ValueError(f"row {row.name}: expected {missing} in the study's model.relations, which are {known}")


def measure(shop: Workshop, row: Row) -> Measured:
    """A row on the validation split, from its file if these weights have been measured on these images."""
    model, what = row.make(shop)
    data, precision = open_dataset(shop.data, shop.study.val_split), shop.study.recipe.precision
    [system] = systems(model, [what])
    path = shop.out / "rows" / f"{row.name}-{digest(model, data, precision)}.npz"
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
