"""Progress of long steps. A step reports to the one reporter that is set; without one it is silent.

The library reports with `track` and `task`. A program chooses where that goes: `show_progress()` draws bars on a
terminal, and writes a line to the log every half minute where there is none.
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

# Seconds between two lines in a log.
LOG_INTERVAL = 30.0


class Task:
    """A step that is under way. This one is silent; those of reporters show what happens."""

    def advance(self, steps: int = 1) -> None:
        """Count steps as done."""

    def describe(self, description: str | None = None, total: int | None = None) -> None:
        """Change the description or the expected number of steps."""

    def stop(self) -> None:
        """End the step."""


# Begins a step: its description, its number of parts, and whether it leaves no trace on a terminal when it has ended.
Reporter = Callable[[str, int | None, bool], Task]

_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


@contextmanager
def reporting(reporter: Reporter | None) -> Iterator[None]:
    """Send progress to a reporter within the block; None silences it."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[None]:
    """Show progress within the block: bars on a terminal, lines in the log elsewhere.

    Args:
        console: where bars are drawn; None is the standard output.
    """
    console = console or Console()
    with reporting(Bars(console) if console.is_terminal else Lines()):
        yield


@contextmanager
def task(description: str, total: int | None, transient: bool = False) -> Iterator[Task]:
    """A step of `total` parts, reported within the block.

    Args:
        description: what is done.
        total: the number of parts; None if it is unknown.
        transient: leave no trace on a terminal at the end.
    """
    reporter = _reporter.get()
    running = Task() if reporter is None else reporter(description, total, transient)
    try:
        yield running
    finally:
        running.stop()


def track(items: Iterable[T], description: str, total: int | None = None, transient: bool = False) -> Iterator[T]:
    """Yield the items and report each one as done when the next is asked for.

    Args:
        items: what is gone through.
        description: what is done.
        total: the number of items; None asks `len(items)` where there is one.
        transient: as for `task`.

    Example:
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
    """Progress bars on a terminal.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, description: str, total: int | None, transient: bool) -> Task:
        """Draw a bar."""
        return _Bar(self.console, description, total, transient)


class _Bar(Task):
    def __init__(self, console: Console, description: str, total: int | None, transient: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=transient)
        self.id = self.progress.add_task(description, total=total)
        self.progress.start()

    def advance(self, steps: int = 1) -> None:
        self.progress.advance(self.id, steps)

    def describe(self, description: str | None = None, total: int | None = None) -> None:
        self.progress.update(self.id, description=description, total=total, refresh=True)

    def stop(self) -> None:
        self.progress.stop()


class Lines:
    """A line in the log every `interval` seconds, for steps whose output is no terminal.

    Args:
        interval: seconds between two lines of a step; shorter steps write none.
    """

    def __init__(self, interval: float = LOG_INTERVAL) -> None:
        self.interval = interval

    def __call__(self, description: str, total: int | None, transient: bool) -> Task:
        """Begin to write lines."""
        return _Line(self.interval, description, total)


class _Line(Task):
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
        if self.total is None:
            logger.info("%s: %d", self.description, self.done)
            return
        left = (now - self.started) * (self.total - self.done) / self.done
        logger.info("%s: %d of %d, %s left", self.description, self.done, self.total, duration(left))

    def describe(self, description: str | None = None, total: int | None = None) -> None:
        self.description = self.description if description is None else description
        self.total = self.total if total is None else total


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> duration(40), duration(720), duration(12600)
        ('about 40 s', 'about 12 min', 'about 3.5 h')
    """
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
