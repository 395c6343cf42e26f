"""What the documentation shows runs: the Python, the commands and the configurations of its pages, and its notebooks.

Pages run from top to bottom: Python is executed, `contextcrf` commands are given to the command line, a YAML block that
begins with the comment `# NAME.yaml` is saved under that name. What is not run stands in `NOT_RUN` or `PATTERNS`.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from contextcrf import ModelConfig, PairwisePotential, RangeBox, mean_field
from contextcrf.cli import build_parser, main
from contextcrf.storage import save

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))

# How many blocks of Python and how many commands of a page are run.
RUN = {
    "README.md": (2, 0),
    "docs/any-network.md": (6, 0),
    "docs/crf.md": (3, 0),
    "docs/demo.md": (0, 0),
    "docs/dense.md": (2, 0),
    "docs/faq.md": (9, 0),
    "docs/mathematics.md": (16, 0),
    "docs/models.md": (2, 0),
    "docs/training.md": (0, 0),
    "docs/tutorials/developer.md": (7, 0),
    "docs/tutorials/practitioner.md": (3, 9),
    "docs/tutorials/pydensecrf.md": (6, 1),
    "docs/tutorials/researcher.md": (2, 4),
}
# Pages whose commands are patterns, since data and models are the reader's. They are parsed.
PATTERNS = ("README.md", "docs/demo.md", "docs/training.md", "docs/models.md")
# Commands of the other pages that are not run, and why. They are parsed too.
NOT_RUN = {
    'python3 -m pip install ".[offline]"': "installs what is installed",
    "python3 -m pip install .": "installs what is installed",
    "contextcrf voc VOC --sbd SBD --download true": "fetches 3.4 GB",
    "contextcrf reproduce voc --data VOC --out runs/voc": "trains VGG-16 on them",
    "contextcrf voc-submission runs/voc/tuned/full-0123abcd VOC --out results.tgz --dense true": "takes what that made",
}


def blocks(page):
    """The fenced blocks of a page: language and text, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def normal(command):
    """A command without its comment, quoted in one way."""
    return shlex.join(shlex.split(command, comments=True))


def commands(text):
    """The commands of a shell block."""
    return [command for line in text.replace("\\\n", "").splitlines() if (command := normal(line))]


def run(page, names):
    """Run a page from top to bottom, its names in and out of `names`."""
    done = [0, 0]
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page, "exec"), names)
            done[0] += 1
        elif language == "yaml" and (name := re.match(r"# (\w+\.yaml)\n", text)):
            Path(name[1]).write_text(text)
        elif language == "sh" and page not in PATTERNS:
            for command in commands(text):
                if command not in map(normal, NOT_RUN):
                    program, *arguments = shlex.split(command)
                    assert program == "contextcrf", command
                    main(arguments)
                    done[1] += 1
    assert tuple(done) == RUN[page]
    return names


def run_notebook(name):
    """Run a notebook's cells and return its names."""
    book = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text())
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), f"{name}, {cell['id']}", "exec"), names)
    return names


