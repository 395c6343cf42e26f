"""Whatever stops a training, the same command goes on and ends with the weights of an undisturbed one."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

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


def default_interrupt():
    """Undo that shells let background processes ignore Ctrl-C, which their children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(scenes, out, **options):
    command = [sys.executable, "-m", "contextcrf", "fit", "--data", scenes, "--out", out, *FIT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        list(map(str, command)), env=environment, **pipes, **{"preexec_fn": default_interrupt, **options}
    )


def wait_for(process, path):
    """Wait until a file exists."""
    while process.poll() is None and not path.exists():
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[0]


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    process = start(scenes, out)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return load(out / "model").state_dict()


BEGUN, LATER = "provenance.json", "checkpoints/epoch=1.ckpt"


@pytest.mark.parametrize(
    ("ends", "files"), [(signal.SIGKILL, (BEGUN, LATER)), (signal.SIGINT, (LATER,))], ids=["kill -9", "Ctrl-C"]
)
def test_a_training_that_is_stopped_goes_on_by_the_same_command(scenes, tmp_path, undisturbed, ends, files):
    for file in files:
        process = start(scenes, tmp_path)
        wait_for(process, tmp_path / file)
        process.send_signal(ends)
        output, _ = process.communicate()
        assert process.returncode == (130 if ends == signal.SIGINT else -9)
        assert ("contextcrf: stopped; the same command goes on" in output) == (ends == signal.SIGINT)
        assert "Traceback" not in output
        assert not (tmp_path / "model" / CONFIG).exists()
    process = start(scenes, tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert re.search(rf"{tmp_path}: going on from epoch=\d+\.ckpt", output)
    found = load(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


def test_kills_at_any_time_change_nothing(scenes, tmp_path, undisturbed):
    """Also while a checkpoint or the model is written: each one comes a little later than the last."""
    process, tries = start(scenes, tmp_path), 0
    wait_for(process, tmp_path / "checkpoints" / "epoch=0.ckpt")
    while process.poll() is None:
        time.sleep(0.02 * tries)
        process.kill()
        process.communicate()
        tries += 1
        process = start(scenes, tmp_path)
        end = time.monotonic() + 120
        files = set(tmp_path.glob("checkpoints/epoch=*.ckpt"))
        while process.poll() is None and set(tmp_path.glob("checkpoints/epoch=*.ckpt")) == files:
            assert time.monotonic() < end
            time.sleep(0.002)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert tries >= 3
    found = load(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


def test_a_full_disk_ends_clearly_and_loses_nothing(scenes, tmp_path, undisturbed):
    def small():
        # No file may be larger: what a full disk does to a checkpoint.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(scenes, tmp_path, preexec_fn=small)
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "contextcrf: error: a file of fit: it is larger than the file system" in output
    process = start(scenes, tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found = load(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


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
        assert "epoch=10.ckpt: damaged" in caplog.text
        assert "; going on from epoch=2.ckpt" in caplog.text
    (checkpoints / "epoch=2.ckpt").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"epoch=10\.ckpt: damaged.*move .* away"):
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
    assert "epoch=10.ckpt: damaged: the checksum of" in caplog.text


def test_a_training_leaves_a_second_checkpoint_should_its_last_be_damaged(scenes, tmp_path, undisturbed):
    process = start(scenes, tmp_path)
    wait_for(process, tmp_path / "checkpoints" / "epoch=3.ckpt")
    process.kill()
    process.communicate()
    last = newest_checkpoint(tmp_path / "checkpoints")
    last.write_bytes(last.read_bytes()[:1000])
    process = start(scenes, tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"{last.name}: damaged" in output
    found = load(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


def breaks_in_the_third_epoch(monkeypatch, data):
    """One image of the data is cut short while the third epoch is read; returns its name."""
    names = (data / "splits" / "train.txt").read_text().split()
    victim = data / "images" / f"{names[3]}.png"
    whole, reads = victim.read_bytes(), []
    read_image = dataset.read_image

    def reading(path):
        reads.append(path)
        if len(reads) == 2 * len(names) + 1:
            victim.write_bytes(whole[: len(whole) // 2])
        return read_image(path)

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
    assert f"{victim}: the image cannot be read" in capsys.readouterr().err
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "epoch=1.ckpt"


def test_an_image_that_breaks_in_the_third_epoch_is_skipped_and_counted(data, tmp_path, monkeypatch, capsys):
    victim = breaks_in_the_third_epoch(monkeypatch, data)
    main(["fit", "--data", str(data), "--out", str(tmp_path / "run"), *FIT, "--training.broken-images", "skip"])
    assert f"Skipped 1 unusable files:\n  {victim}\n" in capsys.readouterr().out
    load(tmp_path / "run" / "model")
