"""Georeferenced TIFF files, read part by part with the values that `read_image` reads."""

import warnings

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image, ImageCms
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from contextcrf.data.georeference import is_georeferenced, tiff_tags
from contextcrf.data.image_format import RGB, ImageFormat
from contextcrf.data.images import read_image
from contextcrf.data.raster import open_raster
from contextcrf.utils.errors import DataError

HEIGHT, WIDTH = 40, 60
NORTH_UP = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_200_000)
WHOLE = slice(0, HEIGHT), slice(0, WIDTH)
# Parts whose values alone would show other ranges than the whole file.
PARTS = [(slice(top, top + 8), slice(left, left + 15)) for top in range(0, HEIGHT, 8) for left in range(0, WIDTH, 15)]


def noise(channels, high=256, dtype=np.uint8):
    """Noise whose upper left part is almost black."""
    values = np.random.default_rng(channels).integers(0, high, (channels, HEIGHT, WIDTH))
    values[:, :8, :15] //= 1024
    return values.astype(dtype)


def fractions(channels, dtype=np.float32):
    return (noise(channels) / 255).astype(dtype)


def write(path, values, mask=None, palette=None, kinds=None, **options):
    """Write values [C, H, W] as a georeferenced TIFF file."""
    options = {"crs": "EPSG:32632", "transform": NORTH_UP, **options}
    count, height, width = values.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=count, dtype=values.dtype, **options
        ) as file,
    ):
        if palette:
            file.write_colormap(1, palette)
        if kinds:
            file.colorinterp = kinds
        file.write(values)
        if mask is not None:
            file.write_mask(mask)
    return path


def read_parts(path, image_format=RGB):
    with open_raster(path, image_format) as raster:
        pixels = torch.empty(image_format.channels, raster.height, raster.width, dtype=torch.uint8)
        for part in PARTS:
            pixels[:, *part] = raster.read(part)
        assert torch.equal(raster.read(WHOLE), pixels)
        return pixels


def valid(path, image_format=RGB):
    with open_raster(path, image_format) as raster:
        return raster.valid(WHOLE)


PALETTE = {value: (value, 255 - value, 7 * value % 256) for value in range(256)}
FOUR = ImageFormat(4, ((0, 100), (0, 4000), (10, 2000), (0, 60000)))


@pytest.mark.parametrize(
    ("values", "image_format", "options"),
    [
        (noise(1), RGB, {}),
        (noise(3), RGB, {}),
        (noise(3), RGB, {"photometric": "minisblack"}),
        (noise(3), RGB, {"interleave": "band", "compress": "lzw", "predictor": 2}),
        (noise(3), RGB, {"BIGTIFF": "YES", "tiled": True, "blockxsize": 16, "blockysize": 16}),
        (noise(3), RGB, {"ENDIANNESS": "BIG"}),
        (noise(1), RGB, {"palette": PALETTE}),
        (noise(1), ImageFormat(3, ((20, 200),)), {"palette": PALETTE}),
        (noise(4), RGB, {"alpha": "yes", "photometric": "rgb"}),
        (noise(4), RGB, {"alpha": "premultiplied", "photometric": "rgb"}),
        (noise(2), RGB, {"alpha": "yes"}),
        (noise(1, 65536, np.uint16), RGB, {}),
        (noise(3, 65536, np.uint16), RGB, {}),
        (noise(3, 65536, np.uint16), RGB, {"photometric": "rgb"}),
        (noise(3, 65536, np.uint16), RGB, {"photometric": "rgb", "interleave": "band"}),
        (noise(3, 65536, np.uint16), RGB, {"photometric": "rgb", "ENDIANNESS": "BIG"}),
        (noise(3, 65536, np.uint16), ImageFormat(3, ((0, 4095),)), {"photometric": "rgb"}),
        (noise(1, 4096, np.uint16), ImageFormat(3, ((0, 4095),)), {}),
        (noise(1, 4096, np.uint16), ImageFormat(1, ((0, 4095),)), {}),
        (noise(4), ImageFormat(4), {}),
        (noise(4), ImageFormat(4), {"photometric": "minisblack"}),
        (noise(4, 4096, np.uint16), FOUR, {}),
        (noise(4, 4096, np.uint16), FOUR, {"interleave": "band", "tiled": True, "blockxsize": 32, "blockysize": 16}),
        (noise(5, 65536, np.uint16), ImageFormat(5), {}),
        (noise(2, 4096, np.int16) - np.int16(50), ImageFormat(2, ((-50, 4000),)), {}),
        (noise(1, 4096, np.int16) - np.int16(50), ImageFormat(1, ((-50, 4000),)), {}),
        (noise(2, 4096, np.uint32), ImageFormat(2, ((0, 4000),)), {}),
        (noise(2, 100, np.int8), ImageFormat(2, ((0, 100),)), {}),
        (fractions(1), RGB, {}),
        (fractions(3), RGB, {}),
        (fractions(1, np.float64), RGB, {}),
        (fractions(6), ImageFormat(6, ((0.1, 0.8),)), {}),
    ],
)
def test_parts_have_the_values_of_the_image_in_memory(tmp_path, values, image_format, options):
    path = write(tmp_path / "scene.tif", values, **options)
    assert is_georeferenced(path)
    found = read_parts(path, image_format)
    assert found.unique().numel() > 20
    assert torch.equal(found, read_image(path, image_format))


