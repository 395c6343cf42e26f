"""Whatever stops a training, the same command goes on and ends with the weights of an undisturbed one."""

import multiprocessing
import os
import re
import resource
import shutil
import signal
import time
from contextlib import suppress

import pytest
import torch

from contextcrf.cli.main import main
from contextcrf.data import dataset
from contextcrf.modeling.model import load
from contextcrf.modeling.serialization import CONFIG
from contextcrf.training.checkpoints import newest_checkpoint
from contextcrf.utils.errors import DataError

FIT = ["--model.backbone", "plain", "--pretrained", "false", "--model.channels", "8", "--model.hidden", "8"]
FIT += ["--model.scales", "[1.0]", "--training.epochs", "10", "--training.crop", "[64,96]"]
FIT += ["--training.max-edges", "64", "--training.batch-size", "1", "--training.ema", "0.5"]
FIT += ["--training.precision", "32-true", "--val-split", "null"]


# Each training runs in a process of its own, forked from one that has imported the library, which takes seconds.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["contextcrf.cli.main", "contextcrf.training.trainer", "torch.utils.tensorboard"])


def run_command(arguments, log, largest_file):
    """Run a command as `python -m contextcrf` does, with its output in a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Shells let background processes ignore Ctrl-C, which their children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    main(arguments)


class Training:
    """A training that has been started; `output` waits for its end."""

    def __init__(self, scenes, out, largest_file=None):
        out.mkdir(exist_ok=True)
        self.log = out / "output.txt"
        self.log.unlink(missing_ok=True)
        arguments = ["fit", "--data", str(scenes), "--out", str(out), *FIT]
        self.process = FORKSERVER.Process(target=run_command, args=(arguments, self.log, largest_file))
        self.process.start()

    @property
    def runs(self):
        return self.process.is_alive()

    def wait_for(self, path):
        """Wait until a file exists."""
        while self.runs and not path.exists():
            time.sleep(0.002)
        assert self.runs, self.output()

    def send(self, number):
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(self.process.pid, number)

    def output(self):
        self.process.join()
        return self.log.read_text()

    def code(self):
        self.process.join()
        return self.process.exitcode


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory):
    """The weights of a training that nothing stopped."""
    return finished(Training(scenes, out := tmp_path_factory.mktemp("whole")), out)


def finished(training, out):
    """The weights of a training, after its end."""
    output = training.output()
    assert training.code() == 0, output
    return load(out / "model").state_dict()


def same(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], value) for name, value in expected.items())


BEGUN, LATER = "provenance.json", "checkpoints/epoch=1.ckpt"


@pytest.mark.parametrize(
    ("number", "files", "code"),
    [(signal.SIGKILL, (BEGUN, LATER), -9), (signal.SIGINT, (LATER,), 130), (signal.SIGTERM, (LATER,), 143)],
    ids=["kill -9", "Ctrl-C", "kill"],
)
def test_a_training_that_is_stopped_goes_on_by_the_same_command(scenes, tmp_path, undisturbed, number, files, code):
    for file in files:
        training = Training(scenes, tmp_path)
        training.wait_for(tmp_path / file)
        training.send(number)
        output = training.output()
        assert training.code() == code
        assert ("contextcrf: Stopped. Run the same command again to continue." in output) == (code > 0)
        assert "Traceback" not in output
        assert not (tmp_path / "model" / CONFIG).exists()
    training = Training(scenes, tmp_path)
    assert same(finished(training, tmp_path), undisturbed)
    assert re.search(rf"{tmp_path}: The training resumes from epoch=\d+\.ckpt", training.output())


def test_kills_at_any_time_change_nothing(scenes, tmp_path, undisturbed):
    """Also while a checkpoint or the model is written: each one comes a little later than the last."""
    training, tries = Training(scenes, tmp_path), 0
    training.wait_for(tmp_path / "checkpoints" / "epoch=0.ckpt")
    while training.runs:
        time.sleep(0.01 * tries)
        training.send(signal.SIGKILL)
        training.output()
        tries += 1
        training = Training(scenes, tmp_path)
        end = time.monotonic() + 120
        files = set(tmp_path.glob("checkpoints/epoch=*.ckpt"))
        while training.runs and set(tmp_path.glob("checkpoints/epoch=*.ckpt")) == files:
            assert time.monotonic() < end
            time.sleep(0.002)
    assert same(finished(training, tmp_path), undisturbed)
    assert tries >= 3


def test_a_full_disk_ends_clearly_and_loses_nothing(scenes, tmp_path, undisturbed):
    # No file may be larger: what a full disk does to a checkpoint.
    training = Training(scenes, tmp_path, largest_file=20_000)
    assert "contextcrf: error: A file of fit is larger than the file system" in training.output()
    assert training.code() == 2
    assert same(finished(Training(scenes, tmp_path), tmp_path), undisturbed)


@pytest.fixture
def checkpoints(tmp_path):
    for epoch in (2, 10):
        torch.save({"epoch": epoch, "weights": torch.ones(1000)}, tmp_path / f"epoch={epoch}.ckpt")
    return tmp_path


def test_the_newest_checkpoint_is_that_of_the_last_epoch(checkpoints):
    # Other files, such as a link that points nowhere, do not count.
    (checkpoints / "last.ckpt").symlink_to("epoch=1.ckpt")
    assert newest_checkpoint(checkpoints) == checkpoints / "epoch=10.ckpt"
    assert newest_checkpoint(checkpoints / "nowhere") is None


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(checkpoints, caplog):
    whole = (checkpoints / "epoch=10.ckpt").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (checkpoints / "epoch=10.ckpt").write_bytes(whole[:size])
        caplog.clear()
        assert newest_checkpoint(checkpoints) == checkpoints / "epoch=2.ckpt"
        assert "epoch=10.ckpt is damaged (" in caplog.text
        assert "). The training resumes from epoch=2.ckpt." in caplog.text
    (checkpoints / "epoch=2.ckpt").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"epoch=10\.ckpt is damaged.*Move the folder .* away"):
        newest_checkpoint(checkpoints)
    (checkpoints / "epoch=10.ckpt").unlink()
    shutil.move(checkpoints / "epoch=2.ckpt", checkpoints / "epoch=0.ckpt")
    assert newest_checkpoint(checkpoints) is None


def test_a_flipped_bit_in_a_checkpoint_is_found(checkpoints, caplog):
    path = checkpoints / "epoch=10.ckpt"
    whole = bytearray(path.read_bytes())
    whole[whole.find(b"\x00\x00\x80\x3f" * 100) + 202] ^= 1  # in a weight, whose file can be read all the same
    path.write_bytes(whole)
    assert not torch.equal(torch.load(path, weights_only=True)["weights"], torch.ones(1000))
    assert newest_checkpoint(checkpoints) == checkpoints / "epoch=2.ckpt"
    assert "epoch=10.ckpt is damaged (the checksum of" in caplog.text


def test_a_training_leaves_a_second_checkpoint_should_its_last_be_damaged(scenes, tmp_path, undisturbed):
    training = Training(scenes, tmp_path)
    training.wait_for(tmp_path / "checkpoints" / "epoch=3.ckpt")
    training.send(signal.SIGKILL)
    training.output()
    last = newest_checkpoint(tmp_path / "checkpoints")
    last.write_bytes(last.read_bytes()[:1000])
    training = Training(scenes, tmp_path)
    assert same(finished(training, tmp_path), undisturbed)
    assert f"{last.name} is damaged (" in training.output()


def breaks_in_the_third_epoch(monkeypatch, data):
    """One image of the data is cut short while the third epoch is read; returns its name."""
    names = (data / "splits" / "train.txt").read_text().split()
    victim = data / "images" / f"{names[3]}.png"
    whole, reads = victim.read_bytes(), []
    read_image = dataset.read_image

    def reading(path, *arguments):
        reads.append(path)
        if len(reads) == 2 * len(names) + 1:
            victim.write_bytes(whole[: len(whole) // 2])
        return read_image(path, *arguments)

    monkeypatch.setattr(dataset, "read_image", reading)
    return victim


@pytest.fixture
def data(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / "data")


def test_an_image_that_breaks_in_the_third_epoch_ends_the_training_clearly(data, tmp_path, monkeypatch, capsys):
    victim = breaks_in_the_third_epoch(monkeypatch, data)
    command = ["fit", "--data", str(data), "--out", str(tmp_path / "run"), *FIT]
    with pytest.raises(SystemExit):
        main(command)
    assert f"{victim} cannot be read as an image" in capsys.readouterr().err
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "epoch=1.ckpt"


def test_an_image_that_breaks_in_the_third_epoch_is_skipped_and_counted(data, tmp_path, monkeypatch, capsys):
    victim = breaks_in_the_third_epoch(monkeypatch, data)
    main(["fit", "--data", str(data), "--out", str(tmp_path / "run"), *FIT, "--training.broken-images", "skip"])
    assert f"Skipped 1 unusable file:\n  {victim}\n" in capsys.readouterr().out
    load(tmp_path / "run" / "model")
