"""Locks for several processes that share a list of tasks, so that one process does each task."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def acquire(lock_file: Path, blocking: bool = False) -> FileLock:
    """Lock a file, unless another process has locked it.

    The operating system releases the lock when the process ends, even after a crash. A lock that consists of the
    existence of a file would stay behind after a crash, so it is not used where the file system has no locks.

    Args:
        lock_file: the file. Its folder must exist.
        blocking: wait until no other process has locked the file.

    Returns:
        The lock. Its attribute `is_locked` is false if another process has locked the file. Release the lock with its
        method `release`.

    Raises:
        OSError: If the file cannot be opened, or if the file system does not support locks.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from contextcrf.utils.locks import acquire
        >>> lock = acquire(Path(tempfile.mkdtemp()) / "lock")
        >>> lock.is_locked
        True
        >>> lock.release()
    """
    lock = FileLock(lock_file, fallback_to_soft=False)
    try:
        lock.acquire(blocking=blocking)
    except Timeout:
        pass
    except OSError as error:
        if error.filename is not None:
            raise  # the file cannot be opened
        raise OSError(
            f"{lock_file} cannot be locked ({error.strerror}), but without a lock, processes may repeat work. "
            "Choose a folder on a local disk or on another file system. With predict and refine, you can also divide "
            "the files among the processes and omit --resume."
        ) from error
    return lock


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

    Raises:
        OSError: If the lock file cannot be opened, or if the file system does not support locks.

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
    lock = acquire(lock_file)
    if not lock.is_locked:
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
