"""Reading ahead, batches of one size, and writing in threads."""

import threading
import time

import pytest

from contextcrf.utils.pipeline import Writer, read_ahead, same_key


def test_the_next_item_is_read_while_the_one_before_is_processed():
    started = [threading.Event() for _ in range(3)]

    def read(number):
        started[number].set()
        return 10 * number

    for number, value in read_ahead(range(3), read):
        if number < 2:
            assert started[number + 1].wait(timeout=20)
        assert value.result() == 10 * number


def test_only_one_item_is_requested_in_advance():
    requested = []

    def items():
        for number in range(5):
            requested.append(number)
            yield number

    ahead = read_ahead(items(), str)
    next(ahead)
    assert requested == [0, 1]
    ahead.close()


def test_the_error_of_one_item_belongs_to_that_item():
    results = []
    for _, value in read_ahead([1, 0, 2], lambda number: 10 // number):
        try:
            results.append(value.result())
        except ZeroDivisionError:
            results.append(None)
    assert results == [10, None, 5]


@pytest.mark.parametrize(
    ("most", "expected"),
    [(2, [["a", "b"], ["c"], ["dd"], [""], [""], ["e"]]), (9, [["a", "b", "c"], ["dd"], [""], [""], ["e"]])],
)
def test_consecutive_items_with_one_key_form_batches(most, expected):
    items = ["a", "b", "c", "dd", "", "", "e"]
    assert list(same_key(items, lambda item: len(item) or None, most)) == expected
    assert list(same_key([], len, most)) == []


def test_results_are_written_while_the_caller_computes_and_reported_in_order():
    written, release = [], threading.Event()
    with Writer(threads=2) as writer:
        writer.submit(lambda: release.wait(timeout=20), lambda: written.append(0))
        writer.submit(lambda: None, lambda: written.append(1))
        assert written == []  # the second result waits for the first one
        release.set()
    assert written == [0, 1]


def test_results_that_wait_are_limited():
    active = []
    with Writer(threads=1) as writer:
        for number in range(6):
            writer.submit(lambda: time.sleep(0.01), lambda number=number: active.remove(number))
            active.append(number)
            assert len(active) <= 3


def test_an_error_while_writing_reaches_the_caller():
    def fail():
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"), Writer() as writer:
        writer.submit(fail, lambda: None)


def test_after_an_error_of_the_caller_earlier_results_are_still_written():
    written = []

    def interrupted():
        with Writer(threads=1) as writer:
            for number in range(3):
                writer.submit(lambda number=number: written.append(number), lambda: None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert written == [0, 1, 2]
