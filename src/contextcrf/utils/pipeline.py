"""Reading, computing and writing at the same time, with threads that read and write."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(items: Iterable[T], read: Callable[[T], R]) -> Iterator[tuple[T, Future[R]]]:
    """Read each item in a thread while the caller processes the item before it.

    Args:
        items: the items. They are requested in the thread of the caller.
        read: a function that reads an item. One thread calls it, so it need not be thread-safe.

    Yields:
        Each item with the future of its result. `Future.result` returns the result or raises the error of `read`.

    Example:
        >>> from contextcrf.utils.pipeline import read_ahead
        >>> [(name, length.result()) for name, length in read_ahead(["a.png", "bc.png"], len)]
        [('a.png', 5), ('bc.png', 6)]
    """
    with ThreadPoolExecutor(1, "read") as reader:
        waiting: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            waiting.append((item, reader.submit(read, item)))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting


def same_key(items: Iterable[T], key: Callable[[T], Hashable], most: int) -> Iterator[list[T]]:
    """Divide items into lists of consecutive items with the same key.

    Args:
        items: the items.
        key: the function that returns the key of an item. Items with the key None are alone in their list.
        most: the largest number of items in a list.

    Yields:
        The lists, in the order of the items.

    Example:
        >>> from contextcrf.utils.pipeline import same_key
        >>> list(same_key(["a", "b", "cd", "e"], key=len, most=2))
        [['a', 'b'], ['cd'], ['e']]
    """
    batch: list[T] = []
    current: Hashable = None
    for item in items:
        found = key(item)
        if batch and (found is None or found != current or len(batch) == most):
            yield batch
            batch = []
        batch.append(item)
        current = found
    if batch:
        yield batch


class Writer:
    """Threads that write results while the caller computes the next ones.

    At the end of its `with` block, all results are written. At most a few results wait, so that they do not fill the
    memory.

    Args:
        threads: the number of threads.

    Example:
        >>> from contextcrf.utils.pipeline import Writer
        >>> found = []
        >>> with Writer() as writer:
        ...     for number in range(3):
        ...         writer.submit(lambda: None, done=lambda number=number: found.append(number))
        >>> found
        [0, 1, 2]
    """

    def __init__(self, threads: int = 2) -> None:
        self._most = 2 * threads
        self._executor = ThreadPoolExecutor(threads, "write")
        self._waiting: deque[tuple[Future[None], Callable[[], None]]] = deque()

    def submit(self, write: Callable[[], None], done: Callable[[], None]) -> None:
        """Write a result.

        Args:
            write: a function that writes it, in a thread.
            done: a function that is called in the thread of the caller after the result has been written, in the order
                of the calls of `submit`.

        Raises:
            Exception: The error of an earlier `write`.
        """
        self._waiting.append((self._executor.submit(write), done))
        self._finish(self._most)

    def _finish(self, most: int) -> None:
        """Call `done` for the written results, and wait until at most `most` results are not written."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0][0].done()):
            future, done = self._waiting.popleft()
            future.result()
            done()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error of the caller, the results that were computed before are still written.
        self._executor.shutdown(wait=True)
        if kind is None:
            self._finish(0)
