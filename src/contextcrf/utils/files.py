"""Functions that write a file either completely or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file so that other processes read either the old file or the complete new file.

    The block writes to a temporary file in the same folder, with the same suffix as `path`. If the block ends without
    an error, the temporary file replaces `path`. Otherwise, the temporary file is removed and `path` does not change.
    Missing folders are created.

    Args:
        path: the file to write.

    Yields:
        The path of the temporary file.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "new" / "a.txt"
        >>> with atomic_write(target) as partial:
        ...     _ = partial.write_text("whole")
        >>> target.read_text(), [path.name for path in target.parent.iterdir()]
        ('whole', ['a.txt'])
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name contains the process ID, because several processes may write the same file. It keeps the suffix, because
    # some writers choose the format by it.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 with `atomic_write`.

    Args:
        path: the file to write.
        text: its new content.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write_text(target, "color")
        >>> target.read_text()
        'color'
    """
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file with `atomic_write`.

    Args:
        path: the file to write.
        values: values that `json.dumps` accepts.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_json(target, {"mIoU": 66.5})
        >>> json.loads(target.read_text())
        {'mIoU': 66.5}
    """
    write_text(path, json.dumps(values, indent=1) + "\n")
