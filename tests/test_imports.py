"""The imports of the library: packages in one order, without circles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"
# Each package with those that it may import, beside itself.
LOWER = {"utils": set(), "crf": set(), "nets": {"utils"}, "data": {"utils"}}
LOWER["modeling"] = {"utils", "crf", "nets", "data"}
for above, below in (
    ("inference", "modeling"),
    ("evaluation", "inference"),
    ("training", "evaluation"),
    ("reproduction", "training"),
):
    LOWER[above] = LOWER[below] | {below}
LOWER["webapp"] = LOWER["reproduction"] | {"reproduction"}
LOWER["cli"] = LOWER["webapp"] | {"webapp"}
# The class that joins a network with its predictor and its storage stands above both.
JOINED = {"contextcrf.modeling.model": {"inference"}}


def imports():
    """For each module of the library those that it imports, anywhere in its text."""
    paths = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for module, path in paths.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = [(node.module, f"{node.module}.{alias.name}") for node in nodes for alias in node.names]
        assert all(not node.level for node in nodes), f"{module}: a relative import"
        found[module] = {part if part in paths else whole for whole, part in names if whole in paths} - {module}
    # The names that the package hands on are imported when they are used.
    return {**found, "contextcrf": set()}


def edges():
    return {(module, used) for module, uses in imports().items() for used in uses}


def test_the_probabilistic_core_needs_torch_alone():
    """`contextcrf.crf` loads, and its dense CRF runs, where nothing but torch and what torch requires can be found."""
    program = """
import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def needed(name, known):
    # The distributions that `name` requires, without extras, and theirs.
    if name not in known:
        known.add(name)
        try:
            for line in requires(name) or []:
                if "extra ==" not in line:
                    needed(re.match(r"[\\w.-]+", line)[0].lower().replace("_", "-"), known)
        except PackageNotFoundError:
            pass
    return known

allowed = needed("torch", {"contextcrf"})
for name, distributions in packages_distributions().items():
    if name not in sys.stdlib_module_names and not allowed & {d.lower().replace("_", "-") for d in distributions}:
        sys.modules[name] = None
assert {"PIL", "matplotlib", "torchvision", "timm", "lightning", "numpy", "yaml", "pytest"} <= {
    name for name, module in sys.modules.items() if module is None
}

import contextcrf.crf
from contextcrf import DenseCRF, PairwisePotential, RangeBox, UnaryPotential, mean_field
import torch

crf = DenseCRF(bilateral_sxy=5, bilateral_srgb=30, bilateral_compat=2, iterations=2)
marginals = crf(torch.randn(1, 3, 8, 10), torch.randint(0, 256, (1, 3, 8, 10)))
torch.testing.assert_close(marginals.sum(1), torch.ones(1, 8, 10))
"""
    # torch warns where NumPy, which it does not require, is missing.
    subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Failed to initialize NumPy", "-c", program], check=True
    )


def test_the_command_line_loads_no_heavy_libraries():
    """`--help` and errors of options come at once."""
    program = """
import sys
from contextcrf.cli.main import build_parser, read_command
build_parser()
read_command(["fit", "--data", "d", "--out", "o"])
heavy = {"lightning", "timm", "torchmetrics", "torchvision", "matplotlib", "gradio"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_page_loads_gradio_alone():
    """Neither the package nor the computations of the page need the library that draws it."""
    program = """
import sys
sys.modules["gradio"] = None
import contextcrf
import contextcrf.cli.main
import contextcrf.webapp.session
from contextcrf import ContextCRF, load
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_packages_import_only_those_below_them():
    assert {path.name for path in (SOURCE / "contextcrf").iterdir() if path.is_dir()} - {"__pycache__"} == {
        *LOWER,
        "pretrained",
    }
    assert {path.name for path in (SOURCE / "contextcrf").glob("*.py")} == {"__init__.py", "__main__.py"}
    for module, used in edges():
        if module in ("contextcrf.__main__", "contextcrf"):
            continue
        package, other = module.split(".")[1], used.split(".")[1]
        allowed = {package} | LOWER[package] | JOINED.get(module, set())
        assert other in allowed, f"{module} imports {used}"


def test_modules_have_no_circles():
    graph = {}
    for module, used in edges():
        graph.setdefault(module, set()).add(used)
    list(TopologicalSorter(graph).static_order())  # CycleError shows a circle
