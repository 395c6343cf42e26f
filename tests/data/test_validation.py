"""The check before training finds every defect and lists them all at once."""

import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.data.classes import Classes
from contextcrf.data.images import read_image
from contextcrf.data.layouts import open_dataset
from contextcrf.data.validation import check_dataset, check_pairs, check_same_classes, log_skipped, training_pairs
from contextcrf.utils.errors import DataError


def write_pair(folder, stem, labels=None, size=(16, 12)):
    """An image of `size` (width, height) and its mask; returns their paths."""
    width, height = size
    rng = np.random.default_rng(0)
    image, mask = folder / f"{stem}.png", folder / f"{stem}_mask.png"
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(image)
    Image.fromarray(np.zeros((height, width), np.uint8) if labels is None else labels).save(mask)
    return image, mask


def problems_of(pairs, num_classes=3, ignore_index=255):
    """The lines of the message, without the first, which counts them."""
    with pytest.raises(DataError) as caught:
        check_pairs(pairs, num_classes, ignore_index)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"{len(lines)} problem")
    return [line.strip() for line in lines]


def test_clean_data_pass(tmp_path):
    labels = np.tile(np.array([0, 1, 2, 255], np.uint8), (12, 4))
    gray, palette, deep, bits = (write_pair(tmp_path, stem, labels) for stem in ("gray", "palette", "deep", "bits"))
    mask = Image.fromarray(labels)
    mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.save(palette[1])
    Image.fromarray(labels.astype(np.uint16)).save(deep[1])
    Image.fromarray(labels == 1).save(bits[1])
    with Image.open(deep[1]) as stored:
        assert stored.mode in ("I", "I;16")  # the name changed between versions of Pillow
    check_pairs([gray, palette, deep, bits], num_classes=3, ignore_index=255)


def test_ignore_index_is_the_value_as_stored(tmp_path):
    labels = np.full((12, 16), 11, np.uint8)
    pair = write_pair(tmp_path, "camvid", labels)
    check_pairs([pair], num_classes=11, ignore_index=11)
    assert len(problems_of([pair], num_classes=11, ignore_index=255)) == 1


def test_missing_files(tmp_path):
    image, mask = write_pair(tmp_path, "one")
    lines = problems_of([(tmp_path / "none.jpg", mask), (image, tmp_path / "none.png"), (tmp_path, mask)])
    assert lines == [
        f"{tmp_path / 'none.jpg'} does not exist or is not a file, but an image is expected.",
        f"{tmp_path / 'none.png'} does not exist or is not a file, but a mask is expected.",
        f"{tmp_path} does not exist or is not a file, but an image is expected.",
    ]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files(tmp_path, suffix, keep):
    image, mask = write_pair(tmp_path, "one", size=(64, 48))
    cut = tmp_path / f"cut{suffix}"
    with Image.open(image) as whole:
        whole.save(cut)
    content = cut.read_bytes()
    cut.write_bytes(content[: int(keep * len(content))])
    (line,) = problems_of([(cut, mask)])
    assert line.startswith(f"{cut} cannot be decoded as an image: ")
    assert line.count(cut.name) == 1
    assert line.endswith("A complete image file is expected.")


def test_damaged_and_foreign_files(tmp_path):
    image, mask = write_pair(tmp_path, "one", size=(64, 48))
    damaged, text = tmp_path / "damaged.png", tmp_path / "text.png"
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    text.write_text("not an image")
    lines = problems_of([(damaged, mask), (text, mask), (image, text)])
    assert [line.split(": ")[0] for line in lines] == [
        f"{damaged} cannot be decoded as an image",
        f"{text} cannot be decoded as an image",
        f"{text} cannot be decoded as a mask",
    ]


def test_mask_with_colors(tmp_path):
    image, mask = write_pair(tmp_path, "one")
    with Image.open(image) as colors:
        colors.save(mask)
    assert "has several channels with colors, but a mask with one channel" in problems_of([(image, mask)])[0]


def test_deep_image(tmp_path):
    image, mask = write_pair(tmp_path, "one")
    Image.fromarray(np.full((12, 16), 4000, np.uint16)).save(image)
    assert "`ranges: [[0, 4095]]` in images.yaml" in problems_of([(image, mask)])[0]


def test_sizes_differ(tmp_path):
    image, _ = write_pair(tmp_path, "one")
    _, mask = write_pair(tmp_path, "two", size=(12, 16))
    (line,) = problems_of([(image, mask)])
    assert line == f"{mask} has 12 x 16 pixels, but its image {image} has 16 x 12 pixels."


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_foreign_labels(tmp_path, dtype):
    labels = np.zeros((12, 16), dtype)
    labels[0, :5] = 3
    labels[1, :2] = 200
    image, mask = write_pair(tmp_path, "one", labels)
    (line,) = problems_of([(image, mask)])
    assert line == (
        f"{mask} contains the labels 3, 200 at 7 pixels, but 0 to 2 or 255 (ignore_index) is expected. Add the missing "
        "classes, or correct the mask."
    )


