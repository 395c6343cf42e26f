"""The features that the second stage of training keeps."""

import logging
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.masks import MaskFormat
from contextcrf.modeling.merging import merge_potentials
from contextcrf.training import SeededSampler, cache_features, feature_cache, fit_heads
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


def test_stored_features_are_those_in_memory(tiny_model, train, tmp_path, caplog):
    for name in ("above", "unary"):
        kept = cache_features(tiny_model, train, name, 2, QUICK)
        with caplog.at_level(logging.INFO, "contextcrf"):
            stored = cache_features(tiny_model, train, name, 2, QUICK, tmp_path / name)
        assert len(stored) == len(kept) == 12
        for number in range(12):
            for found, expected in zip(stored[number, 0], kept[number, 0], strict=True):
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected)
        size = sum(part.numel() * part.element_size() for part in (kept.features, kept.labels, kept.unary))
        assert f"The features take {size / 1e6:.1f} MB in {tmp_path / name}." in caplog.messages


def test_stored_features_are_completed_after_a_kill(tiny_model, train, tmp_path, monkeypatch):
    """What was written before the kill is not computed again."""
    whole = cache_features(tiny_model, train, "above", 2, QUICK, tmp_path / "whole")
    calls, write = [], feature_cache.write_json

    def killed(path, values):
        if path.name == "progress.json":
            calls.append(values["samples"])
            if len(calls) == 3:
                raise KeyboardInterrupt
        write(path, values)

    monkeypatch.setattr(feature_cache, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        cache_features(tiny_model, train, "above", 2, QUICK, tmp_path / "part")
    part = cache_features(tiny_model, train, "above", 2, QUICK, tmp_path / "part")
    assert calls == [2, 4, 6, 6, 8, 10, 12]
    assert all(torch.equal(part[i, 0][0], whole[i, 0][0]) for i in range(12))
    # A complete cache is only read.
    monkeypatch.setattr(feature_cache, "_compute", None)
    assert len(cache_features(tiny_model, train, "surrounding", 2, QUICK, tmp_path / "part")) == 12


def test_other_features_and_a_full_disk_are_refused(tiny_model, train, tmp_path, monkeypatch):
    cache_features(tiny_model, train, "above", 1, QUICK, tmp_path / "cache")
    for change, what in (({"seed": 1}, "training.seed 0, not 1"), ({"crop": (32, 32)}, "training.crop")):
        with pytest.raises(ValueError, match=f"were computed with {what}.* Choose another --cache"):
            cache_features(tiny_model, train, "above", 1, replace(QUICK, **change), tmp_path / "cache")
    with pytest.raises(ValueError, match="with potential pairwise, not unary"):
        cache_features(tiny_model, train, "unary", 1, QUICK, tmp_path / "cache")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").touch()
    with pytest.raises(ValueError, match=r"other has other files, such as precious\.txt"):
        cache_features(tiny_model, train, "above", 1, QUICK, tmp_path / "other")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"but .*full has 0\.0 MB of free disk space"):
        cache_features(tiny_model, train, "above", 1, QUICK, tmp_path / "full")
    assert not list((tmp_path / "full").glob("*.npy"))
    monkeypatch.setattr(feature_cache.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ValueError, match=r"of memory are free\. Keep them on disk with --cache FOLDER"):
        cache_features(tiny_model, train, "above", 1, QUICK)


def test_features_with_the_labels_of_other_masks_are_refused(tiny_model, train, tmp_path):
    """A correction keeps the names of the masks."""
    cache_features(tiny_model, train, "above", 1, QUICK, tmp_path / "cache")
    (tmp_path / "masks").mkdir()
    pairs = [(image, Path(shutil.copy(mask, tmp_path / "masks"))) for image, mask in train.pairs]
    same = train.with_pairs(pairs)
    assert len(cache_features(tiny_model, same, "above", 1, QUICK, tmp_path / "cache")) == len(pairs)
    meaning = SegmentationDataset(pairs, train.classes, mask_format=MaskFormat.indices(len(train.classes), None))
    with pytest.raises(ValueError, match="were computed with masks with the digest"):
        cache_features(tiny_model, meaning, "above", 1, QUICK, tmp_path / "cache")
    with Image.open(pairs[0][1]) as mask:
        flipped = mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    flipped.save(pairs[0][1])
    with pytest.raises(ValueError, match="were computed with masks with the digest"):
        cache_features(tiny_model, same, "above", 1, QUICK, tmp_path / "cache")


def test_heads_that_are_trained_apart_are_those_that_are_trained_together(tiny_model, train, tmp_path):
    """The paper: the potentials can be trained in parallel."""
    config = replace(QUICK, epochs=2)
    for name in ("surrounding", "above"):
        tiny_model.pairwise_potential(name).last.zero_()
    parts = {}
    for name, chosen in (("together", None), ("surrounding", ["surrounding"]), ("above", ["above"])):
        parts[name] = deepcopy(tiny_model)
        fit_heads(parts[name], train, replace(config, potentials=chosen), tmp_path / name, 1, cache=tmp_path / "cache")
    together = parts.pop("together")
    merged = merge_potentials(tiny_model, parts)
    assert merged.config.shared_trunk
    for key, value in together.state_dict().items():
        assert torch.equal(merged.state_dict()[key], value), key
    # Trunks that differ are kept apart.
    with torch.no_grad():
        next(parts["above"].trunk("above").parameters()).add_(1)
    assert not merge_potentials(tiny_model, parts).config.shared_trunk
