"""Models on disk: written whole or not at all, and read as they were written."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from contextcrf import RangeBox, load
from contextcrf.modeling import serialization
from contextcrf.modeling.serialization import (
    BUNDLED,
    CONFIG,
    WEIGHTS,
    ModelError,
    bundled_models,
    find_model,
    fingerprint,
    save,
    weights_digest,
)
from models import CLASSES, images, same_weights, settings, tiny


class Killed(BaseException):
    """Ends a process in the middle of a call; no code of the library catches it."""


def die(*_: object, **__: object) -> None:
    raise Killed


def at_call(number: int, function: Callable[..., object]) -> Callable[..., object]:
    """The function, which dies at the start of one of its calls."""
    calls: list[object] = []

    def counted(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        return (die if len(calls) == number else function)(*arguments, **options)

    return counted


def half_of_the_weights(state: object, path: Path) -> None:
    path.write_bytes(b"half of the weights")
    die()


# Where a process may be killed before the new model is in place, in the order of the steps.
KILLS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "weights half written": lambda patch: patch.setattr(serialization, "save_file", half_of_the_weights),
    "weights not in place": lambda patch: patch.setattr(Path, "replace", at_call(1, Path.replace)),
    "weights in place": lambda patch: patch.setattr(serialization, "_sha256", die),
    "config not written": lambda patch: patch.setattr(serialization, "write_json", die),
    "config not in place": lambda patch: patch.setattr(Path, "replace", at_call(2, Path.replace)),
}


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def weights_files(folder: Path) -> list[str]:
    return [name for name in listed(folder) if name.endswith(".safetensors")]


WRITERS: dict[str, Callable[..., object]] = {
    "save": save,
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("earlier", [1, 2], ids=["first name", "second name"])
@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_a_process_that_is_killed_while_it_saves_leaves_the_old_model(kill, earlier, write, tmp_path, monkeypatch):
    old, new = tiny(hidden=4), tiny()
    for _ in range(earlier):
        save(old, tmp_path)
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            write(new, tmp_path)
    assert same_weights(load(tmp_path), old)
    write(new, tmp_path)
    assert same_weights(load(tmp_path), new)
    assert len(weights_files(tmp_path)) == 1


@pytest.mark.parametrize("earlier", [1, 2], ids=["first name", "second name"])
def test_a_process_that_is_killed_before_it_removes_old_weights_leaves_the_new_model(earlier, tmp_path, monkeypatch):
    old, new = tiny(hidden=4), tiny()
    for _ in range(earlier):
        save(old, tmp_path)
    [before] = weights_files(tmp_path)
    unlink = Path.unlink
    with monkeypatch.context() as patch:
        # The removal of old weights alone, not that of partial files.
        patch.setattr(Path, "unlink", lambda path, **o: (die if path.name in WEIGHTS else unlink)(path, **o))
        with pytest.raises(Killed):
            save(new, tmp_path)
    assert same_weights(load(tmp_path), new)
    assert set(weights_files(tmp_path)) == set(WEIGHTS)
    save(new, tmp_path)
    assert weights_files(tmp_path) == [before]
    assert same_weights(load(tmp_path), new)


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_a_process_that_is_killed_at_the_first_save_leaves_no_model(kill, tmp_path, monkeypatch):
    model = tiny()
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            save(model, tmp_path)
    with pytest.raises(ModelError, match="Expected a folder"):
        load(tmp_path)
    save(model, tmp_path)
    assert same_weights(load(tmp_path), model)
    assert listed(tmp_path) == [CONFIG, WEIGHTS[0]]


def test_weights_change_between_two_names_and_one_file_stays(tmp_path):
    folder = tmp_path / "new" / "model"
    for expected in ("model.safetensors", "model-2.safetensors", "model.safetensors"):
        model = tiny()
        save(model, folder)
        assert listed(folder) == ["config.json", expected]
        assert same_weights(load(folder), model)
        assert json.loads((folder / CONFIG).read_text())["weights"]["file"] == expected


def test_a_folder_whose_configuration_is_damaged_can_be_saved_into(tmp_path):
    for content in ("{", "[]", "{}", '{"weights": null}', '{"weights": {"file": 3}}'):
        (tmp_path / CONFIG).write_text(content)
        model = tiny()
        save(model, tmp_path)
        assert same_weights(load(tmp_path), model)
        assert len(weights_files(tmp_path)) == 1


def test_weights_can_be_read_by_whoever_can_read_the_configuration(tmp_path):
    save(tiny(), tmp_path)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in listed(tmp_path)]
    assert modes[0] == modes[1]


def test_weights_that_cannot_be_written_are_named_and_the_old_model_stays(tmp_path, monkeypatch):
    old = tiny()
    save(old, tmp_path)

    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(serialization, "save_file", full)
    with pytest.raises(OSError, match=r"cannot be written to .*model-2\.safetensors: No space left"):
        save(tiny(), tmp_path)
    assert same_weights(load(tmp_path), old)
    assert listed(tmp_path) == ["config.json", "model.safetensors"]


def test_settings_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    model = tiny()
    save(model, tmp_path)
    for wrong in (settings(relation_weights={"below": 1.0}), settings(system="unary+below")):
        with pytest.raises(ValueError, match="below"):
            save(model, tmp_path, inference=wrong)
    assert listed(tmp_path) == ["config.json", "model.safetensors"]
    load(tmp_path)


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_model_predicts_as_before(tmp_path, half):
    relations = {"above": RangeBox(0.5, 0.1, 0.2, 0.3, hole=RangeBox(0.0, 0.0, 0.1, 0.1))}
    inference = settings(
        system="unary+above+dense",
        relation_weights={"above": 2.0},
        dense={"iterations": 2},
        scales=(1.0, 0.5),
        flip=True,
    )
    model = tiny(inference=inference, relations=relations)
    save(model, tmp_path / "m", {"data": "beach"}, half=half)
    again = load(tmp_path / "m")
    assert (again.config, again.inference) == (model.config, inference)
    assert (again.classes, again.metadata) == (CLASSES, {"data": "beach"})
    assert not again.training
    pixels = images()[0]
    difference = (again.segment(pixels).probabilities - model.segment(pixels).probabilities).abs().max()
    assert difference < (2e-3 if half else 1e-7)
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert size < 4.2 * sum(p.numel() for p in model.parameters()) / (2 if half else 1) + 5000


def test_metadata_and_settings_stay_unless_others_are_given(tmp_path):
    model = tiny(inference=settings(iterations=3))
    model.metadata = {"fit": {"data": "beach"}}
    save(model, tmp_path)
    assert (load(tmp_path).metadata, load(tmp_path).inference) == (model.metadata, model.inference)
    other = settings(iterations=5, relation_weights={"above": None})
    save(model, tmp_path, {}, inference=other)
    assert (load(tmp_path).metadata, load(tmp_path).inference) == ({}, other)
    assert model.inference == settings(iterations=3)


def test_relations_of_several_boxes_and_holes_are_saved(tmp_path):
    relations = {
        "sides": (RangeBox.leftward(), RangeBox.rightward()),
        "ring": RangeBox.ring(),
        "few": RangeBox(1, 1, 1, 1, grid=5),
    }
    save(tiny(relations=relations), tmp_path)
    assert load(tmp_path).config.relations == relations


def test_a_learned_dense_crf_is_saved(tmp_path):
    model = tiny(inference=settings(dense={"iterations": 2}), learned_dense=True)
    assert model.dense is not None
    with torch.no_grad():
        model.dense.spatial_compat += 0.5
    save(model, tmp_path)
    again = load(tmp_path)
    assert same_weights(again, model)
    pixels = images()[0]
    assert torch.equal(
        again.segment(pixels, "unary+dense").probabilities, model.segment(pixels, "unary+dense").probabilities
    )


def test_a_training_s_folder_is_found_by_its_model(tmp_path):
    save(tiny(), tmp_path / "run" / "model")
    assert find_model(tmp_path / "run") == tmp_path / "run" / "model"
    assert find_model("camvid") == BUNDLED / "camvid"
    assert "camvid" in bundled_models()


def test_models_that_cannot_be_loaded_are_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match=r"'nowhere'\. .*bundled model \(.*camvid"):
        load("nowhere")
    save(tiny(), tmp_path)
    path = tmp_path / CONFIG
    config = json.loads(path.read_text())
    for content, message in (
        ({**config, "format": 99}, "has the format 99, but .* expects the format 2"),
        ({name: value for name, value in config.items() if name != "format"}, "has the format None"),
        ([config], "has the format list"),
        ({**config, "model": {"depth": 3}}, "is not a valid configuration"),
        ({**config, "classes": {"names": ["sky"]}}, "is not a valid configuration"),
        ({**config, "weights": {}}, "is not a valid configuration"),
        (
            {name: value for name, value in config.items() if name != "inference"},
            "is not a valid configuration of a model",
        ),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ModelError, match=rf"config\.json {message}"):
            load(tmp_path)
    path.write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not a JSON file"):
        load(tmp_path)
    path.write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    blob = weights.read_bytes()
    weights.write_bytes(blob[: len(blob) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or does not belong to .*config\.json"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be loaded"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("model", "relations", []),
        ("model", "hidden", -1),
        ("model", "upsampling", "x"),
        ("inference", "iterations", -1),
        ("inference", "iterations", 1.5),
        ("inference", "relation_weights", {"above": "much"}),
        ("inference", "relation_weights", {"below": 1.0}),
        ("inference", "system", "unary+below"),
        ("inference", "system", "dense"),
        ("inference", "system", 3),
        ("inference", "other", 3),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path, group, key, value):
    save(tiny(), tmp_path)
    path = tmp_path / CONFIG
    config = json.loads(path.read_text())
    config[group][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json is not a valid configuration of a model"):
        load(tmp_path)


def test_weights_of_another_size_than_the_configuration_are_named(tmp_path):
    save(tiny(), tmp_path)
    path = tmp_path / CONFIG
    config = json.loads(path.read_text())
    config["model"]["hidden"] = 16
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"(?s)model\.safetensors cannot be loaded into .*size mismatch"):
        load(tmp_path)


def test_a_fingerprint_is_that_of_configuration_and_weights(tmp_path):
    model = tiny()
    save(model, tmp_path, inference=settings(iterations=7))
    assert fingerprint(load(tmp_path)) == fingerprint(model)
    before = fingerprint(model)
    with torch.no_grad():
        model.unary.last.bias[0] += 1
    assert fingerprint(model) != before
    wider = tiny(upsampling="bilinear")
    wider.load_state_dict(model.state_dict())
    assert fingerprint(wider) != fingerprint(model)


def test_a_digest_is_that_of_the_file_of_weights(tmp_path):
    save(tiny(), tmp_path)
    first = weights_digest(tmp_path)
    assert first == json.loads((tmp_path / CONFIG).read_text())["weights"]["sha256"]
    save(tiny(), tmp_path)
    assert weights_digest(tmp_path) != first
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json is not a valid configuration"):
        weights_digest(tmp_path)
