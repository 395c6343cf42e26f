"""The cache of the features of a frozen trunk, which are computed once for all heads, in memory or on disk."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.pairing import masks_digest
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import fingerprint
from contextcrf.training.config import TrainingConfig
from contextcrf.training.sampler import SeededSampler
from contextcrf.utils.files import write_json
from contextcrf.utils.locks import acquire
from contextcrf.utils.progress import track
from contextcrf.utils.provenance import Provenance
from contextcrf.utils.resizing import downsample
from contextcrf.utils.runtime import autocast

logger = logging.getLogger(__name__)

Sample = tuple[Tensor, Tensor, Tensor]

# The arrays of a cache on disk, in the order of a sample.
_ARRAYS = ("features.npy", "labels.npy", "unary.npy")
_PROGRESS = "progress.json"


class CachedFeatures(Dataset[Sample]):
    """A data set that holds features, labels and unary logits in memory.

    Its keys are the pairs that `SeededSampler` yields. The second part of a key, the seed, is not used.

    Args:
        features: feature maps [M, C, h, w] of M samples.
        labels: labels [M, h, w] of the graph nodes, or [M, H, W] of the pixels.
        unary: unary logits [M, K, h, w] of the graph nodes.

    Example:
        >>> cached = CachedFeatures(torch.rand(2, 8, 4, 6), torch.zeros(2, 4, 6).long(), torch.rand(2, 3, 4, 6))
        >>> features, labels, unary = cached[1, 0]
        >>> len(cached), features.shape
        (2, torch.Size([8, 4, 6]))
    """

    def __init__(self, features: Tensor, labels: Tensor, unary: Tensor) -> None:
        self.features, self.labels, self.unary = features, labels, unary

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.features[key[0]], self.labels[key[0]], self.unary[key[0]]


class StoredFeatures(Dataset[Sample]):
    """A data set of the features, labels and unary logits in a folder that `cache_features` has written.

    The folder has the NumPy arrays features.npy (bfloat16 numbers as int16), labels.npy (uint8) and unary.npy
    (float32). A sample is read when it is requested, so the data set needs no memory. Several processes can share a
    folder.

    Args:
        folder: the folder.

    Example:
        >>> np.save("features.npy", np.zeros((2, 8, 4, 6), np.int16))
        >>> np.save("labels.npy", np.zeros((2, 4, 6), np.uint8))
        >>> np.save("unary.npy", np.zeros((2, 3, 4, 6), np.float32))
        >>> features, labels, unary = StoredFeatures(Path("."))[1, 0]
        >>> features.dtype, features.shape
        (torch.bfloat16, torch.Size([8, 4, 6]))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = len(self._open("labels.npy"))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        features, labels, unary = (torch.from_numpy(np.array(self._open(name)[key[0]])) for name in _ARRAYS)
        return features.view(torch.bfloat16), labels, unary

    def _open(self, name: str) -> np.memmap:
        # A map that stayed open would keep all pages in memory that were ever read.
        found = np.load(self.folder / name, mmap_mode="r")
        assert isinstance(found, np.memmap)
        return found


@torch.no_grad()
def cache_features(
    model: ContextCRF,
    data: SegmentationDataset,
    name: str,
    copies: int,
    config: TrainingConfig,
    folder: Path | None = None,
    announce: bool = True,
) -> CachedFeatures | StoredFeatures:
    """Compute the features of a potential, the labels and the unary logits of augmented copies of the images.

    For a relation, the labels are those of the graph nodes. For the unary, they are those of the pixels.

    Args:
        model: the model; it is set to evaluation mode.
        data: images and masks with their augmentation.
        name: name of the potential whose features are kept, in bfloat16.
        copies: number of augmented copies of each image.
        config: config of the training; its seed, precision, batch size and workers are used.
        folder: folder for the features. If it has a part of them, the others are added. If it has all of them, nothing
            is computed. If another process is writing the features, the function waits for it. None keeps the features
            in memory.
        announce: log the size of the features before they are computed.

    Returns:
        A data set of `copies` entries for each image.

    Raises:
        ValueError: the memory or the disk is too small, or the folder has the features of another model, of other
            images or of another augmentation.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> from contextcrf.training import augmentation
        >>> config = TrainingConfig(batch_size=1, crop=(64, 96), precision="32-true", workers=0)
        >>> root = write_scenes("scenes", train=2, val=1, height=64, width=96)
        >>> data = open_dataset(root, "train", augmentation(config))
        >>> small = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> model = ContextCRF(small, data.classes, pretrained=False)
        >>> len(cache_features(model, data, "above", copies=2, config=config))
        4
    """
    model.eval()
    total, level = copies * len(data), logging.INFO if announce else logging.DEBUG
    if folder is None:
        kept: list[Tensor] = []
        for start, sample in _compute(model, data, name, copies, config):
            if not kept:
                _check_memory(size := _size_of(sample, total))
                logger.log(level, "The features take %s of memory.", _gigabytes(size))
                kept = [part.new_empty(total, *part.shape[1:]) for part in sample]
            for whole, part in zip(kept, sample, strict=True):
                whole[start : start + len(part)] = part
        return CachedFeatures(kept[0], kept[1], kept[2])
    record = _provenance(model, data, name, copies, config)
    with _lock(folder):
        _check_folder(folder, record)
        progress = folder / _PROGRESS
        done = int(json.loads(progress.read_text(encoding="utf-8"))["samples"]) if progress.exists() else 0
        for start, sample in _compute(model, data, name, copies, config, done) if done < total else ():
            if start == 0:
                _check_disk(folder, size := _size_of(sample, total))
                logger.log(level, "The features take %s in %s.", _gigabytes(size), folder)
                record.write(folder)
                _create(folder, sample, total)
            for file, part in zip(_ARRAYS, sample, strict=True):
                array = np.load(folder / file, mmap_mode="r+")
                stored = part.view(torch.int16) if part.dtype == torch.bfloat16 else part
                array[start : start + len(part)] = stored.numpy()
                array.flush()
            # After a kill, the samples that this file counts are complete.
            write_json(progress, {"samples": start + len(sample[0])})
    return StoredFeatures(folder)


