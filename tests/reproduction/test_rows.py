"""The rows of the tables: what they are, and what is checked and measured."""

import shutil
import sys
from dataclasses import replace

import pytest

from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE, System
from contextcrf.nets.baselines import BASELINES
from contextcrf.reproduction import ROWS, Runner, check, measure, open_study, rows, rows_of, write_all
from contextcrf.reproduction.tables import CITED_TEST, CITED_VAL
from contextcrf.utils.errors import DataError


def test_rows_have_the_labels_of_the_tables_and_systems_as_values():
    dense = System(relations=(), dense=True)
    assert {row.name: row.system for row in ROWS} == {
        "unary-1scale": UNARY_ONLY,
        "unary-3scales": UNARY_ONLY,
        "pairwise-surrounding": System(unary=False, relations=("surrounding",)),
        "pairwise-above": System(unary=False, relations=("above",)),
        "1unary+2pair": UNARY_PAIRWISE,
        "full": FULL,
        "full-end-to-end": FULL,
        "fcn-8s": UNARY_ONLY,
        "fcn-8s+dense": dense,
        "crf-rnn": dense,
        "crf-rnn+2pair": FULL,
        "deeplab-largefov": UNARY_ONLY,
        "deeplab-largefov+dense": dense,
        "deeplab-msc-largefov": UNARY_ONLY,
        "deeplab-msc-largefov+dense": dense,
        "deeplabv3plus": UNARY_ONLY,
        "deeplabv3plus+2pair": UNARY_PAIRWISE,
    }
    assert all(network in BASELINES for row in ROWS for network in row.networks)


def test_rows_by_name():
    assert rows_of(None) == list(ROWS)
    assert [row.name for row in rows_of(["full", "unary-1scale"])] == ["unary-1scale", "full"]
    with pytest.raises(ValueError, match=r"no rows \['fulll'\]. Choose --rows from unary-1scale, "):
        rows_of(["fulll"])


def test_the_papers_numbers():
    """Tables I and III of arXiv:1504.01013v2."""
    val = {row.name: row.val for row in ROWS if row.val} | CITED_VAL
    assert sorted(val.values()) == [58.3, 59.8, 63.5, 63.7, 63.8, 64.1, 65.2, 65.5, 66.4, 66.7, 67.8, 68.1, 68.7, 70.3]
    assert (val["deeplab-msc-largefov+dense"], val["DeepLab-M-CRF"], val["DeepLab"]) == (68.7, 65.2, 59.8)
    test = {row.name: row.test for row in ROWS if row.test} | CITED_TEST
    assert sorted(test.values()) == [51.6, 62.2, 64.4, 65.2, 66.4, 67.1, 70.4, 70.7, 71.0, 71.6, 72.7]
    assert (test["deeplab-msc-largefov+dense"], test["crf-rnn"]) == (71.6, 65.2)


def test_a_measured_row_is_found_again(scenes, tmp_path, write_study, monkeypatch):
    runner = Runner(open_study(write_study()), scenes, tmp_path / "out")
    [row] = rows_of(["pairwise-above"])
    first = measure(runner, row)
    assert first.name == "pairwise-above"
    assert len(first.counts) == 3
    monkeypatch.setattr(rows, "evaluate", None)
    again = measure(runner, row)
    assert (again.name, again.seconds) == (first.name, first.seconds)
    assert again.counts.equal(first.counts)


def test_a_stopped_measurement_is_made_again(scenes, tmp_path, write_study):
    runner = Runner(open_study(write_study()), scenes, tmp_path / "out")
    [row] = rows_of(["unary-1scale"])
    first = measure(runner, row)
    [folder] = (tmp_path / "out" / "rows").iterdir()
    (folder / "provenance.json").unlink()  # it is written last
    (folder / "images.npz").write_bytes(b"cut short")
    assert measure(runner, row).counts.equal(first.counts)


def test_another_split_is_not_taken_for_the_measured_one(scenes, tmp_path, write_study):
    study, out = open_study(write_study()), tmp_path / "out"
    [row] = rows_of(["unary-3scales"])
    on_val = measure(Runner(study, scenes, out), row)
    on_train = measure(Runner(replace(study, val_split="train"), scenes, out), row)
    assert (len(on_val.counts), len(on_train.counts)) == (3, 6)


