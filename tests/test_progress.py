"""Every long step shows a bar on a terminal, and writes lines where there is none."""

import json

import numpy as np
import pytest
import rich
import torch
from PIL import Image
from rich.console import Console

from contextcrf import InferenceConfig, Predictor
from contextcrf.cli.main import main
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.tuning import tune_dense, tune_relation_weights
from contextcrf.modeling.serialization import save
from contextcrf.utils import progress
from contextcrf.utils.progress import show_progress


@pytest.fixture
def terminal(monkeypatch):
    """Bars are drawn as on a terminal."""
    console = Console(force_terminal=True, width=160)
    monkeypatch.setattr(rich, "_console", console)
    monkeypatch.setattr(progress, "Console", lambda: console)
    return console


@pytest.fixture
def work(tiny_model, scenes, tmp_path):
    """A model that labels every image in tiles, scenes, and label maps of them."""
    inference = InferenceConfig(tile=32, overlap=0, tile_above=0, precision="32-true")
    save(tiny_model, tmp_path / "model", inference=inference)
    (tmp_path / "maps").mkdir()
    for path in sorted((scenes / "masks").iterdir())[:2]:
        Image.open(path).save(tmp_path / "maps" / path.name)
    return {"work": tmp_path, "model": tmp_path / "model", "data": scenes}


COMMANDS = [
    ("predict {model} {data}/images --out {work}/out", ["Labeling images", "Labeling tiles"]),
    ("refine {work}/maps --images {data}/images --classes {data}/classes.yaml --out {work}/out", ["Refining maps"]),
    (
        "evaluate {model} --data {data} --out {work}/out --pictures 3",
        ["Evaluating", "Drawing examples", "Drawing the report"],
    ),
    (
        "tune {model} --data {data} --split train --limit 2",
        ["Computing features", "Trial 1 of at most 15: current settings"],
    ),
    (
        "tune {model} --data {data} --split train --limit 2 --dense",
        ["Computing marginals", "Trial 1 of at most 32: no dense CRF"],
    ),
    ("export {model} --height 64 --width 96 --program {work}/m.pt2", ["tracing {model}", "writing and checking"]),
    ("average-weights {model} {model} --out {work}/out", ["averaging the weights of 2 models"]),
    ("merge-potentials --unary {model} --pairwise {pair} --out {work}/out", ["merging unary of {model}, above"]),
    (
        "fit --data {data} --out {work}/fit --model.backbone plain --pretrained false --model.channels 8 "
        "--training.epochs 2 --training.crop [64,96]",
        ["Epoch 1 of 2", "Epoch 2 of 2: loss ", "val/unary "],
    ),
    (
        "fit-heads {model} --data {data} --out {work}/heads --training.epochs 1 --training.crop [64,96]",
        ["Computing features", "Epoch 1 of 1: loss "],
    ),
]


@pytest.mark.parametrize(("command", "words"), COMMANDS)
def test_a_command_shows_its_progress(work, terminal, capsys, command, words):
    values = {**work, "pair": json.dumps({"above": str(work["model"])}).replace(" ", "")}
    main([part.format(**values) for part in command.split()])
    said = capsys.readouterr().out
    for word in words:
        assert word.format(**values) in said


def test_a_log_gets_lines_instead_of_bars(work, monkeypatch, capsys):
    """As when the output of a command is a file: a line every half minute, here at once."""
    monkeypatch.setattr(progress.Lines.__init__, "__defaults__", (0.0,))
    main(["evaluate", str(work["model"]), "--data", str(work["data"]), "--out", str(work["work"] / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Evaluating: 2 of 3, about ") and line.endswith(" left") for line in lines)


def test_the_library_is_silent_by_itself(tiny_model, scenes, terminal, capsys):
    data = open_dataset(scenes, "val").spread(1)
    tune_relation_weights(tiny_model, data, (0.0,))
    tune_dense(tiny_model, data, {"spatial_compat": (1,), "bilateral_compat": (2,)}, rounds=1)
    pixels = torch.from_numpy(np.zeros((3, 64, 96), np.uint8))
    Predictor(tiny_model, InferenceConfig(tile=32, overlap=0, tile_above=0)).label(pixels)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("tune", "grid"), [(tune_relation_weights, (0.0, 1.0)), (tune_dense, None)])
def test_the_bar_over_trials_ends_full(tiny_model, scenes, terminal, capsys, tune, grid):
    """Settings that come again are subtracted from the number that was announced."""
    data = open_dataset(scenes, "val").spread(1)
    grid = grid or {"spatial_compat": (1.0,), "bilateral_compat": (2.0, 4.0)}
    with show_progress():
        trials = tune(tiny_model, data, grid)
    last = [line for line in capsys.readouterr().out.splitlines() if "Trial " in line][-1]
    assert f"Trial {len(trials)} of at most" in last
    assert f"{len(trials)}/{len(trials)}" in last
