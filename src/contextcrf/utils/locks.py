"""Locks for several processes that share a list of tasks, so that one process does each task."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claim(result: Path, lock_file: Path | None = None) -> Iterator[bool]:
    """Claim the task of creating the file `result`.

    The claim ends when the block ends. It also ends when the process ends, even after a crash.

    Args:
        result: the file that the task creates.
        lock_file: the file that is locked. None is a hidden file beside `result`. Missing folders are created.

    Yields:
        True if this process should do the task, that is, if the file does not exist and no other process has claimed
            the task. False otherwise.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from contextcrf.utils.locks import claim
        >>> result = Path(tempfile.mkdtemp()) / "labels.txt"
        >>> for _ in range(2):
        ...     with claim(result) as mine:
        ...         print(mine)
        ...         if mine:
        ...             _ = result.write_text("done")
        True
        False
    """
    lock_file = lock_file or result.with_name(f".{result.name}.lock")
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield not result.exists()
    finally:
        lock.release()
        if result.exists():
            # The lock file is no longer needed, because every process that acquires a lock now finds the result. On
            # Windows, a file that another process has open cannot be removed. That process then removes it.
            with suppress(OSError):
                Path(lock.lock_file).unlink()
