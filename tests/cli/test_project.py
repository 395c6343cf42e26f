"""From a folder of images and masks to a recipe."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.cli import project
from contextcrf.cli.main import main, read_command
from contextcrf.cli.project import start
from contextcrf.data.classes import Classes
from contextcrf.data.layouts import open_dataset
from contextcrf.data.pairing import pair_files
from contextcrf.data.statistics import mask_statistics
from contextcrf.data.validation import check_pairs
from contextcrf.utils.errors import DataError


def write(folder, name, values, suffix=".jpg"):
    """An image and its mask."""
    values = np.asarray(values, np.uint8)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", values.shape[::-1]).save(folder / "images" / f"{name}{suffix}")
    Image.fromarray(values).save(folder / "masks" / f"{name}.png")


@pytest.fixture
def folder(tmp_path):
    """Ten images of 96 x 64; label 2 on two of a hundred rows, label 9, ignored, on the last."""
    mask = np.zeros((64, 96))
    mask[:32], mask[32], mask[63] = 1, 2, 9
    for number in range(10):
        write(tmp_path / "mine", f"p{number}", mask)
    return tmp_path / "mine"


def test_a_folder_becomes_a_data_set_and_a_recipe_that_fit_takes(folder, tmp_path, capsys):
    out = tmp_path / "recipe.yaml"
    main(["init", str(folder), "--out", str(out), "--ignore-index", "9"])
    printed = capsys.readouterr().out
    assert " 50.79 % of the labeled pixels  class 1" in printed
    assert "  1.56 % of all pixels have no label (9)" in printed
    assert "8 images in train, 2 images in val" in printed
    train, val = (open_dataset(folder, split) for split in ("train", "val"))
    assert {image.stem for image, _ in train.pairs} | {image.stem for image, _ in val.pairs} == {
        f"p{number}" for number in range(10)
    }
    check_pairs([*train.pairs, *val.pairs], 3, train.ignore_index)
    assert train[0][1].unique().tolist() == [0, 1, 2, 255]
    _, arguments = read_command(["fit", "--config", str(out), "--data", str(folder), "--out", "o"])
    training = arguments["training"]
    assert (training.crop, training.batch_size, training.epochs) == ((64, 96), 4, 200)
    # A rare class gets a weight, and the config has the reason.
    assert training.class_balance == 0.4
    assert "class 2 has 1.6 % of the labeled pixels" in out.read_text()
    heads = ["fit-heads", "m", "--config", str(tmp_path / "recipe-heads.yaml"), "--data", str(folder), "--out", "o"]
    _, arguments = read_command(heads)
    assert arguments["copies"] == 2
    assert (arguments["training"].crop, arguments["training"].epochs) == ((64, 96), 100)
    assert "contextcrf fit-heads runs/mine --config" in printed


def test_a_second_time_nothing_that_was_changed_is_written_over(folder, tmp_path):
    start(folder, tmp_path / "a.yaml", 9)
    names = Classes(("sky", "road", "kerb"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    names.to_yaml(folder / "classes.yaml", 9)
    (folder / "splits" / "val.txt").write_text("p3\n")
    (tmp_path / "a.yaml").write_text((tmp_path / "a.yaml").read_text().replace("lr: 0.002", "lr: 0.01"))
    with pytest.raises(FileExistsError, match=r"a\.yaml exists"):
        start(folder, tmp_path / "a.yaml", 9)
    made = start(folder, tmp_path / "b.yaml")
    assert made.written == [tmp_path / name for name in ("b.yaml", "b-heads.yaml", "contact-sheet.png")]
    (tmp_path / "c-heads.yaml").touch()
    with pytest.raises(FileExistsError, match=r"c-heads\.yaml exists"):
        start(folder, tmp_path / "c.yaml")
    assert not (tmp_path / "c.yaml").exists()
    assert (made.classes, made.ignore_index, made.images["val"]) == (names, 9, 1)
    assert "kerb has 1.6 %" in made.recipe


def test_the_recipe_fits_the_data_and_the_machine(folder, monkeypatch):
    found, names = (
        mask_statistics([mask for _, mask in pair_files(folder / "images", folder / "masks")]),
        Classes(("a", "b", "c"), ((0, 0, 0),) * 3),
    )
    found.sizes[:] = [(480, 1000)] * 10
    found.pixels[2] = found.pixels[1]
    text = project.recipe_for(names, 9, found, 4800)
    assert "crop: [320, 320]" in text
    assert "precision" not in text  # "auto" suits every machine
    assert "epochs: 8 #" in text
    assert "class_balance: 0.0" in text
    assert "frozen_stages: 2" in text
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    text = project.recipe_for(names, 9, found, 4800)
    assert "crop: [480, 512]" in text
    assert "batch_size: 8" in text
    assert "frozen" not in text


def test_masks_that_are_none_are_named(folder, tmp_path):
    Image.fromarray(np.full((64, 96), 0.5, np.float32)).save(folder / "masks" / "p5.png", "TIFF")
    with pytest.raises(DataError, match=r"p5\.png has fractions, such as 0\.5"):
        start(folder, tmp_path / "r.yaml", 9)
    (folder / "masks" / "p5.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"p5\.png cannot be read as a mask"):
        start(folder, tmp_path / "r.yaml", 9)
    assert not (folder / "classes.yaml").exists()
    assert not (tmp_path / "r.yaml").exists()


def test_labels_beyond_the_named_classes_are_refused(folder, tmp_path):
    Classes(("sky", "road"), ((0, 0, 0), (1, 1, 1))).to_yaml(folder / "classes.yaml", 9)
    with pytest.raises(DataError, match=r"p0\.png contains the label 2 .* but 0 to 1 or 9 \(ignore_index\)"):
        start(folder, tmp_path / "r.yaml")


def test_one_image_is_not_enough(tmp_path):
    write(tmp_path, "a", [[0, 1]])
    with pytest.raises(DataError, match="has 1 image, but at least 2 are needed"):
        start(tmp_path, tmp_path / "r.yaml")
    write(tmp_path, "b", [[0, 1]])
    assert start(tmp_path, tmp_path / "r.yaml").images == {"train": 1, "val": 1}


def test_values_with_gaps_are_told(scenes, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    for part in ("images", "masks"):
        shutil.copytree(scenes / part, data / part)
    victim = sorted((data / "masks").iterdir())[0]
    with Image.open(victim) as mask:
        changed = np.array(mask)
    changed[changed == 3] = 11
    Image.fromarray(changed).save(victim)
    monkeypatch.chdir(tmp_path)
    main(["init", str(data)])
    printed = capsys.readouterr().out
    assert "The values are not 0, 1, 2, ..., so classes.yaml gives the value of each class." in printed
    assert "class 11 (value 11)" in printed


def test_names_with_spaces_count_once_and_all_images_cannot_be_held_out(folder, tmp_path):
    with pytest.raises(ValueError, match="--val-every is 1, but at least 2 is expected"):
        start(folder, tmp_path / "a.yaml", 9, val_every=1)
    assert not (folder / "splits").exists()
    for part, suffix in (("images", ".jpg"), ("masks", ".png")):
        (folder / part / f"p0{suffix}").rename(folder / part / f"a b c{suffix}")
    assert start(folder, tmp_path / "a.yaml", 9).images == {"train": 8, "val": 2}
