"""The wheel and the sdist: both can be built, are whole, and work where they are installed."""

import importlib
import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
# Beside the modules.
DATA = {
    "py.typed",
    "pretrained/camvid/config.json",
    "pretrained/camvid/model.safetensors",
    "pretrained/msrc21/config.json",
    "pretrained/msrc21/model.safetensors",
    "reproduction/studies/camvid.yaml",
    "reproduction/studies/voc-small.yaml",
    "reproduction/studies/voc.yaml",
    "evaluation/templates/report.html",
    "modeling/templates/model_card.md",
}


def call(*command, **options):
    """What a Python with these arguments prints; it has no network to ask."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **options.pop("env", {})}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder):
    """The files of the library below a folder of sources, without what Python leaves there."""
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    call("-m", "build", "--no-isolation", "--outdir", out, ROOT)
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_the_wheel_is_whole(built):
    with ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        [license] = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert wheel.read(license) == (ROOT / "LICENSE").read_bytes()
    library = {name.removeprefix("contextcrf/") for name in names if name.startswith("contextcrf/")}
    assert files(ROOT / "src" / "contextcrf") == library >= DATA
    assert all(name.startswith(("contextcrf/", "contextcrf-")) for name in names)


def test_the_sdist_is_whole(built):
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= {f"src/contextcrf/{name}" for name in files(ROOT / "src" / "contextcrf")}
    assert names >= {"LICENSE", "README.md", "pyproject.toml", "Makefile", "mkdocs.yml", "tests/test_package.py"}
    assert not [name for name in names if name.startswith((".venv", "shared", "site/", "runs/", "demo/"))]


def test_the_installed_wheel_works(built, tmp_path):
    target = tmp_path / "installed"
    call("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", target, built[1])
    here = {"cwd": tmp_path, "env": {"PYTHONPATH": str(target)}}
    assert call("-m", "contextcrf", "--version", **here) == f"contextcrf {version('contextcrf')}\n"
    assert (target / "bin" / "contextcrf").is_file()
    program = "import contextcrf as c; print(c.__file__, c.load('camvid').classes.names[0])"
    place, name = call("-c", program, **here).split()
    assert Path(place) == target / "contextcrf" / "__init__.py"
    assert name == "sky"


def test_the_readme_of_a_package_index_leads_to_the_repository(built, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    hook = importlib.import_module("hatch_build").ReadmeHook(str(ROOT), {})
    metadata = {"urls": {"Source": "https://host/owner/name"}}
    hook.update(metadata)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", metadata["readme"]["text"])
    assert len(links) > 10
    assert all(link.startswith("https://") for _, link in links)
    for image, link in links:
        head = f"https://host/owner/name/{'raw' if image else 'blob'}/HEAD/"
        if link.startswith("https://host/"):
            assert (ROOT / link.removeprefix(head).partition("#")[0]).is_file(), link
    # Until the repository has an address, the package carries the README as it is.
    with ZipFile(built[1]) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        assert (ROOT / "README.md").read_text() in wheel.read(name).decode()
