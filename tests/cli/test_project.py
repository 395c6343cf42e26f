"""From a folder of images and masks to a recipe."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.cli import project as starter
from contextcrf.cli.main import main, read_command
from contextcrf.cli.project import start
from contextcrf.data.classes import Classes
from contextcrf.data.dataset import open_dataset
from contextcrf.data.statistics import guess_classes, pair_up, survey
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
    """Ten images of 96 x 64; label 2 on two of a hundred rows, void 9 on the last."""
    mask = np.zeros((64, 96))
    mask[:32], mask[32], mask[63] = 1, 2, 9
    for number in range(10):
        write(tmp_path / "mine", f"p{number}", mask)
    return tmp_path / "mine"


def test_a_folder_becomes_a_data_set_and_a_recipe_that_fit_takes(folder, tmp_path, capsys):
    out = tmp_path / "recipe.yaml"
    main(["init", str(folder), "--out", str(out), "--void", "9"])
    printed = capsys.readouterr().out
    assert " 50.79 % of the pixels  class 1" in printed
    assert "  1.56 % of all pixels are void (9)" in printed
    assert "8 images in train, 2 images in val" in printed
    train, val = (open_dataset(folder, split) for split in ("train", "val"))
    assert {image.stem for image, _ in train.pairs} | {image.stem for image, _ in val.pairs} == {
        f"p{number}" for number in range(10)
    }
    check_pairs([*train.pairs, *val.pairs], 3, train.void, progress=False)
    assert train[0][1].unique().tolist() == [0, 1, 2, 255]
    _, arguments = read_command(["fit", "--config", str(out), "--data", str(folder), "--out", "o"])
    recipe = arguments["recipe"]
    assert (recipe.crop, recipe.batch_size, recipe.epochs) == ((64, 96), 4, 200)
    # A rare class is weighed up, and the reason is said.
    assert recipe.class_balance == 0.4
    assert "class 2 has 1.6 % of the pixels" in out.read_text()
    heads = ["fit-heads", "m", "--config", str(tmp_path / "recipe-heads.yaml"), "--data", str(folder), "--out", "o"]
    _, arguments = read_command(heads)
    assert arguments["views"] == 2
    assert (arguments["recipe"].crop, arguments["recipe"].epochs) == ((64, 96), 100)
    assert "contextcrf fit-heads runs/mine/model --config" in printed


def test_a_second_time_nothing_is_written_over(folder, tmp_path):
    start(folder, tmp_path / "a.yaml", 9, progress=False)
    names = Classes(("sky", "road", "kerb"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    names.to_yaml(folder / "classes.yaml", 9)
    (folder / "splits" / "val.txt").write_text("p3\n")
    with pytest.raises(FileExistsError, match=r"a\.yaml is there already"):
        start(folder, tmp_path / "a.yaml", 9, progress=False)
    made = start(folder, tmp_path / "b.yaml", progress=False)
    assert made.written == [tmp_path / "b.yaml", tmp_path / "b-heads.yaml"]
    (tmp_path / "c-heads.yaml").touch()
    with pytest.raises(FileExistsError, match=r"c-heads\.yaml is there already"):
        start(folder, tmp_path / "c.yaml", progress=False)
    assert not (tmp_path / "c.yaml").exists()
    assert (made.classes, made.void, made.images["val"]) == (names, 9, 1)
    assert "kerb has 1.6 %" in made.recipe


def test_the_recipe_fits_the_data_and_the_machine(folder, monkeypatch):
    found, names = (
        survey([mask for _, mask in pair_up(folder / "images", folder / "masks")], False),
        Classes(("a", "b", "c"), ((0, 0, 0),) * 3),
    )
    found.sizes[:] = [(480, 1000)] * 10
    found.pixels[2] = found.pixels[1]
    monkeypatch.setattr(starter, "has_bfloat16", lambda: False)
    text = starter.recipe_for(names, 9, found, 4800)
    assert "crop: [320, 320]" in text
    assert "precision: 32-true" in text
    assert "epochs: 8 #" in text
    assert "class_balance: 0.0" in text
    assert "frozen_stages: 2" in text
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    text = starter.recipe_for(names, 9, found, 4800)
    assert "crop: [480, 512]" in text
    assert "batch_size: 8" in text
    assert "frozen" not in text


def test_files_without_a_partner_are_named(folder):
    (folder / "masks" / "p4.png").unlink()
    (folder / "images" / "p7.jpg").unlink()
    with pytest.raises(DataError, match=r"p4 \(no mask\), p7 \(no image\)"):
        pair_up(folder / "images", folder / "masks")
    with pytest.raises(DataError, match=r"nothing: no such folder; expected the masks"):
        pair_up(folder / "images", folder / "nothing")
    write(folder, "p0", np.zeros((4, 4)), ".png")
    with pytest.raises(DataError, match="p0 occurs twice"):
        pair_up(folder / "images", folder / "masks")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images; expected files"):
        pair_up(folder / "empty", folder / "masks")


def test_masks_that_are_none_are_named(folder, tmp_path):
    Image.new("RGB", (96, 64)).save(folder / "masks" / "p5.png")
    with pytest.raises(DataError, match=r"p5\.png: the mask has 3 channels; .*painted as colors"):
        start(folder, tmp_path / "r.yaml", 9, progress=False)
    (folder / "masks" / "p5.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"p5\.png: could not be read"):
        start(folder, tmp_path / "r.yaml", 9, progress=False)
    assert not (folder / "classes.yaml").exists()
    assert not (tmp_path / "r.yaml").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [([[0, 255]], "two or more of"), ([[0, 100], [100, 200]], "number them anew"), ([[1, 1]], "two or more of")],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, values, message):
    write(tmp_path, "a", values)
    found = survey([tmp_path / "masks" / "a.png"], progress=False)
    with pytest.raises(DataError, match=message):
        guess_classes(found)


def test_labels_beyond_the_named_classes_are_refused(folder, tmp_path):
    Classes(("sky", "road"), ((0, 0, 0), (1, 1, 1))).to_yaml(folder / "classes.yaml", 9)
    with pytest.raises(DataError, match=r"classes\.yaml: 2 classes, void 9; the masks have the labels \[2\]"):
        start(folder, tmp_path / "r.yaml", progress=False)


def test_one_image_is_not_enough(tmp_path):
    write(tmp_path, "a", [[0, 1]])
    with pytest.raises(DataError, match="1 image; expected two or more"):
        start(tmp_path, tmp_path / "r.yaml", progress=False)
    write(tmp_path, "b", [[0, 1]])
    assert start(tmp_path, tmp_path / "r.yaml", progress=False).images == {"train": 1, "val": 1}


def test_masks_that_lose_labels_are_refused_and_empty_classes_told(scenes, tmp_path, monkeypatch, capsys):
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
    assert "no pixel at all: class 10: are these meant to be classes?" in capsys.readouterr().out
    victim.rename(victim.with_suffix(".jpg"))
    with pytest.raises(SystemExit):
        main(["init", str(data), "--out", "again.yaml"])
    assert f"{victim.with_suffix('.jpg')}: expected masks as PNG; 1 are not" in capsys.readouterr().err


def test_names_with_spaces_count_once_and_all_images_cannot_be_held_out(folder, tmp_path):
    with pytest.raises(ValueError, match="val_every 1: expected 2 or more"):
        start(folder, tmp_path / "a.yaml", 9, val_every=1, progress=False)
    assert not (folder / "splits").exists()
    for part, suffix in (("images", ".jpg"), ("masks", ".png")):
        (folder / part / f"p0{suffix}").rename(folder / part / f"a b c{suffix}")
    assert start(folder, tmp_path / "a.yaml", 9, progress=False).images == {"train": 8, "val": 2}
