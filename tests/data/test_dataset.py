"""`SegmentationDataset`: samples, seeds, broken files, and worker processes."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import CAMVID, open_dataset
from contextcrf.data.transforms import training_transform
from contextcrf.utils.errors import DataError


def write_png(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def data(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / "data")


def test_samples_are_tv_tensors(scenes):
    image, mask = open_dataset(scenes, "train")[0]
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(mask, tv_tensors.Mask)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 64, 96))
    assert (mask.dtype, mask.shape) == (torch.int64, (64, 96))


def test_a_loop_over_the_samples_ends(scenes):
    data = open_dataset(scenes, "train")
    assert len([*zip(data, range(len(data) + 2), strict=False)]) == len(data)
    with pytest.raises(IndexError):
        data[len(data), 0]


def test_spread_takes_pairs_evenly():
    pairs = [(i, i) for i in range(10)]
    data = SegmentationDataset(pairs, CAMVID, ignore_index=11)
    assert [p[0] for p in data.spread(5).pairs] == [0, 2, 4, 6, 8]
    assert data.spread(99).pairs == pairs
    assert data.spread(5).ignore_index == 11


def test_names_are_relative_with_forward_slashes(scenes):
    data = open_dataset(scenes, "val")
    assert data.names(scenes) == [f"images/val_000{i}.png" for i in range(3)]
    assert data.names(scenes / "splits")[0] == "../images/val_0000.png"


def test_without_transform_gives_what_is_stored(scenes):
    plain = open_dataset(scenes, "val")
    data = open_dataset(scenes, "val", training_transform((16, 16)))
    stored = [*data.without_transform()]
    assert len(stored) == 3
    for (image, mask), (expected, labels) in zip(stored, plain, strict=True):
        assert torch.equal(image, expected)
        assert torch.equal(mask, labels)
    assert all(torch.equal(*parts) for parts in zip(data.sample(1), plain[1], strict=True))


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


def test_a_file_that_cannot_be_read_is_named(data):
    dataset = open_dataset(data, "train")
    image, mask = dataset.pairs[1]
    image.write_bytes(b"nothing")
    with pytest.raises(DataError, match=f"^{image} cannot be read as an image"):
        dataset[1]
    with pytest.raises(DataError, match=f"^{image} cannot be read as an image"):
        list(dataset.without_transform())
    mask.unlink()
    image.write_bytes(dataset.pairs[0][0].read_bytes())
    with pytest.raises(DataError, match=f"^{mask} cannot be read as a mask: No such file"):
        dataset[1]
    assert dataset.broken == []


def test_all_images_broken_is_an_error(data):
    broken = open_dataset(data, "val")
    broken.skip_broken = True
    for image, _ in broken.pairs:
        image.write_bytes(b"nothing")
    with pytest.raises(DataError, match="The number of pairs is 3"):
        broken[1]
    assert broken.broken == [image for image, _ in broken.pairs]


def test_the_next_pair_replaces_a_broken_one(data):
    dataset = open_dataset(data, "train")
    dataset.skip_broken = True
    for index in (0, 5):
        dataset.pairs[index][0].write_bytes(b"nothing")
    assert torch.equal(dataset[0][0], dataset[1][0])
    assert torch.equal(dataset[5][0], dataset[1][0])  # after the last pair comes the first
    assert dataset.broken == [dataset.pairs[0][0], dataset.pairs[5][0]]


def test_a_data_set_can_be_pickled(scenes):
    dataset = open_dataset(scenes, "train", training_transform((32, 32), color=0.3))
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.pairs == dataset.pairs
    assert copy.classes == dataset.classes
    for ours, theirs in zip(dataset[2, 7], copy[2, 7], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("workers", "context"), [(0, None), (1, None), (2, "spawn")])
def test_worker_processes_load_the_same_samples_and_share_broken(data, workers, context):
    """The start method "spawn", which macOS and Windows use, pickles the data set and its transform."""
    dataset = open_dataset(data, "train", training_transform((32, 48), color=0.3))
    dataset.skip_broken = True
    victim = dataset.pairs[2][0]
    victim.write_bytes(b"nothing")
    keys = [(index, 100 + index) for index in range(len(dataset))]
    loaded = list(DataLoader(dataset, None, sampler=keys, num_workers=workers, multiprocessing_context=context))
    assert dataset.broken == [victim]
    expected = open_dataset(data, "train", dataset.transform)
    expected.pairs[2] = expected.pairs[3]
    assert len(loaded) == 6
    for key, sample in zip(keys, loaded, strict=True):
        for ours, theirs in zip(sample, expected[key], strict=True):
            assert torch.equal(ours, theirs)
