"""The choice of the checkpoint from which an interrupted training run resumes."""

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
# The errors that torch raises for a truncated or damaged file, depending on the damaged part.
_DAMAGED = (RuntimeError, OSError, EOFError, KeyError, ValueError, UnpicklingError, zipfile.BadZipFile, zlib.error)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest readable checkpoint of a folder, or None if no epoch has ended.

    An interrupted training run may leave an incomplete newest checkpoint, and one more checkpoint than it keeps
    otherwise, since the oldest is removed after the newest is written. Therefore all checkpoints are tried, the newest
    first.

    Args:
        folder: folder of the checkpoints.

    Raises:
        DataError: no checkpoint can be read, although there are checkpoints of later epochs than the first.
    """
    numbered = [(int(found[1]), path) for path in folder.glob("epoch=*.ckpt") if (found := _EPOCH.match(path.name))]
    damaged: list[str] = []
    for _, path in sorted(numbered, reverse=True):
        try:
            with zipfile.ZipFile(path) as archive:
                if (part := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {part} is wrong")
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except _DAMAGED as error:
            damaged.append(f"{path} is damaged ({error}".splitlines()[0] + ")")
            continue
        for line in damaged:
            logger.warning("%s. The training resumes from %s.", line, path.name)
        return path
    if any(epoch > 0 for epoch, _ in numbered):
        raise DataError(
            f"{damaged[0]}, and no other checkpoint can be read. Move the folder {folder.parent} away, and start the "
            "training again."
        )
    return None
