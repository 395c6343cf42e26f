"""Archives for VOC's evaluation server."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from contextcrf import ContextCRF, Predictor
from contextcrf.cli.main import main
from contextcrf.data.layouts import VOC
from contextcrf.inference.voc_submission import write_submission
from contextcrf.modeling.serialization import save
from contextcrf.utils.errors import DataError

STEMS = ["2008_000001", "2008_000007"]


@pytest.fixture
def model(tiny_model):
    return ContextCRF(tiny_model.config, VOC, pretrained=False, inference=tiny_model.inference).eval()


@pytest.fixture
def kit(tmp_path):
    """A kit with the test images alone, as it comes: no masks."""
    folder = tmp_path / "VOC2012"
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    (folder / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(STEMS) + "\n")
    generator = np.random.default_rng(0)
    for stem, size in zip(STEMS, ((40, 30), (33, 50)), strict=True):
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{stem}.jpg")
    return folder


def test_the_archive_holds_one_palette_image_of_labels_for_each_image(model, kit, tmp_path, capsys):
    save(model, tmp_path / "model")
    out = tmp_path / "sent" / "results.tgz"
    main(["voc-submission", str(tmp_path / "model"), str(tmp_path), "--out", str(out)])
    assert f"2 images of test labeled, written to {out}" in capsys.readouterr().out
    with tarfile.open(out) as archive:
        names = archive.getnames()
        assert names == [f"results/VOC2012/Segmentation/comp6_test_cls/{stem}.png" for stem in STEMS]
        for stem, name in zip(STEMS, names, strict=True):
            with (
                Image.open(archive.extractfile(name)) as labels,
                Image.open(kit / "JPEGImages" / f"{stem}.jpg") as image,
            ):
                assert (labels.mode, labels.size) == ("P", image.size)
                assert labels.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
                assert np.array_equal(np.asarray(labels), model.segment(image).labels.numpy())
    assert [path.name for path in out.parent.iterdir()] == ["results.tgz"]


def test_archives_that_the_server_would_refuse_are_refused(model, tiny_model, kit, tmp_path):
    with pytest.raises(ValueError, match="VOC's 21 classes are expected"):
        write_submission(Predictor(tiny_model), kit, tmp_path / "r.tgz")
    with pytest.raises(ValueError, match=r"r\.zip does not have the suffix"):
        write_submission(Predictor(model), kit, tmp_path / "r.zip")
    with pytest.raises(ValueError, match="'comp7', but comp5 or comp6"):
        write_submission(Predictor(model), kit, tmp_path / "r.tgz", competition="comp7")
    with pytest.raises(DataError, match=r"no ImageSets/Segmentation/val\.txt"):
        write_submission(Predictor(model), kit, tmp_path / "r.tgz", split="val")


def test_an_archive_is_whole_or_not_there(model, kit, tmp_path):
    broken = kit / "JPEGImages" / f"{STEMS[1]}.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"{STEMS[1]}\.jpg cannot be read as an image"):
        write_submission(Predictor(model), kit, tmp_path / "r.tgz")
    assert not (tmp_path / "r.tgz").exists()
    broken.unlink()
    with pytest.raises(DataError, match=rf"{STEMS[1]}\.jpg does not exist\. .* split test is 1 of 2"):
        write_submission(Predictor(model), kit, tmp_path / "r.tgz")
