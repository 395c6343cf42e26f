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
        (("a",), ((0, 0, 0),), "number of classes is 1, but it must be from 2 to 255"),
        (("a", "b"), ((0, 0, 0),), "number of names is 2, but the number of colors is 1"),
        (("a", "a"), ((0, 0, 0), (1, 1, 1)), "classes 0 and 1 have the same name, 'a'"),
        (("a", ""), ((0, 0, 0), (1, 1, 1)), "name of class 1 is '', but a non-empty string"),
        (("a", "b"), ((0, 0, 0), (1, 1, 256)), r"'b' is \[1, 1, 256\], but three integers from 0 to 255"),
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
        ("classes: [", "cannot be read as a YAML file"),
        ("- cow", "a mapping with the keys 'classes' and 'ignore_index' is expected"),
        ("{ignore_index: 255}", "None under the key 'classes', but a list"),
        ("{ignore_label: 255}", "unknown key 'ignore_label'"),
        (
            "{ignore_index: none, classes: [{name: a}, {name: b}]}",
            "'none' under the key 'ignore_index', but an integer",
        ),
        ("{classes: [cow, grass]}", "Entry 0 .* is 'cow', but {name"),
        ("{classes: [{name: cow}, {title: grass}]}", "Entry 1 .* has the unknown key 'title'"),
        ("{classes: [{name: cow}, {name: off}]}", "Entry 1 .* has the name False, .*in quotes"),
        ("{classes: [{name: cow, color: [0, 0, 0]}, {name: grass}]}", "Entry 1 .* has the color None"),
        ("{classes: [{name: cow, color: red}]}", "Entry 0 .* has the color 'red'"),
        ("{classes: [{name: cow}]}", "under the key 'classes'. .* from 2 to 255"),
        ("{classes: [{name: cow}, {name: cow}]}", "under the key 'classes'. The classes 0 and 1"),
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
    with pytest.raises(ValueError, match="from 0 to 256"):
        voc_palette(257)
