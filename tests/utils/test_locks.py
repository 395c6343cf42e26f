"""A task that several processes share is done by one of them."""

import errno
import multiprocessing
import os
import sys

import pytest

from contextcrf.utils.locks import acquire, claim

SPAWN = multiprocessing.get_context("spawn")


def hold(result, answers, release):
    with claim(result) as mine:
        answers.put(mine)
        release.wait()


@pytest.fixture
def other(tmp_path):
    """Another process that has claimed `tmp_path / "result"`, and the event that lets it end."""
    answers, release = SPAWN.Queue(), SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(tmp_path / "result", answers, release))
    process.start()
    assert answers.get(timeout=60)
    yield process, release
    process.kill()
    process.join()
    answers.close()


def test_a_claim_of_another_process_is_respected_until_it_ends(tmp_path, other):
    process, release = other
    for _ in range(2):
        with claim(tmp_path / "result") as mine:
            assert not mine
    release.set()
    process.join()
    assert process.exitcode == 0
    with claim(tmp_path / "result") as mine:
        assert mine


def test_a_claim_ends_with_a_killed_process(tmp_path, other):
    process, _ = other
    process.kill()
    process.join()
    with claim(tmp_path / "result") as mine:
        assert mine


def test_a_result_is_not_made_again_and_the_lock_file_is_removed(tmp_path):
    result = tmp_path / "new" / "result"
    with claim(result) as mine:
        assert mine
        result.write_text("done")
    assert [path.name for path in result.parent.iterdir()] == ["result"]
    with claim(result) as mine:
        assert not mine
    assert [path.name for path in result.parent.iterdir()] == ["result"]


def test_a_task_that_failed_is_claimed_again(tmp_path):
    def fail():
        with claim(tmp_path / "result"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with claim(tmp_path / "result") as mine:
        assert mine


def test_a_lock_file_that_cannot_be_removed_is_left(tmp_path, monkeypatch):
    """On Windows while another process has it open."""
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with claim(tmp_path / "result") as mine:
        assert mine
        (tmp_path / "result").write_text("done")
    with claim(tmp_path / "result") as mine:
        assert not mine


def refuse(*args, **options):
    raise PermissionError(13, "in use by another process")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error_with_the_way_out(tmp_path, monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    lock_file = tmp_path / ".result.lock"
    expected = rf"result\.lock cannot be locked \({os.strerror(number)}\), .* divide the files .* and omit --resume"
    with pytest.raises(OSError, match=expected), claim(tmp_path / "result"):
        pytest.fail("nothing may be claimed without a lock")
    for blocking in (False, True):
        with pytest.raises(OSError, match=expected):
            acquire(lock_file, blocking)


def test_a_lock_file_that_cannot_be_opened_is_named_by_the_error(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(OSError, match="lock") as caught:
        acquire(tmp_path / "lock")
    assert str(caught.value.filename) == str(tmp_path / "lock")
