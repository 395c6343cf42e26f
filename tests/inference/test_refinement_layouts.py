"""The layouts and value ranges of maps that `refine` takes, and those that it refuses with a way out."""

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.cli.main import main
from contextcrf.crf import DenseCRF, logits_from_labels, logits_from_probabilities
from contextcrf.data.classes import Classes
from contextcrf.data.classes_file import ClassesFile
from contextcrf.data.masks import MaskFormat as LabelFormat
from contextcrf.inference.map_layout import arrange
from contextcrf.inference.refinement import MapFormat
from contextcrf.utils.resizing import downsample, upsample

SIZE = (20, 24)
GENERATOR = np.random.default_rng(0)
SIDE = np.arange(24) >= 12
PIXELS = (np.where(SIDE[None, :, None], [200, 40, 40], [40, 40, 200]) + GENERATOR.integers(0, 9, (20, 24, 3))).astype(
    np.uint8
)
FOREGROUND = (SIDE + GENERATOR.normal(0, 0.6, SIZE)).clip(0.01, 0.99).astype(np.float32)
MAPS = np.stack([0.9 - 0.9 * FOREGROUND, 0.9 * FOREGROUND, 0 * FOREGROUND + 0.1])
IMAGE = torch.from_numpy(PIXELS).permute(2, 0, 1)[None]


@pytest.fixture
def refined(tmp_path, capsys):
    """A function that refines one map, and returns the marginals and what was printed."""
    (tmp_path / "images").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "images" / "a.png")

    def run(content, *options, image=None):
        if image is not None:
            Image.fromarray(image).save(tmp_path / "images" / "a.png")
        path = tmp_path / ("a.png" if isinstance(content, Image.Image) else "a.npy")
        content.save(path) if isinstance(content, Image.Image) else np.save(path, content)
        out = tmp_path / "out"
        main(["refine", str(path), "--images", str(tmp_path / "images"), "--out", str(out), "--marginals", *options])
        captured = capsys.readouterr()
        return torch.from_numpy(np.load(out / "a.npy")), captured.out, captured.err

    return run


def refusal(refined, capsys, content, *options, **others):
    with pytest.raises(SystemExit):
        refined(content, *options, **others)
    error = capsys.readouterr().err
    assert "a.npy" in error or "a.png" in error or "--" in error
    return error


def expected(probabilities):
    return DenseCRF()(logits_from_probabilities(torch.from_numpy(np.asarray(probabilities))[None]), IMAGE)[0]


@pytest.mark.parametrize(
    ("content", "reading"),
    [
        (MAPS, "probabilities [K, H, W]"),
        (MAPS[None], "probabilities [K, H, W]"),
        (MAPS.transpose(1, 2, 0), "probabilities [H, W, K]"),
        (MAPS.transpose(1, 2, 0)[None], "probabilities [H, W, K]"),
        (np.asfortranarray(MAPS.astype(">f8")), "probabilities [K, H, W]"),
    ],
)
def test_classes_on_any_axis(refined, content, reading):
    found, out, _ = refined(content)
    torch.testing.assert_close(found, expected(MAPS), rtol=0, atol=1e-5)
    assert f"1 map read as {reading}\n" in out
    # The refined labels differ from those of the map at some pixels.
    changed = (expected(MAPS).argmax(0).numpy() != MAPS.argmax(0)).mean()
    assert f"{100 * changed:.1f} % of the labeled pixels changed their label" in out


@pytest.mark.parametrize(
    ("content", "reading"),
    [
        (FOREGROUND, "[H, W]"),
        (FOREGROUND[None], "[1, H, W]"),
        (FOREGROUND[None, None], "[1, H, W]"),
        (FOREGROUND[..., None], "[H, W, 1]"),
    ],
)
def test_foreground_maps_have_the_background_first(refined, content, reading):
    found, out, _ = refined(content)
    torch.testing.assert_close(found, expected(np.stack([1 - FOREGROUND, FOREGROUND])), rtol=0, atol=1e-5)
    assert f"1 map read as probabilities of the foreground {reading}\n" in out
    assert found.argmax(0)[:, 20:].float().mean() > 0.9


def test_foreground_logits(refined):
    logits = np.log(FOREGROUND / (1 - FOREGROUND))
    found, out, _ = refined(logits, "--kind", "logits")
    torch.testing.assert_close(found, expected(np.stack([1 - FOREGROUND, FOREGROUND])), rtol=0, atol=1e-4)
    assert "logits of the foreground [H, W]" in out


