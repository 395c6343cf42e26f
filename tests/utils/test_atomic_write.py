"""Files are written completely or not at all."""

import multiprocessing
import os

import pytest

from contextcrf.utils.files import atomic_write, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_new_file_replaces_the_old_one(tmp_path):
    target = tmp_path / "new" / "folder" / "a.txt"
    for text in ("first", "second, with an ä"):
        write_text(target, text)
        assert target.read_bytes() == text.encode("utf-8")
    assert names(target.parent) == ["a.txt"]


def test_readers_find_the_old_file_until_the_end(tmp_path):
    target = tmp_path / "a.png"
    target.write_text("old")
    with atomic_write(target) as partial:
        assert partial.parent == tmp_path
        assert partial.suffix == ".png"
        partial.write_text("half")
        assert target.read_text() == "old"
    assert target.read_text() == "half"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("begun", [True, False])
def test_an_exception_leaves_the_old_file_and_no_partial_one(tmp_path, error, begun):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with atomic_write(target) as partial:
            if begun:
                partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def write_and_wait(target, begun):
    with atomic_write(target) as partial:
        partial.write_text("half")
        begun.set()
        multiprocessing.Event().wait()


def test_a_killed_process_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=write_and_wait, args=(target, begun))
    process.start()
    assert begun.wait(60)
    process.kill()
    process.join()
    assert target.read_text() == "old"
    # What is left of it is hidden, and of no consequence to the next process.
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["a.txt"]
    write_text(target, "new")
    assert target.read_text() == "new"


def test_processes_write_to_files_of_their_own(tmp_path, monkeypatch):
    with atomic_write(tmp_path / "a.txt") as first:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with atomic_write(tmp_path / "a.txt") as second:
            assert first != second
            first.write_text("first")
            second.write_text("second")
        assert (tmp_path / "a.txt").read_text() == "second"
    assert (tmp_path / "a.txt").read_text() == "first"
    assert names(tmp_path) == ["a.txt"]


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n "b": [\n  1,\n  null\n ]\n}\n'
