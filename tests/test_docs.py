"""What the documentation shows runs: the Python, the commands and the configurations of its pages, and its notebooks.

Pages run from top to bottom: Python is executed, `contextcrf` commands are given to the command line, a YAML block that
begins with the comment `# NAME.yaml` is saved under that name. What is not run stands in `NOT_RUN` or `PARSED`. The
reference has an entry for every public name.
"""

import ast
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import typing
import warnings
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

from contextcrf import ContextCRF, DenseCRF, ModelConfig, PairwisePotential, Predictor, RangeBox, mean_field
from contextcrf.cli.main import COMMANDS, main, read_command
from contextcrf.crf import CoarseGrid
from contextcrf.data.classes_file import ClassesFile
from contextcrf.data.image_format import ImageFormat
from contextcrf.data.images import read_image
from contextcrf.data.layouts import CAMVID
from contextcrf.data.synthetic import write_scenes
from contextcrf.modeling.model import load
from contextcrf.modeling.serialization import save

ROOT = Path(__file__).parent.parent
# Pages whose commands are not run but parsed, and why: those of the results, and these.
PARSED = {
    **{
        path.relative_to(ROOT).as_posix(): "days of training and measuring, on data sets that are not here"
        for path in sorted((ROOT / "results").glob("*.md"))
    },
    "CONTRIBUTING.md": "they run these tests",
    "docs/import.md": "the sources are files of annotation tools; tests/data/importers/ writes such files",
    "docs/report.md": "the same as those of the results, whose experiments it describes",
    "docs/gallery.md": "its pictures need the model of `make demo` and CamVid",
}
_DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = tuple(dict.fromkeys(("README.md", *PARSED, *_DOCS)))

# How many blocks of Python and how many commands of a page are run.
RUN = {
    "README.md": (2, 5),
    "docs/any-network.md": (7, 0),
    "docs/crf.md": (3, 0),
    "docs/data-formats.md": (1, 0),
    "docs/demo.md": (0, 0),
    "docs/dense.md": (2, 0),
    "docs/faq.md": (9, 2),
    "docs/mathematics.md": (16, 0),
    "docs/models.md": (3, 3),
    "docs/prediction.md": (2, 1),
    "docs/training.md": (0, 13),
    "docs/tutorials/developer.md": (7, 0),
    "docs/tutorials/few-labels.md": (1, 3),
    "docs/tutorials/practitioner.md": (3, 8),
    "docs/tutorials/pydensecrf.md": (6, 1),
    "docs/tutorials/researcher.md": (2, 4),
}
# Beginnings of commands of these pages that are not run, and why. They are parsed too.
NOT_RUN = {
    "make demo": "runs the quickstart, as tests/cli/test_commands.py does",
    "make test": "runs these tests",
    "python3 -m pip install": "installs what is installed",
    "contextcrf demo": "serves until it is stopped; tests/webapp/test_server.py does that",
    "contextcrf reproduce voc": "trains VGG-16 for days",
    "contextcrf prepare-voc": "fetches 3.4 GB",
    "contextcrf voc-submission": "needs the models of these; tests/inference/test_voc_submission.py has it",
    "srun": "needs SLURM",
    "torchrun": "needs two machines; tests/training/test_distributed.py trains with two processes",
}
# Appended to the commands of pages whose data and models are the reader's: here they are drawn, and small.
_TRAINING = (
    "--training.epochs 1 --training.batch-size 3 --training.crop '[64,96]' --training.scale '[1,1]' "
    "--training.precision 32-true"
)
_MODEL = (
    "--model.backbone plain --model.output-stride null --model.channels 8 --model.hidden 8 --model.scales '[1.0]' "
    "--model.graph-stride null --training.frozen-stages 0 --training.frozen-filters false --pretrained false"
)
SMALL = {
    "fit": shlex.split(f"{_MODEL} {_TRAINING}"),
    "fit-heads": shlex.split(f"{_TRAINING} --training.max-edges 256 --copies 1"),
    "tune": ["--limit", "2"],
    "export": ["--height", "64", "--width", "96"],
}
# What users of CRFs for segmentation ask for in public issue trackers, by the question that answers it.
WISHES = {
    "an install that works": "Does it need a compiler?",
    "GPU and speed": "Does it run on a GPU?",
    "batches larger than one": "Can I process batches of more than one image?",
    "learning the parameters": "Can I learn the parameters of the dense CRF?",
    "numbers with and without the CRF": "How much does the dense CRF gain?",
    "it made things worse": "Why did the CRF lower the accuracy?",
    "traps of layout": "Which shapes and types do the arguments have?",
    "channels other than three, 3-D": "Does it support gray images, other channels and volumes?",
    "NaN from zeros": "Can probabilities be exactly zero?",
    "unlabeled pixels": "What do I do with pixels without a label?",
    "memory of large images": "How large may an image be?",
    "scripting, export": "Can the model be scripted, traced or exported?",
    "VOC without SBD by mistake": "Can I use PASCAL VOC without SBD by mistake?",
}