def mean_iou(folder):
    """Mean IoU by row of what `evaluate` or `reproduce` wrote."""
    rows = json.loads(Path(folder, "results.json").read_text())["rows"]
    return {row["name"]: row["mean_iou"] for row in rows}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Pages write where they are read."""
    monkeypatch.chdir(tmp_path)


def test_the_readme(tiny_model, tmp_path):
    save(tiny_model, "runs/mine/model")
    names = run("README.md", {"image": torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)})
    assert (tmp_path / "overlay.png").exists()
    assert names["loss"].isfinite()
    torch.testing.assert_close(names["refined"].sum(1), torch.ones(2, 28, 38))


def test_the_page_on_the_crf():
    names = run("docs/crf.md", {})
    elbos = torch.cat(names["elbos"])
    assert (elbos.diff() > 0).all()
    assert names["found"].push_map(3, 7).shape == (28, 38)


def test_the_page_on_the_dense_crf():
    names = run("docs/dense.md", {})
    assert names["labels"].shape == (2, 60, 80)
    assert all(parameter.grad is not None for parameter in names["crf"].parameters())


def test_the_page_on_models():
    names = run("docs/models.md", {})
    torch.testing.assert_close(names["marginals"].sum(1), torch.ones(1, 96, 128))


def test_the_page_on_networks_of_ones_own():
    images, labels = torch.randn(2, 3, 96, 128), torch.randint(21, (2, 96, 128))
    names = run("docs/any-network.md", {"torch": torch, "images": images, "labels": labels})
    assert names["losses"][-1] < names["losses"][0]
    torch.testing.assert_close(names["marginals"].sum(1), torch.ones(2, 6, 8))
    # What every library gives fits both functions.
    for library in ("torchvision", "timm", "smp", "transformers"):
        features, logits = (part.detach() for part in names[f"{library}_pair"])
        assert logits.shape[1] == 21
        assert logits.shape[-1] % features.shape[-1] == 0
        potential = PairwisePotential(features.shape[1], 21, RangeBox.surrounding(0.2), 8)
        assert names["train_step"](potential, torch.optim.SGD(potential.parameters()), features, labels).isfinite()
        cell = logits.shape[-1] // features.shape[-1]
        assert mean_field(logits, [(potential, features)], cell=cell).shape == logits.shape


def test_the_relations_of_the_page_on_the_crf_are_a_configuration():
    (text,) = [text for language, text in blocks("docs/crf.md") if language == "yaml"]
    parser = ArgumentParser()
    parser.add_argument("--model", type=ModelConfig)
    relations = parser.instantiate(parser.parse_object(yaml.safe_load(text))).model.relations
    assert relations["surrounding"] == RangeBox.surrounding()
    assert relations["above"] == RangeBox.above()
    assert len(relations["sides"]) == 2


def test_the_mathematics():
    # Its blocks compare the code with sums over all labellings.
    names = run("docs/mathematics.md", {})
    assert len(names["energies"]) == 3**6


def test_the_tutorial_of_the_practitioner(tmp_path):
    run("docs/tutorials/practitioner.md", {})
    found = mean_iou("runs/val")
    assert found["1unary+2pair"] > found["unary"] + 0.05
    assert "sheep" in json.loads((tmp_path / "runs/val/results.json").read_text())["classes"]
    for name in ("overlay.png", "why.png", "labels/train_0002.png", "labels/train_0002_overlay.png"):
        assert (tmp_path / name).exists()


def test_the_tutorial_of_the_developer():
    names = run("docs/tutorials/developer.md", {})
    before, after = (names["mean_iou"](*names["test"], strength) for strength in (0.0, names["strength"]))
    assert after > before + 0.05
    assert names["matrix"].mean_iou() > after
    assert names["found"].push_map(6, 7).shape == (20, 30)


def test_the_tutorial_for_users_of_pydensecrf(tmp_path, capsys):
    names = run("docs/tutorials/pydensecrf.md", {})
    assert "0..255" in capsys.readouterr().out
    assert max(names["scores"].values()) > names["before"] + 0.1
    assert names["losses"][-1] < names["losses"][0]
    assert (tmp_path / "refined" / "scene1.png").exists()


def test_the_tutorial_of_the_researcher(tmp_path):
    names = run("docs/tutorials/researcher.md", {})
    found = mean_iou("runs/tables")
    assert found["1unary+2pair"] > found["unary-3scales"] > found["unary-1scale"]
    assert "67.8" in (tmp_path / "runs/tables/table1.md").read_text()
    torch.testing.assert_close(names["marginals"].sum(1), torch.ones(1, 12, 18))


def test_the_questions():
    names = run("docs/faq.md", {})
    assert len(names["wrong"]) == 6


def test_the_notebook_on_pictures_of_ones_own():
    names = run_notebook("own-pictures")
    unary, together = (row.matrix.mean_iou() for row in names["rows"])
    assert together > unary + 0.05
    assert names["segmentation"].overlay().size == (144, 96)


def test_the_notebook_on_any_features():
    names = run_notebook("any-features")
    assert names["together"] > names["alone"] + 0.05
    assert (torch.cat(names["trace"]).diff() > 0).all()


def test_every_page_and_every_command_is_known(tmp_path):
    parser, seen = build_parser(), set()
    for page in PAGES:
        texts = [text for language, text in blocks(page) if language == "sh"]
        assert page in RUN or not (texts or "```python" in (ROOT / page).read_text()), f"{page} is not run"
        for command in (command for text in texts for command in commands(text)):
            seen.add(command)
            program, *arguments = shlex.split(command)
            if program in ("torchrun", "srun"):  # they start ours
                program, *arguments = arguments[arguments.index("contextcrf") :]
            assert program in ("contextcrf", "make", "python3"), command
            if program == "contextcrf":
                for config in re.findall(r"--config (\S+)", command):
                    (tmp_path / config).write_text("{}\n")
                parser.parse_args(arguments)
    assert set(map(normal, NOT_RUN)) <= seen
    assert {f"{path.stem}.ipynb" for path in (ROOT / "docs" / "notebooks").iterdir()} == {
        "own-pictures.ipynb",
        "any-features.ipynb",
    }


def test_the_site_is_built_without_a_warning_and_needs_no_other(tmp_path):
    # Not --quiet: with it warnings are not counted, and nothing could fail.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = {path.name: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert "<math" in pages["mathematics.html"]
    assert not [name for name, text in pages.items() if 'src="http' in text or "arithmatex" in text]
    assert 'href="../results/context.html"' in (tmp_path / "site/tutorials/practitioner.html").read_text()
