"""Whatever stops a training, the same command goes on and ends with the weights of one that nothing stopped."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from contextcrf.checkpoints import newest
from contextcrf.errors import DataError
from contextcrf.storage import load

FIT = ["--model.backbone", "plain", "--pretrained", "false", "--model.channels", "8", "--model.hidden", "8"]
FIT += ["--model.scales", "[1.0]", "--recipe.epochs", "6", "--recipe.crop", "[64,96]", "--recipe.max_edges", "64"]
FIT += ["--recipe.batch_size", "1", "--recipe.ema", "0.5", "--val_split", "null"]


def start(scenes, out, **options):
    command = [sys.executable, "-m", "contextcrf", "fit", "--data", scenes, "--out", out, *FIT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), env=environment, **pipes, **options)


def wait_for(process, path):
    """Until a file is there, or the process has ended."""
    while process.poll() is None and not path.exists():
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    said, _ = (process := start(scenes, out)).communicate()
    assert process.returncode == 0, said
    return load(out / "model").state_dict()


BEGUN, LATER = "settings.json", "checkpoints/epoch=1.ckpt"


@pytest.mark.parametrize(
    ("ends", "files"), [(signal.SIGKILL, (BEGUN, LATER)), (signal.SIGINT, (LATER,))], ids=["kill -9", "Ctrl-C"]
)
def test_a_training_that_is_stopped_goes_on_by_the_same_command(scenes, tmp_path, undisturbed, ends, files):
    for file in files:
        process = start(scenes, tmp_path)
        wait_for(process, tmp_path / file)
        process.send_signal(ends)
        process.communicate()
        assert process.returncode != 0
        assert not (tmp_path / "model" / "model.safetensors").exists()
    process = start(scenes, tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    found = load(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


def test_a_full_disk_ends_clearly_and_loses_nothing(scenes, tmp_path, undisturbed):
    def small():
        # No file may be larger: what a full disk does to a checkpoint.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(scenes, tmp_path, preexec_fn=small)
    said, _ = process.communicate()
    assert process.returncode == 2
    assert "contextcrf: error: [Errno 27] File too large" in said
    process = start(scenes, tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    found = load(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


@pytest.fixture
def checkpoints(tmp_path):
    for epoch in (2, 10):
        torch.save({"epoch": epoch, "weights": torch.ones(1000)}, tmp_path / f"epoch={epoch}.ckpt")
    return tmp_path


def test_the_newest_checkpoint_is_that_of_the_last_epoch(checkpoints):
    # As it is left between taking away the old file and pointing at the new one.
    (checkpoints / "last.ckpt").symlink_to("epoch=1.ckpt")
    assert newest(checkpoints) == checkpoints / "epoch=10.ckpt"
    assert newest(checkpoints / "nowhere") is None


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(checkpoints, capsys):
    whole = (checkpoints / "epoch=10.ckpt").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (checkpoints / "epoch=10.ckpt").write_bytes(whole[:size])
        assert newest(checkpoints) == checkpoints / "epoch=2.ckpt"
        assert "epoch=10.ckpt: damaged" in capsys.readouterr().out
    (checkpoints / "epoch=2.ckpt").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"epoch=10\.ckpt: damaged.*move .* away"):
        newest(checkpoints)
    (checkpoints / "epoch=10.ckpt").unlink()
    shutil.move(checkpoints / "epoch=2.ckpt", checkpoints / "epoch=0.ckpt")
    assert newest(checkpoints) is None