def blocks(page):
    """The fenced blocks of a page: language, or nothing, and text, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def normal(command):
    """A command without its comment, quoted in one way."""
    return shlex.join(shlex.split(command, comments=True))


def commands(text):
    """The commands of a shell block."""
    return [command for line in text.replace("\\\n", "").splitlines() if (command := normal(line))]


def not_run(command):
    """What of `NOT_RUN` a command begins with, if anything."""
    return next((start for start in NOT_RUN if f"{command} ".startswith(f"{normal(start)} ")), None)


def run(page, names, small=False):
    """Run a page from top to bottom, its names in and out of `names`; with the options of `SMALL` if so asked."""
    done = [0, 0]
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page, "exec"), names)
            done[0] += 1
        elif language == "yaml" and (name := re.match(r"# (\w+\.yaml)\n", text)):
            Path(name[1]).write_text(text)
        elif language == "sh":
            for command in commands(text):
                if not_run(command) is None:
                    program, *arguments = shlex.split(command)
                    assert program == "contextcrf", command
                    more = SMALL.get(arguments[0], []) if small else []
                    if "--init" in arguments:  # the model exists, so no option of the model can be given
                        more = shlex.split(_TRAINING)
                    main(arguments + more)
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
    """Mean IoU by system of what `evaluate` or `reproduce` wrote."""
    systems = json.loads(Path(folder, "results.json").read_text())["systems"]
    return {system["name"]: system["mean_iou"] for system in systems}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Pages write where they are read."""
    monkeypatch.chdir(tmp_path)


def write_data(model):
    """DATA, MODEL and pictures, as pages call what is the reader's own."""
    write_scenes("DATA", train=6, val=3, height=64, width=96)
    Path("DATA/splits/SPLIT.txt").write_text(Path("DATA/splits/val.txt").read_text())
    save(model, "MODEL")
    Path("folder").mkdir()
    for name, height, width in (("photo.jpg", 128, 320), ("folder/other.png", 40, 56), ("folder/third.png", 30, 30)):
        pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(name)


def test_the_readme(tiny_model, tmp_path):
    write_data(tiny_model)
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    names = run(
        "README.md",
        {
            "image": images[0],
            "images": images,
            "network": lambda images: torch.randn(len(images), 21, *images.shape[2:]),
        },
        small=True,
    )
    assert names["segmentation"].classes == CAMVID
    assert names["labels"].shape == (2, 40, 56)
    made = ("overlay.png", "recipe-heads.yaml", "runs/heads/val/report.html", "labels/third_overlay.png")
    for name in made:
        assert (tmp_path / name).exists(), name


def test_the_readme_fits_on_a_few_screens():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900


def test_the_page_on_training(tiny_model, tmp_path):
    write_data(tiny_model)
    save(tiny_model, "runs/first/model")
    save(tiny_model, "runs/heads/model")
    run("docs/training.md", {}, small=True)
    assert {path.parent.name for path in tmp_path.glob("runs/*/config.json")} == {"mean", "all", "joined"}
    assert load("runs/joined").config.shared_trunk


@pytest.fixture
def ray(tmp_path_factory, monkeypatch):
    """Ray on this machine alone, without a dashboard, reports to its makers and files in the home folder."""
    import ray  # it takes a second, which other tests need not wait

    folder = tmp_path_factory.mktemp("ray")
    (folder / "token").write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


