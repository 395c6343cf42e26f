"""Classes: what is accepted, what is refused and how the refusal reads."""

import json
from typing import Any

import pytest

from contextcrf.data.classes import IGNORE_INDEX, Classes, voc_palette
from contextcrf.utils.errors import DataError

TWO = Classes(("cow", "grass"), ((1, 2, 3), (0, 128, 255)))


def test_lists_are_frozen():
    lists: dict[str, Any] = {"names": ["cow", "grass"], "palette": [[1, 2, 3], [0, 128, 255]]}
    assert len(TWO) == 2
    assert Classes(**lists) == TWO
    assert hash(Classes(**lists)) == hash(TWO)


@pytest.mark.parametrize(
    ("names", "palette", "message"),
    [
        (("a",), ((0, 0, 0),), "2 to 255 classes, got 1"),
        (("a", "b"), ((0, 0, 0),), "2 names, 1 colors"),
        (("a", "a"), ((0, 0, 0), (1, 1, 1)), "'a' is also that of class 0"),
        (("a", ""), ((0, 0, 0), (1, 1, 1)), "class 1: expected a name"),
        (("a", "b"), ((0, 0, 0), (1, 1, 256)), r"'b'.*0\.\.255, got \[1, 1, 256\]"),
        (("a", "b"), ((0, 0, 0), (1, 1)), r"'b'.*three integers"),
        (("a", "b"), ((0, 0, 0), (1, 1, 0.5)), r"'b'.*three integers"),
    ],
)
def test_bad_classes_are_refused(names, palette, message):
    with pytest.raises(ValueError, match=message):
        Classes(names, palette)


def test_dict_round_trip_through_json():
    assert Classes.from_dict(json.loads(json.dumps(TWO.to_dict()))) == TWO


@pytest.mark.parametrize("values", [{"names": ["a", "b"]}, {"names": "ab", "palette": []}])
def test_from_dict_names_the_key(values):
    with pytest.raises(ValueError, match="under the key"):
        Classes.from_dict(values)


def test_from_dict_refuses_a_color_that_is_no_list():
    with pytest.raises(ValueError, match="three integers"):
        Classes.from_dict({"names": ["a", "b"], "palette": [1, 2]})


def test_yaml_round_trip(tmp_path):
    TWO.to_yaml(tmp_path / "classes.yaml", ignore_index=11)
    assert Classes.from_yaml(tmp_path / "classes.yaml") == (TWO, 11)


def test_yaml_without_colors_and_ignore_index(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text("classes: [{name: cow}, {name: grass}]")
    assert Classes.from_yaml(path) == (Classes(("cow", "grass"), voc_palette(2)), IGNORE_INDEX)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [", "expected a YAML file"),
        ("- cow", "expected the keys 'classes' and 'ignore_index'"),
        ("{ignore_index: 255}", "key 'classes': expected a list"),
        ("{ignore_label: 255}", "unknown key 'ignore_label'"),
        ("{ignore_index: none, classes: []}", "key 'ignore_index': expected an integer"),
        ("{classes: [cow, grass]}", "entry 0: expected {name"),
        ("{classes: [{name: cow}, {title: grass}]}", "entry 1: unknown key 'title'"),
        ("{classes: [{name: cow}, {name: off}]}", "entry 1, key 'name'.*in quotes.*got False"),
        ("{classes: [{name: cow, color: [0, 0, 0]}, {name: grass}]}", "entry 1, key 'color'.*got None"),
        ("{classes: [{name: cow, color: red}]}", "entry 0, key 'color'.*got 'red'"),
        ("{classes: [{name: cow}]}", "key 'classes': expected 2 to 255"),
        ("{classes: [{name: cow}, {name: cow}]}", "key 'classes': class 1"),
    ],
)
def test_yaml_errors_name_file_key_and_expectation(tmp_path, text, message):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        Classes.from_yaml(path)
    assert str(path) in str(caught.value)


def test_missing_yaml(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"classes\.yaml"):
        Classes.from_yaml(tmp_path / "classes.yaml")


def test_voc_palette():
    palette = voc_palette(256)
    # background, aeroplane, bicycle, person, tv/monitor and void of the devkit
    assert palette[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert palette[15] == (192, 128, 128)
    assert palette[20] == (0, 64, 128)
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256
    with pytest.raises(ValueError, match="0 to 256"):
        voc_palette(257)
