"""The systems of the paper's tables, one per row: what each needs, how it is built and measured."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.data.validation import check_dataset
from contextcrf.evaluation.comparison import read_counts, write_counts
from contextcrf.evaluation.evaluate import SystemResult, evaluate
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE, System
from contextcrf.reproduction.runner import Runner, measurement
from contextcrf.reproduction.study import Study, baseline_config
from contextcrf.utils.files import write_json
from contextcrf.utils.provenance import Provenance

UNARY_DENSE = System(relations=(), dense=True)


@dataclass(frozen=True)
class TableRow:
    """A row of the paper's tables.

    Args:
        name: the label of the row.
        build: a function that trains the model, or finds it, with a runner.
        system: the system of that model which is measured.
        networks: competitors that it is built on, by their names in `BASELINES`.
        val: the paper's mean IoU on PASCAL VOC 2012 val, in percent, where it has one.
        test: likewise on VOC 2012 test.
    """

    name: str
    build: Callable[[Runner], ContextCRF]
    system: System = UNARY_ONLY
    networks: Sequence[str] = ()
    val: float | None = None
    test: float | None = None


def _competitor(network: str, dense: bool = False, val: float | None = None, test: float | None = None) -> TableRow:
    name, system = (f"{network}+dense", UNARY_DENSE) if dense else (network, UNARY_ONLY)
    return TableRow(name, lambda runner: runner.baseline(network, dense), system, [network], val, test)


def _relation(name: str, val: float) -> TableRow:
    system = System(unary=False, relations=(name,))
    return TableRow(f"pairwise-{name}", lambda runner: runner.pairwise(name), system, val=val)


ROWS = (
    TableRow("unary-1scale", lambda runner: runner.unary(scales=1), val=58.3),
    TableRow("unary-3scales", lambda runner: runner.unary(), val=65.5),
    _relation("surrounding", val=66.7),
    _relation("above", val=66.4),
    TableRow("1unary+2pair", lambda runner: runner.together(), UNARY_PAIRWISE, val=67.8),
    TableRow("full", lambda runner: runner.together(dense=True), FULL, val=70.3, test=70.7),
    TableRow("full-end-to-end", lambda runner: runner.end_to_end(), FULL),
    _competitor("fcn-8s", test=62.2),
    _competitor("fcn-8s", dense=True),
    TableRow("crf-rnn", lambda runner: runner.crf_rnn(), UNARY_DENSE, ["fcn-8s"], test=65.2),
    _competitor("deeplab-largefov"),
    _competitor("deeplab-largefov", dense=True),
    _competitor("deeplab-msc-largefov"),
    # The paper's "DeepLab-M-C-L".
    _competitor("deeplab-msc-largefov", dense=True, val=68.7, test=71.6),
    _competitor("deeplabv3plus"),
    TableRow(
        "deeplabv3plus+2pair",
        lambda runner: runner.on_baseline("deeplabv3plus"),
        UNARY_PAIRWISE,
        ["deeplabv3plus"],
    ),
)


def rows_of(names: Sequence[str] | None) -> list[TableRow]:
    """The rows of some names, all for None.

    Raises:
        ValueError: there is no such row.
    """
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"rows {unknown}: expected some of {', '.join(known)}")
    return [row for row in ROWS if names is None or row.name in names]


def check(runner: Runner, rows: Sequence[TableRow]) -> None:
    """Check that some rows can be built at all, before hours go into the networks of the first of them.

    Raises:
        ValueError: the study lacks the relations that a row needs, or has a configuration that cannot be.
        DataError: an image that is measured, or tuned on, is broken.
    """
    study, measured = runner.study, open_dataset(runner.data, runner.study.val_split)
    for row in rows:
        _check_relations(study, row)
    networks = sorted({name for row in rows for name in row.networks})
    for config in (study.model, *(baseline_config(study.model, name) for name in networks)):
        with torch.device("meta"):
            ContextCRF(config, measured.classes, pretrained=False)
    pairs = list(measured.pairs)
    weights = study.inference.weights(study.model.relations) if study.inference.relation_weights else {}
    if any(row.system.dense or (row.system.relations is None and not weights) for row in rows):
        pairs += runner.tuning_images().pairs
    check_dataset(SegmentationDataset(list(dict.fromkeys(pairs)), measured.classes, measured.ignore_index))


def _check_relations(study: Study, row: TableRow) -> None:
    known, needed = list(study.model.relations), row.system.relations
    if needed is None and not known:
        raise ValueError(f"row {row.name}: expected a relation in the study's model.relations; there is none")
    if missing := [name for name in needed or () if name not in known]:
        raise ValueError(f"row {row.name}: expected {missing} in the study's model.relations, which are {known}")


def measure(runner: Runner, row: TableRow) -> SystemResult:
    """A row on the validation split, from its files if these weights have been measured on these images."""
    model = row.build(runner)
    data, predictor = open_dataset(runner.data, runner.study.val_split), Predictor(model)
    provenance = measurement(model, data)
    folder = runner.out / "rows" / f"{row.name}-{provenance.digest[:8]}"
    counts, seconds = folder / "images.npz", folder / "seconds.json"
    if Provenance.read(folder) is None:
        [found] = evaluate(predictor, data, [row.system])
        write_counts(counts, [image.stem for image, _ in data.pairs], {row.name: found.counts})
        write_json(seconds, found.seconds)
        provenance.write(folder)  # last: it marks the measurement as finished
    return SystemResult(row.name, read_counts(counts)[1][row.name], json.loads(seconds.read_text()))
