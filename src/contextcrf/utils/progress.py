"""Progress reports of long computations.

The library reports its progress with `track` and `task`. By default, nothing is shown. A program that wants to show
progress sets a reporter with `reporting` or `show_progress`. `show_progress` draws bars on a terminal. If the output is
not a terminal, it writes lines to the log, the first after half a minute and later ones at growing intervals.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The number of seconds before the first line in the log. Each interval is twice the one before, up to the last number.
LOG_INTERVAL, LONGEST_INTERVAL = 30.0, 600.0


class Task:
    """A running task. This class shows nothing. Reporters return subclasses that show the progress.

    Example:
        >>> from contextcrf.utils.progress import Task, reporting, task
        >>> class Printed(Task):
        ...     def advance(self, steps=1):
        ...         print(f"{steps} more done")
        >>> with reporting(lambda description, total, transient: Printed()), task("resize", total=2) as running:
        ...     running.advance()
        1 more done
    """

    def advance(self, steps: int = 1) -> None:
        """Report that parts of the task are done.

        Args:
            steps: the number of parts.
        """

    def describe(self, description: str | None = None, total: int | None = None) -> None:
        """Change the description or the total number of parts.

        Args:
            description: the new description. None keeps it.
            total: the new total number. None keeps it.
        """

    def stop(self) -> None:
        """End the task."""


Reporter = Callable[[str, int | None, bool], Task]
"""A function that starts a task.

Its arguments are those of `task`: the description, the total number of parts (None if unknown), and whether the task is
removed from the terminal when it ends. It returns the running `Task`.
"""

_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


@contextmanager
def reporting(reporter: Reporter | None) -> Iterator[None]:
    """Report the progress within the block to a reporter.

    Other threads are not affected.

    Args:
        reporter: the reporter. None shows nothing.

    Example:
        >>> from contextcrf.utils.progress import Lines, reporting, track
        >>> with reporting(Lines(interval=10)):  # the first line in the log comes after 10 seconds
        ...     squares = [number**2 for number in track([1, 2], "square")]
    """
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[None]:
    """Show the progress within the block, as bars on a terminal or as lines in the log.

    Args:
        console: the console on which bars are drawn. None is the standard output. If the console is not a terminal,
            lines are written to the log.

    Example:
        >>> from contextcrf.utils.progress import show_progress, track
        >>> with show_progress():
        ...     squares = [number**2 for number in track([1, 2], "square")]
        >>> squares
        [1, 4]
    """
    console = console or Console()
    with reporting(Bars(console) if console.is_terminal else Lines()):
        yield


@contextmanager
def task(description: str, total: int | None, transient: bool = False) -> Iterator[Task]:
    """Report the progress of a task within the block.

    Args:
        description: the name of the task.
        total: the number of parts of the task. None if it is unknown.
        transient: remove the task from the terminal when it ends.

    Yields:
        The running task. Call its `advance` after each part.

    Example:
        >>> from contextcrf.utils.progress import task
        >>> with task("download", total=2) as running:
        ...     running.advance()
        ...     running.describe("unpack")
        ...     running.advance()
    """
    reporter = _reporter.get()
    running = Task() if reporter is None else reporter(description, total, transient)
    try:
        yield running
    finally:
        running.stop()


def track(items: Iterable[T], description: str, total: int | None = None, transient: bool = False) -> Iterator[T]:
    """Iterate over items and report the progress.

    An item is reported as done when the next item is requested.

    Args:
        items: the items.
        description: the name of the task.
        total: the number of items. None uses `len(items)` if the items have a length.
        transient: as for `task`.

    Yields:
        The items.

    Example:
        >>> from contextcrf.utils.progress import track
        >>> list(track([1, 2], "counting"))
        [1, 2]
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with task(description, total, transient) as running:
        for item in items:
            yield item
            running.advance()


class Bars:
    """A reporter that draws progress bars on a terminal.

    Args:
        console: the terminal.

    Example:
        >>> from rich.console import Console
        >>> from contextcrf.utils.progress import Bars, reporting, track
        >>> with reporting(Bars(Console(quiet=True))):  # a quiet console draws nothing
        ...     squares = [number**2 for number in track([1, 2], "square")]
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, description: str, total: int | None, transient: bool) -> Task:
        """Start a bar for a task."""
        return _Bar(self.console, description, total, transient)


class _Bar(Task):
    """A task that is shown as a bar."""

    def __init__(self, console: Console, description: str, total: int | None, transient: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=transient)
        self.id = self.progress.add_task(description, total=total)
        self.progress.start()
        # The timer of an outer bar would draw this one later, or never if it ends before.
        self.progress.refresh()

    def advance(self, steps: int = 1) -> None:
        self.progress.advance(self.id, steps)

    def describe(self, description: str | None = None, total: int | None = None) -> None:
        self.progress.update(self.id, description=description, total=total, refresh=True)

    def stop(self) -> None:
        self.progress.stop()


class Lines:
    """A reporter that writes lines to the log, for output that is not a terminal.

    Args:
        interval: the number of seconds before the first line of a task. Each interval is twice the one before, up to 10
            minutes, so that a long task does not fill the log. A task that takes less time writes no line.

    Example:
        >>> from contextcrf.utils.progress import Lines, reporting, track
        >>> with reporting(Lines(interval=10)):
        ...     squares = [number**2 for number in track([1, 2], "square")]
    """

    def __init__(self, interval: float = LOG_INTERVAL) -> None:
        self.interval = interval

    def __call__(self, description: str, total: int | None, transient: bool) -> Task:
        """Start the lines of a task."""
        return _Line(self.interval, description, total)


class _Line(Task):
    """A task that is shown as lines in the log."""

    def __init__(self, interval: float, description: str, total: int | None) -> None:
        self.interval, self.description, self.total = interval, description, total
        self.done, self.started = 0, time.monotonic()
        self.written = self.started

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.written < self.interval:
            return
        self.written = now
        self.interval = max(self.interval, min(2 * self.interval, LONGEST_INTERVAL))
        if self.total is None:
            logger.info("%s: %d", self.description, self.done)
            return
        left = (now - self.started) * (self.total - self.done) / self.done
        logger.info("%s: %d of %d, %s left", self.description, self.done, self.total, duration(left))

    def describe(self, description: str | None = None, total: int | None = None) -> None:
        self.description = self.description if description is None else description
        self.total = self.total if total is None else total


def duration(seconds: float) -> str:
    """Format a duration for a reader.

    Args:
        seconds: the duration in seconds.

    Example:
        >>> from contextcrf.utils.progress import duration
        >>> duration(40), duration(720), duration(12600)
        ('about 40 s', 'about 12 min', 'about 3.5 h')
    """
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