# Ray sets these options of its own, and warns of them.
@pytest.mark.filterwarnings(
    "ignore:`(use_push_based_shuffle|use_polars|use_arrow_tensor_v2)` is deprecated:DeprecationWarning"
)
def test_the_page_on_prediction(tiny_model, tmp_path, ray):
    write_data(tiny_model)
    names = run("docs/prediction.md", {}, small=True)
    assert {path.name for path in tmp_path.glob("labels/*.png")} == {
        f"{stem}{end}.png" for stem in ("other", "third") for end in ("", "_overlay")
    }
    # The actors of Ray label as the predictor does in this process.
    predictor = Predictor(load("MODEL"))
    expected = {path: predictor.label(read_image(path)).numpy() for path in sorted((tmp_path / "folder").iterdir())}
    labels = {Path(row["path"]): row["labels"] for row in names["labeled"].iter_rows()}
    assert labels.keys() == expected.keys()
    assert all((labels[path] == expected[path]).all() for path in expected)


def test_the_page_on_the_page():
    run("docs/demo.md", {})


def test_the_page_on_data_formats():
    assert run("docs/data-formats.md", {})["image"].unique().tolist() == [255]
    classes, images = [text for language, text in blocks("docs/data-formats.md") if language == "yaml"]
    Path("classes.yaml").write_text(classes)
    assert ClassesFile.read(Path("classes.yaml")).mask_format.values == ((7, 8), (26,))
    Path("images.yaml").write_text(images)
    assert ImageFormat.read(Path()).ranges[3] == (0, 4012)


def test_the_page_on_the_crf():
    names = run("docs/crf.md", {})
    elbos = torch.cat(names["elbos"])
    assert (elbos.diff() > 0).all()
    assert names["found"].push_map(3, 7).shape == (28, 38)


def test_the_page_on_the_dense_crf():
    names = run("docs/dense.md", {})
    assert names["labels"].shape == (2, 60, 80)
    assert all(parameter.grad is not None for parameter in names["crf"].parameters())


def test_the_page_on_models(tmp_path, monkeypatch):
    write_scenes("DATA", train=1, val=2, height=64, width=96)  # with names of CamVid
    CAMVID.to_yaml(Path("DATA/classes.yaml"))
    pushed = []

    def push_to_hub(model, repo, private):
        pushed.append((model.metadata["measured"][0]["data"], repo, private))
        return repo

    monkeypatch.setattr(ContextCRF, "push_to_hub", push_to_hub)
    names = run("docs/models.md", {}, small=True)
    torch.testing.assert_close(names["marginals"].sum(1), torch.ones(1, 96, 128))
    assert pushed == [("DATA val, 2 images", "owner/name", True)]
    assert (tmp_path / "camvid.onnx").exists()
    assert "DATA val" in (tmp_path / "shared" / "README.md").read_text()


