"""Progress: silent unless a program asks for it; bars on a terminal, lines in the log elsewhere."""

import io
import logging
import threading

import pytest
from rich.console import Console

from contextcrf.utils.progress import Lines, duration, reporting, show_progress, task, track


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100)


@pytest.fixture
def log(caplog):
    with caplog.at_level(logging.INFO, logger="contextcrf"):
        yield caplog


def test_silent_by_default(capsys, log):
    assert list(track(iter([1, 2]), "counting")) == [1, 2]
    with task("counting", 2) as running:
        running.advance()
        running.describe("still counting", 3)
    assert capsys.readouterr() == ("", "")
    assert not log.messages


def test_lines_at_intervals(log):
    with reporting(Lines(interval=0)):
        assert list(track([5, 6], "counting")) == [5, 6]
        list(track(iter([5]), "unknown number"))
    assert log.messages == [
        "counting: 1 of 2, about 1 s left",
        "counting: 2 of 2, about 1 s left",
        "unknown number: 1",
    ]


def test_a_short_step_writes_no_line(log):
    with reporting(Lines()):
        list(track(range(100), "counting"))
    assert not log.messages


def test_the_estimate_is_for_the_steps_that_are_left(log, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("contextcrf.utils.progress.time.monotonic", lambda: clock[0])
    with reporting(Lines(interval=30)), task("training", 10) as running:
        for _ in range(4):
            clock[0] += 20
            running.advance()
        running.describe("validation", total=8)
        clock[0] += 20
        running.advance(2)
    # The second interval is a minute.
    assert log.messages == ["training: 2 of 10, about 3 min left", "validation: 6 of 8, about 33 s left"]


def test_a_long_task_does_not_fill_the_log(log, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("contextcrf.utils.progress.time.monotonic", lambda: clock[0])
    with reporting(Lines(interval=30)), task("training", 10_000) as running:
        for _ in range(3600):  # an hour
            clock[0] += 1
            running.advance()
    assert [int(message.split()[1]) for message in log.messages] == [30, 90, 210, 450, 930, 1530, 2130, 2730, 3330]


def test_bars_on_a_terminal(terminal, log):
    with show_progress(terminal):
        for _ in track([1, 2, 3], "counting"):
            pass
    drawn = terminal.file.getvalue()
    assert "counting" in drawn
    assert "3/3" in drawn
    assert not log.messages


def test_nested_bars_and_changed_descriptions(terminal):
    with show_progress(terminal), task("outer", 2) as outer:
        for _ in track([1, 2, 3], "inner"):
            pass
        outer.describe("outer, second part", total=5)
        outer.advance(5)
    drawn = terminal.file.getvalue()
    assert "3/3" in drawn
    assert "outer, second part" in drawn
    assert "5/5" in drawn
    assert drawn.index("outer") < drawn.index("inner")


def test_lines_where_there_is_no_terminal(log, monkeypatch):
    monkeypatch.setattr(Lines.__init__, "__defaults__", (0,))
    console = Console(file=io.StringIO(), force_terminal=False)
    with show_progress(console):
        list(track([1], "counting"))
    assert log.messages == ["counting: 1 of 1, about 1 s left"]
    assert console.file.getvalue() == ""


def test_reporting_ends_with_the_block_also_after_an_error(log):
    def fail():
        with reporting(Lines(interval=0)):
            with reporting(None):
                list(track([1], "silenced"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    list(track([1], "counting"))
    assert not log.messages


def test_a_bar_ends_when_the_loop_is_left(terminal):
    with show_progress(terminal):
        for item in (steps := track([1, 2, 3], "counting")):
            if item == 2:
                break
        steps.close()
        with task("next", 1) as running:
            running.advance()
    assert "1/1" in terminal.file.getvalue()


def test_other_threads_are_silent(log):
    with reporting(Lines(interval=0)):
        thread = threading.Thread(target=lambda: list(track([1], "counting")))
        thread.start()
        thread.join()
    assert not log.messages


def test_durations_in_words():
    assert [duration(seconds) for seconds in (0, 89, 90, 5399, 5400)] == [
        "about 1 s",
        "about 89 s",
        "about 2 min",
        "about 90 min",
        "about 1.5 h",
    ]
