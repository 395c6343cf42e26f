"""Georeferenced TIFF files in, label files of the same georeference out."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from PIL import Image
from rasterio.control import GroundControlPoint

from contextcrf import ContextCRF, ModelConfig, Predictor
from contextcrf.cli.main import main
from contextcrf.data.image_format import ImageFormat
from contextcrf.data.images import read_image
from contextcrf.data.visualization import IGNORED_COLOR
from contextcrf.inference import rasters
from contextcrf.inference.files import plan_outputs, predict_files
from contextcrf.inference.rasters import label_raster
from contextcrf.modeling.serialization import save
from contextcrf.utils.errors import DataError
from models import CLASSES, settings, tiny

NORTH_UP = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_200_000)
TILES = {"tile": 64, "overlap": 32, "tile_above": 0}


def write(path, height=150, width=210, channels=3, values=None, **options):
    """Write noise, or values [C, H, W], as a georeferenced TIFF file."""
    if values is None:
        values = np.random.default_rng(0).integers(0, 256, (channels, height, width)).astype(np.uint8)
    count, height, width = values.shape
    options = {"crs": "EPSG:32632", "transform": NORTH_UP, **options}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=values.dtype, **options
    ) as file:
        file.write(values)
    return path


def labels_of(path):
    with rasterio.open(path) as file:
        return torch.from_numpy(file.read(1))


@pytest.fixture
def predictor():
    """A model that predicts each of its classes for noise."""
    model = tiny(backbone="plain-15", scales=(1.0,), relations={})
    with torch.no_grad():
        logits = model.unary(model.features(torch.randint(0, 256, (1, 3, 64, 64)).float())["unary"])
        model.unary.last.bias -= logits.mean((0, 2, 3))
    return Predictor(model, settings(**TILES))


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 32}])
@pytest.mark.parametrize("changes", [TILES, {"tile_above": 10**6}, {"tile": 96, "overlap": 0, "tile_above": 0}])
def test_the_labels_are_those_of_the_image_in_memory(predictor, tmp_path, changes, options):
    predictor = Predictor(predictor.model, settings(**changes))
    path = write(tmp_path / "scene.tif", **options)
    label_raster(predictor, path, tmp_path / "out" / "labels.tif")
    found = labels_of(tmp_path / "out" / "labels.tif")
    assert torch.equal(found, predictor.label(read_image(path)))
    assert found.unique().numel() > 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["labels.tif", "labels.tif.aux.xml"]


@pytest.mark.parametrize(
    "georeference",
    [
        {},
        {"crs": "EPSG:4326", "transform": rasterio.Affine(1e-5, 0, 11.2, 0, -1e-5, 48.7)},
        {"transform": rasterio.Affine(0.4, 0.3, 400_000, 0.3, -0.4, 5_200_000)},  # rotated
        {"transform": rasterio.Affine(0.5, 0, 400_000, 0, 0.5, 5_200_000)},  # south-up
        {"crs": None},
        {"transform": None},
        {"crs": 'LOCAL_CS["site",UNIT["meter",1]]'},
        {"crs": "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180"},  # beside the file
        {"transform": None, "gcps": [GroundControlPoint(r, c, 5 + r, 6 - c) for r in (0, 40) for c in (0, 60)]},
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_georeference_is_that_of_the_image(predictor, tmp_path, georeference):
    path = write(tmp_path / "scene.tif", 40, 60, **georeference)
    outcome = predict_files(predictor, [path], tmp_path / "out")
    assert [path.name for path in outcome.written] == ["scene.tif", "scene_overlay.png"]
    with rasterio.open(path) as image, rasterio.open(tmp_path / "out" / "scene.tif") as found:
        assert (found.crs, found.transform, found.shape) == (image.crs, image.transform, image.shape)
        assert [point.asdict() for point in found.gcps[0]] == [point.asdict() for point in image.gcps[0]]
        assert found.gcps[1] == image.gcps[1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "scene.tif",
        "scene.tif.aux.xml",
        "scene_overlay.png",
        "provenance.json",
    }


def test_the_file_of_the_labels_has_the_classes(predictor, tmp_path):
    classes = replace(CLASSES, names=("sky & <sea>", "Küste", "sand"))
    predictor.model.classes = classes
    label_raster(predictor, write(tmp_path / "scene.tif"), tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert (file.count, file.dtypes, file.nodata) == (1, ("uint8",), 255)
        assert (file.compression.name, file.block_shapes) == ("deflate", [(64, 64)])
        assert [file.colormap(1)[k] for k in range(3)] == [(*color, 255) for color in classes.palette]
        assert file.colormap(1)[255] == (*IGNORED_COLOR, 0)
        assert file.tags(1) == {f"class_{k}": name for k, name in enumerate(classes.names)}
    # Category names are shown by GDAL, which writes them into its text format.
    rasterio.shutil.copy(tmp_path / "labels.tif", tmp_path / "labels.vrt", driver="VRT")
    text = (tmp_path / "labels.vrt").read_text(encoding="utf-8")
    names = text[text.index("<CategoryNames>") : text.index("</CategoryNames>")].split()
    assert " ".join(names) == (
        "<CategoryNames> <Category>sky &amp; &lt;sea&gt;</Category> <Category>Küste</Category> "
        "<Category>sand</Category>"
    )


def test_pixels_without_data_have_no_label(predictor, tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(1, 256, (3, 150, 210)).astype(np.uint8)
    values[:, :, 60:140] = 0  # all columns that one of the tiles keeps
    path = write(tmp_path / "scene.tif", values=values, nodata=0)
    kept = []
    label_region = Predictor.label_region
    monkeypatch.setattr(
        Predictor, "label_region", lambda self, *args: kept.append(args[2]) or label_region(self, *args)
    )
    previews = []
    label_raster(predictor, path, tmp_path / "labels.tif", lambda *preview: previews.append(preview))
    # Tiles without data are not computed.
    assert len(kept) == 9
    assert {columns.start for _, columns in kept} == {0, 128, 192}
    expected = predictor.label(read_image(path))
    expected[:, 60:140] = 255
    assert torch.equal(labels_of(tmp_path / "labels.tif"), expected)
    [(image, labels)] = previews
    assert torch.equal(image, read_image(path))
    assert torch.equal(labels, expected)


def test_pixels_without_data_are_black_in_the_preview(predictor, tmp_path):
    values = np.random.default_rng(0).integers(1, 256, (3, 40, 60)).astype(np.uint8)
    values[:, :10] = 77
    previews = []
    label_raster(
        predictor,
        write(tmp_path / "scene.tif", values=values, nodata=77),
        tmp_path / "labels.tif",
        lambda *preview: previews.append(preview),
    )
    [(image, labels)] = previews
    assert (image[:, :10] == 0).all()
    assert (labels[:10] == 255).all()
    assert (image[:, 10:] > 0).any()


def test_the_overlay_of_a_large_scene_is_reduced(predictor, tmp_path, monkeypatch):
    path = write(tmp_path / "scene.tif")
    previews = []
    for size in (70, 75, 209, 210):
        monkeypatch.setattr(rasters, "_PREVIEW", size)
        label_raster(predictor, path, tmp_path / "labels.tif", lambda *preview: previews.append(preview))
    image, labels = read_image(path), predictor.label(read_image(path))
    for step, preview in zip((3, 3, 2, 1), previews, strict=True):
        assert torch.equal(preview[0], image[:, ::step, ::step])
        assert torch.equal(preview[1], labels[::step, ::step])
    monkeypatch.undo()
    assert rasters._PREVIEW == 2048


@pytest.mark.parametrize(
    ("channels", "dtype", "image_format"),
    [(4, np.uint8, ImageFormat(4)), (6, np.uint16, ImageFormat(6, ((0, 255),))), (1, np.uint8, ImageFormat(1))],
)
def test_models_of_other_channels_label_scenes(tmp_path, channels, dtype, image_format):
    config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
    model = ContextCRF(config, CLASSES, pretrained=False, inference=settings(**TILES), image_format=image_format)
    values = np.random.default_rng(0).integers(0, 256, (channels, 100, 130)).astype(dtype)
    values[3:4] = 0  # GDAL takes the fourth channel of 8 bits for alpha
    path = write(tmp_path / "scene.tif", values=values)
    outcome = predict_files(Predictor(model), [path], tmp_path / "out")
    assert outcome.failed == []
    expected = Predictor(model).label(read_image(path, image_format))
    assert torch.equal(labels_of(tmp_path / "out" / "scene.tif"), expected)
    with Image.open(tmp_path / "out" / "scene_overlay.png") as overlay:
        assert overlay.width == 130


# Several files.


def test_scenes_and_pictures_are_labeled_together_and_resumed(predictor, tmp_path):
    write(tmp_path / "scene.tif", 70, 90)
    write(tmp_path / "broken.tif", 70, 90)
    content = (tmp_path / "broken.tif").read_bytes()
    (tmp_path / "broken.tif").write_bytes(content[:-9000])
    write(tmp_path / "dark.tif", values=np.full((3, 70, 90), 1000, np.uint16))
    Image.fromarray(np.zeros((70, 90, 3), np.uint8)).save(tmp_path / "plain.tif")
    files, out = sorted(tmp_path.glob("*.tif")), tmp_path / "out"
    outcome = predict_files(predictor, files, out)
    assert [path.name for path, _ in outcome.failed] == ["broken.tif", "dark.tif"]
    for path, reason in outcome.failed:
        assert reason.startswith(f"{path} cannot be read as an image: ")
        assert reason.count(str(path)) == 1
    made = {"plain.png", "plain_overlay.png", "scene.tif", "scene.tif.aux.xml", "scene_overlay.png", "provenance.json"}
    assert {path.name for path in out.iterdir()} == made
    labels = (out / "scene.tif").read_bytes()
    (out / "scene.tif").unlink()
    kept = (out / "plain.png").stat().st_mtime_ns
    outcome = predict_files(predictor, files, out, resume=True)
    assert outcome.written == [out / "scene.tif", out / "scene_overlay.png"]
    assert (out / "scene.tif").read_bytes() == labels
    assert (out / "plain.png").stat().st_mtime_ns == kept


def test_the_overlay_of_a_small_scene_is_that_of_a_picture(predictor, tmp_path):
    write(tmp_path / "scene.tif")
    Image.fromarray(read_image(tmp_path / "scene.tif").permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    out = tmp_path / "out"
    predict_files(predictor, [tmp_path / "scene.tif", tmp_path / "picture.png"], out)
    assert (out / "scene_overlay.png").read_bytes() == (out / "picture_overlay.png").read_bytes()
    with Image.open(out / "picture.png") as labels:
        assert torch.equal(labels_of(out / "scene.tif"), torch.from_numpy(np.array(labels)))


def test_outputs_of_scenes_do_not_clash(tmp_path):
    scene, out = write(tmp_path / "scene.tif"), tmp_path / "out"
    assert plan_outputs([scene], out) == [(out / "scene.tif", out / "scene_overlay.png")]
    with pytest.raises(DataError, match=r"scene\.tif of .* would overwrite an image\. Choose another --out"):
        plan_outputs([scene], tmp_path)
    with pytest.raises(DataError, match=r"would both be written to .*scene_overlay\.png\. Rename one"):
        plan_outputs([scene, tmp_path / "scene.png"], out)


def test_without_rasterio_the_georeference_is_not_lost_silently(predictor, tmp_path, monkeypatch):
    path = write(tmp_path / "scene.tif")
    Image.fromarray(np.zeros((70, 90, 3), np.uint8)).save(tmp_path / "plain.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    message = rf"^{path} is georeferenced, but rasterio is not installed.*contextcrf\[geo\].*PNG"
    with pytest.raises(DataError, match=message):
        plan_outputs([path], tmp_path / "out")
    with pytest.raises(DataError, match=message):
        label_raster(predictor, path, tmp_path / "labels.tif")
    outcome = predict_files(predictor, [tmp_path / "plain.tif"], tmp_path / "out")
    assert [path.name for path in outcome.written] == ["plain.png", "plain_overlay.png"]


def test_the_command_labels_a_scene(predictor, tmp_path):
    save(predictor.model, tmp_path / "model", inference=predictor.inference)
    path = write(tmp_path / "scene.tif")
    main(["predict", str(tmp_path / "model"), str(path), "--out", str(tmp_path / "out"), "--tile", "96"])
    expected = Predictor(predictor.model, replace(predictor.inference, tile=96)).label(read_image(path))
    assert torch.equal(labels_of(tmp_path / "out" / "scene.tif"), expected)


# Errors.


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, torch.OutOfMemoryError])
def test_a_scene_that_the_network_cannot_take_is_named(predictor, tmp_path, monkeypatch, kind):
    def refuse(*arguments):
        raise kind("Kernel size:\n (4 x 4).")

    monkeypatch.setattr(predictor.model, "features", refuse)
    path = write(tmp_path / "scene.tif")
    outcome = predict_files(predictor, [path], tmp_path / "out")
    reason = f"{path} (a part of 96 x 96 pixels) cannot be labeled: Kernel size: (4 x 4)."
    assert outcome.failed == [(path, reason)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"provenance.json"}


def cut(path, lost):
    path.write_bytes(path.read_bytes()[:-lost])


def turn(path):
    with rasterio.open(path, "r+") as file:
        file.write(file.read(1)[::-1], 1)


@pytest.mark.parametrize("damage", [partial(cut, lost=1), partial(cut, lost=200), partial(cut, lost=5000), turn])
def test_incomplete_labels_are_an_error(predictor, tmp_path, monkeypatch, damage):
    """As on a full disk, which rasterio does not report if it happens when the file is closed."""
    write_labels = rasters._write_labels

    def write_damaged(predictor, path, raster, output, preview):
        sums = write_labels(predictor, path, raster, output, preview)
        damage(output)
        return sums

    monkeypatch.setattr(rasters, "_write_labels", write_damaged)
    path = write(tmp_path / "scene.tif")
    with pytest.raises(OSError, match=f"cannot be written completely to {tmp_path}: .*disk"):
        label_raster(predictor, path, tmp_path / "labels.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from contextcrf import InferenceConfig, Predictor, load
from contextcrf.inference.rasters import label_raster

def label_region(self, pixels, computed, kept):
    return torch.zeros([part.stop - part.start for part in kept], dtype=torch.uint8)

Predictor.label_region = label_region  # the network takes its time, and memory by the size of a tile
predictor = Predictor(load(sys.argv[1]), InferenceConfig(tile=512, overlap=32, tile_above=0))
peaks = []
for name in sys.argv[2:]:
    label_raster(predictor, Path(name), Path(name).with_suffix(".labels.tif"))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*peaks)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the peak memory is not known there")
def test_a_larger_scene_takes_no_more_memory(predictor, tmp_path, monkeypatch):
    save(predictor.model, tmp_path / "model")
    scenes = []
    for side in (1536, 5120):
        # As a tensor, the larger image takes 75 MiB, and its labels 25.
        path = tmp_path / f"{side}.tif"
        options = {"dtype": "uint8", "crs": "EPSG:32632", "transform": NORTH_UP, "tiled": True, "compress": "lzw"}
        with rasterio.open(path, "w", driver="GTiff", height=side, width=side, count=3, **options) as file:
            for top in range(0, side, 512):
                window = rasterio.windows.Window(0, top, side, 512)
                file.write(np.ones((3, 512, side), np.uint8), window=window)
        scenes.append(path)
    monkeypatch.setenv("GDAL_CACHEMAX", "16")  # MiB
    command = [sys.executable, "-c", MEMORY, tmp_path / "model", *scenes]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    small, large = map(float, run.stdout.split())
    assert large < small + 50
