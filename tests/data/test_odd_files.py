"""Files as sensors, tools and people write them, with the right labels or with the way out."""

import json
import unicodedata

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from contextcrf.cli.main import main
from contextcrf.cli.project import start
from contextcrf.data.classes_file import ClassesFile
from contextcrf.data.image_format import ImageFormat
from contextcrf.data.images import read_image
from contextcrf.data.layouts import open_dataset
from contextcrf.data.masks import MaskFormat
from contextcrf.utils.errors import DataError

SIZE = (24, 36)
RANDOM = np.random.default_rng(0)
COLORS = RANDOM.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
LABELS = np.kron(RANDOM.integers(0, 4, (4, 6)), np.ones((6, 6), np.uint8)).astype(np.uint8)
LABELS[0, :4] = range(4)


def write(folder, save_mask, save_image=None, count=4, names="p{}"):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = names.format(number)
        if save_image is None:
            Image.fromarray(COLORS).save(folder / "images" / f"{name}.png")
        else:
            save_image(folder / "images" / name)
        save_mask(folder / "masks" / name)
    return folder


def save_labels(path):
    Image.fromarray(LABELS).save(path.with_suffix(".png"))


def labels_of(folder):
    return open_dataset(folder, "train")[0][1].numpy()


def image_with(folder, array, **options):
    """The image that a data set has for a TIFF file."""
    write(folder, save_labels, lambda path: tifffile.imwrite(path.with_suffix(".tif"), array, **options))
    start(folder, folder / "recipe.yaml")
    return open_dataset(folder, "train")[0][0]


# Images.