def test_eight_bits_and_half_precision(refined):
    for content, reading in (
        ((255 * MAPS).round().astype(np.uint8), "probabilities [K, H, W] in 0..255"),
        ((255 * MAPS).astype(np.uint8).transpose(1, 2, 0), "probabilities [H, W, K] in 0..255"),
        (MAPS.astype(np.float16), "probabilities [K, H, W]"),
    ):
        found, out, _ = refined(content)
        torch.testing.assert_close(found, expected(MAPS), rtol=0, atol=0.05)
        assert f"read as {reading}\n" in out
    found, out, _ = refined((255 * FOREGROUND).round().astype(np.uint8))
    torch.testing.assert_close(found, expected(np.stack([1 - FOREGROUND, FOREGROUND])), rtol=0, atol=0.05)
    assert "foreground [H, W] in 0..255" in out


def test_eight_bits_that_do_not_sum_are_refused(refined, capsys):
    error = refusal(refined, capsys, (100 * MAPS).astype(np.uint8))
    assert "must sum to 255 over axis 0 (of length 3)" in error
    error = refusal(refined, capsys, (100 * MAPS).astype(np.uint8).transpose(1, 2, 0)[None])
    assert "must sum to 255 over axis 3 (of length 3), which has the classes of [H, W, K]" in error


def test_labels_in_an_array_are_not_probabilities(refined, capsys):
    labels = MAPS.argmax(0).astype(np.uint8)
    error = refusal(refined, capsys, labels)
    assert "values up to 1, which may be labels" in error
    assert "--layout hw" in error
    found, _, _ = refined(labels, "--layout", "hw")
    assert (found.argmax(0) == 0).all()
    assert "save labels as .png" in refusal(refined, capsys, labels.astype(np.int64))
    assert "bool" in refusal(refined, capsys, labels == 1)


def test_an_unclear_layout_is_refused_with_the_option(refined, capsys):
    cube = torch.randn(24, 24, 24, generator=torch.Generator().manual_seed(0)).numpy()
    image = np.concatenate([PIXELS, PIXELS[:4]])
    error = refusal(refined, capsys, cube, "--kind", "logits", image=image)
    assert "may be [K, H, W] or [H, W, K]. Give --layout khw or --layout hwk" in error
    first, out, _ = refined(cube, "--kind", "logits", "--layout", "khw")
    assert "logits [K, H, W]" in out
    last, out, _ = refined(cube.transpose(1, 2, 0), "--kind", "logits", "--layout", "hwk")
    assert "logits [H, W, K]" in out
    assert torch.equal(first, last)
    # The sums of probabilities decide.
    probabilities = torch.from_numpy(cube).softmax(2).numpy()
    assert "probabilities [H, W, K]" in refined(probabilities)[1]


def test_the_layout_that_was_given_must_fit(refined, capsys):
    assert "but [H, W] is expected" in refusal(refined, capsys, MAPS, "--layout", "hw")
    assert "but [K, H, W] is expected" in refusal(refined, capsys, FOREGROUND, "--layout", "khw")
    assert "with 4 classes is expected" in refusal(refined, capsys, MAPS, "--num-classes", "4")
    assert "with 3 classes is expected" in refusal(refined, capsys, FOREGROUND, "--num-classes", "3")
    error = refusal(refined, capsys, 3 * MAPS - 1)
    assert "range from" in error
    assert "--kind logits" in error


def test_half_resolution_maps_are_resized_if_asked(refined, capsys):
    small = upsample(torch.from_numpy(MAPS)[None], (10, 12))[0].numpy()
    assert "Give --resize" in refusal(refined, capsys, small)
    full = upsample(torch.from_numpy(small)[None], SIZE)[0]
    for content, reading in ((small, "[K, H, W]"), (small.transpose(1, 2, 0), "[H, W, K]")):
        found, out, _ = refined(content, "--resize")
        torch.testing.assert_close(found, expected(full), rtol=0, atol=1e-5)
        assert f"probabilities {reading}, resized to the image\n" in out
    assert "foreground [H, W], resized" in refined(FOREGROUND[::2, ::2], "--resize")[1]
    assert "foreground [H, W], resized" in refined(FOREGROUND[:7, :8], "--resize")[1]  # ceil(20 / 3), ceil(24 / 3)
    # A network with square input changes the ratio, which only the user can know.
    assert "--layout" in refusal(refined, capsys, MAPS[:, :16, :16], "--resize")
    assert "[K, H, W], resized" in refined(MAPS[:, :16, :16], "--resize", "--layout", "khw")[1]
    for options in ([], ["--resize"], ["--resize", "--layout", "khw"]):
        assert "Exchange the height and width" in refusal(refined, capsys, MAPS.transpose(0, 2, 1), *options)


