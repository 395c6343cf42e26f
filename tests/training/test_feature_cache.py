"""The features that the second stage of training keeps."""

import torch

from contextcrf.training import SeededSampler, cache_features
from contextcrf.utils.resizing import downsample
from trainings import QUICK


def test_cached_features_are_those_of_the_trunk(tiny_model, train):
    cached = cache_features(tiny_model, train, "above", 2, QUICK)
    features, labels = cached.features, cached.labels
    assert len(cached) == 12
    assert features.shape == (12, 8, 8, 12)
    assert labels.shape == (12, 8, 12)
    for copy in range(2):
        sampler = SeededSampler(6, QUICK.seed)
        sampler.set_epoch(copy)
        for row, key in enumerate(sampler, 6 * copy):
            image, mask = train[key]
            with torch.no_grad():
                maps = tiny_model.features(image[None].float(), ["above"])["above"]
                torch.testing.assert_close(cached.unary[row], tiny_model.unary(maps)[0])
            torch.testing.assert_close(features[row], maps[0].bfloat16())
            assert torch.equal(labels[row], downsample(mask[None], (8, 12))[0])
            # A sampler's key has a seed, which has no meaning here.
            item = cached[row, key[1]]
            assert all(
                torch.equal(a, b) for a, b in zip(item, (features[row], labels[row], cached.unary[row]), strict=True)
            )


def test_features_for_the_unary_have_the_labels_of_the_pixels(tiny_model, train):
    cached = cache_features(tiny_model, train, "unary", 1, QUICK)
    assert cached.labels.shape == (6, 64, 96)
    assert cached.labels.dtype == torch.uint8
    sampler = SeededSampler(6, QUICK.seed)
    sampler.set_epoch(0)
    for row, key in enumerate(sampler):
        assert torch.equal(cached.labels[row].long(), torch.as_tensor(train[key][1]))
