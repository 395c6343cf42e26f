"""VOC with SBD, on development kits of a few pixels."""

import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import sbd as torchvision_sbd
from torchvision.datasets import voc as torchvision_voc

from contextcrf.data import layouts
from contextcrf.data.layouts import open_dataset
from contextcrf.data.validation import check_pairs
from contextcrf.data.voc import prepare_voc
from contextcrf.utils.errors import DataError

# The images with masks in both data sets. The splits of SBD are independent of VOC's: its "train" has an image of VOC's
# val.
VOC_HAS = {"train": ["a", "b"], "val": ["c"]}
SBD_HAS = {"train": ["b", "c", "d"], "val": ["e"]}
ALL = "abcde"


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(path)


def write_kit(kit):
    splits = kit / "ImageSets" / "Segmentation"
    splits.mkdir(parents=True)
    (kit / "SegmentationClass").mkdir()
    for stem in ALL:
        picture(kit / "JPEGImages" / f"{stem}.jpg")
    for split, stems in VOC_HAS.items():
        (splits / f"{split}.txt").write_text("\n".join(stems))
        for stem in stems:
            Image.fromarray(np.full((4, 6), 1, np.uint8)).save(kit / "SegmentationClass" / f"{stem}.png")


def write_sbd(folder):
    (folder / "cls").mkdir(parents=True)
    (folder / "inst").mkdir()
    for split, stems in SBD_HAS.items():
        (folder / f"{split}.txt").write_text("\n".join(stems))
        for stem in stems:
            picture(folder / "img" / f"{stem}.jpg")
            savemat(
                folder / "cls" / f"{stem}.mat", {"GTcls": {"Segmentation": np.full((4, 6), ALL.index(stem) + 2, "u1")}}
            )


@pytest.fixture
def kit(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "TRAIN_AUG", 4)
    write_kit(tmp_path / "VOCdevkit" / "VOC2012")
    return tmp_path / "VOCdevkit" / "VOC2012"


@pytest.fixture
def sbd(tmp_path):
    write_sbd(tmp_path / "sbd")
    return tmp_path / "sbd"


def test_train_aug_is_voc_and_sbd_without_val_and_prefers_vocs_masks(kit, sbd, tmp_path):
    assert prepare_voc(tmp_path, sbd) == kit
    data = open_dataset(tmp_path, "train_aug")
    assert [image.stem for image, _ in data.pairs] == ["a", "b", "d", "e"]
    assert [int(mask.unique()) for _, mask in data] == [1, 1, 5, 6]
    # The other splits are VOC's own.
    assert [image.stem for image, _ in open_dataset(kit, "train").pairs] == ["a", "b"]
    assert prepare_voc(kit, sbd) == kit


def test_without_sbd_there_is_no_train_aug(kit, tmp_path):
    assert prepare_voc(tmp_path) == kit
    with pytest.raises(DataError, match=r"train_aug.txt does not exist. .* the masks of SBD .*contextcrf prepare-voc "):
        open_dataset(kit, "train_aug")
    with pytest.raises(DataError, match=r"none does not contain all of SBD. Missing: img, cls, train.txt, val.txt"):
        prepare_voc(kit, tmp_path / "none")
    with pytest.raises(DataError, match=r"empty does not contain .* no ImageSets/Segmentation below it"):
        prepare_voc(tmp_path / "empty")


@pytest.mark.parametrize("count", [3, 5])
def test_a_part_of_train_aug_is_refused(kit, sbd, monkeypatch, count):
    prepare_voc(kit, sbd)
    monkeypatch.setattr(layouts, "TRAIN_AUG", count)
    with pytest.raises(DataError, match=f"train_aug.txt is 4, but the split train_aug has {count} images"):
        open_dataset(kit, "train_aug")
    (kit / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    with pytest.raises(DataError, match=f"is 4, but the split train_aug has {count} images"):
        prepare_voc(kit, sbd)
    assert not (kit / "ImageSets" / "Segmentation" / "train_aug.txt").exists()


def test_the_number_is_that_of_the_field():
    assert layouts.TRAIN_AUG == 10_582


def test_a_stopped_conversion_goes_on(kit, sbd):
    (sbd / "cls" / "e.mat").rename(sbd / "kept")
    with pytest.raises(FileNotFoundError, match=r"e\.mat"):
        prepare_voc(kit, sbd)
    assert [path.name for path in (kit / "SegmentationClassAug").iterdir()] == ["d.png"]
    before = (kit / "SegmentationClassAug" / "d.png").stat().st_mtime_ns
    (sbd / "kept").rename(sbd / "cls" / "e.mat")
    prepare_voc(kit, sbd)
    assert (kit / "SegmentationClassAug" / "d.png").stat().st_mtime_ns == before
    assert len(open_dataset(kit, "train_aug")) == 4


def test_both_are_fetched_by_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "TRAIN_AUG", 4)
    fetched = []

    def fetch_kit(url, root, **options):
        fetched.append((url.rsplit("/", 1)[-1], options["md5"]))
        write_kit(tmp_path / "root" / "VOCdevkit" / "VOC2012")

    def fetch_sbd(url, root, **options):
        fetched.append((url.rsplit("/", 1)[-1], options["md5"]))
        write_sbd(tmp_path / "sbd" / "benchmark_RELEASE" / "dataset")

    monkeypatch.setattr(torchvision_voc, "download_and_extract_archive", fetch_kit)
    monkeypatch.setattr(torchvision_sbd, "download_and_extract_archive", fetch_sbd)
    (tmp_path / "sbd").mkdir()
    kit = prepare_voc(tmp_path / "root", tmp_path / "sbd", download=True)
    assert kit == tmp_path / "root" / "VOCdevkit" / "VOC2012"
    assert [name for name, _ in fetched] == ["VOCtrainval_11-May-2012.tar", "benchmark.tgz"]
    assert all(md5 for _, md5 in fetched)
    assert len(open_dataset(tmp_path / "root", "train_aug")) == 4
    # What is there is not fetched again.
    prepare_voc(tmp_path / "root", tmp_path / "sbd", download=True)
    assert len(fetched) == 2


def test_scipy_is_asked_for(kit, sbd, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"Scipy is not found.*contextcrf\[voc\]"):
        prepare_voc(kit, sbd)


def test_a_missing_mask_of_sbd_is_found_before_training(kit, sbd):
    prepare_voc(kit, sbd)
    shutil.rmtree(kit / "SegmentationClassAug")
    with pytest.raises(DataError, match=r"SegmentationClassAug/d.png"):
        check_pairs(open_dataset(kit, "train_aug").pairs, 21, 255)
