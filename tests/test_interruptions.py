"""Whatever stops a training, the same command goes on and ends with the weights of one that nothing stopped."""

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
from contextcrf.data.preparation import without_broken
from contextcrf.modeling.serialization import load
from contextcrf.training.checkpoints import newest
from contextcrf.utils.errors import DataError

FIT = ["--model.backbone", "plain", "--pretrained", "false", "--model.channels", "8", "--model.hidden", "8"]
FIT += ["--model.scales", "[1.0]", "--recipe.epochs", "6", "--recipe.crop", "[64,96]", "--recipe.max_edges", "64"]
FIT += ["--recipe.batch_size", "1", "--recipe.ema", "0.5", "--val_split", "null"]


def hear():
    """Shells have what they start in the background ignore Ctrl-C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(scenes, out, **options):
    command = [sys.executable, "-m", "contextcrf", "fit", "--data", scenes, "--out", out, *FIT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), env=environment, **pipes, **{"preexec_fn": hear, **options})


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
        said, _ = process.communicate()
        assert process.returncode == (130 if ends == signal.SIGINT else -9)
        assert ("contextcrf: stopped; the same command goes on" in said) == (ends == signal.SIGINT)
        assert "Traceback" not in said
        assert not (tmp_path / "model" / "model.safetensors").exists()
    process = start(scenes, tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert re.search(r"begun before; going on from epoch=\d+\.ckpt", said)
    found = load(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


def test_kills_at_any_time_change_nothing(scenes, tmp_path, undisturbed):
    """Also while a checkpoint or the model is written: each one comes a little later than the last."""
    process, tries = start(scenes, tmp_path), 0
    wait_for(process, tmp_path / "checkpoints" / "epoch=0.ckpt")
    while process.poll() is None:
        time.sleep(0.05 * tries)
        process.kill()
        process.communicate()
        tries += 1
        process = start(scenes, tmp_path)
        end = time.monotonic() + 120
        files = set(tmp_path.glob("checkpoints/epoch=*.ckpt"))
        while process.poll() is None and set(tmp_path.glob("checkpoints/epoch=*.ckpt")) == files:
            assert time.monotonic() < end
            time.sleep(0.002)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert tries >= 3
    found = load(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


def test_a_full_disk_ends_clearly_and_loses_nothing(scenes, tmp_path, undisturbed):
    def small():
        # No file may be larger: what a full disk does to a checkpoint.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(scenes, tmp_path, preexec_fn=small)
    said, _ = process.communicate()
    assert process.returncode == 2
    assert "contextcrf: error: a file of fit: it grew larger than the file system" in said
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


def test_a_flipped_bit_in_a_checkpoint_is_found(checkpoints, capsys):
    path = checkpoints / "epoch=10.ckpt"
    whole = bytearray(path.read_bytes())
    whole[whole.find(b"\x00\x00\x80\x3f" * 100) + 202] ^= 1  # in a weight, whose file can be read all the same
    path.write_bytes(whole)
    assert not torch.equal(torch.load(path, weights_only=True)["weights"], torch.ones(1000))
    assert newest(checkpoints) == checkpoints / "epoch=2.ckpt"
    assert "epoch=10.ckpt: damaged: the checksum of" in capsys.readouterr().out


def test_a_training_leaves_a_second_checkpoint_should_its_last_be_damaged(scenes, tmp_path, undisturbed):
    process = start(scenes, tmp_path)
    wait_for(process, tmp_path / "checkpoints" / "epoch=3.ckpt")
    process.kill()
    process.communicate()
    last = newest(tmp_path / "checkpoints")
    last.write_bytes(last.read_bytes()[:1000])
    said, _ = (process := start(scenes, tmp_path)).communicate()
    assert process.returncode == 0, said
    assert f"{last.name}: damaged" in said
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
    assert newest(tmp_path / "run" / "checkpoints").name == "epoch=1.ckpt"


def test_an_image_that_breaks_in_the_third_epoch_is_skipped_and_counted(data, tmp_path, monkeypatch, capsys):
    victim = breaks_in_the_third_epoch(monkeypatch, data)
    main(["fit", "--data", str(data), "--out", str(tmp_path / "run"), *FIT, "--recipe.broken_images", "skip"])
    said = capsys.readouterr().out
    assert f"1 left out:\n  {victim}\n" in said
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_what_is_broken_from_the_beginning_is_left_out_before_it_is_trained_on(data, tmp_path, capsys):
    victim, *_ = sorted((data / "images").iterdir())
    victim.write_bytes(victim.read_bytes()[:100])
    found = dataset.open_dataset(data, "train" if victim.stem in (data / "splits/train.txt").read_text() else "val")
    found.skip_broken = True
    kept = without_broken(found)
    assert len(kept) == len(found) - 1
    assert victim not in [image for image, _ in kept.pairs]
    assert f"1 left out:\n  {victim}: the image cannot be decoded" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_that_load_data_say_what_they_could_not_read(data, workers):
    found = dataset.open_dataset(data, "train")
    found.skip_broken = True
    victim = found.pairs[2][0]
    victim.write_bytes(b"nothing")
    loaded = list(torch.utils.data.DataLoader(found, 1, num_workers=workers))
    assert found.broken == [victim]
    assert torch.equal(loaded[2][0], loaded[3][0])


def test_all_images_broken_is_an_error(data):
    broken = dataset.open_dataset(data, "val")
    broken.skip_broken = True
    for image, _ in broken.pairs:
        image.write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of 3 images"):
        broken[1]
