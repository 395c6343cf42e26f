"""Image files in, label files out; stopped and resumed, by one process or several."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf import Predictor
from contextcrf.data.images import read_image
from contextcrf.data.visualization import colorize, overlay
from contextcrf.inference import files as predict_module
from contextcrf.inference.files import find_files, plan_outputs, predict_files
from contextcrf.modeling.model import load
from contextcrf.modeling.serialization import save
from contextcrf.utils.errors import DataError
from processes import run_in_two


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(generator.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def with_settings(predictor, **changes):
    return Predictor(predictor.model, replace(predictor.inference, **changes))


@pytest.fixture
def predictor(tiny_model):
    return Predictor(tiny_model)


@pytest.fixture
def stop_early(monkeypatch):
    """A function that labels files and is stopped at the third one."""

    def run(predictor, pictures, out, **options):
        def stop(path, *arguments):
            if path == pictures[2]:
                raise KeyboardInterrupt
            return read_image(path, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(predict_module, "read_image", stop)
            with pytest.raises(KeyboardInterrupt):
                predict_files(predictor, pictures, out, **options)

    return run


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, torch.OutOfMemoryError])
def test_an_image_that_the_network_cannot_take_does_not_stop_the_others(
    predictor, pictures, tmp_path, monkeypatch, kind
):
    Image.new("RGB", (7, 5)).save(pictures[1])
    features = predictor.model.features

    def picky(images, names):
        if images.shape[-1] < 32:
            raise kind("Calculated padded input size per channel: (2 x 2).\n  Kernel size: (4 x 4).")
        return features(images, names)

    monkeypatch.setattr(predictor.model, "features", picky)
    outcome = predict_files(predictor, pictures, tmp_path / "out")
    [(path, reason)] = outcome.failed
    assert path == pictures[1]
    size = "Calculated padded input size per channel: (2 x 2). Kernel size: (4 x 4)."
    assert reason == f"{path} (7 x 5 pixels) cannot be labeled: {size}"
    assert sorted(contents(tmp_path / "out")) == sorted(f"{n}{end}.png" for n in "02345" for end in ("", "_overlay"))


def test_files_hold_the_labels_of_the_predictor_and_an_overlay(predictor, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "_STRIPE", 7)  # the overlay is drawn in several pieces
    out = tmp_path / "out"
    outcome = predict_files(predictor, pictures[:2], out, opacity=0.3)
    assert outcome.written == [out / name for stem in "01" for name in (f"{stem}.png", f"{stem}_overlay.png")]
    assert outcome.failed == []
    palette = predictor.model.classes.palette
    for path in pictures[:2]:
        labels = predictor.label(read_image(path))
        with Image.open(out / path.name) as found, Image.open(path) as image:
            assert found.mode == "P"
            assert np.array_equal(np.asarray(found), labels.numpy())
            with Image.open(out / f"{path.stem}_overlay.png") as drawn:
                # These images are narrow, so their overlays have no legend.
                assert np.array_equal(np.asarray(drawn), np.asarray(overlay(image, labels, palette, 0.3)))


def test_images_of_one_size_form_batches(predictor, pictures, tmp_path, monkeypatch):
    predict_files(predictor, pictures, tmp_path / "singly")
    Image.effect_noise((44, 36), 80).convert("RGB").save(pictures[3])
    predict_files(predictor, pictures, tmp_path / "singly")
    sizes, features = [], predictor.model.features

    def counted(images, names):
        sizes.append(tuple(images.shape[::2]))
        return features(images, names)

    monkeypatch.setattr(predictor.model, "features", counted)
    outcome = predict_files(predictor, pictures, tmp_path / "together", batch_size=2)
    assert sizes == [(2, 40), (1, 40), (1, 36), (2, 40)]
    assert outcome.written == [tmp_path / "together" / f"{n}{end}.png" for n in range(6) for end in ("", "_overlay")]
    assert contents(tmp_path / "together") == contents(tmp_path / "singly")
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1, but is 0"):
        predict_files(predictor, pictures, tmp_path / "together", batch_size=0)


def test_images_that_are_too_many_at_once_are_labeled_one_by_one(predictor, pictures, tmp_path, monkeypatch, caplog):
    predict_files(predictor, pictures, tmp_path / "singly")
    features = predictor.model.features

    def small(images, names):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return features(images, names)

    monkeypatch.setattr(predictor.model, "features", small)
    outcome = predict_files(predictor, pictures, tmp_path / "together", batch_size=4)
    assert outcome.failed == []
    assert "4 images at once cannot be labeled (CUDA out of memory.). They are labeled one by one" in caplog.text
    assert contents(tmp_path / "together") == contents(tmp_path / "singly")


def test_a_full_disk_ends_the_prediction(predictor, pictures, tmp_path, monkeypatch):
    def full(image, path, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict_module, "_save", full)
    with pytest.raises(OSError, match="No space left"):
        predict_files(predictor, pictures, tmp_path / "out")


def test_claims_of_a_stopped_prediction_are_released(predictor, pictures, tmp_path, stop_early):
    out = tmp_path / "out"

    stop_early(predictor, pictures, out, resume=True)
    predict_files(predictor, pictures, out, resume=True)
    assert sorted(path.name for path in out.glob("[0-9].png")) == [f"{n}.png" for n in range(6)]


def test_wide_overlays_have_a_legend_of_the_classes_that_occur(predictor, tmp_path):
    Image.effect_noise((160, 90), 80).convert("RGB").save(tmp_path / "wide.png")
    predict_files(predictor, [tmp_path / "wide.png"], tmp_path / "out", opacity=1)
    classes = predictor.model.classes
    labels = predictor.label(read_image(tmp_path / "wide.png"))
    with Image.open(tmp_path / "out" / "wide_overlay.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    assert np.array_equal(pixels[:90], np.asarray(colorize(labels, classes.palette)))
    # A patch has more pixels of its color than the smooth edges of the text have by chance.
    found = {k for k, color in enumerate(classes.palette) if (pixels[90:] == color).all(-1).sum() >= 40}
    assert found == set(labels.unique().tolist())


def test_a_file_that_cannot_be_read_does_not_stop_the_others(predictor, pictures, tmp_path):
    pictures[1].write_bytes(pictures[1].read_bytes()[:100])
    outcome = predict_files(predictor, pictures[:3], tmp_path / "out")
    [(path, reason)] = outcome.failed
    assert path == pictures[1]
    assert reason.startswith(f"{pictures[1]} cannot be read as an image: ")
    assert reason.count(str(pictures[1])) == 1
    assert [path.name for path in outcome.written] == ["0.png", "0_overlay.png", "2.png", "2_overlay.png"]


def test_a_stopped_prediction_is_resumed_where_it_stopped(predictor, pictures, tmp_path):
    out = tmp_path / "out"
    predict_files(predictor, pictures, out)
    expected = contents(out)
    (out / "3.png").unlink()
    (out / "3_overlay.png").write_bytes(b"cut short")
    kept = (out / "2.png").stat().st_mtime_ns
    outcome = predict_files(predictor, pictures, out, resume=True)
    assert outcome.written == [out / "3.png", out / "3_overlay.png"]
    assert contents(out) == expected
    assert (out / "2.png").stat().st_mtime_ns == kept
    assert sorted(path.name for path in out.iterdir()) == sorted([*expected, "provenance.json"])


def test_results_of_another_model_or_of_other_settings_are_not_resumed(predictor, pictures, tmp_path):
    out = tmp_path / "out"
    predict_files(predictor, pictures, out)
    flipped = with_settings(predictor, flip=True)
    with pytest.raises(DataError, match=r"made with inference\.flip False, not True\. Choose another --out"):
        predict_files(flipped, pictures, out, resume=True)
    with pytest.raises(DataError, match=r"made with opacity 0\.5, not 0\.4"):
        predict_files(predictor, pictures, out, opacity=0.4, resume=True)
    predict_files(flipped, pictures, out)  # from the beginning, over the old ones
    predict_files(flipped, pictures, out, resume=True)
    with torch.no_grad():
        predictor.model.unary.last.bias += 1
    with pytest.raises(DataError, match="made with model"):
        predict_files(flipped, pictures, out, resume=True)
    (out / "provenance.json").unlink()
    with pytest.raises(DataError, match=r"The labels in .* were made with settings that were not recorded"):
        predict_files(flipped, pictures, out, resume=True)


def test_labels_of_an_earlier_model_do_not_survive_a_run_that_is_stopped(predictor, pictures, tmp_path, stop_early):
    out = tmp_path / "out"
    predict_files(predictor, pictures, out)
    with torch.no_grad():
        predictor.model.unary.last.bias += torch.arange(predictor.model.num_classes)

    stop_early(predictor, pictures, out)
    predict_files(predictor, pictures, out, resume=True)
    predict_files(predictor, pictures, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_inputs_are_files_and_folders(pictures, tmp_path):
    folder = pictures[0].parent
    (folder / "notes.txt").touch()
    (folder / "deeper").mkdir()
    assert find_files([folder, pictures[0]]) == [*pictures, pictures[0]]
    assert find_files([folder / "notes.txt"]) == [folder / "notes.txt"]  # named by the user, whatever it is
    with pytest.raises(DataError, match=r"deeper contains no images\. Expected files with the suffixes \.png, "):
        find_files([folder / "deeper"])
    with pytest.raises(DataError, match=r"deeper contains no maps\. Expected files with the suffixes \.npy"):
        find_files([folder / "deeper"], [".npy"], "maps")
    with pytest.raises(DataError, match="missing does not exist"):
        find_files([tmp_path / "missing"])


def test_outputs_do_not_clash(pictures, tmp_path):
    first, out = pictures[0], tmp_path / "out"
    assert plan_outputs([first], out) == [(out / "0.png", out / "0_overlay.png")]
    with pytest.raises(DataError, match=r"of .*0\.png would overwrite an image\. Choose another --out"):
        plan_outputs([first], first.parent)
    with pytest.raises(DataError, match=r"0\.png and .*0\.jpg would both be written to .*0\.png\. Rename one"):
        plan_outputs([first, tmp_path / "0.jpg"], out)
    with pytest.raises(DataError, match=r"0\.png and .*0_overlay\.jpg would both be written to .*0_overlay\.png"):
        plan_outputs([first, tmp_path / "0_overlay.jpg"], out)


def work(model, pictures, out, barrier):
    predictor = Predictor(load(model))
    barrier.wait()
    return predict_files(predictor, pictures, out, resume=True).written


def test_processes_with_one_command_share_the_images(tiny_model, pictures, tmp_path):
    save(tiny_model, tmp_path / "model")
    parts = run_in_two(work, tmp_path / "model", pictures, tmp_path / "out")
    names = sorted(os.fspath(path.name) for part in parts for path in part)
    assert names == sorted(f"{path.stem}{end}.png" for path in pictures for end in ("", "_overlay"))


def test_a_folder_with_images_in_subfolders_only_names_one(tmp_path):
    (tmp_path / "photos" / "day 1").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "day 1" / "a.JPG")
    with pytest.raises(DataError, match=r"Subfolders are not searched\. Give them too, such as .*day 1"):
        find_files([tmp_path / "photos"])
