"""The checkpoint from which a stopped training goes on, whatever stopped it, and when."""

import logging
import re
import zipfile
import zlib
from pathlib import Path
from pickle import UnpicklingError

import torch

from contextcrf.utils.errors import DataError

logger = logging.getLogger(__name__)

_EPOCH = re.compile(r"epoch=(\d+)")
# What torch raises for a file that is cut short or damaged, depending on the place.
_DAMAGED = (RuntimeError, OSError, EOFError, KeyError, ValueError, UnpicklingError, zipfile.BadZipFile, zlib.error)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that can be read; None before the first epoch has ended.

    The folder may hold more of them than a training keeps, since the oldest is removed only after the newest is
    written, and the newest may be incomplete. So all that are there are tried, the newest first.

    Raises:
        DataError: there are checkpoints of later epochs than the first, and none can be read.
    """
    numbered = [(int(found[1]), path) for path in folder.glob("epoch=*.ckpt") if (found := _EPOCH.match(path.name))]
    damaged: list[str] = []
    for _, path in sorted(numbered, reverse=True):
        try:
            with zipfile.ZipFile(path) as archive:
                if (part := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {part} does not fit")
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except _DAMAGED as error:
            damaged.append(f"{path}: damaged: {error}".splitlines()[0])
            continue
        for line in damaged:
            logger.warning("%s; going on from %s", line, path.name)
        return path
    if any(epoch > 0 for epoch, _ in numbered):
        raise DataError(f"{damaged[0]}; no other checkpoint is left: move {folder.parent} away and start again")
    return None