def test_all_problems_are_listed_in_order(tmp_path):
    good = write_pair(tmp_path, "good")
    wrong = write_pair(tmp_path, "wrong", np.full((9, 9), 7, np.uint8), size=(16, 12))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    lines = problems_of([good, (broken, broken), wrong, (tmp_path / "none.png", good[1])])
    assert [line.split(" ")[0] for line in lines] == [
        str(path) for path in (broken, broken, wrong[1], wrong[1], tmp_path / "none.png")
    ]


def test_long_lists_are_cut(tmp_path):
    _, mask = write_pair(tmp_path, "one")
    with pytest.raises(DataError, match="73 problems were found in 73 pairs") as caught:
        check_pairs([(tmp_path / f"{index}.png", mask) for index in range(73)], 3, 255)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 50 + 1
    assert lines[-1].strip() == "... and 23 more"


def test_a_picture_from_a_phone_is_upright(tmp_path):
    """Its mask must match the upright image."""
    stored = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path, mask = tmp_path / "phone.png", tmp_path / "mask.png"
    Image.fromarray(stored).save(path, exif=exif)
    Image.fromarray(np.zeros((16, 12), np.uint8)).save(mask)
    check_pairs([(path, mask)], 3, 255)
    upright = torch.from_numpy(np.rot90(stored, -1).copy()).permute(2, 0, 1)
    assert torch.equal(read_image(path), upright)
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(mask)
    [line] = problems_of([(path, mask)])
    assert line.endswith("The EXIF data rotate the image, and the mask must match the upright image.")


@pytest.fixture
def data(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / "data")


def break_image(dataset, index):
    image, _ = dataset.pairs[index]
    image.write_bytes(image.read_bytes()[:100])
    return image


def test_a_whole_data_set_is_checked_with_its_classes_and_ignore_index(data):
    dataset = open_dataset(data, "train")
    check_dataset(dataset)
    Classes(("a", "b"), ((0, 0, 0), (1, 1, 1))).to_yaml(data / "classes.yaml", ignore_index=0)
    with pytest.raises(DataError, match=r"6 problems were found in 6 pairs(?s:.*) but 0 to 1 or 0 \(ignore_index\)"):
        check_dataset(open_dataset(data, "train"))


def test_training_and_validation_data_are_checked_together(data, caplog):
    train, val = open_dataset(data, "train"), open_dataset(data, "val")
    assert training_pairs(train, val) is train
    assert training_pairs(train) is train
    first, second = break_image(train, 1), break_image(val, 2)
    with pytest.raises(DataError, match="2 problems were found in 9 pairs") as caught:
        training_pairs(train, val)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)
    assert not caplog.messages


def test_images_that_are_in_both_are_counted_in_a_warning_and_checked_once(data, caplog):
    train, val = open_dataset(data, "train"), open_dataset(data, "val")
    train.pairs += val.pairs[:2]
    break_image(val, 0)
    with pytest.raises(DataError, match="1 problem was found in 9 pairs"):
        training_pairs(train, val)
    [message] = caplog.messages
    assert message.startswith("The training data contain 2 of the 3 validation images")


def test_broken_training_images_are_skipped_if_that_is_allowed(data, caplog):
    train, val = open_dataset(data, "train", transform=swap), open_dataset(data, "val")
    train.skip_broken = True
    victim = break_image(train, 1)
    kept = training_pairs(train, val)
    assert [*kept.pairs] == [pair for pair in train.pairs if pair[0] != victim]
    assert (kept.classes, kept.ignore_index, kept.transform, kept.skip_broken) == (train.classes, 255, swap, True)
    [message] = caplog.messages
    assert message.startswith(f"Skipped 1 unusable file:\n  {victim} cannot be decoded as an image")
    break_image(val, 0)
    with pytest.raises(DataError, match="1 problem was found in 3 pairs"):
        training_pairs(train, val)


def swap(image, mask):
    return image, mask


def test_a_training_without_any_usable_image_is_refused(data):
    train = open_dataset(data, "val")
    train.skip_broken = True
    for index in range(3):
        break_image(train, index)
    with pytest.raises(DataError, match=r"No training pair .* can be used. The number of pairs is 3"):
        training_pairs(train)


def test_nothing_is_logged_if_nothing_is_skipped(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        log_skipped([])
        assert not caplog.messages
        log_skipped([tmp_path / "a.png", "b"])
    assert caplog.messages == [f"Skipped 2 unusable files:\n  {tmp_path / 'a.png'}\n  b"]


def test_other_classes_are_refused():
    ours = Classes(("sea", "sky"), ((0, 0, 0), (1, 1, 1)))
    check_same_classes(ours, Classes(ours.names, ((2, 2, 2), (3, 3, 3))))
    with pytest.raises(ValueError, match="model has the classes sea, sky, but the data set has the classes sky, sea"):
        check_same_classes(ours, Classes(("sky", "sea"), ours.palette))
