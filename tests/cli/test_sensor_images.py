"""The whole way with images of four channels: from the files of a sensor to labels, with the commands of a user."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from contextcrf import load
from contextcrf.cli.main import main
from contextcrf.data.image_format import ImageFormat
from contextcrf.data.layouts import open_dataset
from contextcrf.inference.export import trace

SMALL = """
model: {backbone: plain, output_stride: null, channels: 16, scales: [1.0], hidden: 16, graph_stride: null}
training: {epochs: 20, lr: 0.01, ema: 0, frozen_stages: 0, frozen_filters: false, precision: 32-true, workers: 0,
  max_edges: 512, batch_size: 4, val_every: 20, crop: [48, 64], color: 0.3}
pretrained: false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12-bit images in which only the near-infrared channel shows the class of a pixel."""
    folder, random = tmp_path_factory.mktemp("sensor"), np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(10):
        mask = np.kron(random.integers(0, 2, (3, 4)), np.ones((16, 16), int))
        image = random.integers(0, 4096, (48, 64, 4))
        image[..., 3] = np.where(mask, 3000, 800) + random.integers(-300, 300, mask.shape)
        tifffile.imwrite(
            folder / "images" / f"{number}.tif",
            image.astype(np.uint16),
            photometric="minisblack",
            planarconfig="contig",
        )
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{number}.png")
    return folder


def test_from_the_files_of_a_sensor_to_labels(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["init", str(folder), "--out", "recipe.yaml"])
    printed = capsys.readouterr().out
    assert "The images have 4 channels" in printed
    assert "images.yaml" in printed
    found = ImageFormat.read(folder)
    assert found.channels == len(found.mean) == 4
    assert found.ranges[0] == pytest.approx((4, 4091), abs=4)
    (tmp_path / "small.yaml").write_text(SMALL)
    configs = ["--config", "recipe.yaml", "--config", "small.yaml"]
    main(["fit", *configs, "--data", str(folder), "--out", "unary"])
    heads = ["--training.epochs", "2", "--training.precision", "32-true", "--training.workers", "0"]
    main(["fit-heads", "unary", "--data", str(folder), "--out", "heads", "--training.crop", "[48, 64]", *heads])
    main(["evaluate", "heads", "--data", str(folder), "--split", "val", "--out", "val", "--precision", "32-true"])
    results = json.loads((tmp_path / "val" / "results.json").read_text())
    [unary] = [system for system in results["systems"] if system["name"] == "unary"]
    # Without the fourth channel, the mean IoU would be about 33 %.
    assert unary["mean_iou"] > 0.9
    main(["predict", "heads", str(folder / "images"), "--out", "labels"])
    labels = np.array(Image.open(tmp_path / "labels" / "0.png"))
    mask = np.array(Image.open(folder / "masks" / "0.png"))
    assert (labels == mask).mean() > 0.9
    assert (tmp_path / "labels" / "0_overlay.png").exists()
    main(["explain", "heads", str(folder / "images" / "0.tif"), "--row", "20", "--column", "30", "--out", "why.png"])
    model = load("heads")
    # The stored values and the scaled tensor of the data set have the same labels.
    stored = tifffile.imread(folder / "images" / "0.tif")
    image, _ = open_dataset(folder, "train")[0]
    assert torch.equal(model.segment(stored).labels, model.segment(torch.as_tensor(image)).labels)
    assert (model.segment(stored).labels.numpy() == labels).mean() > 0.99
    assert trace(model, 48, 64).module()(torch.as_tensor(image)[None].float()).shape == (1, 2, 48, 64)
    main(["tune", "heads", "--data", str(folder), "--split", "val", "--dense", "--limit", "2"])
    main(
        [
            "evaluate",
            "heads",
            "--data",
            str(folder),
            "--split",
            "val",
            "--out",
            "dense",
            "--systems",
            "[unary, unary+dense]",
        ]
    )


def test_other_images_are_refused_by_name(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("photo.png")
    main(["init", str(folder), "--out", "recipe.yaml"])
    (tmp_path / "small.yaml").write_text(SMALL)
    configs = ["--config", "recipe.yaml", "--config", "small.yaml", "--training.epochs", "1"]
    main(["fit", *configs, "--data", str(folder), "--out", "unary"])
    with pytest.raises(SystemExit):
        main(["predict", "unary", "photo.png", "--out", "labels"])
    assert "photo.png cannot be read as an image: The image has 3 channels, but 4 are" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", "camvid", str(folder / "images" / "0.tif"), "--out", "labels"])
    assert "0.tif cannot be read as an image: The file has 4 channels" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["demo", "unary"])
    assert "The page shows RGB images, but the model takes images with 4 channels" in capsys.readouterr().err
    np.save(tmp_path / "0.npy", np.full((2, 48, 64), 0.5, np.float32))
    main(["refine", "0.npy", "--images", str(folder / "images"), "--out", "refined",
          "--image-format", str(folder / "images.yaml"), "--bilateral-srgb", "[1000, 1000, 1000, 5]"])  # fmt: skip
    assert (tmp_path / "refined" / "0.png").exists()
