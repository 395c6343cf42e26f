"""What this machine has for contextcrf: the `doctor` command."""

import importlib.util
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from contextcrf.data.dataset import known_splits, open_dataset
from contextcrf.errors import DataError
from contextcrf.machine import has_bfloat16
from contextcrf.nets.weights import PACKAGES, hub_reachable
from contextcrf.storage import BUNDLED

REQUIRED = ("contextcrf", "torch", "torchvision", "timm", "lightning", "torchmetrics", "jsonargparse", "safetensors")
# What the optional packages are for, by the extra that brings them.
OPTIONAL = {
    "scipy": ("voc", "masks of SBD"),
    "segmentation-models-pytorch": ("baselines", "the network deeplabv3plus"),
    "onnxruntime": ("export", "ONNX files"),
    "gradio": ("demo", "the page of contextcrf demo"),
}


def examine(data: Path | None = None) -> Iterator[tuple[str, str]]:
    """Findings as (name, what was found), in the order in which they are printed.

    Args:
        data: a data set to look at too.
    """
    yield "Python", platform.python_version()
    for name in REQUIRED:
        yield name, version(name)
    for name, (extra, purpose) in OPTIONAL.items():
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, f'not installed: needed for {purpose} (pip install "contextcrf[{extra}]")'
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        yield "device", f"cpu, {torch.get_num_threads()} threads"
    else:
        yield "device", f"{device}, {torch.accelerator.device_count()} of them"
    yield "bfloat16", "fast: --recipe.precision bf16-mixed" if has_bfloat16() else "not fast here"
    yield "weights, hub", "answers" if hub_reachable() else "does not answer"
    for name, package in PACKAGES.items():
        found = importlib.util.find_spec(package) is not None
        yield f"weights, {name}", "installed" if found else 'not installed (pip install "contextcrf[offline]")'
    yield "bundled models", ", ".join(sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))) or "none"
    if data is not None:
        yield from _data(data)


def _data(data: Path) -> Iterator[tuple[str, str]]:
    try:
        splits = known_splits(data)
    except DataError as error:
        yield "data", str(error)
        return
    for split in splits:
        try:
            found = open_dataset(data, split)
        except DataError as error:
            yield f"data, {split}", str(error)
            continue
        missing = [path for pair in found.pairs for path in pair if not path.is_file()]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        lost = f"; not there: {missing[0]}{more}" if missing else ""
        yield f"data, {split}", f"{len(found)} images, {len(found.classes)} classes{lost}"
