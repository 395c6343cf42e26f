"""Several processes at one list of tasks: whoever claims a task does it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(result: Path) -> Iterator[bool]:
    """Whether the task that makes the file `result` is this process's: it is not there, and nobody else is at it.

    The claim ends with the process, whatever ends it.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    path = result.with_name(f".{result.name}.lock")
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield not result.exists()
        if result.exists():
            # Whoever holds or makes another lock from now on finds the result.
            path.unlink(missing_ok=True)