def test_the_page_on_networks_of_ones_own():
    names = run("docs/any-network.md", {})
    labels = names["labels"]
    assert names["losses"][-1] < names["losses"][0]
    torch.testing.assert_close(names["marginals"].sum(1), torch.ones(2, 6, 8))
    # What every library gives fits both functions.
    for library in ("torchvision", "timm", "smp", "transformers"):
        features, logits = (part.detach() for part in names[f"{library}_pair"])
        assert logits.shape[1] == 21
        assert logits.shape[-1] % features.shape[-1] == 0
        potential = PairwisePotential(features.shape[1], 21, RangeBox.surrounding(0.2), 8)
        assert names["train_step"](potential, torch.optim.SGD(potential.parameters()), features, labels).isfinite()
        coarse = CoarseGrid(potential, logits.shape[-1] // features.shape[-1])
        assert mean_field(logits, [(coarse, features)]).shape == logits.shape


def test_the_relations_of_the_page_on_the_crf_are_a_configuration():
    (text,) = [text for language, text in blocks("docs/crf.md") if language == "yaml"]
    parser = ArgumentParser()
    parser.add_argument("--model", type=ModelConfig)
    relations = parser.instantiate(parser.parse_object(yaml.safe_load(text))).model.relations
    assert relations["surrounding"] == RangeBox.surrounding()
    assert relations["above"] == RangeBox.above()
    assert len(relations["sides"]) == 2


def test_the_mathematics():
    # Its blocks compare the code with sums over all labelings.
    names = run("docs/mathematics.md", {})
    assert len(names["energies"]) == 3**6


def test_the_tutorial_of_the_practitioner(tmp_path):
    run("docs/tutorials/practitioner.md", {})
    found = mean_iou("runs/val")
    assert found["unary+pairwise"] > found["unary"] + 0.05
    assert "sheep" in json.loads((tmp_path / "runs/val/results.json").read_text())["classes"]
    for name in ("overlay.png", "why.png", "labels/train_0002.png", "labels/train_0002_overlay.png"):
        assert (tmp_path / name).exists()


def test_the_tutorial_on_few_labels():
    run("docs/tutorials/few-labels.md", {})
    found = mean_iou("runs/val")
    assert found["unary+pairwise"] > found["unary"] > 0.5


def test_the_tutorial_of_the_developer():
    names = run("docs/tutorials/developer.md", {})
    before, after = (names["mean_iou"](*names["test"], weight) for weight in (0.0, names["best"]))
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


def test_the_questions(tiny_model):
    write_data(tiny_model)
    names = run("docs/faq.md", {}, small=True)
    assert len(names["wrong"]) == 6
    asked = set(re.findall(r"^### (.+)$", (ROOT / "docs/faq.md").read_text(), re.MULTILINE))
    assert set(WISHES.values()) <= asked


def test_what_the_questions_say_of_scripts_and_traces():
    crf = DenseCRF(bilateral_sxy=5, bilateral_srgb=30, bilateral_compat=2, iterations=2)
    logits, images = torch.randn(3, 1, 4, 12, 16), torch.randint(0, 256, (3, 1, 3, 12, 16)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all of it is deprecated, and warns of branches
        with pytest.raises(RuntimeError, match="Unknown type name"):
            torch.jit.script(crf)
        traced = torch.jit.trace(crf, (logits[0], images[0]))
        torch.testing.assert_close(traced(logits[0], images[0]), crf(logits[0], images[0]))
        with pytest.raises(RuntimeError, match="size"):
            traced(logits[1], images[1])
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda scores: crf(scores, images[0]).amax())(logits[0])


def test_the_notebook_on_pictures_of_ones_own():
    names = run_notebook("own-pictures")
    unary, together = (system.matrix.mean_iou() for system in names["systems"])
    assert together > unary + 0.05
    assert names["segmentation"].overlay().size == (144, 96)


def test_the_notebook_on_any_features():
    names = run_notebook("any-features")
    assert names["together"] > names["alone"] + 0.05
    assert (torch.cat(names["trace"]).diff() > 0).all()


def check_command(program, arguments):
    """Whether there is such a command, with such options, files of the repository among them."""
    if program == "contextcrf":
        for config in re.findall(r"--config (\S+)", shlex.join(arguments)):
            if not config.startswith("configs/"):
                Path(config).write_text("{}\n")
        assert read_command(arguments)[0] == arguments[0]
    elif program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text()
    elif program == "python" and arguments[0] == "-c":
        for node in ast.walk(ast.parse(arguments[1])):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), arguments[1]
    elif program == "python" and arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    else:
        assert program in ("python", "python3", ".venv/bin/pre-commit"), program


