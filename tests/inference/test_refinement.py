"""The refine command: maps and images in, refined labels out."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.cli.main import main
from contextcrf.crf import DenseCRF, logits_from_labels, logits_from_probabilities
from contextcrf.data.image_format import ImageFormat
from contextcrf.inference import refinement as refine_module
from contextcrf.inference.refinement import MapFormat, match_maps, refine_files
from contextcrf.utils.errors import DataError
from processes import run_in_two


@pytest.fixture
def folders(tmp_path):
    """Two images of two halves and noisy probabilities of the halves, as .npy and .npz."""
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    generator = np.random.default_rng(0)
    side = np.arange(24) >= 12
    for name in ("a", "b"):
        image = np.where(side[None, :, None], [200, 40, 40], [40, 40, 200]) + generator.integers(0, 9, (20, 24, 3))
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "images" / f"{name}.png")
        noisy = (side + generator.normal(0, 0.6, (20, 24))).clip(0.01, 0.99)
        maps = np.stack([1 - noisy, noisy, 0 * noisy + 0.02]).astype(np.float32)
        maps /= maps.sum(0)
        np.save(tmp_path / "maps" / "a.npy", maps) if name == "a" else np.savez(tmp_path / "maps" / "b.npz", maps)
    return tmp_path


def refine(folders, *options, maps=None):
    inputs = [str(path) for path in (maps or [folders / "maps"])]
    main(["refine", *inputs, "--images", str(folders / "images"), "--out", str(folders / "out"), *options])


def picture(folders, name):
    return torch.from_numpy(np.array(Image.open(folders / "images" / f"{name}.png"))).permute(2, 0, 1)[None]


def test_files_are_refined_as_the_module_refines_tensors(folders, capsys):
    refine(folders, "--bilateral-sxy", "20", "--marginals")
    assert "2 of 2 maps refined" in capsys.readouterr().out
    for name, maps in (("a", np.load(folders / "maps" / "a.npy")), ("b", np.load(folders / "maps" / "b.npz")["arr_0"])):
        logits = logits_from_probabilities(torch.from_numpy(maps)[None])
        expected = DenseCRF(bilateral_sxy=20)(logits, picture(folders, name))[0]
        torch.testing.assert_close(torch.from_numpy(np.load(folders / "out" / f"{name}.npy")), expected)
        with Image.open(folders / "out" / f"{name}.png") as labels:
            assert labels.mode == "P"
            assert np.array_equal(np.array(labels), expected.argmax(0).numpy())
        assert (expected.argmax(0).numpy() != maps.argmax(0)).any()


def test_logits_and_labels_and_a_classes_file(folders):
    maps = np.load(folders / "maps" / "a.npy")
    np.save(folders / "a.npy", np.asfortranarray(np.log(maps).astype(">f8")))
    refine(folders, "--kind", "logits", maps=[folders / "a.npy"])
    expected = DenseCRF()(torch.from_numpy(np.log(maps)).double()[None], picture(folders, "a")).argmax(1)[0]
    assert np.array_equal(np.array(Image.open(folders / "out" / "a.png")), expected.numpy())

    labels = maps.argmax(0).astype(np.uint8)
    labels[:5, :5] = 7
    Image.fromarray(labels).save(folders / "b.png")
    (folders / "classes.yaml").write_text(
        "ignore_index: 7\nclasses: [{name: x, color: [9, 8, 7]}, {name: y, color: [1, 2, 3]}]"
    )
    refine(folders, "--classes", str(folders / "classes.yaml"), "--confidence", "0.6", maps=[folders / "b.png"])
    logits = logits_from_labels(torch.from_numpy(labels).long()[None], 2, 0.6, 7)
    written = Image.open(folders / "out" / "b.png")
    assert np.array_equal(np.array(written), DenseCRF()(logits, picture(folders, "b")).argmax(1)[0].numpy())
    assert written.getpalette()[:3] == [9, 8, 7]


def test_maps_that_do_not_fit_are_listed_and_the_others_refined(folders, capsys):
    maps = np.load(folders / "maps" / "a.npy")
    np.save(folders / "maps" / "turned.npy", maps.transpose(0, 2, 1))
    np.save(folders / "maps" / "whole.npy", (255 * maps).astype(np.int64))
    np.save(folders / "maps" / "nan.npy", np.where(maps > 0.5, np.nan, maps))
    np.savez(folders / "maps" / "two.npz", maps, maps)
    np.save(folders / "maps" / "pickled.npy", np.array([{}]), allow_pickle=True)
    (folders / "maps" / "zip.npz").write_bytes((folders / "maps" / "b.npz").read_bytes()[:-40])
    (folders / "maps" / "cut.npy").write_bytes((folders / "maps" / "a.npy").read_bytes()[:300])
    np.save(folders / "maps" / "sums.npy", maps * [[[1]], [[1]], [[9]]])
    np.save(folders / "maps" / "half.npy", maps[:, ::2, ::2])
    np.save(folders / "maps" / "ratio.npy", maps[:, :, ::2])
    np.save(folders / "maps" / "flat.npy", maps.ravel())
    for name in ("turned", "whole", "nan", "two", "pickled", "cut", "zip", "sums", "half", "ratio", "flat", "no image"):
        (folders / "images" / f"{name}.png").write_bytes((folders / "images" / "a.png").read_bytes())
    np.save(folders / "maps" / "no image.npy", maps)
    (folders / "images" / "no image.png").write_bytes(b"none")
    with pytest.raises(SystemExit) as stop:
        refine(folders)
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert "2 of 14 maps refined" in captured.out
    for name, reason in {
        "turned.npy": "height and width is expected. Exchange the height and width",
        "whole.npy": "int64",
        "sums.npy": "must sum to 1 over axis 0 (of length 3), which has the classes of [K, H, W], but",
        "half.npy": "the shape [3, 10, 12] and the image [20, 24], but a map [K, H, W] of the image's height and width "
        "is expected. Give --resize",
        "ratio.npy": "give --resize and --layout",
        "flat.npy": "the shape [1440], but [K, H, W], [H, W, K] or [H, W] is expected",
        "nan.npy": "nan",
        "two.npz": "exactly one array is expected",
        "pickled.npy": "allow_pickle",
        "cut.npy": "",
        "zip.npz": "not a zip file",
        "no image.png": "cannot be read as an image",
    }.items():
        [line] = [line for line in captured.err.splitlines() if name in line]
        assert reason in line


def test_pairs_are_checked_before_anything_is_done(folders, capsys):
    np.save(folders / "maps" / "lonely.npy", np.zeros((2, 3, 4)))
    (folders / "images" / "b.jpg").touch()
    with pytest.raises(SystemExit):
        refine(folders)
    error = capsys.readouterr().err
    assert "lonely.npy needs exactly one image lonely.*" in error
    assert "these were found: none" in error
    assert "b.png" in error
    assert "b.jpg" in error
    assert not (folders / "out").exists()
    for maps, message in (
        ([folders / "nothing"], "does not exist"),
        ([folders / "images" / "b.jpg"], "Expected a file with the suffix .npy"),
    ):
        with pytest.raises(SystemExit):
            refine(folders, maps=maps)
        assert message in capsys.readouterr().err
    Image.new("L", (24, 20)).save(folders / "images" / "c.png")
    with pytest.raises(SystemExit):
        main([
            "refine", str(folders / "images" / "c.png"), "--images", str(folders / "images"),
            "--out", str(folders / "images"), "--num-classes", "2",
        ])  # fmt: skip
    assert "would overwrite an input" in capsys.readouterr().err


def test_a_label_map_without_a_number_of_classes_is_refused_before_anything_is_done(folders, capsys):
    Image.new("L", (24, 20)).save(folders / "maps" / "c.png")
    Image.new("RGB", (24, 20)).save(folders / "images" / "c.png")
    with pytest.raises(SystemExit) as stop:
        refine(folders)
    assert stop.value.code == 2
    path = folders / "maps" / "c.png"
    assert f"error: The number of classes of the label map {path} is not known. Give" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_labels_that_predict_wrote_are_refined_without_their_overlays(folders, capsys):
    shutil.rmtree(folders / "maps")
    (folders / "maps").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(folders / "maps" / f"{name}.png")
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folders / "maps" / f"{name}_overlay.png")
    with pytest.raises(SystemExit) as stop:
        refine(folders)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("Give --classes or --num-classes") == 1
    pairs = match_maps(sorted((folders / "maps").iterdir()), folders / "images")
    assert [path.name for path, _ in pairs] == ["a.png", "b.png"]
    # A map of that name alone is a map.
    (folders / "images" / "c_overlay.png").write_bytes((folders / "images" / "a.png").read_bytes())
    assert len(match_maps([folders / "maps" / "a.png", folders / "maps" / "c_overlay.png"], folders / "images")) == 2


def test_files_are_refined_without_the_command(folders):
    pairs = match_maps(sorted((folders / "maps").iterdir()), folders / "images")
    outcome = refine_files(pairs, DenseCRF(), MapFormat(), folders / "out")
    assert outcome.written == [folders / "out" / "a.png", folders / "out" / "b.png"]
    assert outcome.failed == []
    with pytest.raises(DataError, match=r"a\.png would overwrite an input"):
        refine_files(pairs, DenseCRF(), MapFormat(), folders / "images")


def test_a_map_of_more_classes_than_a_label_file_can_hold_is_named(folders):
    np.save(folders / "maps" / "a.npy", np.zeros((257, 20, 24), np.float32))
    pair = (folders / "maps" / "a.npy", folders / "images" / "a.png")
    outcome = refine_files([pair], DenseCRF(), MapFormat(kind="logits"), folders / "out")
    assert outcome.written == []
    assert outcome.failed == [
        (pair[0], f"{pair[0]} cannot be refined. The map has 257 classes, but a label PNG can have at most 256.")
    ]


@pytest.fixture
def pairs(folders):
    """Six pairs of a map and its image."""
    for name in "cdef":
        shutil.copy(folders / "maps" / "a.npy", folders / "maps" / f"{name}.npy")
        shutil.copy(folders / "images" / "a.png", folders / "images" / f"{name}.png")
    return match_maps(sorted((folders / "maps").iterdir()), folders / "images")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".npy")}


def refined(pairs, out, crf=None, maps=MapFormat(), **options):  # noqa: B008 - the format is frozen
    return refine_files(pairs, crf or DenseCRF(), maps, out, **options)


def test_a_stopped_refinement_is_resumed_where_it_stopped(folders, pairs, monkeypatch):
    out = folders / "out"
    whole = refined(pairs, folders / "whole", marginals=True)
    refined(pairs, out, DenseCRF(bilateral_compat=4), marginals=True)  # labels that must not survive
    save, saved = np.save, []

    def stop(path, array):
        saved.append(path)
        save(path, array)
        if len(saved) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refine_module.np, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            refined(pairs, out, marginals=True)
    # The labels mark a map as done, so they are written after its marginals.
    assert sorted(path.name for path in out.glob("*.png")) == ["a.png", "b.png"]
    kept = (out / "a.png").stat().st_mtime_ns
    outcome = refined(pairs, out, marginals=True, resume=True)
    assert outcome.written == [out / f"{name}{suffix}" for name in "cdef" for suffix in (".npy", ".png")]
    assert (out / "a.png").stat().st_mtime_ns == kept
    assert contents(out) == contents(folders / "whole")
    assert sorted(path.name for path in out.iterdir()) == sorted([*contents(out), "provenance.json"])
    # The numbers are those of the maps of this process.
    assert (outcome.readings.total(), outcome.pixels) == (4, 4 * 20 * 24)
    assert 0 < outcome.changed < whole.changed
    assert refined(pairs, out, marginals=True, resume=True) == refine_module.Refinement()


def test_labels_from_other_maps_or_with_other_settings_are_not_resumed(folders, pairs):
    out = folders / "out"
    refined(pairs, out)

    def refused(why, *arguments, **options):
        with pytest.raises(
            DataError, match=rf"The labels in .*out were made with {why}\. Choose another --out, or omit"
        ):
            refined(*arguments, resume=True, **options)

    refused(r"dense\.bilateral_compat 10\.0, not 4\.0", pairs, out, DenseCRF(bilateral_compat=4))
    refused(r"dense\.iterations 10, not 3", pairs, out, DenseCRF(iterations=3))
    refused(r"map_format\.kind probabilities, not logits", pairs, out, maps=MapFormat("logits"))
    refused("marginals False, not True", pairs, out, marginals=True)
    refused(r"image_format\.channels 3, not 1", pairs, out, image_format=ImageFormat(channels=1))
    shutil.copytree(folders / "maps", folders / "others")
    others = match_maps(sorted((folders / "others").iterdir()), folders / "images")
    refused(r"maps \['.*maps'\], not \['.*others'\]", others, out)
    # Another process with other settings may not have written its first labels.
    for path in out.glob("*.png"):
        path.unlink()
    refused(r"dense\.iterations 10, not 3", pairs, out, DenseCRF(iterations=3))
    refined(others, out)  # from the beginning
    (out / "provenance.json").unlink()
    refused("settings that were not recorded", others, out)


def work(pairs, out, barrier):
    barrier.wait()
    return refine_files(pairs, DenseCRF(), MapFormat(), out, resume=True)


def test_processes_with_one_command_share_the_maps(folders, pairs):
    expected = refined(pairs, folders / "whole")
    parts = run_in_two(work, pairs, folders / "out")
    assert sorted(path.name for part in parts for path in part.written) == [f"{name}.png" for name in "abcdef"]
    assert sum(part.changed for part in parts) == expected.changed
    assert contents(folders / "out") == contents(folders / "whole")


def test_the_command_resumes(folders, capsys):
    refine(folders)
    (folders / "out" / "b.png").unlink()
    capsys.readouterr()
    refine(folders, "--resume")
    assert "1 map read as" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        refine(folders, "--resume", "--iterations", "3")
    assert "were made with dense.iterations 10, not 3. Choose another --out" in capsys.readouterr().err


def test_large_maps_are_refined_in_overlapping_tiles(folders, monkeypatch):
    generator = np.random.default_rng(1)
    image = np.where((np.arange(100) >= 50)[None, :, None], [200, 40, 40], [40, 40, 200])
    image = np.broadcast_to(image, (70, 100, 3)) + generator.integers(0, 9, (70, 100, 3))
    Image.fromarray(image.astype(np.uint8)).save(folders / "images" / "large.png")
    maps = generator.dirichlet(np.ones(3), (70, 100)).transpose(2, 0, 1).astype(np.float32)
    np.save(folders / "large.npy", maps)
    options = ("--bilateral-sxy", "4", "--bilateral-srgb", "60", "--iterations", "2", "--marginals")

    def marginals(*more):
        refine(folders, *options, *more, maps=[folders / "large.npy"])
        return np.load(folders / "out" / "large.npy")

    whole = marginals()
    monkeypatch.setattr(refine_module, "_TILE_ABOVE", 70 * 100 - 1)
    sizes, original = [], DenseCRF.forward

    def recorded(self, logits, *rest, **options):
        sizes.append(tuple(logits.shape[2:]))
        return original(self, logits, *rest, **options)

    monkeypatch.setattr(DenseCRF, "forward", recorded)
    tiled = marginals("--tile", "32")
    assert sizes[:2] == [(64, 64), (64, 96)]  # an overlap of 32 pixels, which is at least 2 * 4
    # The lattice of a tile has other vertices, so the marginals differ a little.
    assert 0 < np.abs(tiled - whole).mean() < 0.02
    assert (tiled.argmax(0) == whole.argmax(0)).mean() > 0.97
    with Image.open(folders / "out" / "large.png") as labels:
        assert np.array_equal(np.array(labels), tiled.argmax(0))
    np.testing.assert_array_equal(marginals("--tile", "0"), whole)
    assert sizes[-1] == (70, 100)


def test_freed_memory_is_released_after_each_tile_only(folders, monkeypatch):
    released = []
    monkeypatch.setattr(refine_module, "release_freed_memory", lambda: released.append(True))
    maps = np.full((2, 40, 70), 0.5, np.float32)
    np.save(folders / "large.npy", maps)
    Image.new("RGB", (70, 40)).save(folders / "images" / "large.png")
    refine(folders, maps=[folders / "large.npy"])
    assert not released
    monkeypatch.setattr(refine_module, "_TILE_ABOVE", 40 * 70 - 1)
    refine(folders, "--tile", "32", maps=[folders / "large.npy"])
    assert len(released) == 6


def test_tiles_overlap_by_two_standard_deviations_of_the_larger_kernel(folders, monkeypatch):
    overlaps, original = [], refine_module.tiles

    def recorded(height, width, side, overlap):
        overlaps.append(overlap)
        return original(height, width, side, overlap)

    monkeypatch.setattr(refine_module, "tiles", recorded)
    monkeypatch.setattr(refine_module, "_TILE_ABOVE", 0)
    refine(folders, "--bilateral-sxy", "12.2")
    refine(folders, "--spatial-sxy", "15", "--bilateral-sxy", "12.2")
    assert set(overlaps[: len(overlaps) // 2]) == {25}
    assert set(overlaps[len(overlaps) // 2 :]) == {30}


def test_a_tile_has_at_least_32_pixels(folders):
    with pytest.raises(SystemExit):
        refine(folders, "--tile", "16")
