"""Test-time augmentation: marginals of several copies of an image, averaged."""

import json

import pytest
import torch

from contextcrf import Predictor, System, load
from contextcrf.cli.main import main
from contextcrf.data.layouts import open_dataset
from contextcrf.inference import FULL, UNARY_PAIRWISE
from contextcrf.inference.tta import augmented
from contextcrf.modeling.serialization import save
from contextcrf.utils.resizing import upsample
from models import count_trunk_runs, settings


@pytest.fixture
def image(scenes):
    return torch.as_tensor(open_dataset(scenes, "val")[0][0])


@torch.inference_mode()
def at_scale(model, image, scale, flipped):
    """The marginals of one copy, at the image's size."""
    size = [round(side * scale) for side in image.shape[-2:]]
    images = image[None].float()
    if scale != 1:
        images = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=scale < 1)
    if flipped:
        images = images.flip(-1)
    predictor = Predictor(model)
    features = predictor.extract_features(images)
    marginals = upsample(predictor.mean_field(features, UNARY_PAIRWISE), image.shape[-2:])
    return (marginals.flip(-1) if flipped else marginals)[0]


def test_marginals_are_the_mean_over_the_copies(tiny_model, image):
    tiny_model.eval()
    predictor = Predictor(tiny_model, settings(scales=(1.0, 0.5, 1.5), flip=True))
    each = [at_scale(tiny_model, image, scale, flipped) for scale in (1.0, 0.5, 1.5) for flipped in (False, True)]
    expected = torch.stack(each).mean(0)
    torch.testing.assert_close(predictor.segment(image).probabilities, expected)
    assert (each[0] - expected).abs().max() > 1e-4
    [found, other] = predictor.predict(image, [UNARY_PAIRWISE, System(relations=())])
    assert torch.equal(found.marginals, predictor.segment(image).probabilities)
    assert not torch.equal(found.marginals, other.marginals)
    # The dense CRF refines the mean, once.
    torch.testing.assert_close(
        predictor.segment(image, FULL).probabilities, predictor.refine(expected[None], image[None])[0]
    )


def test_the_network_runs_once_for_each_copy(tiny_model, image):
    predictor = Predictor(tiny_model, settings(scales=(1.0, 0.5, 1.5), flip=True))
    with count_trunk_runs(tiny_model) as count:
        predictor.predict(image, [UNARY_PAIRWISE, FULL])
        assert count() == 6


def test_a_mirrored_image_is_labeled_as_the_image_mirrored(tiny_model, image):
    predictor = Predictor(tiny_model, settings(flip=True))
    found = predictor.segment(image).probabilities
    torch.testing.assert_close(predictor.segment(image.flip(-1)).probabilities, found.flip(-1))
    # Without the mirrored copy it is not.
    plain = Predictor(tiny_model).segment(image.flip(-1)).probabilities
    assert (plain - Predictor(tiny_model).segment(image).probabilities.flip(-1)).abs().max() > 1e-4


def test_without_augmentation_the_image_is_left_as_it_is(tiny_model, image):
    images = image[None].float()
    [(copy, _)] = augmented(images)
    assert copy is images
    with torch.inference_mode():
        assert torch.equal(tiny_model.eval()(images)[0], tiny_model.segment(image).probabilities)


@pytest.mark.parametrize(("scale", "size"), [(0.5, (10, 16)), (1.5, (30, 46)), (0.01, (1, 1))])
def test_copies_are_scaled_and_restored(scale, size):
    images = torch.rand(2, 3, 20, 31) * 255
    (scaled, restore), (flipped, restore_flipped) = augmented(images, (scale,), flip=True)
    assert scaled.shape[2:] == flipped.shape[2:] == size
    assert torch.equal(flipped, scaled.flip(-1))
    marginals = torch.rand(2, 4, 5, 7)
    assert restore(marginals).shape == (2, 4, 20, 31)
    torch.testing.assert_close(restore_flipped(marginals), restore(marginals).flip(-1))


def test_the_commands_augment(tiny_model, scenes, tmp_path):
    save(tiny_model, tmp_path / "model")
    shared = [str(tmp_path / "model"), "--scales", "[1.0,0.75]", "--flip"]
    out = tmp_path / "results"
    command = ["evaluate", *shared, "--data", str(scenes), "--systems", "[unary]", "--out", str(out), "--pictures", "0"]
    main([*command, "--precision", "32-true"])
    stored = json.loads((out / "results.json").read_text())
    assert stored["metadata"]["inference"] == {"scales": [1.0, 0.75], "flip": True}
    assert "--scales '[1.0, 0.75]' --flip" in stored["metadata"]["command"]
    predictor, hits, known = Predictor(load(tmp_path / "model"), settings(scales=(1.0, 0.75), flip=True)), 0, 0
    for image, mask in open_dataset(scenes, "val"):
        labels = predictor.segment(image, "unary").labels
        hits, known = hits + int((labels == mask).sum()), known + int((mask != 255).sum())
    assert stored["systems"][0]["pixel_accuracy"] == pytest.approx(hits / known)
    picture = open_dataset(scenes, "val").pairs[0][0]
    main(["predict", *shared[:1], str(picture), *shared[1:], "--out", str(tmp_path / "labels")])
    provenance = json.loads((tmp_path / "labels" / "provenance.json").read_text())
    assert (provenance["inference"]["scales"], provenance["inference"]["flip"]) == ([1.0, 0.75], True)
    assert (tmp_path / "labels" / f"{picture.stem}.png").exists()
