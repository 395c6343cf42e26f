"""Files that are damaged in any way: an error that names the file, never a crash and never a wrong answer."""

import io
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from contextcrf.cli.main import main
from contextcrf.data.classes import Classes
from contextcrf.data.images import read_image, read_mask
from contextcrf.data.layouts import open_dataset
from contextcrf.data.validation import check_pairs
from contextcrf.modeling.model import load
from contextcrf.modeling.serialization import ModelError, save
from contextcrf.training.checkpoints import newest_checkpoint
from contextcrf.utils.errors import DataError

# The folder of a test is one for all its examples.
fuzzed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damages(draw):
    """What happens to the bytes of a file, as a function; it may be nothing."""
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6))
    cut, kind = draw(st.floats(0, 1)), draw(st.sampled_from(["flip", "cut", "insert", "drop"]))

    def damage(whole):
        content = bytearray(whole)
        if kind == "cut":
            return bytes(content[: int(cut * len(content))])
        for place, value in places:
            index = int(place * (len(content) - 1)) if content else 0
            if kind == "flip" and content:
                content[index] ^= value
            elif kind == "insert":
                content[index:index] = bytes([value]) * 3
            elif kind == "drop":
                del content[index : index + value]
        return bytes(content)

    return damage


def outcome(call, errors):
    """The result of a call and None, or None and the message of an error that it may end with."""
    try:
        return call(), None
    except errors as error:
        return None, str(error)


def picture(kind, mode="RGB"):
    channels = (3,) if mode == "RGB" else ()
    array = np.random.default_rng(0).integers(0, 3, (13, 17, *channels), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


PICTURES = {kind: picture(kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")}
MASK = picture("PNG", "L")


@pytest.mark.parametrize("kind", PICTURES)
@fuzzed
@given(damage=damages())
def test_pictures(kind, damage, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(damage(PICTURES[kind]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it can read all the same
        found, message = outcome(lambda: read_image(path), DataError)
    if found is None:
        assert message.startswith(f"{path} cannot be read as an image: ")
    else:
        assert (found.dtype, found.shape[0]) == (torch.uint8, 3)


@fuzzed
@given(damage=damages())
def test_masks_that_pass_the_check_are_read_as_labels(damage, tmp_path):
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    image.write_bytes(PICTURES["PNG"])
    mask.write_bytes(damage(MASK))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, message = outcome(lambda: check_pairs([(image, mask)], 3, 255), DataError)
        if message is None:
            found = read_mask(mask, 255)
            assert found.shape == (13, 17)
            assert set(found.unique().tolist()) <= {0, 1, 2, 255}
        else:
            assert "mask.png" in message


@fuzzed
@given(damage=damages())
def test_names_of_classes(damage, tmp_path):
    path = tmp_path / "classes.yaml"
    Classes(("sea", "sky"), ((1, 2, 3), (4, 5, 6))).to_yaml(path)
    path.write_bytes(damage(path.read_bytes()))
    found, message = outcome(lambda: Classes.from_yaml(path), DataError)
    if found is None:
        assert "classes.yaml" in message
    else:
        assert len(found[0].names) == len(found[0].palette)
        assert found[1] is None or isinstance(found[1], int)


CONFIG = b"""model:
  backbone: plain
  relations: {beside: {top: 0.0, bottom: 0.0, left: 0.3, right: 0.3}}
training:
  epochs: 7
  crop: [64, 96]
data: nowhere
out: nowhere/run
"""


@fuzzed
@given(damage=damages())
def test_configurations_end_with_a_message(damage, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.yaml").write_bytes(damage(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _, code = outcome(lambda: main(["fit", "--config", "config.yaml"]), SystemExit)
    assert code == "2"
    assert capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


@pytest.fixture(scope="module")
def stored(scenes, tmp_path_factory):
    from contextcrf.modeling.config import ModelConfig
    from contextcrf.modeling.model import ContextCRF

    config = ModelConfig("plain", channels=4, hidden=4, scales=(1.0,))
    model = ContextCRF(config, open_dataset(scenes, "train").classes, pretrained=False)
    save(model, tmp_path_factory.mktemp("model"))
    return model, tmp_path_factory.getbasetemp() / "model0"


@fuzzed
@given(damage=damages())
def test_weights_are_those_that_were_saved_or_refused(damage, stored, tmp_path):
    model, folder = stored
    shutil.copytree(folder, tmp_path / "model", dirs_exist_ok=True)
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    found, message = outcome(lambda: load(tmp_path / "model"), ModelError)
    if found is None:
        assert "model.safetensors" in message
    else:
        assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())


@fuzzed
@given(damage=damages())
def test_the_configuration_of_a_model(damage, stored, tmp_path):
    _, folder = stored
    shutil.copytree(folder, tmp_path / "model", dirs_exist_ok=True)
    path = tmp_path / "model" / "config.json"
    path.write_bytes(damage(path.read_bytes()))
    model, message = outcome(lambda: load(tmp_path / "model"), ModelError)
    if model is None:
        assert "config.json" in message or "model.safetensors" in message
        return
    found = model.segment(np.zeros((20, 30, 3), np.uint8))
    assert found.labels.shape == (20, 30)
    assert not found.probabilities.isnan().any()


@fuzzed
@given(damage=damages())
def test_checkpoints(damage, tmp_path):
    for epoch in (1, 2):
        torch.save({"weights": torch.arange(100.0)}, tmp_path / f"epoch={epoch}.ckpt")
    last = tmp_path / "epoch=2.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    found = newest_checkpoint(tmp_path)
    assert found in (tmp_path / "epoch=1.ckpt", last)
    assert torch.equal(torch.load(found, weights_only=True)["weights"], torch.arange(100.0))
