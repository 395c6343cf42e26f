"""What takes long shows a bar with an estimate, or says what is being done."""

import json

import numpy as np
import pytest
import rich
from PIL import Image
from rich.console import Console

from contextcrf import reproduction
from contextcrf.cli.main import main
from contextcrf.data.dataset import open_dataset
from contextcrf.evaluation.tuning import tune_dense, tune_strengths
from contextcrf.inference import tiling as tiles
from contextcrf.inference.tiling import Tiles, label
from contextcrf.modeling.serialization import save
from contextcrf.reproduction import workshop


@pytest.fixture
def terminal(monkeypatch):
    """Bars are drawn as on a terminal."""
    monkeypatch.setattr(rich, "_console", Console(force_terminal=True, width=160))


@pytest.fixture
def work(tiny_model, scenes, tmp_path):
    """A model, scenes, and label maps of them."""
    save(tiny_model, tmp_path / "model")
    (tmp_path / "maps").mkdir()
    for path in sorted((scenes / "masks").iterdir())[:2]:
        Image.open(path).save(tmp_path / "maps" / path.name)
    return {"work": tmp_path, "model": tmp_path / "model", "data": scenes}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("predict {model} {data}/images --out {work}/out --tile 32", ["predict", "tiles"]),
        ("refine {work}/maps --images {data}/images --classes {data}/classes.yaml --out {work}/out", ["refine"]),
        (
            "evaluate {model} --data {data} --out {work}/out --pictures 3",
            ["Checking the data", "evaluate", "examples", "report"],
        ),
        ("tune {model} --data {data} --limit 1", ["features", "trial 1 of at most 15: as it is"]),
        ("tune {model} --data {data} --limit 1 --dense true", ["marginals", "trial 1 of at most 32: without"]),
        ("export {model} --height 64 --width 96 --program {work}/m.pt2", ["tracing {model}", "writing and checking"]),
        ("average {model} {model} --out {work}/out", ["averaging the weights of 2 models"]),
        ("assemble --unary {model} --pairwise {pair} --out {work}/out", ["putting together unary of {model}, above"]),
    ],
)
def test_a_command_says_how_far_it_is(work, terminal, monkeypatch, capsys, command, words):
    monkeypatch.setattr(Tiles.__init__, "__defaults__", (1536, 0, 0))  # every picture is cut
    values = {**work, "pair": json.dumps({"above": str(work["model"])}).replace(" ", "")}
    main([part.format(**values) for part in command.split()])
    said = capsys.readouterr().out
    for word in words:
        assert word.format(**values) in said


def test_bars_are_not_drawn_where_they_are_not_wanted(tiny_model, scenes, terminal, capsys):
    data = open_dataset(scenes, "val").spread(1)
    tune_strengths(tiny_model, data, (0.0,), progress=False)
    tune_dense(tiny_model, data, {"spatial_compat": (1,), "bilateral_compat": (2,)}, rounds=1, progress=False)
    picture = np.zeros((3, 64, 96), np.uint8)
    pixels = tiles.torch.from_numpy(picture)
    label(tiny_model, pixels, tiles=Tiles(32, 0, above=0), progress=False)
    assert capsys.readouterr().out == ""
    label(tiny_model, pixels, tiles=Tiles(96, 0, above=0))  # a single tile
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("tune", "grid"), [(tune_strengths, (0.0, 1.0)), (tune_dense, None)])
def test_the_bar_over_trials_ends_full(tiny_model, scenes, terminal, capsys, tune, grid):
    """Settings that come again are taken off the number that was promised."""
    data = open_dataset(scenes, "val").spread(1)
    grid = grid or {"spatial_compat": (1.0,), "bilateral_compat": (2.0, 4.0)}
    trials = tune(tiny_model, data, grid)
    last = [line for line in capsys.readouterr().out.splitlines() if "trial " in line][-1]
    assert f"trial {len(trials)} of at most" in last
    assert "100%" in last


def test_reproduce_names_rows_and_networks(scenes, tmp_path, monkeypatch, capsys):
    (tmp_path / "study.yaml").write_text(
        "model: {backbone: plain, channels: 8, hidden: 8, scales: [1.0]}\n"
        "recipe: {epochs: 1, crop: [64, 96]}\npretrained: false\n"
    )
    monkeypatch.setattr(workshop, "train_once", lambda kind, arguments: trained.append(arguments["out"].name))
    monkeypatch.setattr(workshop, "load_here", lambda path: None)
    trained = []
    shop = reproduction.Workshop(reproduction.open_study(str(tmp_path / "study.yaml")), scenes, tmp_path / "out")
    shop.unary()
    assert trained == ["unary-3scales"]
    assert "training network unary-3scales" in capsys.readouterr().out