def test_label_maps_are_resized_without_mixing_labels(refined, capsys):
    labels = 2 * MAPS.argmax(0)[::2, ::2].astype(np.uint8)
    assert "Give --resize" in refusal(refined, capsys, Image.fromarray(labels), "--num-classes", "3")
    found, out, _ = refined(Image.fromarray(labels), "--num-classes", "3", "--resize")
    full = downsample(torch.from_numpy(labels).long()[None], SIZE)
    torch.testing.assert_close(found, DenseCRF()(logits_from_labels(full, 3), IMAGE)[0])
    assert "1 map read as labels, resized to the image\n" in out


def test_masks_of_0_and_255_are_never_all_background(refined, capsys, tmp_path):
    mask = Image.fromarray(np.where(FOREGROUND > 0.5, 255, 0).astype(np.uint8))
    for options in (["--num-classes", "2"], ["--classes", str(tmp_path / "classes.yaml")]):
        Classes(("background", "leaf"), ((0, 0, 0), (0, 255, 0))).to_yaml(tmp_path / "classes.yaml")
        error = refusal(refined, capsys, mask, *options)
        assert "a.png contains the value 255" in error
        assert "--foreground 255" in error
        assert "--ignore-index 255" in error
        assert not (tmp_path / "out").exists()
    ones = torch.from_numpy((FOREGROUND > 0.5).astype(np.int64))[None]
    for options in ([], ["--num-classes", "2"], ["--classes", str(tmp_path / "classes.yaml")]):
        found, out, _ = refined(mask, "--foreground", "255", *options)
        torch.testing.assert_close(found, DenseCRF()(logits_from_labels(ones, 2), IMAGE)[0])
        assert "1 map read as labels with the values 0, 255\n" in out
    # classes.yaml may say what the values are.
    classes = Classes(("background", "leaf"), ((0, 0, 0), (0, 255, 0)))
    ClassesFile(classes, LabelFormat(values=((0,), (255,)), ignore_values=())).write(tmp_path / "classes.yaml")
    torch.testing.assert_close(refined(mask, "--classes", str(tmp_path / "classes.yaml"))[0], found)
    # Whoever says that 255 is unknown is believed.
    found, out, _ = refined(mask, "--num-classes", "2", "--ignore-index", "255")
    assert (found.argmax(0) == 0).all()
    assert "0.0 % of the labeled pixels" in out


def test_255_is_unknown_where_another_mask_has_the_value_1(refined, tmp_path):
    mask = np.where(FOREGROUND > 0.5, 255, 0).astype(np.uint8)
    Image.fromarray(mask // 255).save(tmp_path / "b.png")
    Image.fromarray(PIXELS).save(tmp_path / "images" / "b.png")
    options = ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--num-classes", "2"]
    Image.fromarray(mask).save(tmp_path / "a.png")
    main(["refine", str(tmp_path / "a.png"), str(tmp_path / "b.png"), *options])
    assert (np.array(Image.open(tmp_path / "out" / "a.png")) == 0).all()
    assert (np.array(Image.open(tmp_path / "out" / "b.png")) == 1).any()


def test_three_classes_keep_255_as_the_unknown_value(refined):
    mask = Image.fromarray(np.where(FOREGROUND > 0.5, 255, 0).astype(np.uint8))
    assert (refined(mask, "--num-classes", "3")[0].argmax(0) == 0).all()


def test_label_maps_have_the_values_of_the_classes_file_or_class_positions(refined, capsys, tmp_path):
    path = tmp_path / "classes.yaml"
    classes = Classes(("a", "b"), ((0, 0, 0), (0, 255, 0)))
    labels = MAPS.argmax(0).astype(np.uint8)
    by_position = refined(Image.fromarray(labels), "--num-classes", "2")[0]
    ClassesFile(classes, LabelFormat(values=((10,), (20,)))).write(path)
    assert torch.equal(refined(Image.fromarray(10 + 10 * labels), "--classes", str(path))[0], by_position)
    assert torch.equal(refined(Image.fromarray(labels), "--classes", str(path))[0], by_position)
    ClassesFile(classes, LabelFormat(values=((1,), (0,)))).write(path)
    error = refusal(refined, capsys, Image.fromarray(labels), "--classes", str(path))
    assert "may be those in classes.yaml or the class indices" in error
    assert "--num-classes 2" in error


def test_a_gray_picture_of_probabilities_is_named_as_such(refined, capsys):
    gray = Image.fromarray((255 * FOREGROUND).astype(np.uint8))
    assert "uint8 array [H, W] in a .npy file" in refusal(refined, capsys, gray, "--num-classes", "2")
    assert "uint8 array [H, W] in a .npy file" in refusal(refined, capsys, gray, "--foreground", "255")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--confidence", "1.5"], "confidence must be a probability > 0 and < 1, but is 1.5"),
        (["--num-classes", "1"], "number of classes is 1"),
        (["--num-classes", "300"], "number of classes is 300"),
        (["--num-classes", "3", "--foreground", "255"], "there are 3 classes"),
        (["--foreground", "0"], "must differ from 0"),
        (["--foreground", "255", "--ignore-index", "255"], "from --ignore-index"),
    ],
)
def test_what_no_file_can_change_is_checked_before(refined, capsys, options, message, tmp_path):
    error = refusal(refined, capsys, MAPS, *options)
    assert error.count(message) == 1
    assert not (tmp_path / "out").exists()


