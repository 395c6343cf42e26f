import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.data.dataset import open_dataset
from contextcrf.data.images import read_picture
from contextcrf.inference import files as prediction
from contextcrf.inference.files import Look, predict_files
from contextcrf.inference.tiling import Tiles, label
from contextcrf.inference.tta import Views
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import load, save
from contextcrf.utils.errors import DataError


@pytest.fixture
def near_sighted(scenes):
    """A unary network whose nodes see 15 pixels, less than any margin."""
    config = ModelConfig(backbone="plain-15", channels=8, hidden=8, scales=(1.0,), relations={})
    model = ContextCRF(config, open_dataset(scenes, "train").classes, pretrained=False).eval()
    with torch.no_grad():
        logits = model.unary(model.features(torch.randint(0, 256, (1, 3, 64, 64)).float())["unary"])
        model.unary.last.bias -= logits.mean((0, 2, 3))  # else one class wins everywhere
    return model


@pytest.mark.parametrize(("height", "width"), [(300, 200), (64, 64), (65, 31)])
def test_tiles_cover_every_pixel_once_and_see_a_margin(height, width):
    covered = torch.zeros(height, width)
    for seen, core in Tiles(side=64, margin=32).of(height, width):
        covered[core] += 1
        for around, own, length in zip(seen, core, (height, width), strict=True):
            assert around.start == max(0, own.start - 32)
            assert around.stop == min(length, own.stop + 32)
    assert (covered == 1).all()


def test_a_network_that_sees_less_than_the_margin_labels_tiles_as_it_labels_the_whole(near_sighted):
    picture = torch.randint(0, 256, (3, 232, 328), dtype=torch.uint8)
    whole = label(near_sighted, picture)  # sides of whole nodes: others are stretched over the last one
    assert whole.unique().numel() > 1
    assert torch.equal(label(near_sighted, picture, tiles=Tiles(64, 32, above=0)), whole)
    # The test can fail: without a margin it does.
    assert not torch.equal(label(near_sighted, picture, tiles=Tiles(64, 0, above=0)), whole)


def test_small_pictures_are_not_cut(tiny_model, monkeypatch):
    seen = []
    segment = ContextCRF.segment
    monkeypatch.setattr(ContextCRF, "segment", lambda self, p, **o: seen.append(p.shape) or segment(self, p, **o))
    picture = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    label(tiny_model, picture, tiles=Tiles(above=64 * 96))
    assert seen == [(3, 64, 96)]
    label(tiny_model, picture, tiles=Tiles(32, 0, above=64 * 96 - 1))
    assert seen[1:] == [(3, 32, 32)] * 6


def test_impossible_tiles_are_refused():
    with pytest.raises(ValueError, match="tiles of 8"):
        Tiles(8)
    with pytest.raises(ValueError, match="margins of -1"):
        Tiles(64, -1)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(generator.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def test_a_stopped_prediction_goes_on_where_it_stopped(tiny_model, pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict_files(tiny_model, pictures, out, progress=False)
    expected = {path.name: path.read_bytes() for path in out.glob("*.png")}
    (out / "3.png").unlink()
    (out / "3_overlay.png").write_bytes(b"cut short")
    kept = (out / "2.png").stat().st_mtime_ns
    outcome = predict_files(tiny_model, pictures, out, resume=True, progress=False)
    assert outcome.written == [out / "3.png", out / "3_overlay.png"]
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == expected
    assert (out / "2.png").stat().st_mtime_ns == kept
    assert sorted(path.name for path in out.iterdir()) == sorted([*expected, "predict.json"])


def test_results_of_another_model_or_other_settings_are_not_gone_on_with(tiny_model, pictures, tmp_path):
    out = tmp_path / "out"
    predict_files(tiny_model, pictures, out, progress=False)
    flipped = Look(views=Views(flip=True))
    with pytest.raises(DataError, match=r"made with views .*not"):
        predict_files(tiny_model, pictures, out, flipped, resume=True, progress=False)
    predict_files(tiny_model, pictures, out, flipped, progress=False)  # from the beginning, over the old ones
    predict_files(tiny_model, pictures, out, flipped, resume=True, progress=False)
    with torch.no_grad():
        tiny_model.unary.last.bias += 1
    with pytest.raises(DataError, match="made with model"):
        predict_files(tiny_model, pictures, out, flipped, resume=True, progress=False)
    (out / "predict.json").unlink()
    with pytest.raises(DataError, match="made with model None"):
        predict_files(tiny_model, pictures, out, flipped, resume=True, progress=False)


def test_labels_of_an_earlier_model_do_not_survive_a_run_that_is_stopped(tiny_model, pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict_files(tiny_model, pictures, out, progress=False)
    with torch.no_grad():
        tiny_model.unary.last.bias += torch.arange(tiny_model.num_classes)

    def stop(path):
        if path == pictures[2]:
            raise KeyboardInterrupt
        return read_picture(path)

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "read_picture", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_files(tiny_model, pictures, out, progress=False)
    predict_files(tiny_model, pictures, out, resume=True, progress=False)
    found = {path.name: path.read_bytes() for path in out.glob("*.png")}
    predict_files(tiny_model, pictures, tmp_path / "fresh", progress=False)
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "fresh").glob("*.png")}


MEMORY = """
import resource, sys
import numpy as np, torch
from contextcrf import load
from contextcrf.inference.tiling import Tiles, label
torch.set_num_threads(1)
model, tiles = load(sys.argv[1]), Tiles(side=128, margin=32, above=0)
peaks = []
for count in (3, 8):
    picture = torch.arange(256, dtype=torch.uint8).repeat(3, 128 * count, count // 2 + 1)[..., :128 * count]
    label(model, picture, dense=True, tiles=tiles, progress=False)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*peaks)
"""


def test_seven_times_the_tiles_take_no_more_memory(tiny_model, tmp_path):
    save(tiny_model, tmp_path)
    run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    few, many = map(float, run.stdout.split())
    # MiB. The marginals of the larger picture alone would take 40 more, a dense CRF of it several times that.
    assert many < few + 15


def work(model, pictures, out, barrier, written):
    torch.set_num_threads(1)
    network = load(model)
    barrier.wait()
    written.put(predict_files(network, pictures, out, resume=True, progress=False).written)


def test_processes_with_one_command_share_the_pictures(tiny_model, pictures, tmp_path):
    save(tiny_model, tmp_path / "model")
    context = multiprocessing.get_context("spawn")
    barrier, written = context.Barrier(2), context.Queue()
    arguments = (tmp_path / "model", pictures, tmp_path / "out", barrier, written)
    processes = [context.Process(target=work, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    parts = [written.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    names = sorted(os.fspath(path.name) for part in parts for path in part)
    assert names == sorted(f"{path.stem}{end}.png" for path in pictures for end in ("", "_overlay"))