def test_other_inference_settings_are_measured_anew(scenes, tmp_path, write_study):
    weights = {"surrounding": None, "above": 0.0}
    study = open_study(write_study(inference={"relation_weights": weights}))
    [row] = rows_of(["1unary+2pair"])
    for iterations in (2, 3):
        runner = Runner(replace(study, inference=replace(study.inference, iterations=iterations)), scenes, tmp_path)
        measure(runner, row)
        assert row.build(runner).inference.iterations == iterations
    assert len(list((tmp_path / "rows").iterdir())) == 2
    assert len(list((tmp_path / "networks").iterdir())) == 2  # no other training


def test_missing_libraries_are_named_before_anything_is_trained(scenes, tmp_path, write_study, monkeypatch):
    runner = Runner(open_study(write_study()), scenes, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.deeplabv3.decoder", None)
    for name in ("deeplabv3plus", "deeplabv3plus+2pair"):
        with pytest.raises(ValueError, match=r"contextcrf\[baselines\]"):
            write_all(runner, rows_of([name]))
    check(runner, rows_of(["unary-1scale", "fcn-8s", "crf-rnn"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("row", ["fcn-8s", "fcn-8s+dense", "crf-rnn"])
def test_a_model_that_cannot_be_built_is_found_before_anything_is_trained(
    scenes, tmp_path, write_study, row, monkeypatch
):
    runner = Runner(open_study(write_study()), scenes, tmp_path / "out")

    def refuse(self, backbone, channels):
        raise ValueError("no such shape")

    monkeypatch.setattr(BASELINES["fcn-8s"], "__init__", refuse)
    with pytest.raises(ValueError, match="no such shape"):
        check(runner, rows_of([row]))
    check(runner, rows_of(["deeplab-largefov"]))


def test_a_missing_relation_is_found_before_anything_is_trained(scenes, tmp_path, write_study):
    study = open_study(write_study())
    left = replace(study, model=replace(study.model, relations={"left": study.model.relations["above"]}))
    runner = Runner(left, scenes, tmp_path / "out")
    check(runner, rows_of(["unary-3scales", "1unary+2pair", "full"]))
    for name in ("above", "surrounding"):
        with pytest.raises(ValueError, match=rf"Row pairwise-{name} needs the relations \['{name}'\], .* \['left'\]"):
            check(runner, rows_of([f"pairwise-{name}"]))
    alone = Runner(replace(study, model=replace(study.model, relations={})), scenes, tmp_path / "out")
    check(alone, rows_of(["unary-3scales", "fcn-8s+dense"]))
    for name in ("1unary+2pair", "full-end-to-end", "deeplabv3plus+2pair"):
        with pytest.raises(
            ValueError, match=r"needs at least one relation, but model\.relations of the study is empty"
        ):
            check(alone, rows_of([name]))


def test_broken_images_to_measure_or_tune_on_are_found_before_anything_is_trained(scenes, tmp_path, write_study):
    data, out = shutil.copytree(scenes, tmp_path / "data"), tmp_path / "out"
    study = open_study(write_study())
    runner = Runner(study, data, out)
    for image in ("val_0001", "train_0003"):  # the second of those that are tuned on
        path = data / "images" / f"{image}.png"
        whole = path.read_bytes()
        path.write_bytes(whole[:200])
        # A network whose training skips broken images needs no tuning.
        refused = ["unary-3scales", "full", "crf-rnn"] if image.startswith("val") else ["full", "crf-rnn"]
        for row in refused:
            with pytest.raises(DataError, match=rf"{image}\.png cannot be decoded as an image"):
                write_all(runner, rows_of([row]))
        path.write_bytes(whole)
    path.write_bytes(whole[:200])
    check(runner, rows_of(["unary-3scales", "pairwise-above", "fcn-8s"]))
    named = replace(study, inference=replace(study.inference, relation_weights={"above": 1.0}))
    check(Runner(named, data, out), rows_of(["1unary+2pair"]))
    assert not out.exists()


def test_relation_weights_of_no_relation_are_refused(scenes, tmp_path, write_study):
    study = open_study(write_study(inference={"relation_weights": {"below": 1.0}}))
    with pytest.raises(ValueError, match=r"relation_weights names \['below'\], but the relations of the model"):
        check(Runner(study, scenes, tmp_path / "out"), rows_of(["1unary+2pair"]))
    assert not (tmp_path / "out").exists()
