"""Several processes that share a list of tasks: each task is done by the process that claims it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claim(result: Path) -> Iterator[bool]:
    """Claim the task that makes the file `result`.

    Yields True if the task is to be done by this process: the file does not exist and no other process has claimed it.
    The claim ends with the block, or with the process, whatever ends it.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(result.with_name(f".{result.name}.lock"))
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
            # Any process that makes another lock from now on finds the result. Windows does not remove the file while
            # another process has it open; that process removes it then.
            with suppress(OSError):
                Path(lock.lock_file).unlink()