@pytest.mark.parametrize(
    "options", [{"photometric": "minisblack"}, {"imagej": True, "metadata": {"axes": "CYX", "mode": "composite"}}]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_three_pages_are_three_channels_and_not_the_first_one_alone(tmp_path, options, dtype):
    array = COLORS.astype(dtype) * (1 if dtype == np.uint8 else 257)
    image = image_with(tmp_path, array.transpose(2, 0, 1), **options)
    assert np.array_equal(np.asarray(image), COLORS.transpose(2, 0, 1))


def test_pages_with_three_channels_are_images_of_their_own(tmp_path):
    first, second = Image.fromarray(COLORS), Image.fromarray(255 - COLORS)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    with pytest.raises(DataError, match=r"2 pages with together 6 channels.*save each image in its own file"):
        read_image(tmp_path / "a.tif")


def test_white_as_zero_is_refused_where_it_would_be_read_as_black(tmp_path):
    gray = COLORS[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", 255 - gray, photometric="miniswhite")
    assert torch.equal(read_image(tmp_path / "a.tif")[0], torch.from_numpy(gray))
    tifffile.imwrite(tmp_path / "a.tif", 65535 - gray.astype(np.uint16) * 257, photometric="miniswhite")
    with pytest.raises(DataError, match="stores white as 0"):
        read_image(tmp_path / "a.tif")


def test_signed_values_do_not_wrap(tmp_path):
    signed = (COLORS[..., 0].astype(int) - 128).astype(np.int8)
    image = image_with(tmp_path, signed)
    scaled = np.clip((signed.astype(float) + 128) / 255, 0, 1) * 255
    assert np.abs(np.asarray(image[0]) - scaled).mean() < 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fractions_are_scaled_by_255_in_every_container(tmp_path, dtype):
    fractions = (COLORS / 255).astype(dtype)
    np.save(tmp_path / "a.npy", fractions)
    tifffile.imwrite(tmp_path / "a.tif", fractions, photometric="rgb")
    for name in ("a.npy", "a.tif"):
        found = read_image(tmp_path / name).permute(1, 2, 0).numpy()
        assert np.abs(found.astype(int) - COLORS).max() <= 1
    write(tmp_path / "data", save_labels, lambda path: np.save(path.with_suffix(".npy"), fractions))
    start(tmp_path / "data", tmp_path / "recipe.yaml")
    assert not (tmp_path / "data" / "images.yaml").exists()


@pytest.mark.parametrize("array", [COLORS[..., 0] > 99, COLORS[..., 0].astype(np.complex64)])
def test_arrays_without_numbers_are_refused(tmp_path, array):
    write(tmp_path, save_labels, lambda path: np.save(path.with_suffix(".npy"), array))
    with pytest.raises(DataError, match=rf"p0\.npy.*type {array.dtype}, but integers or real numbers"):
        start(tmp_path, tmp_path / "recipe.yaml")


def test_an_animation_is_not_an_image(tmp_path):
    frames = [Image.fromarray(COLORS).convert("P"), Image.fromarray(255 - COLORS).convert("P")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="an animation of 2 frames"):
        read_image(tmp_path / "a.gif")


def test_the_ranges_in_images_yaml(tmp_path):
    (tmp_path / "images.yaml").write_text("ranges: [0, 4095]")
    assert ImageFormat.read(tmp_path).ranges == ((0, 4095),)
    (tmp_path / "images.yaml").write_text("channels: 3\nmean: [0.485, 0.456, 0.406]\nstd: [0.229, 0.224, 0.225]")
    with pytest.raises(DataError, match=r"seem to be in 0\.\.1, but values in 0\.\.255 are expected"):
        ImageFormat.read(tmp_path)


def test_the_advice_on_alpha_has_the_right_number_of_channels(tmp_path):
    write(tmp_path, save_labels, lambda path: Image.fromarray(COLORS[..., :2], "LA").save(path.with_suffix(".png")))
    [finding] = [text for text in start(tmp_path, tmp_path / "recipe.yaml").findings if "alpha" in text]
    assert "channels: 2" in finding
    (tmp_path / "images.yaml").write_text("channels: 2")
    start(tmp_path, tmp_path / "recipe.yaml")
    assert np.array_equal(np.asarray(open_dataset(tmp_path, "train")[0][0]), COLORS[..., :2].transpose(2, 0, 1))


# Masks.


def test_16_bits_in_several_channels_are_refused(tmp_path):
    values = np.array([0, 100, 300, 700], np.uint16)[LABELS]

    def save(path):
        path.with_suffix(".png").write_bytes(imagecodecs.png_encode(np.dstack([values] * 3)))

    with pytest.raises(DataError, match=r"p0\.png has several channels with 16 bits"):
        start(write(tmp_path, save), tmp_path / "recipe.yaml")


@pytest.mark.parametrize("turn", [2, 3])
def test_a_mask_that_its_exif_data_turn_is_read_upright(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = LABELS[:, ::-1] if turn == 2 else LABELS[::-1, ::-1]
    write(tmp_path, lambda path: Image.fromarray(stored.copy()).save(path.with_suffix(".png"), exif=exif))
    start(tmp_path, tmp_path / "recipe.yaml")
    assert np.array_equal(labels_of(tmp_path), LABELS)


def test_the_values_of_tiff_masks_are_those_in_the_file(tmp_path):
    write(tmp_path / "bits", lambda path: tifffile.imwrite(path.with_suffix(".tif"), LABELS > 0))
    start(tmp_path / "bits", tmp_path / "bits.yaml")
    assert np.array_equal(labels_of(tmp_path / "bits"), LABELS > 0)
    for dtype in (np.uint8, np.uint16):
        folder = tmp_path / np.dtype(dtype).name
        write(folder, lambda path, dtype=dtype: tifffile.imwrite(
            path.with_suffix(".tif"), LABELS.astype(dtype), photometric="miniswhite"))  # fmt: skip
        start(folder, tmp_path / f"{folder.name}.yaml")
        assert np.array_equal(labels_of(folder), LABELS)


def test_compressed_tiff_masks_are_lossy(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", LABELS * 60, compression="jpeg")
    with pytest.raises(DataError, match="has lossy compression"):
        MaskFormat.indices(4).read(tmp_path / "a.tif")


def test_64_bits_have_a_way_out(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", LABELS.astype(np.int64))
    with pytest.raises(DataError, match=r"Save the mask as PNG with 8 or 16 bits"):
        MaskFormat.indices(4).read(tmp_path / "a.tif")


def test_binary_masks_of_16_bits(tmp_path):
    binary = (LABELS > 1).astype(np.uint16) * 65535
    write(tmp_path, lambda path: Image.fromarray(binary).save(path.with_suffix(".png")))
    assert start(tmp_path, tmp_path / "recipe.yaml").classes.names == ("background", "foreground")
    assert np.array_equal(labels_of(tmp_path), LABELS > 1)


def test_a_single_class_names_the_value_that_hides_the_other(tmp_path):
    binary = (LABELS > 1).astype(np.uint8) * 255
    write(tmp_path, lambda path: Image.fromarray(binary).save(path.with_suffix(".png")))
    (tmp_path / "classes.yaml").write_text("classes: [{name: background}, {name: crack}]\n")
    with pytest.raises(DataError, match=r"only the class background.*the value 255.*`ignore_index: null`"):
        start(tmp_path, tmp_path / "recipe.yaml")
    (tmp_path / "classes.yaml").write_text(
        "ignore_index: null\nclasses: [{name: background, values: 0}, {name: crack, value: 255}]\n"
    )
    start(tmp_path, tmp_path / "recipe.yaml")
    assert np.array_equal(labels_of(tmp_path), LABELS > 1)


def test_indices_where_colors_are_expected(tmp_path):
    write(tmp_path, save_labels)
    colors = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 128))
    (tmp_path / "classes.yaml").write_text(
        "masks: color\nclasses:\n" + "".join(f"- {{name: c{i}, color: {list(c)}}}\n" for i, c in enumerate(colors))
    )
    with pytest.raises(DataError, match=r"p0\.png is a gray image with the values of class indices \(at most 3\)"):
        start(tmp_path, tmp_path / "recipe.yaml")


def test_similar_class_colors_have_a_smaller_tolerance():
    masks = MaskFormat("color", colors=((1, 0, 0), (2, 0, 0), (3, 0, 0)))
    positions, _ = masks.nearest(np.array([0x010000, 0x030000, 0x040000, 0x050000]))
    assert positions.tolist() == [0, 2, -1, -1]
    wide = MaskFormat("color", colors=((0, 0, 0), (128, 0, 0)))
    assert wide.nearest(np.array([0x200000, 0x210000]))[0].tolist() == [0, -1]


# Names and lists.


@pytest.mark.parametrize("name", ["p {} ", " p{}", "p{}\n"])
def test_names_that_a_list_cannot_hold(tmp_path, name):
    write(
        tmp_path,
        lambda path: Image.fromarray(LABELS).save(f"{path}.png"),
        lambda path: Image.fromarray(COLORS).save(f"{path}.png"),
        names=name,
    )
    with pytest.raises(DataError, match="begins or ends with a space, or has a line break"):
        start(tmp_path, tmp_path / "recipe.yaml")


def test_names_in_composed_and_decomposed_form_belong_together(tmp_path):
    write(tmp_path, save_labels, names="Übung {}")
    for path in sorted((tmp_path / "masks").iterdir()):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    start(tmp_path, tmp_path / "recipe.yaml")
    assert np.array_equal(labels_of(tmp_path), LABELS)


def test_a_name_that_is_not_text(tmp_path):
    write(tmp_path, save_labels)
    (tmp_path / "images" / f"x{chr(0xDCE9)}.png").write_bytes((tmp_path / "images" / "p0.png").read_bytes())
    with pytest.raises(DataError, match="is not valid text in UTF-8"):
        start(tmp_path, tmp_path / "recipe.yaml")


def test_a_list_in_another_encoding_is_named(tmp_path):
    write(tmp_path, save_labels)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_bytes("Straße".encode("cp1252"))
    with pytest.raises(DataError, match=r"train\.txt is not a text file in UTF-8"):
        start(tmp_path, tmp_path / "recipe.yaml")


def test_a_wrong_suffix_of_classes_yaml(tmp_path):
    write(tmp_path, save_labels)
    (tmp_path / "classes.yml").write_text("classes: [a, b]")
    with pytest.raises(DataError, match=r"classes\.yml has the suffix \.yml"):
        start(tmp_path, tmp_path / "recipe.yaml")


def test_images_in_both_splits_are_mentioned(tmp_path):
    write(tmp_path, save_labels)
    start(tmp_path, tmp_path / "recipe.yaml")
    (tmp_path / "splits" / "train.txt").write_text("p0\np1\np2\n")
    (tmp_path / "splits" / "val.txt").write_text("p2\np3\n")
    findings = start(tmp_path, tmp_path / "recipe.yaml").findings
    assert any("1 of the 2 images in val are also in train, such as p2.png" in text for text in findings)


@pytest.mark.parametrize(("others", "advice"), [([], "--val-split null"), (["valid"], "--val-split valid")])
def test_the_next_command_works_without_a_split_val(tmp_path, others, advice, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", save_labels)
    (tmp_path / "data" / "splits").mkdir()
    for split in ["train", *others]:
        (tmp_path / "data" / "splits" / f"{split}.txt").write_text("p0\np1\np2\np3\n")
    main(["init", "data"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert line.endswith(f"--out runs/mine {advice}")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "recipe.yaml", "--data", "data", "--out", "runs/mine", "--budget", "1m"])
    assert "or train without validation with --val-split null" in capsys.readouterr().err


# CamVid's layout.


def test_the_layout_of_camvid_with_own_classes_and_spaces(tmp_path):
    for part, array in (("train", COLORS), ("trainannot", LABELS * 20)):
        (tmp_path / part).mkdir()
        for number in range(3):
            Image.fromarray(array).save(tmp_path / part / f"my {number}.png")
    (tmp_path / "train.txt").write_text("".join(f"train/my {i}.png trainannot/my {i}.png\n" for i in range(3)))
    (tmp_path / "classes.yaml").write_text(
        "classes:\n" + "".join(f"- {{name: c{i}, value: {20 * i}}}\n" for i in range(4))
    )
    assert np.array_equal(labels_of(tmp_path), LABELS)
    assert len(ClassesFile.read(tmp_path / "classes.yaml").classes) == 4


# Imports.


def test_instance_names_are_not_classes(tmp_path):
    for number in range(2):
        (tmp_path / "tool" / "masks" / f"p{number}").mkdir(parents=True)
        (tmp_path / "tool" / "images").mkdir(exist_ok=True)
        Image.fromarray(COLORS).save(tmp_path / "tool" / "images" / f"p{number}.png")
        for instance in range(3):
            mask = Image.fromarray((instance == LABELS).astype(np.uint8) * 255)
            mask.save(tmp_path / "tool" / "masks" / f"p{number}" / f"{number}f{instance}c3a.png")
    command = ["import", "class-masks", str(tmp_path / "tool"), str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(command)
    main([*command, "--classes", "[cell]"])
    assert np.array_equal(labels_of(tmp_path / "out"), LABELS < 3)


def test_images_whose_annotations_were_dropped_are_not_background(tmp_path, capsys):
    tool = tmp_path / "tool"
    tool.mkdir()
    Image.fromarray(COLORS).save(tool / "a.png")
    Image.fromarray(COLORS).save(tool / "b.png")
    Image.fromarray(COLORS).save(tool / "c.png")
    box = {"category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0}
    polygon = [[0, 0, 9, 0, 9, 9, 0, 9]]
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "width": 36, "height": 24} for i, n in enumerate("abc")],
        "categories": [{"id": 1, "name": "cat"}],
        # The ids of the images are text here, as some tools write them.
        "annotations": [
            {"id": 1, "image_id": "0", "segmentation": polygon, **box},
            {"id": 2, "image_id": "1", "segmentation": [[0, 0]], **box},
        ],
    }
    (tool / "ann.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    main(["import", "coco", str(tool / "ann.json"), str(out), "--images", str(tool)])
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (out / "images").iterdir()) == ["a.png", "c.png"]
    assert "images whose annotations were all dropped: 1 (tool/b.png)" in printed
    assert "images have no shapes, so all their pixels are background: 1 (tool/c.png)" in printed


@pytest.mark.parametrize("classes", [[], ["--classes", "[bg, cat]"]])
def test_a_data_set_of_hugging_face_with_0_and_255(tmp_path, classes):
    datasets = pytest.importorskip("datasets")
    mask = Image.fromarray((LABELS > 1).astype(np.uint8) * 255)
    rows = {"image": [Image.fromarray(COLORS)] * 3, "label": [mask] * 3}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "saved")
    main(["import", "huggingface", str(tmp_path / "saved"), str(tmp_path / "out"), *classes])
    assert np.array_equal(labels_of(tmp_path / "out"), LABELS > 1)


# Lists with more than names, and hints that are safe to follow.


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_lists_of_pairs_are_neither_replaced_nor_misread(tmp_path, separator, suffix):
    write(tmp_path, lambda path: save_labels(path.with_name(f"{path.name}{suffix}")), count=6)
    (tmp_path / "splits").mkdir()
    for split, numbers in {"train": [0, 1, 3, 5], "val": [4]}.items():
        lines = "".join(f"images/p{i}.png{separator}masks/p{i}{suffix}.png\n" for i in numbers)
        (tmp_path / "splits" / f"{split}.txt").write_text(lines)
    before = (tmp_path / "splits" / "train.txt").read_text()
    if suffix:
        with pytest.raises(DataError, match=r"train\.txt contains the line .* Keep only the names of the images"):
            start(tmp_path, tmp_path / "recipe.yaml")
    else:
        start(tmp_path, tmp_path / "recipe.yaml")
        names = [image.stem for image, _ in open_dataset(tmp_path, "train").pairs]
        assert names == ["p0", "p1", "p3", "p5"]
    assert (tmp_path / "splits" / "train.txt").read_text() == before


def test_the_advice_on_classes_without_pixels_keeps_the_other_labels(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", lambda path: Image.fromarray(LABELS // 2 * 2).save(path.with_suffix(".png")))
    names = ["background", "root", "leaf", "stem"]
    classes = tmp_path / "data" / "classes.yaml"
    classes.write_text("classes:\n" + "".join(f"- {{name: {name}}}\n" for name in names))
    main(["init", "data"])
    printed = capsys.readouterr().out
    assert "have no pixels: root, stem. Before you remove one, give the other classes their `value`" in printed
    classes.write_text("classes:\n- {name: background, value: 0}\n- {name: leaf, value: 2}\n")
    main(["init", "data", "--out", "again.yaml"])
    assert np.array_equal(labels_of(tmp_path / "data"), LABELS // 2)


@pytest.mark.parametrize(
    "colors", [[(128, 64, 128), (0, 60, 100), (0, 80, 100), (0, 0, 142)], [(0,) * 3, (20,) * 3, (40,) * 3, (60,) * 3]]
)
def test_similar_colors_of_lossy_masks_are_not_merged(tmp_path, colors):
    labels = np.kron(RANDOM.integers(0, 4, (6, 9)), np.ones((16, 16), np.uint8))
    labels[:16, :64] = np.repeat(range(4), 16)

    def save(path):
        Image.fromarray(np.array(colors, np.uint8)[labels]).save(path.with_suffix(".jpg"), quality=95, subsampling=0)

    def save_image(path):
        Image.new("RGB", labels.shape[::-1]).save(path.with_suffix(".png"))

    write(tmp_path, save, save_image)
    with pytest.raises(DataError, match="lossy compression, and the masks have areas of the similar colors"):
        start(tmp_path, tmp_path / "recipe.yaml")
    lines = "".join(f"- {{name: c{i}, color: {list(color)}}}\n" for i, color in enumerate(colors))
    (tmp_path / "classes.yaml").write_text(f"masks: color\nclasses:\n{lines}")
    start(tmp_path, tmp_path / "recipe.yaml")
    found = labels_of(tmp_path)
    assert (found == labels).mean() > 0.97


def test_masks_of_0_and_1_beside_masks_of_0_and_255(tmp_path):
    write(tmp_path, lambda path: Image.fromarray((LABELS > 1).astype(np.uint8)).save(path.with_suffix(".png")))
    Image.fromarray((LABELS > 1).astype(np.uint8) * 255).save(tmp_path / "masks" / "p2.png")
    with pytest.raises(DataError, match=r"p0\.png has the values 0 and 1, but .*p2\.png has the values 0 and 255"):
        start(tmp_path, tmp_path / "recipe.yaml")
    start(tmp_path, tmp_path / "recipe.yaml", ignore_index=255)


def test_classes_in_the_alpha_channel_are_not_dropped(tmp_path):
    mask = np.dstack([np.full((*SIZE, 3), 255, np.uint8), LABELS * 80])
    write(tmp_path, lambda path: Image.fromarray(mask).save(path.with_suffix(".png")))
    with pytest.raises(DataError, match="only its alpha channel varies"):
        start(tmp_path, tmp_path / "recipe.yaml")


def test_folders_in_the_folder_of_the_images_are_mentioned(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "images" / split, save_labels)
        (tmp_path / "masks" / split).mkdir(parents=True)
    with pytest.raises(DataError, match="Move the files out of its folders train, val"):
        start(tmp_path, tmp_path / "recipe.yaml")


# TIFF files of geographic and microscopy programs.


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_gray_tiff_files_are_turned_and_not_scrambled(tmp_path, turn):
    """Pillow alone maps such files into memory with a wrong row length."""
    sideways = {
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.T, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = np.ascontiguousarray(sideways[turn](LABELS))
    gray = np.ascontiguousarray(sideways[turn](COLORS[..., 0]))
    write(
        tmp_path,
        lambda path: Image.fromarray(stored).save(path.with_suffix(".tif"), tiffinfo={274: turn}),
        lambda path: Image.fromarray(gray).save(path.with_suffix(".tif"), tiffinfo={274: turn}),
    )
    start(tmp_path, tmp_path / "recipe.yaml")
    image, mask = open_dataset(tmp_path, "train")[0]
    assert np.array_equal(mask, LABELS)
    assert np.array_equal(np.asarray(image)[0], COLORS[..., 0])


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_masks_of_signed_integers(tmp_path, dtype):
    values = LABELS.astype(dtype) - 1
    write(tmp_path, lambda path: tifffile.imwrite(path.with_suffix(".tif"), values, photometric="minisblack"))
    start(tmp_path, tmp_path / "recipe.yaml")
    assert np.array_equal(labels_of(tmp_path), np.where(LABELS == 0, 255, LABELS.astype(int) - 1))


def test_an_internal_mask_is_not_a_channel(tmp_path):
    def save(path):
        with tifffile.TiffWriter(path.with_suffix(".tif")) as file:
            file.write(COLORS, photometric="rgb")
            file.write(np.ones(SIZE, bool), photometric="mask", subfiletype=4)

    write(tmp_path, save_labels, save)
    start(tmp_path, tmp_path / "recipe.yaml")
    assert np.array_equal(np.asarray(open_dataset(tmp_path, "train")[0][0]), COLORS.transpose(2, 0, 1))


def test_a_label_in_the_alpha_channel_of_a_photograph_is_mentioned(tmp_path):
    cut = np.dstack([COLORS, (LABELS > 1).astype(np.uint8) * 255])
    write(tmp_path, lambda path: Image.fromarray(cut).save(path.with_suffix(".png")))
    with pytest.raises(DataError, match="If it has the classes, save it as a gray image"):
        start(tmp_path, tmp_path / "recipe.yaml")
