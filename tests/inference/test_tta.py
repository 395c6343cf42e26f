"""Prediction from several views of an image."""

import json

import pytest
import torch

from contextcrf import load
from contextcrf.cli.main import main
from contextcrf.data.dataset import open_dataset
from contextcrf.evaluation.evaluate import predict, systems
from contextcrf.inference.tta import Views
from contextcrf.modeling.serialization import save
from contextcrf.utils.resizing import upsample


@pytest.fixture
def image(scenes):
    return open_dataset(scenes, "val")[0][0]


@torch.inference_mode()
def at_scale(model, image, scale, flipped):
    """The marginals of one view, at the image's size."""
    size = [round(side * scale) for side in image.shape[-2:]]
    images = image[None].float()
    if scale != 1:
        images = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=scale < 1)
    if flipped:
        images = images.flip(-1)
    marginals = upsample(model.infer(model.features(images)), image.shape[-2:])
    return (marginals.flip(-1) if flipped else marginals)[0]


def test_marginals_are_the_mean_of_the_views(tiny_model, image):
    tiny_model.eval()
    views = Views((1.0, 0.5, 1.5), flip=True)
    assert len(views) == 6
    each = [at_scale(tiny_model, image, scale, flipped) for scale in views.scales for flipped in (False, True)]
    expected = torch.stack(each).mean(0)
    torch.testing.assert_close(tiny_model.segment(image, views=views).probabilities, expected)
    [(found, seconds)] = predict(tiny_model, image, systems(tiny_model, ["crf"]), views=views)
    torch.testing.assert_close(found, expected)
    assert seconds > 0
    assert (each[0] - expected).abs().max() > 1e-4


def test_a_mirrored_image_is_labeled_as_the_image_mirrored(tiny_model, image):
    views = Views(flip=True)
    found = tiny_model.segment(image, views=views).probabilities
    mirrored = tiny_model.segment(image.flip(-1), views=views).probabilities
    torch.testing.assert_close(mirrored, found.flip(-1))


def test_one_view_is_the_image_as_it_is(tiny_model, image):
    images = image[None].float()
    [(view, _)] = Views().of(images)
    assert view is images
    with torch.inference_mode():
        torch.testing.assert_close(tiny_model.eval()(images)[0], tiny_model.segment(image).probabilities)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0)])
def test_scales_are_positive(scales):
    with pytest.raises(ValueError, match="expected at least one, each > 0"):
        Views(scales)


def test_the_commands_take_views(tiny_model, scenes, tmp_path):
    save(tiny_model, tmp_path / "model")
    shared = [str(tmp_path / "model"), "--scales", "[1.0,0.75]", "--flip", "true"]
    out = tmp_path / "results"
    command = ["evaluate", *shared, "--data", str(scenes), "--rows", "[unary]", "--out", str(out), "--pictures", "0"]
    main(command)
    stored = json.loads((out / "results.json").read_text())
    assert "--scales '[1.0, 0.75]' --flip true" in stored["about"]["command"]
    model, hits, known = load(tmp_path / "model"), 0, 0
    for image, mask in open_dataset(scenes, "val"):
        labels = model.segment(image, ["unary"], views=Views((1.0, 0.75), True)).labels
        hits, known = hits + int((labels == mask).sum()), known + int((mask != 255).sum())
    assert stored["rows"][0]["pixel_accuracy"] == pytest.approx(hits / known)
    picture = open_dataset(scenes, "val").pairs[0][0]
    main(["predict", *shared[:1], str(picture), *shared[1:], "--out", str(tmp_path / "labels")])
    assert (tmp_path / "labels" / f"{picture.stem}.png").exists()
