import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from contextcrf import InferenceConfig, Predictor
from contextcrf.cli.main import main
from contextcrf.data.classes import Classes
from contextcrf.inference import export
from contextcrf.inference.export import save_dynamic_onnx, save_onnx, save_program, trace
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.serialization import save
from models import settings, tiny, untrained


def image_of(height, width):
    return torch.randint(0, 256, (1, 3, height, width)).float()


def check_file(path, model, sizes, tolerance):
    """An ONNX file has the marginals and the classes of a model, and nothing lies beside it."""
    session = onnxruntime.InferenceSession(path)
    for height, width in sizes:
        image = image_of(height, width)
        [marginals] = session.run(["marginals"], {"image": image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(marginals), model(image), rtol=0, atol=tolerance)
    stored = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert Classes.from_dict(stored) == model.classes
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx"]


@pytest.fixture(params=["both", "unary", "coarse", "half trained"])
def model(request, tiny_model):
    """All potentials; the unary alone; a real backbone and graphs coarser than its map; a relation that is zero."""
    if request.param == "unary":
        weights = dict.fromkeys(tiny_model.pairwise, 0.0)
        return with_config(tiny_model, tiny_model.config, settings(relation_weights=weights)).eval()
    if request.param == "coarse":
        inference = settings(relation_weights={"above": None}, iterations=3)
        return tiny(backbone="resnet10t", scales=(1.0, 0.6), graph_stride=16, inference=inference)
    if request.param == "half trained":
        half = untrained()
        half.pairwise_potential("above").last.reset_parameters()
        return half
    return tiny_model.eval()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (75, 50)])
def test_onnxruntime_computes_the_marginals_of_the_model(model, height, width, tmp_path):
    path = tmp_path / "model.onnx"
    assert save_onnx(trace(model, height, width), model, path) < 1e-4
    check_file(path, model, [(height, width)], 1e-4)


def test_another_size_is_refused(tiny_model, tmp_path):
    save_onnx(trace(tiny_model, 64, 96), tiny_model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    with pytest.raises(Exception, match="Got invalid dimensions"):
        session.run(None, {"image": np.zeros((1, 3, 64, 97), np.float32)})


@pytest.mark.parametrize("backbone", ["plain", "resnet10t", "tf_efficientnet_lite0"])
def test_one_file_takes_images_of_any_size_without_messages(backbone, tmp_path):
    off = settings(relation_weights={"surrounding": 0.0, "above": 0.0})
    silent = tiny(backbone=backbone, scales=(1.2, 0.6), inference=off)
    path = tmp_path / "model.onnx"
    assert save_dynamic_onnx(silent, path) < 1e-3
    assert not any(module.training for module in silent.modules())
    check_file(path, silent, [(64, 96), (75, 50), (33, 160)], 1e-3)


def test_messages_and_graphs_of_one_size_are_refused_for_any_size(tiny_model, tmp_path, monkeypatch):
    for name in tiny_model.pairwise:
        tiny_model.pairwise_potential(name).last.reset_parameters()
    with pytest.raises(ValueError, match="The relations surrounding, above send messages"):
        save_dynamic_onnx(tiny_model, tmp_path / "model.onnx")
    silent = with_config(tiny_model, tiny_model.config, settings(relation_weights={"surrounding": 0.0, "above": 0.0}))
    monkeypatch.setattr(export, "_difference", lambda *_: 0.5)
    with pytest.raises(ValueError, match=r"differs from the model by up to 0\.5, since the backbone plain cannot"):
        save_dynamic_onnx(silent, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_program_computes_the_marginals_of_the_model(model, tmp_path):
    path = tmp_path / "model.pt2"
    assert save_program(trace(model, 64, 96), model, path) < 1e-5
    extra = {"classes.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    image = image_of(64, 96)
    with torch.no_grad():
        torch.testing.assert_close(program(image), model(image), rtol=0, atol=1e-5)
    assert Classes.from_dict(json.loads(extra["classes.json"])) == model.classes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt2"]


def test_a_program_may_have_another_suffix(tiny_model, tmp_path):
    save_program(trace(tiny_model, 64, 96), tiny_model, tmp_path / "model.bin")
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]


def test_the_messages_are_in_the_graph(tiny_model):
    image, found = image_of(64, 96), []
    for weight in (0.0, 3.0):
        inference = settings(relation_weights=dict.fromkeys(tiny_model.pairwise, weight))
        weighted = with_config(tiny_model, tiny_model.config, inference)
        with torch.no_grad():
            found.append(trace(weighted, 64, 96).module()(image))
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_the_graph_computes_in_single_precision_whatever_the_settings(tiny_model):
    image = image_of(64, 96)
    mixed = with_config(tiny_model.eval(), tiny_model.config, InferenceConfig(precision="bf16-mixed"))
    exact = Predictor(tiny_model)
    with torch.no_grad():
        torch.testing.assert_close(trace(mixed, 64, 96).module()(image), exact(image), rtol=0, atol=1e-5)
        assert (mixed(image) - exact(image)).abs().max() > 1e-5


@pytest.mark.parametrize("size", [(0, 9), (9, 0), (-1, 9)])
def test_impossible_sizes_are_refused(tiny_model, size):
    with pytest.raises(ValueError, match=f"image size is {size[0]} x {size[1]}, but the height and the width"):
        trace(tiny_model, *size)


def test_the_command_writes_and_checks(tiny_model, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    size = ["--height", "64", "--width", "96"]
    files = ["--onnx", str(tmp_path / "out" / "m.onnx"), "--program", str(tmp_path / "out" / "m.pt2")]
    main(["export", str(tmp_path / "model"), *size, *files])
    lines = [line for line in capsys.readouterr().out.splitlines() if "largest difference" in line]
    assert [line.split(":")[0] for line in lines] == [files[1], files[3]]
    for wrong, message in (
        (size, "Give --onnx FILE"),
        ([*files[:2], "--height", "9"], "--height and --width belong together"),
        (files[2:], "A program is for images of one size"),
        ([*files, "--height", "0", "--width", "9"], "size is 0 x 9"),
    ):
        with pytest.raises(SystemExit):
            main(["export", str(tmp_path / "model"), *wrong])
        assert message in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    program = trace(tiny_model, 64, 96)
    with pytest.raises(ValueError, match=r"onnxruntime.*contextcrf\[export\]"):
        save_onnx(program, tiny_model, tmp_path / "model.onnx")
