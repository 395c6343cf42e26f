"""Functions that write a file either completely or not at all, and that read text."""

import codecs
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
        >>> from pathlib import Path
        >>> from contextcrf.utils.files import atomic_write
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
        >>> from pathlib import Path
        >>> from contextcrf.utils.files import write_text
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write_text(target, "color")
        >>> target.read_text()
        'color'
    """
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    r"""Read a text file in UTF-8, or in UTF-16 if it has a byte order mark, as Windows programs write it.

    Args:
        path: the file.

    Returns:
        The text without a byte order mark, with line ends of one character.

    Raises:
        UnicodeDecodeError: If the file has another encoding.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = target.write_bytes(b"\xef\xbb\xbfcolor\r\n")
        >>> read_text(target)
        'color\n'
    """
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file with `atomic_write`.

    Args:
        path: the file to write.
        values: values that `json.dumps` accepts.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from contextcrf.utils.files import write_json
        >>> target = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_json(target, {"mIoU": 66.5})
        >>> json.loads(target.read_text())
        {'mIoU': 66.5}
    """
    write_text(path, json.dumps(values, indent=1) + "\n")