def test_many_changed_labels_are_a_warning_with_the_gentle_parameters(refined):
    gentle = "--spatial-compat 0 --bilateral-sxy 30 --bilateral-srgb 5 --bilateral-compat 2"
    out = refined(MAPS)[1]
    assert "changed more than 10 % of the labels" in out
    assert gentle in out
    assert "warning" not in refined(MAPS, "--spatial-compat", "0", "--bilateral-compat", "0")[1]


def test_an_almost_black_image_is_named(refined):
    assert "a.png is almost black" in refined(MAPS, image=(PIXELS > 100).astype(np.uint8))[1]
    assert "almost black" not in refined(MAPS, image=PIXELS // 20)[1]


def test_label_maps_need_their_meaning(tmp_path):
    Image.new("L", (24, 20)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="for_labels"):
        MapFormat(num_classes=2).read(tmp_path / "a.png", SIZE)


def test_a_view_of_the_whole_array_is_returned():
    found = arrange(MAPS.transpose(1, 2, 0), SIZE)
    assert np.array_equal(found.values, MAPS)
    assert (found.layout, found.axis) == ("hwk", 2)


def test_a_palette_with_the_classes_in_another_order_is_refused(tmp_path, capsys):
    classes = (
        "classes:\n- {name: a, color: [0, 0, 0]}\n- {name: b, color: [128, 0, 0]}\n- {name: c, color: [0, 128, 0]}\n"
    )
    (tmp_path / "classes.yaml").write_text(classes)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (12, 8)).save(tmp_path / "images" / "p.png")
    labels = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12) % 3).convert("P")
    labels.putpalette([0, 0, 0, 0, 128, 0, 128, 0, 0])
    labels.save(tmp_path / "p.png")
    command = ["refine", str(tmp_path / "p.png"), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*command, "--classes", str(tmp_path / "classes.yaml")])
    assert "has the color [0, 128, 0] of the class c for the value 1, which is the class b" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.eye(4, dtype=np.uint8)[np.arange(96).reshape(8, 12) % 4].transpose(2, 0, 1), r"map\.astype\(np\.float32\)"),
        ((np.arange(96).reshape(8, 12) % 4).astype(np.float32), "Save labels as a .png file"),
        (np.full((2, 8, 12), np.nan, np.float32), "The map contains NaN"),
        (np.full((2, 8, 12), 50.5, np.float32), r"probabilities in 0\.\.100, divide them by 100"),
        (np.full((8, 12), 254.5, np.float32), r"probabilities in 0\.\.255, divide them by 255"),
    ],
)
def test_the_way_out_for_maps_that_are_no_probabilities(tmp_path, array, message):
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(ValueError, match=message):
        MapFormat().read(tmp_path / "p.npy", (8, 12))


@pytest.mark.parametrize("labels", [(0, 1, 255), (0, 20, 255), (0, 149), (3, 7)])
def test_a_uint8_array_of_labels_is_not_taken_for_probabilities(refined, capsys, labels):
    content = np.array(labels, np.uint8)[GENERATOR.integers(0, len(labels), SIZE)]
    assert "which may be labels or probabilities" in refusal(refined, capsys, content)
    marginals, text, _ = refined(content, "--layout", "hw")
    assert "probabilities of the foreground [H, W] in 0..255" in text
    assert marginals.shape == (2, *SIZE)


def test_a_uint8_array_that_is_black_and_white_has_a_clear_meaning(refined):
    _, text, _ = refined(np.where(SIDE, 255, 0).astype(np.uint8)[None].repeat(20, 0))
    assert "probabilities of the foreground" in text


def test_probabilities_are_not_taken_for_logits(refined, capsys):
    assert "they are probabilities" in refusal(refined, capsys, MAPS, "--kind", "logits")
    _, text, _ = refined(np.log(MAPS + 1e-3), "--kind", "logits")
    assert "logits" in text
