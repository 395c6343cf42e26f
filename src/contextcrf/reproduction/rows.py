"""The rows of the paper's tables: the networks that each row needs, its system and its evaluation."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

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
        name: name of the row.
        build: function that returns the model of the row; it trains the networks that do not exist yet.
        system: system of the model that is evaluated.
        networks: names in `BASELINES` of the competitors that the model is built on.
        val: mean IoU in the paper on PASCAL VOC 2012 val, in percent; None if the paper has no value.
        test: mean IoU in the paper on PASCAL VOC 2012 test, in percent; None if the paper has no value.

    Example:
        >>> row = TableRow("my-unary", lambda runner: runner.unary(scales=1), UNARY_ONLY, val=58.3)
        >>> row.system.name, row.networks
        ('unary', ())
    """

    name: str
    build: Callable[[Runner], ContextCRF]
    system: System = UNARY_ONLY
    networks: Sequence[str] = ()
    val: float | None = None
    test: float | None = None


def _competitor(network: str, dense: bool = False, val: float | None = None, test: float | None = None) -> TableRow:
    """Return the row of a competitor, with or without a dense CRF."""
    name, system = (f"{network}+dense", UNARY_DENSE) if dense else (network, UNARY_ONLY)
    return TableRow(name, lambda runner: runner.baseline(network, dense), system, [network], val, test)


def _relation(name: str, val: float) -> TableRow:
    """Return the row of one relation alone."""
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
    TableRow("crf-rnn+2pair", lambda runner: runner.crf_rnn_with_pairs(), FULL, ["fcn-8s"]),
    _competitor("deeplab-largefov"),
    _competitor("deeplab-largefov", dense=True),
    _competitor("deeplab-msc-largefov"),
    # This is "DeepLab-M-C-L" in the paper.
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
    """Return rows of `ROWS` by their names, in the order of `ROWS`.

    Args:
        names: names of rows; None returns all rows.

    Raises:
        ValueError: a name is not the name of a row.

    Example:
        >>> [row.name for row in rows_of(["full", "unary-3scales"])]
        ['unary-3scales', 'full']
    """
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"There are no rows {unknown}. Choose --rows from {', '.join(known)}.")
    return [row for row in ROWS if names is None or row.name in names]


def check(runner: Runner, rows: Sequence[TableRow]) -> None:
    """Check that rows can be built, before the networks of the first row are trained for hours.

    Args:
        runner: the runner.
        rows: rows to check.

    Raises:
        ValueError: the study lacks a relation that a row needs, or a model cannot be built from its config.
        DataError: an image or a mask of the validation or tuning split is broken.

    Example:
        >>> import yaml
        >>> from pathlib import Path
        >>> from contextcrf.data.synthetic import write_scenes
        >>> from contextcrf.reproduction import open_study
        >>> data = write_scenes("scenes", train=1, val=2, height=64, width=96)
        >>> small = {"backbone": "plain", "channels": 8, "hidden": 8, "scales": [1.0]}
        >>> study = {"model": small, "training": {"precision": "32-true"}, "pretrained": False}
        >>> _ = Path("study.yaml").write_text(yaml.safe_dump(study))
        >>> runner = Runner(open_study("study.yaml"), data, Path("tables"))
        >>> check(runner, rows_of(["unary-1scale", "pairwise-above"]))
    """
    study, measured = runner.study, open_dataset(runner.data, runner.study.val_split)
    for row in rows:
        _check_relations(study, row)
    networks = sorted({name for row in rows for name in row.networks})
    for config in (study.model, *(baseline_config(study.model, name) for name in networks)):
        with torch.device("meta"):
            ContextCRF(config, measured.classes, pretrained=False, image_format=measured.image_format)
    pairs = list(measured.pairs)
    weights = study.inference.weights(study.model.relations) if study.inference.relation_weights else {}
    if any(row.system.dense or (row.system.relations is None and not weights) for row in rows):
        pairs += runner.tuning_images().pairs
    check_dataset(measured.with_pairs(list(dict.fromkeys(pairs))))


def _check_relations(study: Study, row: TableRow) -> None:
    """Raise a ValueError if the study lacks a relation that a row needs."""
    known, needed = list(study.model.relations), row.system.relations
    if needed is None and not known:
        raise ValueError(
            f"Row {row.name} needs at least one relation, but model.relations of the study is empty. Add a relation, "
            "or leave the row out with --rows."
        )
    if missing := [name for name in needed or () if name not in known]:
        raise ValueError(
            f"Row {row.name} needs the relations {missing}, but model.relations of the study has {known}. Add the "
            "relations, or leave the row out with --rows."
        )


def measure(runner: Runner, row: TableRow) -> SystemResult:
    """Evaluate a row on the validation split.

    The result is kept in the folder of the runner. It is read from there if the same weights have been evaluated on the
    same images before.

    Args:
        runner: the runner.
        row: the row; its networks are trained if they do not exist.

    Returns:
        The result under the name of the row.

    Example:
        >>> import yaml
        >>> from pathlib import Path
        >>> from contextcrf.data.synthetic import write_scenes
        >>> from contextcrf.reproduction import open_study
        >>> data = write_scenes("scenes", train=1, val=2, height=64, width=96)
        >>> small = {"backbone": "plain", "channels": 8, "hidden": 8, "scales": [1.0]}
        >>> study = {"model": small, "training": {"precision": "32-true"}, "pretrained": False}
        >>> _ = Path("study.yaml").write_text(yaml.safe_dump(study))
        >>> runner = Runner(open_study("study.yaml"), data, Path("tables"))
        >>> classes = open_dataset(data, "val").classes
        >>> model = ContextCRF(runner.study.model, classes, pretrained=False, inference=runner.inference).eval()
        >>> result = measure(runner, TableRow("untrained", lambda runner: model))
        >>> result.name, result.counts.shape
        ('untrained', torch.Size([2, 10, 10]))
    """
    model = row.build(runner)
    data, predictor = open_dataset(runner.data, runner.study.val_split), Predictor(model)
    provenance = measurement(model, data)
    folder = runner.out / "rows" / f"{row.name}-{provenance.digest[:8]}"
    counts, seconds = folder / "images.npz", folder / "seconds.json"
    if Provenance.read(folder) is None:
        [found] = evaluate(predictor, data, [row.system])
        write_counts(counts, [image.stem for image, _ in data.pairs], {row.name: found.counts})
        write_json(seconds, found.seconds)
        provenance.write(folder)  # written last, since it marks the evaluation as finished
    return SystemResult(row.name, read_counts(counts)[1][row.name], json.loads(seconds.read_text()))
