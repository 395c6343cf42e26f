"""Images with other channels and ranges than RGB of 8 bits."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from contextcrf.data.bands import read_header
from contextcrf.data.image_format import RGB, ImageFormat, check_same_images
from contextcrf.data.image_recognition import recognize_images
from contextcrf.data.images import as_pixels, read_image, to_picture
from contextcrf.utils.errors import DataError
from sources import write_planes

SIZE = (12, 20)
NEAR_INFRARED = ImageFormat(4, ((0, 4095),))


def values(channels, dtype=np.uint16, high=4096, seed=0):
    return np.random.default_rng(seed).integers(0, high, (*SIZE, channels)).astype(dtype)


def scaled(array, high):
    return torch.from_numpy(np.rint(array.astype(float) * 255 / high).clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


def test_values_are_scaled_by_the_range_of_their_channel():
    image_format = ImageFormat(2, ((0, 10), (-100, 100)))
    array = np.array([[[0, -100], [5, 0], [10, 100], [20, -300]]], np.int16)
    assert image_format.scale(array)[0].tolist() == [[0, 0], [128, 128], [255, 255], [255, 0]]


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("a.npy", {}),
        ("a.tif", {"photometric": "minisblack", "planarconfig": "contig"}),
        ("a.tif", {"photometric": "minisblack", "planarconfig": "separate"}),
        ("a.tif", {"photometric": "minisblack", "planarconfig": "contig", "compression": "lzw"}),
        ("a.tif", {"photometric": "rgb", "extrasamples": ["unspecified"], "compression": "deflate"}),
        ("a.tiff", {"photometric": "minisblack", "pages": True}),
    ],
)
@pytest.mark.parametrize(("dtype", "high"), [(np.uint16, 4096), (np.uint8, 256)])
def test_four_channels_are_read_from_every_container(tmp_path, path, options, dtype, high):
    array, file = values(4, dtype, high), tmp_path / path
    if path.endswith(".npy"):
        np.save(file, array)
    elif options.get("pages") or options.get("planarconfig") == "separate":
        tifffile.imwrite(file, array.transpose(2, 0, 1), **{k: v for k, v in options.items() if k != "pages"})
    else:
        tifffile.imwrite(file, array, **options)
    header = read_header(file)
    assert (header.bands, header.dtype) == (4, dtype)
    image_format = ImageFormat(4, ((0, high - 1),))
    assert torch.equal(read_image(file, image_format), scaled(array, high - 1))
    assert torch.equal(as_pixels(array, image_format), scaled(array, high - 1))
    # Without the format, the fourth channel is not dropped silently.
    with pytest.raises(DataError, match=r"a\.\w+ cannot be read as an image: The file has .*4 channels.*channels: 4"):
        read_image(file)


@pytest.mark.parametrize("channels", [1, 2, 5, 13])
def test_other_numbers_of_channels(tmp_path, channels):
    array = values(channels)
    kind = {"planarconfig": "contig"} if channels > 1 else {}
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", **kind)
    found = read_image(tmp_path / "a.tif", ImageFormat(channels, ((0, 4095),)))
    assert torch.equal(found, scaled(array, 4095))
    assert to_picture(found).getpixel((3, 2)) == tuple(found[[0, 1, 2] if channels > 2 else [0, 0, 0], 2, 3].tolist())


def test_five_channels_of_eight_bits_are_not_read_as_rgb(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values(5, np.uint8, 256), photometric="rgb")
    with pytest.raises(DataError, match="The file has 5 channels"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("path", ["a.png", "a.tif"])
def test_a_single_channel_of_eight_bits_is_read_without_a_warning(tmp_path, path):
    array = values(1, np.uint8, 256)
    Image.fromarray(array[..., 0]).save(tmp_path / path)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else the warning of a read-only array would come once in a process
    try:
        image = read_image(tmp_path / path, ImageFormat(1))
    finally:
        torch.set_warn_always(before)
    assert torch.equal(image, scaled(array, 255))


def test_deep_color_images_are_read_with_all_their_bits(tmp_path):
    array = values(3)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array))
    for name in ("a.tif", "a.png"):
        assert torch.equal(read_image(tmp_path / name, ImageFormat(3, ((0, 4095),))), scaled(array, 4095))
    full = values(3, high=65536)
    tifffile.imwrite(tmp_path / "full.tif", full.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert (read_image(tmp_path / "full.tif").int() - scaled(full, 65535).int()).abs().max() <= 1


def test_alpha_is_data_only_if_the_format_counts_it(tmp_path):
    array = values(4, np.uint8, 256)
    Image.fromarray(array).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", ImageFormat(4)), torch.from_numpy(array).permute(2, 0, 1))
    with pytest.raises(DataError, match="alpha channel with transparency"):
        read_image(tmp_path / "a.png", ImageFormat(3, ((0, 100),)))
    tifffile.imwrite(tmp_path / "a.tif", values(4), photometric="rgb", extrasamples=["unassalpha"])
    assert read_image(tmp_path / "a.tif", NEAR_INFRARED).shape == (4, *SIZE)
    with pytest.raises(DataError, match="alpha channel with transparency"):
        read_image(tmp_path / "a.tif", ImageFormat(3, ((0, 100),)))
    array[..., 3] = 255
    Image.fromarray(array).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", ImageFormat(3, ((0, 255),))).shape == (3, *SIZE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "Keys such as"),
        ("channels: four", "channels is 'four'"),
        ("channels: 0", "channels is 0"),
        ("channels: 4\nranges: [[0, 1], [0, 1]]", "ranges has 2 values, but the images have 4 channels"),
        ("ranges: [[5, 5]]", r"ranges has \[5, 5\]"),
        ("ranges: 4095", "ranges is 4095, but a list of pairs"),
        ("channels: 4\nmean: [1, 2, 3, 4]", "mean and std belong together"),
        ("channels: 1\nmean: [100]\nstd: [0]", "numbers above 0"),
        ("bands: 4", "The key 'bands' is unknown"),
        ("channels: [", "while parsing"),
    ],
)
def test_errors_in_the_file_name_it_and_the_key(tmp_path, content, message):
    (tmp_path / "images.yaml").write_text(content)
    with pytest.raises(DataError, match=rf"images\.yaml does not describe images: .*{message}"):
        ImageFormat.read(tmp_path)


def test_the_file_holds_all_values(tmp_path):
    image_format = ImageFormat(2, ((0, 4095), (-1.5, 2)), (100.5, 20.0), (50.0, 3.25))
    (tmp_path / "images.yaml").write_text(image_format.text())
    assert ImageFormat.read(tmp_path) == image_format == ImageFormat.from_dict(image_format.to_dict())
    assert ImageFormat.read(tmp_path / "nowhere") == RGB


def test_images_of_other_kinds_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full((*SIZE, 4), np.nan, np.float32))
    with pytest.raises(DataError, match=r"a\.npy.*960 values that are not finite"):
        read_image(tmp_path / "a.npy", ImageFormat(4))
    with pytest.raises(ValueError, match="3 channels, but 4 are expected"):
        as_pixels(values(3), NEAR_INFRARED)
    with pytest.raises(ValueError, match="type int32, whose range is unknown"):
        as_pixels(values(4, np.int32), ImageFormat(4))
    with pytest.raises(ValueError, match="str, but a PIL image, an array"):
        as_pixels("photo.jpg", NEAR_INFRARED)
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 4, 5)))
    with pytest.raises(DataError, match=r"shape \(2, 3, 4, 5\)"):
        read_image(tmp_path / "b.npy", NEAR_INFRARED)
    with pytest.raises(ValueError, match=r"reads images with 4 channels.*but the data set has images with 3"):
        check_same_images(NEAR_INFRARED, RGB)


def write_all(folder, arrays):
    paths = [folder / f"{number}.npy" for number in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


def test_the_bits_of_gray_and_color_images_are_found(tmp_path):
    # One of the images is so dark that its range alone is unclear.
    for channels in (1, 3):
        paths = write_all(tmp_path, [values(channels, high=900), values(channels, high=4000)])
        found, findings = recognize_images(paths)
        assert found == ImageFormat(3, ((0, 4095),))
        assert "their largest value is" in findings[0]
        assert "0..4095" in findings[0]
        assert read_image(paths[0], found).shape == (3, *SIZE)
    paths = write_all(tmp_path, [values(1, high=900), values(1, high=65536)])
    assert recognize_images(paths)[0] == ImageFormat(3, ((0, 65535),))
    assert recognize_images(write_all(tmp_path, [values(3, np.uint8, 256)])) == (RGB, [])
    assert recognize_images(write_all(tmp_path, [values(3, high=65536)] * 2)) == (RGB, [])


def test_other_sensors_have_ranges_and_statistics_per_channel(tmp_path):
    arrays = [values(4, np.float32, 1000, seed) * [1, 2, 3, 0.001] for seed in range(3)]
    found, findings = recognize_images(write_all(tmp_path, arrays))
    highs = [high for _, high in found.ranges]
    assert highs == pytest.approx([1000, 2000, 3000, 1], rel=0.02)
    assert "4 channels" in findings[0]
    assert "become 0..255" in findings[1]
    assert found.mean == pytest.approx([127.5] * 4, abs=6)
    assert found.std == pytest.approx([73.6] * 4, abs=4)


def test_different_images_are_refused_by_name(tmp_path):
    first, second = write_all(tmp_path, [values(4), values(5)])
    with pytest.raises(DataError, match=rf"{first} has 4 channels, but {second} has 5"):
        recognize_images([first, second])
    first, second = write_all(tmp_path, [values(4), values(4, np.float32)])
    with pytest.raises(DataError, match=rf"{first} has values of type uint16, but {second} has values of type float32"):
        recognize_images([first, second])


def test_an_alpha_channel_is_mentioned(tmp_path):
    Image.fromarray(values(4, np.uint8, 256)).save(tmp_path / "a.png")
    found, [finding] = recognize_images([tmp_path / "a.png"])
    assert found == RGB
    assert "channels: 4" in finding


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (values(4, np.float32, high=3000), "fractions .* but 0 to 1 is expected"),
        (values(4, high=2890), r"may be 0\.\.4095 \(12 bits\) or 0\.\.65535"),
    ],
)
def test_an_unclear_range_of_other_channels_than_rgb_is_refused(tmp_path, array, match):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=match):
        read_image(tmp_path / "a.npy", ImageFormat(4))
    assert read_image(tmp_path / "a.npy", ImageFormat(4, ((0, 4095),))).shape == (4, *SIZE)


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((1, 100, 3), 3, (3, 1, 100)),
        ((2, 100, 3), 3, (3, 2, 100)),
        ((3, 2, 100), 3, (3, 2, 100)),
        ((1, 90, 100), 3, (3, 90, 100)),
        ((60, 50, 100), 60, (60, 50, 100)),
        ((50, 100, 60), 60, (60, 50, 100)),
    ],
)
def test_the_axis_of_an_array_with_the_expected_number_of_channels_has_the_channels(
    tmp_path, shape, channels, expected
):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    assert read_image(tmp_path / "a.npy", ImageFormat(channels)).shape == expected


def test_an_array_whose_axis_of_channels_is_unclear_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((50, 100, 60), np.uint8))
    with pytest.raises(ValueError, match="unclear which axis has the channels"):
        read_header(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((13, 100, 60), np.uint8))
    assert read_header(tmp_path / "a.npy").bands == 13


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_png_files_are_turned_by_their_exif_orientation(tmp_path, orientation):
    array = values(3)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray((array >> 4).astype(np.uint8)).save(tmp_path / "plain.png", exif=exif)
    chunk = exif.tobytes().removeprefix(b"Exif\0\0")
    png = imagecodecs.png_encode(array)
    at = png.index(b"IDAT") - 4
    content = struct.pack(">I", len(chunk)) + b"eXIf" + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
    (tmp_path / "deep.png").write_bytes(png[:at] + content + png[at:])
    # Both have the same values, up to the rounding of the scale.
    found = read_image(tmp_path / "deep.png", ImageFormat(3, ((0, 4095),))).int()
    plain = read_image(tmp_path / "plain.png").int()
    assert found.shape == plain.shape
    assert (found - plain).abs().max() <= 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_an_incomplete_tiff_file_is_named(tmp_path, compression):
    Image.fromarray(values(3, np.uint8, high=256)).save(tmp_path / "a.tif", compression=compression)
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.tif cannot be read as an image"):
        read_image(tmp_path / "a.tif")


def test_damaged_values_of_a_tiff_file_are_named(tmp_path):
    options = {"photometric": "minisblack", "planarconfig": "contig", "compression": "deflate"}
    tifffile.imwrite(tmp_path / "a.tif", values(5), **options)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = b"\xff" * 300
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tif cannot be read as an image: The file cannot be decoded"):
        read_image(tmp_path / "a.tif", ImageFormat(5))


def test_a_single_channel_of_16_bits_that_gdal_wrote_in_planes(tmp_path):
    array = values(1, high=65536)
    write_planes(tmp_path / "a.tif", array[..., 0])
    np.save(tmp_path / "a.npy", array)
    assert torch.equal(read_image(tmp_path / "a.tif"), read_image(tmp_path / "a.npy"))