def test_every_page_and_every_command_is_known(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    seen = set()
    for page in PAGES:
        texts = [text for language, text in blocks(page) if language == "sh"]
        runs = texts or any(language == "python" for language, _ in blocks(page))
        assert page in RUN or page in PARSED or not runs, f"{page} is not run"
        for command in (command for text in texts for command in commands(text)):
            if page not in PARSED:
                seen.add(not_run(command))
            program, *arguments = shlex.split(command)
            if program in ("torchrun", "srun"):  # they start ours
                program, *arguments = arguments[arguments.index("contextcrf") :]
            check_command(program, arguments)
    assert seen >= set(NOT_RUN)
    assert {f"{path.stem}.ipynb" for path in (ROOT / "docs" / "notebooks").iterdir()} == {
        "own-pictures.ipynb",
        "any-features.ipynb",
    }


def test_the_commands_for_windows(tmp_path):
    (block,) = [text for language, text in blocks("README.md") if language == "powershell"]
    seen = [line.replace(".venv\\Scripts\\", "").split(maxsplit=1) for line in block.splitlines()]
    assert [program for program, _ in seen] == ["py", "python", "contextcrf", "python"]
    # Those of the Makefile, in its order.
    _, install, demo, test = (rest for _, rest in seen)
    makefile = (ROOT / "Makefile").read_text()
    for command in (f"python {install}", f"contextcrf {demo}", f"python {test}"):
        assert f"\t$(BIN)/{command}" in makefile
    check_command("contextcrf", shlex.split(demo))


def test_files_of_the_repository_that_pages_name_exist():
    texts = {page: (ROOT / page).read_text() for page in PAGES} | {"NOT_RUN": "\n".join(NOT_RUN.values())}
    pattern = r"\b(?:tests|experiments|benchmarks|configs|src|docs)/[\w./-]*\.(?:py|yaml|json|md)\b"
    named = [(page, path) for page, text in texts.items() for path in re.findall(pattern, text)]
    assert len(named) > 20
    assert not [(page, path) for page, path in named if not (ROOT / path).exists()]


def test_commands_stand_in_shell_blocks():
    for page in PAGES:
        for language, text in blocks(page):
            if language != "sh":
                assert not re.search(r"^(\$ )?(contextcrf|make|python3?) ", text, re.MULTILINE), f"{page}:\n{text}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation as a site, built without a warning."""
    folder = tmp_path_factory.mktemp("built") / "site"
    # Not --quiet: with it warnings are not counted, and nothing could fail.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_the_site_needs_no_other_and_leads_to_every_page(site):
    folder, said = site
    pages = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.html")}
    assert "<math" in pages["mathematics.html"]
    assert not [name for name, text in pages.items() if 'src="http' in text or "arithmatex" in text]
    # Examples of docstrings are code: not boxes of text, in which their prompts would be quotations.
    assert '<span class="gp">&gt;&gt;&gt; </span>' in pages["reference/crf.html"]
    assert not [name for name, text in pages.items() if 'class="example"' in text or "<blockquote" in text]
    assert 'href="../results/context.html"' in (folder / "tutorials/practitioner.html").read_text()
    # Tables below the results are no pages of their own.
    assert not re.findall(r"^  - (?!results/\w+/).*\.md$", said, re.MULTILINE), said


def public_names():
    """Every name that must have an entry: those of `__all__`, the commands, and what pages and notebooks import."""
    functions = [command.function for command in COMMANDS.values()]
    names = {f"{function.__module__}.{function.__name__}" for function in functions}
    for path in (ROOT / "src").rglob("*.py"):
        if "__all__" in path.read_text():
            module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
            names |= {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    texts = [text for page in PAGES for language, text in blocks(page) if language == "python"]
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "contextcrf":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names | {f"contextcrf.ContextCRF.{name}" for name in ("from_pretrained", "save_pretrained", "push_to_hub")}


def found(name):
    """The object of a dotted name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            # A package may import its names only when they are asked for, and others only for annotations.
            get = getattr if inspect.ismodule(thing) else inspect.getattr_static
            thing = get(thing, part, None)
        return thing
    raise AssertionError(name)


def imported_for_types(module):
    """The names that a module imports only for its annotations, below `if TYPE_CHECKING`."""
    names = {}
    for block in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for node in (node for node in block.body if isinstance(node, ast.ImportFrom)):
                source = importlib.import_module(node.module)
                names |= {alias.asname or alias.name: getattr(source, alias.name) for alias in node.names}
    return names


def mentioned(thing):
    """The library's own classes in the signature, and its errors in the docstring, of a function or a class."""
    thing = getattr(thing, "__func__", getattr(thing, "fget", thing))
    if not (inspect.isroutine(thing) or inspect.isclass(thing)):
        return set()
    function = thing.__init__ if inspect.isclass(thing) else thing
    hints = typing.get_type_hints(function, localns=imported_for_types(thing.__module__))
    kinds = list(hints.values())
    for kind in kinds:
        kinds += kind if isinstance(kind, list) else typing.get_args(kind)
    classes = [kind for kind in kinds if inspect.isclass(kind)]
    names = {kind.__name__ for kind in classes if kind.__module__.startswith("contextcrf")}
    errors = r"\b(DataError|ModelError|WeightsNotFoundError|OtherSettingsError|BusyError)\b"
    return names | set(re.findall(errors, inspect.getdoc(thing) or ""))


def test_the_reference_has_every_public_name(site):
    inventory = (site[0] / "objects.inv").read_bytes().split(b"\n", 4)[4]
    entries = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert public_names() <= entries
    # And the types and errors of what is there.
    last = {name.split(".")[-1] for name in entries}
    for name in entries:
        if name.startswith("contextcrf."):
            assert mentioned(found(name)) <= last, name
