"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file so that readers see the old one or the new one, never a part.

    The block writes to the path that it is given, in the same folder and with the same suffix. When the block ends
    without an error, that file replaces `path`; otherwise it is removed and `path` stays as it was. Missing folders are
    made.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "new" / "a.txt"
        >>> with atomic_write(target) as partial:
        ...     _ = partial.write_text("whole")
        >>> target.read_text(), [path.name for path in target.parent.iterdir()]
        ('whole', ['a.txt'])
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process in the name: several may write the same file. The suffix stays: some writers choose by it.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) with `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file with `atomic_write`."""
    write_text(path, json.dumps(values, indent=1) + "\n")
