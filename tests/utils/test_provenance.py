"""Records of what decided a result: stored, compared, and named by a digest."""

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest

from contextcrf.utils.provenance import FILE_NAME, Provenance


@dataclass
class Training:
    epochs: int = 3
    scale: tuple[float, float] = (0.5, 2.0)
    folder: Path = Path("runs") / "mine"
    relations: dict[str, float] = field(default_factory=lambda: {"above": 1.0})


def test_values_become_plain():
    record = Provenance.of(split="train", training=Training())
    assert record.values == {
        "split": "train",
        "training": {"epochs": 3, "scale": [0.5, 2.0], "folder": "runs/mine", "relations": {"above": 1.0}},
    }
    assert json.loads(json.dumps(record.values)) == record.values


def test_written_and_read(tmp_path):
    assert Provenance.read(tmp_path) is None
    record = Provenance.of(training=Training(), name="Straße")
    record.write(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE_NAME]
    found = Provenance.read(tmp_path / "new")
    assert found == record
    assert found.difference(record) is None
    assert found.digest == record.digest


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"epochs": 4}, ("training.epochs", 3, 4)),
        ({"scale": (0.5, 1.0)}, ("training.scale", [0.5, 2.0], [0.5, 1.0])),
        ({"relations": {"above": 0.5}}, ("training.relations.above", 1.0, 0.5)),
        ({"relations": {"above": 1.0, "below": 1.0}}, ("training.relations.below", None, 1.0)),
        ({"relations": {}}, ("training.relations.above", 1.0, None)),
    ],
)
def test_the_difference_names_the_setting_in_its_group(change, difference):
    ours, theirs = Provenance.of(training=Training()), Provenance.of(training=Training(**change))
    assert ours.difference(theirs) == difference
    name, here, there = difference
    assert theirs.difference(ours) == (name, there, here)
    assert ours.digest != theirs.digest


def test_equal_records_have_no_difference():
    assert Provenance.of(a=1, b={"c": None}).difference(Provenance.of(b={"c": None}, a=1)) is None


def test_the_digest_does_not_depend_on_the_order_or_on_the_process():
    record = Provenance.of(split="train", training={"lr": 0.1, "folder": PurePosixPath("a/b")})
    assert record.digest == Provenance.of(training={"folder": "a/b", "lr": 0.1}, split="train").digest
    assert record.digest == "02dd76d6191a7c32"


def test_a_record_of_an_earlier_version_lacks_a_value(tmp_path):
    Provenance.of(epochs=1).write(tmp_path)
    assert (
        Provenance.of(epochs=1, masks="a").mismatch(tmp_path) == "without a record of masks, as by an earlier version"
    )
