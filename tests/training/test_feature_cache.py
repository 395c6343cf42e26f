"""The features that the second stage of training keeps."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from contextcrf.training import SeededSampler, cache_features, fit_heads
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


def test_class_weights_balance_the_heads_and_need_the_images(tiny_model, train, tmp_path):
    """The weighted loss trains other heads; cached features do not show how frequent the classes are."""
    balanced = replace(QUICK, epochs=1, class_balance=0.5)
    trained = []
    for number, config in enumerate((replace(QUICK, epochs=1), balanced)):
        model = deepcopy(tiny_model)
        fit_heads(model, train, config, tmp_path / str(number), copies=1)
        trained.append(model.pairwise_potential("above").last.weight.detach())
    assert not torch.allclose(*trained)
    cached = cache_features(tiny_model, train, "above", 1, QUICK)
    with pytest.raises(ValueError, match=r"class_balance is 0\.5, but the class weights cannot be computed"):
        fit_heads(tiny_model, cached, balanced, tmp_path / "cached")
