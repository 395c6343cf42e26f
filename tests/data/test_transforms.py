"""Augmentation: image and mask stay aligned, and what was added by padding has no label."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import CAMVID
from contextcrf.data.transforms import RandomScale, training_transform


def write_png(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


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
        assert (image[:, ~known] == 127).all()
    assert 0 < padded < 30


@pytest.mark.parametrize("size", [(20, 30), (20, 80), (60, 30)])
def test_padding_keeps_every_pixel_of_a_smaller_image(size):
    """Below the crop's size in one dimension or in both, the image is padded with gray and no label."""
    image = torch.randint(0, 100, (3, *size), dtype=torch.uint8)
    mask = torch.randint(0, 5, size)
    transform = training_transform((40, 50), scale=(1.0, 1.0), flip=False)
    places = set()
    for seed in range(5):
        torch.manual_seed(seed)
        found, labels = transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert found.shape == (3, 40, 50)
        known = labels != 255
        assert known.sum() == min(size[0], 40) * min(size[1], 50)
        assert (found[:, ~known] == 127).all()
        places.add(tuple(known.nonzero()[0].tolist()))
        if size == (20, 30):
            assert torch.equal(found[:, known], image.flatten(1))
            assert torch.equal(labels[known], mask.flatten())
    assert len(places) > 1


def test_a_flip_and_color_jitter_are_optional():
    image = tv_tensors.Image(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.arange(256).reshape(16, 16) % 7)

    def draw(**options):
        transform = training_transform((16, 16), (1.0, 1.0), **options)
        return [transform(image, mask) for _ in range(20)]

    assert all(torch.equal(found, image) and torch.equal(labels, mask) for found, labels in draw(flip=False))
    flipped = [not torch.equal(labels, mask) for _, labels in draw()]
    assert 0 < sum(flipped) < 20
    for found, labels in draw(flip=False, color=0.5):
        assert not torch.equal(found, image)
        assert torch.equal(labels, mask)


def test_transforms_can_be_pickled():
    transform = training_transform((16, 24), color=0.3)
    image = tv_tensors.Image(torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.randint(0, 5, (20, 20)))
    results = []
    for each in (transform, pickle.loads(pickle.dumps(transform))):
        torch.manual_seed(3)
        results.append(each(image, mask))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("scale", [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_an_impossible_scale_range_is_refused(scale):
    with pytest.raises(ValueError, match=rf"scale range is \({scale[0]}, {scale[1]}\), but 0 < low <= high"):
        RandomScale(*scale)