def _compute(
    model: ContextCRF, data: SegmentationDataset, name: str, copies: int, config: TrainingConfig, done: int = 0
) -> Iterator[tuple[int, Sample]]:
    """Yield batches of samples, each with the number of samples before it, without the first `done` samples."""
    sampler, keys = SeededSampler(len(data), config.seed), list[tuple[int, int]]()
    for number in range(copies):
        sampler.set_epoch(number)
        keys += list(sampler)
    loader = DataLoader(data, config.batch_size, sampler=keys[done:], num_workers=config.workers)
    for images, masks in track(loader, "Computing features"):
        with autocast(model.device, config.precision):
            both = model.features(images.to(model.device), dict.fromkeys([UNARY, name]))
            logits = model.pool(model.unary(both[UNARY]).float())
        maps = both[name]
        labels = masks if name == UNARY else downsample(masks, maps.shape[-2:])
        yield done, (maps.to(torch.bfloat16).cpu(), labels.byte(), logits.cpu())
        done += len(images)


def _provenance(
    model: ContextCRF, data: SegmentationDataset, name: str, copies: int, config: TrainingConfig
) -> Provenance:
    """Return the record of everything that determines the features and the labels."""
    used = ("crop", "scale", "color", "flip", "precision", "seed")
    return Provenance.of(
        model=fingerprint(model),
        images=[image.name for image, _ in data.pairs],
        masks=f"with the digest {masks_digest(data)}",
        potential=name if name == UNARY or not model.config.shared_trunk else "pairwise",
        copies=copies,
        training={setting: getattr(config, setting) for setting in used},
    )


def _create(folder: Path, sample: Sample, total: int) -> None:
    """Create the arrays of `total` samples, given a batch of some of them."""
    for file, part in zip(_ARRAYS, sample, strict=True):
        kind = np.dtype(np.int16) if part.dtype == torch.bfloat16 else part.numpy().dtype
        np.lib.format.open_memmap(folder / file, "w+", kind, (total, *part.shape[1:]))


def _check_disk(folder: Path, size: int) -> None:
    """Raise a ValueError if the features do not fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if size > 0.95 * free:
        raise ValueError(
            f"The features take {_gigabytes(size)}, but {folder} has {_gigabytes(free)} of free disk space. Choose "
            "another --cache, or use fewer --copies, a smaller training.crop or a larger --graph-stride."
        )


def _check_memory(size: int) -> None:
    """Raise a ValueError if the features do not fit into the free memory."""
    free = psutil.virtual_memory().available
    if size > 0.9 * free:
        raise ValueError(
            f"The features take {_gigabytes(size)}, but {_gigabytes(free)} of memory are free. Keep them on disk with "
            "--cache FOLDER, or use fewer --copies, a smaller training.crop or a larger --graph-stride."
        )


def _check_folder(folder: Path, record: Provenance) -> None:
    """Raise a ValueError if a folder has other features, or other files."""
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not others:
        return
    if Provenance.read(folder) is None:
        raise ValueError(f"{folder} has other files, such as {others[0]}. Choose an empty or new folder with --cache.")
    if mismatch := record.mismatch(folder):
        raise ValueError(f"The features in {folder} were computed {mismatch}. Choose another --cache.")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock a folder, after another process that has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = acquire(folder / ".lock")
    if not lock.is_locked:
        logger.info("Waiting for another process, which computes the features in %s.", folder)
        lock = acquire(folder / ".lock", blocking=True)
    try:
        yield
    finally:
        lock.release()


def _size_of(sample: Sample, total: int) -> int:
    """Return the size in bytes of `total` samples, given a batch of some of them."""
    return sum(part[0].numel() * part.element_size() * total for part in sample)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
