"""Large images in tiles."""

import subprocess
import sys

import pytest
import torch

from contextcrf import InferenceConfig, Predictor
from contextcrf.inference import UNARY_ONLY
from contextcrf.inference.tiling import tiles
from contextcrf.modeling.serialization import save
from models import settings, tiny


@pytest.fixture
def small_field():
    """A unary network with a receptive field of 15 pixels, less than any overlap."""
    model = tiny(backbone="plain-15", scales=(1.0,), relations={})
    with torch.no_grad():
        logits = model.unary(model.features(torch.randint(0, 256, (1, 3, 64, 64)).float())["unary"])
        model.unary.last.bias -= logits.mean((0, 2, 3))  # else one class is the most probable everywhere
    return model


@pytest.mark.parametrize(("side", "overlap"), [(64, 32), (95, 1), (70, 33), (32, 0)])
@pytest.mark.parametrize(("height", "width"), [(300, 200), (64, 64), (65, 31)])
def test_tiles_cover_every_pixel_once_and_are_computed_with_an_overlap(height, width, side, overlap):
    covered = torch.zeros(height, width)
    side_used, overlap_used = side - side % 32, overlap + -overlap % 32
    for computed, kept in tiles(height, width, side, overlap):
        covered[kept] += 1
        for around, own, length in zip(computed, kept, (height, width), strict=True):
            # Both begin on the grid of every stride.
            assert own.start % 32 == around.start % 32 == 0
            assert own.stop - own.start <= side_used
            assert around.start == max(0, own.start - overlap_used)
            assert around.stop == min(length, own.stop + overlap_used)
    assert (covered == 1).all()


def test_a_network_of_a_smaller_field_than_the_overlap_labels_tiles_as_it_labels_the_whole(small_field):
    # The sides are multiples of the stride: others are stretched over the last node.
    image = torch.randint(0, 256, (3, 232, 328), dtype=torch.uint8)
    whole = Predictor(small_field).label(image)
    assert whole.dtype == torch.uint8
    assert whole.unique().numel() > 1
    assert torch.equal(whole, small_field.segment(image).labels.byte())
    tiled = Predictor(small_field, settings(tile=64, overlap=32, tile_above=0))
    assert torch.equal(tiled.label(image), whole)
    # The test can fail: without an overlap it does.
    assert not torch.equal(Predictor(small_field, settings(tile=64, overlap=0, tile_above=0)).label(image), whole)


def test_small_images_are_not_cut(monkeypatch):
    shapes = []
    predict = Predictor.predict
    monkeypatch.setattr(
        Predictor, "predict", lambda self, p, systems: shapes.append(p.shape) or predict(self, p, systems)
    )
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    model = tiny()
    Predictor(model, settings(tile_above=64 * 96)).label(image)
    assert shapes == [(3, 64, 96)]
    Predictor(model, settings(tile=32, overlap=0, tile_above=64 * 96 - 1)).label(image)
    assert shapes[1:] == [(3, 32, 32)] * 6
    # An image of 1920 x 1080 is not cut by default.
    assert InferenceConfig().tile_above >= 1920 * 1080


@pytest.mark.parametrize("tile_above", [0, 10**6])
def test_the_system_of_labels_can_be_chosen(tile_above):
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    model = tiny()
    predictor = Predictor(model, settings(tile=64, overlap=32, tile_above=tile_above))
    unary = Predictor(model, settings(tile=64, overlap=32, tile_above=tile_above, system="unary")).label(image)
    assert torch.equal(predictor.label(image, "unary"), unary)
    assert torch.equal(predictor.label(image, UNARY_ONLY), unary)


MEMORY = """
import resource, sys
import torch
from contextcrf import InferenceConfig, Predictor, load
torch.set_num_threads(1)
settings = InferenceConfig(system="unary+pairwise+dense", tile=128, overlap=32, tile_above=0, precision="32-true")
predictor = Predictor(load(sys.argv[1]), settings)
peaks = []
for count in (3, 8):
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 128 * count, count // 2 + 1)[..., :128 * count]
    predictor.label(image)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*peaks)
"""


def test_seven_times_the_tiles_take_no_more_memory(tiny_model, tmp_path):
    save(tiny_model, tmp_path)
    run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    few, many = map(float, run.stdout.split())
    # MiB. The marginals of the larger image alone would take 40 more, a dense CRF of it several times that.
    assert many < few + 15
