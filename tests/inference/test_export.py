import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from contextcrf.cli.main import main
from contextcrf.data.classes import Classes
from contextcrf.inference.export import save_onnx, save_program, trace
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import save


@pytest.fixture(params=["both", "unary", "coarse"])
def model(request, tiny_model):
    """All potentials; the unary alone; a real backbone, two scales, graphs coarser than its map, some without edges."""
    if request.param == "unary":
        tiny_model.config.strengths = {"surrounding": 0.0, "above": 0.0}
    if request.param != "coarse":
        return tiny_model.eval()
    config = ModelConfig(
        "resnet10t", stride=8, scales=(1.0, 0.6), channels=8, hidden=8, graph_stride=16, strengths={"above": None}
    )
    model = ContextCRF(config, tiny_model.classes, pretrained=False).eval()
    for head in model.pairwise.values():
        head.last.reset_parameters()
    return model


@pytest.mark.parametrize(("height", "width"), [(64, 96), (75, 50)])
def test_onnxruntime_says_what_the_model_says(model, height, width, tmp_path):
    path = tmp_path / "model.onnx"
    assert save_onnx(trace(model, height, width), model, path) < 1e-4
    session = onnxruntime.InferenceSession(path)
    image = torch.randint(0, 256, (1, 3, height, width)).float()
    [marginals] = session.run(["marginals"], {"image": image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(marginals), model(image), rtol=0, atol=1e-4)
    stored = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert Classes.from_dict(stored) == model.classes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]


def test_another_size_is_refused(tiny_model, tmp_path):
    save_onnx(trace(tiny_model, 64, 96), tiny_model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    with pytest.raises(Exception, match="Got invalid dimensions"):
        session.run(None, {"image": np.zeros((1, 3, 64, 97), np.float32)})


def test_a_program_says_what_the_model_says(model, tmp_path):
    path = tmp_path / "model.pt2"
    assert save_program(trace(model, 64, 96), model, path) < 1e-5
    extra = {"classes.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    image = torch.randint(0, 256, (1, 3, 64, 96)).float()
    with torch.no_grad():
        torch.testing.assert_close(program(image), model(image), rtol=0, atol=1e-5)
    assert Classes.from_dict(json.loads(extra["classes.json"])) == model.classes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt2"]


def test_the_messages_are_in_the_graph(tiny_model, tmp_path):
    image = torch.randint(0, 256, (1, 3, 64, 96)).float()
    found = []
    for strengths in ({"surrounding": 0.0, "above": 0.0}, {"surrounding": 3.0, "above": 3.0}):
        tiny_model.config.strengths = strengths
        with torch.no_grad():
            found.append(trace(tiny_model, 64, 96).module()(image))
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_the_command_writes_and_checks(tiny_model, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    size = ["--height", "64", "--width", "96"]
    files = ["--onnx", str(tmp_path / "out" / "m.onnx"), "--program", str(tmp_path / "out" / "m.pt2")]
    main(["export", str(tmp_path / "model"), *size, *files])
    lines = [line for line in capsys.readouterr().out.splitlines() if "of the model's" in line]
    assert [line.split(":")[0] for line in lines] == [files[1], files[3]]
    for wrong, message in ((size, "expected --onnx FILE"), ([*files, "--height", "0", "--width", "9"], "size 0 x 9")):
        with pytest.raises(SystemExit):
            main(["export", str(tmp_path / "model"), *wrong])
        assert message in capsys.readouterr().err


def test_what_is_missing_is_named(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    program = trace(tiny_model, 64, 96)
    with pytest.raises(ValueError, match=r"onnxruntime.*contextcrf\[export\]"):
        save_onnx(program, tiny_model, tmp_path / "model.onnx")
