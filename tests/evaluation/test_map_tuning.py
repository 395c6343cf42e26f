"""The options that `tune-refine` finds for saved maps, against `refine` itself and against maps without errors."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.cli.main import main
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.map_tuning import tune_maps
from contextcrf.evaluation.metrics import ConfusionMatrix, confusion
from contextcrf.inference.maps import MapFormat
from contextcrf.utils.errors import DataError


@pytest.fixture
def saved(scenes, tmp_path):
    """Maps of the validation scenes: probabilities of the true class with much noise."""
    data, folder = open_dataset(scenes, "val"), tmp_path / "maps"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for (image, _), (_, mask) in zip(data.pairs, data, strict=True):
        truth = torch.nn.functional.one_hot(mask.clamp(max=9), 10).movedim(2, 0).float()
        noisy = (2 * truth + 1.5 * torch.randn(truth.shape, generator=generator)).softmax(0)
        np.save(folder / f"{image.stem}.npy", noisy.numpy())
    return folder


def mean_iou(folder, data):
    counts = torch.zeros(10, 10, dtype=torch.int64)
    for (image, _), (_, mask) in zip(data.pairs, data, strict=True):
        labels = torch.from_numpy(np.array(Image.open(folder / f"{image.stem}.png"))).long()
        counts += confusion(labels[None], mask[None], 10)
    return ConfusionMatrix.of(counts).mean_iou()


def command(scenes, saved):
    return ["tune-refine", str(saved), "--images", str(scenes / "images"), "--masks", str(scenes / "masks")]


def test_the_options_have_the_mean_iou_of_their_trial(scenes, saved, tmp_path, capsys):
    main([*command(scenes, saved), "--classes", str(scenes / "classes.yaml")])
    said = capsys.readouterr().out
    [chosen] = [line for line in said.splitlines() if "<- chosen" in line]
    options = re.search(r"^options for refine: (.+)$", said, re.MULTILINE).group(1).split()
    main(["refine", str(saved), "--images", str(scenes / "images"), "--out", str(tmp_path / "out"), *options])
    data = open_dataset(scenes, "val")
    assert f"{100 * mean_iou(tmp_path / 'out', data):.2f}" == chosen.split()[0]
    # The gain on noisy maps is real.
    assert float(chosen.split()[1]) > 1


def test_maps_without_errors_stay_as_they_are(scenes, saved, capsys):
    for path in saved.iterdir():
        mask = np.array(Image.open(scenes / "masks" / f"{path.stem}.png")).astype(np.int64)
        np.save(path, np.moveaxis(np.eye(10, dtype=np.float32)[mask.clip(max=9)], 2, 0))
    main([*command(scenes, saved), "--num-classes", "10"])
    said = capsys.readouterr().out
    assert "Use the maps as they are." in said
    assert "options for refine" not in said


def test_input_without_a_meaning_is_refused(scenes, saved, tmp_path, capsys):
    for options, message in (
        ([], "Give either --classes or --num-classes"),
        (["--num-classes", "10", "--limit", "1"], "at least 2 maps"),
        (["--num-classes", "3"], "0 to 2 or 255 (ignore_index) is expected"),
    ):
        with pytest.raises(SystemExit):
            main([*command(scenes, saved), *options])
        assert message in capsys.readouterr().err.replace("\n", " ")
    data = open_dataset(scenes, "val")
    maps = [saved / f"{image.stem}.npy" for image, _ in data.pairs]
    np.save(maps[1], np.full((4, *np.load(maps[1]).shape[1:]), 0.25, np.float32))
    with pytest.raises(DataError, match=rf"{maps[1].name} has 4 classes, but the masks have 10"):
        tune_maps(maps, data, MapFormat())
    maps[1].write_bytes(b"no array")
    with pytest.raises(DataError, match=rf"{maps[1].name} cannot be read"):
        tune_maps(maps, data, MapFormat())
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit):
        main(
            [
                "tune-refine",
                str(saved),
                "--images",
                str(scenes / "images"),
                "--masks",
                str(tmp_path / "none"),
                "--num-classes",
                "10",
            ]
        )
    assert "contains no masks" in capsys.readouterr().err