def test_jpeg_blocks_differ_only_by_the_rounding_of_the_decoders(tmp_path):
    smooth = np.asarray(Image.effect_noise((WIDTH, HEIGHT), 60).convert("RGB").resize((WIDTH, HEIGHT))).transpose(
        2, 0, 1
    )
    path = write(tmp_path / "scene.tif", smooth, compress="jpeg", photometric="ycbcr")
    difference = read_parts(path).int() - read_image(path).int()
    assert difference.abs().max() <= 2


def test_the_color_profile_is_applied(tmp_path):
    path = tmp_path / "scene.tif"
    colors = Image.fromarray(noise(3).transpose(1, 2, 0))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    colors.save(path, icc_profile=lab)
    assert read_parts(path).shape == read_image(path).shape
    assert torch.equal(read_parts(path), read_image(path))


# Georeference.


@pytest.mark.parametrize(
    "options", [{}, {"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"}, {"BIGTIFF": "YES", "ENDIANNESS": "BIG"}]
)
def test_a_georeference_is_recognized_without_rasterio(tmp_path, options):
    rotated = rasterio.Affine(0.4, 0.3, 400_000, 0.3, -0.4, 5_200_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        files = {
            "crs": write(tmp_path / "crs.tif", noise(1), transform=None, **options),
            "transform": write(tmp_path / "transform.TIFF", noise(1), crs=None, **options),
            "rotated": write(tmp_path / "rotated.tif", noise(1), transform=rotated, **options),
            "plain": write(tmp_path / "plain.tif", noise(1), crs=None, transform=None, **options),
        }
    corners = [GroundControlPoint(row, column, 5 + row, 6 - column) for row in (0, 40) for column in (0, 60)]
    files["points"] = write(tmp_path / "points.tif", noise(1), gcps=corners, transform=None, **options)
    found = {name for name, path in files.items() if is_georeferenced(path)}
    assert found == {"crs", "transform", "rotated", "points"}
    assert tiff_tags(files["plain"])[256] == WIDTH
    # The numbers of this tag are too many to be stored beside it.
    assert tiff_tags(files["crs"])[34735] == 0


def test_a_georeference_beside_the_file_is_recognized(tmp_path):
    path = tmp_path / "scene.tif"
    Image.fromarray(noise(1)[0]).save(path)
    auxiliary, world = tmp_path / "scene.tif.aux.xml", tmp_path / "scene.tfw"
    auxiliary.write_text("<PAMDataset><PAMRasterBand><Histograms/></PAMRasterBand></PAMDataset>")
    assert not is_georeferenced(path)  # statistics of QGIS
    auxiliary.write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    assert is_georeferenced(path)
    auxiliary.unlink()
    world.write_text("0.5\n0\n0\n-0.5\n400000\n5200000\n")
    assert is_georeferenced(path)
    with open_raster(path) as raster:
        assert raster.georeference["transform"].a == 0.5


@pytest.mark.parametrize(
    "content", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II+\0\x08\0\0\0\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_files_that_are_no_tiff_files_have_no_georeference(tmp_path, content):
    path = tmp_path / "scene.tif"
    path.write_bytes(content)
    (tmp_path / "scene.tfw").touch()
    assert tiff_tags(path) == {}
    assert not is_georeferenced(path)
    assert not is_georeferenced(tmp_path / "missing.tif")


# Pixels without data.


def test_nodata_values_masks_and_alpha_mark_pixels_without_data(tmp_path):
    hole = np.zeros((HEIGHT, WIDTH), bool)
    hole[10:20, 30:50] = True
    expected = torch.from_numpy(~hole)
    values = np.maximum(noise(3), 1)
    empty = np.where(hole, 0, values).astype(np.uint8)
    empty[0, 0, 0] = 0  # one channel of a pixel with data
    assert torch.equal(valid(write(tmp_path / "nodata.tif", empty, nodata=0)), expected)
    assert torch.equal(valid(write(tmp_path / "mask.tif", values, mask=~hole)), expected)
    alpha = np.concatenate([values, np.where(hole, 0, 255)[None].astype(np.uint8)])
    assert torch.equal(valid(write(tmp_path / "alpha.tif", alpha, alpha="yes")), expected)
    assert valid(write(tmp_path / "all.tif", values)).all()
    # Stored values are kept, as in training.
    for name in ("nodata", "mask", "alpha"):
        assert torch.equal(read_parts(tmp_path / f"{name}.tif"), read_image(tmp_path / f"{name}.tif"))
    # More channels beside alpha, which `read_image` refuses.
    alpha = np.concatenate([values, alpha]).astype(np.uint16)
    kinds = [ColorInterp.gray, *[ColorInterp.undefined] * 5, ColorInterp.alpha]
    path = write(tmp_path / "six.tif", alpha, kinds=kinds)
    assert torch.equal(valid(path, ImageFormat(6, ((0, 255),))), expected)
    assert torch.equal(read_parts(path, ImageFormat(6, ((0, 255),))), torch.from_numpy(alpha[:6].astype(np.uint8)))


def test_an_alpha_channel_with_data_marks_no_pixels(tmp_path):
    # GDAL declares the fourth channel of 8 bits as alpha, also if it is near infrared, which is 0 in water.
    values = noise(4)
    path = write(tmp_path / "scene.tif", values)
    with rasterio.open(path) as file:
        assert file.colorinterp[3].name == "alpha"
    assert (values[3] == 0).any()
    assert valid(path, ImageFormat(4)).all()
    values[:, 5, 5] = 9
    path = write(tmp_path / "scene.tif", values, nodata=9)
    assert (~valid(path, ImageFormat(4))).nonzero().tolist() == [[5, 5]]


@pytest.mark.parametrize("image_format", [RGB, ImageFormat(3, ((0, 0.9),))])
@pytest.mark.parametrize("nodata", [np.nan, -9999, 1e30])
def test_floating_point_values_without_data_need_no_range(tmp_path, image_format, nodata):
    values = fractions(3)
    hole = np.zeros((HEIGHT, WIDTH), bool)
    hole[10:20, 30:50] = True
    empty = np.where(hole, nodata, values).astype(np.float32)
    if np.isnan(nodata):
        empty[1, 7, 7], hole[7, 7] = np.nan, True  # a pixel with a value that is no number has no data
    path = write(tmp_path / "scene.tif", empty, nodata=nodata)
    known = torch.from_numpy(~hole)
    assert torch.equal(valid(path, image_format), known)
    full = read_image(write(tmp_path / "full.tif", values), image_format)
    assert torch.equal(read_parts(path, image_format)[:, known], full[:, known])
    # Without the mark they are refused.
    message = "not finite numbers, but are not marked as nodata" if np.isnan(nodata) else "fractions .* but 0 to 1"
    path = write(tmp_path / "scene.tif", empty)
    if np.isnan(nodata) or image_format.is_rgb:
        with (
            pytest.raises(DataError, match=f"^{path} cannot be read as an image: .*{message}"),
            open_raster(path, image_format),
        ):
            pass


def test_a_file_without_any_data_can_be_read(tmp_path):
    path = write(tmp_path / "scene.tif", np.zeros((3, HEIGHT, WIDTH), np.uint16), nodata=0, photometric="rgb")
    assert not valid(path).any()


# What is refused.


@pytest.mark.parametrize(("count", "options"), [(1, {}), (3, {}), (3, {"photometric": "rgb"})])
def test_the_range_of_16_bits_is_that_of_the_whole_file(tmp_path, count, options):
    values = noise(count, 4096, np.uint16)
    path = write(tmp_path / "scene.tif", values, **options)
    message = "cannot be read as an image: The image has 16 bits per channel, but"
    with pytest.raises(DataError, match=message):
        read_image(path)
    with pytest.raises(DataError, match=f"^{path} {message}"), open_raster(path):
        pass
    # Pixels without data show no range.
    values[:, 30, 30] = 65535
    path = write(tmp_path / "scene.tif", values, nodata=65535, **options)
    with pytest.raises(DataError, match=message), open_raster(path):
        pass
    # A single value with data does.
    path = write(tmp_path / "scene.tif", values, **options)
    assert torch.equal(read_parts(path), read_image(path))


@pytest.mark.parametrize(
    ("values", "image_format", "options", "message"),
    [
        (noise(2), RGB, {}, r"has 2 channels, but an RGB or gray image is expected.*`channels: 2`"),
        (noise(5), RGB, {}, "has 5 channels"),
        (noise(3), ImageFormat(4), {}, "has 3 channels, but 4 are expected"),
        (noise(1, 4096, np.int16), RGB, {}, "values of type int16, whose range is unknown"),
        (noise(4, 4096, np.int32), ImageFormat(4), {}, "values of type int32, whose range is unknown"),
        (noise(1).astype(np.complex64), RGB, {}, "complex numbers"),
        (noise(4), RGB, {"photometric": "cmyk"}, "the colors CMYK, but gray"),
        (noise(1), RGB, {"photometric": "miniswhite"}, "the colors MinIsWhite"),
        (noise(1, 16), RGB, {"nbits": 4}, "stores 4 bits per value"),
        (fractions(1) * 2, RGB, {}, "fractions .* from 0 to 2, but 0 to 1"),
    ],
)
def test_what_cannot_be_read_like_the_whole_image_is_refused(tmp_path, values, image_format, options, message):
    path = write(tmp_path / "scene.tif", values, **options)
    with (
        pytest.raises(DataError, match=f"^{path} cannot be read as an image: .*{message}"),
        open_raster(path, image_format),
    ):
        pass


def test_turned_images_and_pages_are_refused(tmp_path):
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, noise(3).transpose(1, 2, 0), photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    with pytest.raises(DataError, match="has the orientation 6, but 1"), open_raster(path):
        pass
    tifffile.imwrite(path, noise(3), photometric="minisblack")
    with pytest.raises(DataError, match="has 3 pages, but a single image"), open_raster(path):
        pass


@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_a_truncated_file_is_named(tmp_path, options):
    path = write(tmp_path / "scene.tif", noise(3), **options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"^{path} cannot be read as an image: "), open_raster(path) as raster:
        raster.read(WHOLE)
    with pytest.raises(DataError, match=f"^{path} cannot be read as an image: "), open_raster(path) as raster:
        raster.valid(WHOLE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_narrow_files_are_read(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.uint8)
    path = write(tmp_path / "scene.tif", values)
    with open_raster(path) as raster:
        assert torch.equal(raster.read((slice(0, shape[0]), slice(0, shape[1]))), torch.from_numpy(values))


def test_overviews_are_no_pages(tmp_path):
    path = write(tmp_path / "scene.tif", noise(3), mask=np.full((HEIGHT, WIDTH), 255, np.uint8))
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    assert torch.equal(read_parts(path), read_image(path))
