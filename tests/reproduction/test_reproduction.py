"""The paper's tables by one command, on scenes and networks of no size."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from contextcrf import load
from contextcrf.cli.main import main
from contextcrf.modeling.config import ModelConfig
from contextcrf.nets.baselines import BASELINES
from contextcrf.reproduction import (
    ROWS,
    STUDIES,
    Workshop,
    check,
    measure,
    open_study,
    rows_of,
    through_dense,
    write_all,
)
from contextcrf.reproduction.tables import CITED_TEST, CITED_VAL
from contextcrf.training import Piecewise
from contextcrf.training.config import Recipe
from contextcrf.training.jobs import OtherSettingsError, train_once
from contextcrf.utils.errors import DataError

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPE = {"epochs": 1, "crop": [64, 96], "batch_size": 3, "max_edges": 64}


def write_study(path, shared=True, **recipe):
    shape = {"backbone": "resnet10t", "stride": 16, "channels": 8, "hidden": 8, "shared_trunk": shared}
    study = {"model": shape, "recipe": {**RECIPE, **recipe}, "heads": RECIPE, "tune_images": 2, "pretrained": False}
    path.write_text(yaml.safe_dump(study))
    return str(path)


def stamps(folder):
    """Of networks and of what they say, one folder deeper than the tables."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.suffix in (".safetensors", ".npz")}


def test_all_rows_of_a_study(scenes, tmp_path, capsys):
    study, out = write_study(tmp_path / "study.yaml"), tmp_path / "out"
    command = ["reproduce", study, "--data", str(scenes), "--out", str(out)]
    main([*command, "--rows", "[unary-3scales, pairwise-above]"])
    said = capsys.readouterr().out
    steps = ["row 1 of 2: unary-3scales", "training network unary-3scales", "row 2 of 2: pairwise-above"]
    places = [said.index(f"{step}\n") for step in [*steps, "  training network unary-3scales-heads"]]
    assert places == sorted(places)
    done = stamps(out)
    assert {path.name for path in (out / "networks").iterdir()} == {"unary-3scales", "unary-3scales-heads"}
    main(command)
    said = capsys.readouterr().out
    assert f"written to {out}" in said
    assert "  training network unary-3scales\n" not in said  # it is there
    assert "  choosing the dense CRF of full\n" in said
    # What was there is there as it was; what is measured fits the model.
    assert {path: stamp for path, stamp in stamps(out).items() if path in done} == done
    results = json.loads((out / "results.json").read_text())
    names = [row.name for row in ROWS]
    assert [row["name"] for row in results["rows"]] == names
    here = {row["name"]: row["mean_iou"] for row in results["rows"]}
    table1, table2, table3 = (json.loads((out / f"table{number}.json").read_text())["rows"] for number in (1, 2, 3))
    found = {row["method"]: row for row in table1}
    assert list(found)[: len(names)] == names
    assert {name: found[name]["here"] for name in names} == {name: f"{100 * here[name]:.1f}" for name in names}
    paper = [found[name]["paper"] for name in names[:6]]
    assert paper == ["58.3", "65.5", "66.7", "66.4", "67.8", "70.3"]
    assert found["Deep-struct"] == {"method": "Deep-struct", "here": "", "paper": "64.1", "seconds an image": ""}
    assert [row["method"] for row in table2][:6] == [*names[:3], "gain over unary", names[3], "gain over unary"]
    gain = 100 * (here["pairwise-above"] - here["unary-3scales"])
    assert float(table2[5]["mean"]) == pytest.approx(gain, abs=0.051)
    tested = {row["method"]: row["paper, test"] for row in table3}
    assert (tested["full"], tested["fcn-8s"], tested["crf-rnn"]) == ("70.7", "62.2", "65.2")
    assert r"fcn-8s & " in (out / "table3.tex").read_text()
    assert r"Mean IoU, \%" in (out / "table1.tex").read_text()
    assert "| full | " in (out / "table1.md").read_text()
    assert {path.name for path in out.glob("*.png")} == {"fig6.png", "fig7.png", "fig10.png"}
    with Image.open(out / "fig7.png") as shown:
        assert shown.height > 3 * 64  # all three images of the split, each once
    capsys.readouterr()
    main(["compare", str(out), str(out), "--first_row", "fcn-8s", "--second_row", "full"])
    assert f"{100 * here['fcn-8s']:.2f} -> {100 * here['full']:.2f}: " in capsys.readouterr().out
    # Systems are what they are called.
    shop = Workshop(open_study(study), scenes, out)
    assert shop.unary(scales=1).config.scales == (1.0,)
    rnn, [tuned] = shop.crf_rnn(), (out / "tuned").glob("crf-rnn-before+dense-*")
    assert rnn.about["fit"]["recipe"]["objective"] == "crf-rnn"
    chosen = load(tuned).about["tuned"]["settings"]
    assert rnn.config.dense == {**chosen, "iterations": 5}
    assert set(chosen) == {"spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat"}
    whole, [tuned] = shop.end_to_end(), (out / "tuned").glob("end-to-end-before+full-*")
    assert (whole.config.network, whole.trained_relations) == ("context", ["surrounding", "above"])
    assert whole.about["fit"]["recipe"]["potentials"] == ["unary", "surrounding", "above"]
    start = load(tuned)
    assert whole.config.strengths == start.config.strengths
    heard = [f"pairwise.{name}" for name, strength in start.config.strengths.items() if strength]
    for name in ("unary", *heard):
        head, before = whole.get_submodule(name), start.get_submodule(name)
        assert not torch.equal(head.last.weight, before.last.weight), name
    assert shop.baseline("deeplab-largefov", dense=True).about["tuned"]["split"] == "train"
    assert shop.on_baseline("deeplabv3plus").config.network == "deeplabv3plus"


def test_networks_of_their_own_and_strengths_that_the_study_names(scenes, tmp_path):
    path = tmp_path / "study.yaml"
    write_study(path, shared=False)
    study = yaml.safe_load(path.read_text())
    study["model"]["strengths"] = {"surrounding": None, "above": None}
    path.write_text(yaml.safe_dump(study))
    shop = Workshop(open_study(str(path)), scenes, tmp_path / "out")
    row = measure(shop, rows_of(["1unary+2pair"])[0])
    assert row.name == "1unary+2pair"
    assert {part.name for part in (tmp_path / "out" / "networks").iterdir()} == {
        "unary-3scales",
        "pairwise-surrounding",
        "pairwise-above",
    }
    model = shop.together()
    assert not model.config.shared_trunk
    assert model.config.strengths == {"surrounding": None, "above": None}
    assert not (tmp_path / "out" / "tuned").exists()
    whole = shop.end_to_end()
    assert set(whole.trunks) == {"unary", "surrounding", "above"}
    assert whole.config.strengths == model.config.strengths


def test_the_bundled_studies_can_be_trained_through_the_dense_crf():
    for path in STUDIES.glob("*.yaml"):
        recipe = open_study(path.stem).recipe
        coupled = through_dense(recipe)
        assert (coupled.objective, coupled.crop, coupled.precision) == ("crf-rnn", recipe.crop, recipe.precision)


def test_a_changed_study_is_not_mixed_with_the_old_one(scenes, tmp_path):
    shop = Workshop(open_study(write_study(tmp_path / "a.yaml")), scenes, tmp_path / "out")
    shop.unary()
    changed = Workshop(open_study(write_study(tmp_path / "b.yaml", epochs=2)), scenes, tmp_path / "out")
    with pytest.raises(OtherSettingsError, match=r"unary-3scales: was trained with recipe\.epochs 1, not 2"):
        changed.unary()


def test_what_is_unknown_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rows \['fulll'\]: expected some of unary-1scale, "):
        rows_of(["fulll"])
    with pytest.raises(ValueError, match="study 'cityscapes': expected a YAML file, or one of camvid, voc"):
        open_study("cityscapes")


@pytest.mark.parametrize("text", ["recipe: {epoch: 3}", "nothing", "a: [", "model: 3"])
def test_a_file_that_is_no_study_is_refused(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"study\.yaml: expected the settings of a study"):
        open_study(str(tmp_path / "study.yaml"))


def test_another_split_or_trunk_is_not_taken_for_the_old_one(scenes, tmp_path):
    path = tmp_path / "study.yaml"
    write_study(path)
    study, out = open_study(str(path)), tmp_path / "out"
    [row] = rows_of(["unary-3scales"])
    on_val = measure(Workshop(study, scenes, out), row)
    on_train = measure(Workshop(replace(study, val_split="train"), scenes, out), row)
    assert (len(on_val.images), len(on_train.images)) == (3, 6)
    Workshop(study, scenes, out).pairwise("above")
    # The unary is trained anew: heads on the old one do not fit it any more.
    shutil.rmtree(out / "networks" / "unary-3scales")
    other = replace(study, recipe=replace(study.recipe, seed=7))
    with pytest.raises(OtherSettingsError, match="unary-3scales-heads: was trained with model weights"):
        Workshop(other, scenes, out).pairwise("above")
    with pytest.raises(OtherSettingsError, match="pretrained"):
        Workshop(replace(other, pretrained=True), scenes, out).unary()


def test_what_cannot_be_made_is_told_before_anything_is_trained(scenes, tmp_path, monkeypatch):
    shop = Workshop(open_study(write_study(tmp_path / "study.yaml")), scenes, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.deeplabv3.decoder", None)
    for name in ("deeplabv3plus", "deeplabv3plus+2pair"):
        with pytest.raises(ValueError, match=r"contextcrf\[baselines\]"):
            write_all(shop, rows_of([name]))
    check(shop, rows_of(["unary-1scale", "fcn-8s", "crf-rnn"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("row", ["fcn-8s", "fcn-8s+dense", "crf-rnn"])
def test_a_shape_that_cannot_be_is_told_before_anything_is_trained(scenes, tmp_path, row, monkeypatch):
    shop = Workshop(open_study(write_study(tmp_path / "study.yaml")), scenes, tmp_path / "out")

    def refuse(self, backbone, channels):
        raise ValueError("no such shape")

    monkeypatch.setattr(BASELINES["fcn-8s"], "__init__", refuse)
    with pytest.raises(ValueError, match="no such shape"):
        check(shop, rows_of([row]))
    check(shop, rows_of(["deeplab-largefov"]))


def test_a_relation_that_a_row_needs_is_asked_for_before_anything_is_trained(scenes, tmp_path):
    study = open_study(write_study(tmp_path / "study.yaml"))
    left = replace(study, model=replace(study.model, relations={"left": study.model.relations["above"]}))
    shop = Workshop(left, scenes, tmp_path / "out")
    check(shop, rows_of(["unary-3scales", "1unary+2pair", "full"]))
    for name in ("above", "surrounding"):
        with pytest.raises(ValueError, match=rf"row pairwise-{name}: expected \['{name}'\] in .* \['left'\]"):
            check(shop, rows_of([f"pairwise-{name}"]))
    alone = Workshop(replace(study, model=replace(study.model, relations={})), scenes, tmp_path / "out")
    check(alone, rows_of(["unary-3scales", "fcn-8s+dense"]))
    for name in ("1unary+2pair", "full-end-to-end", "deeplabv3plus+2pair"):
        with pytest.raises(ValueError, match="expected a relation in the study's model"):
            check(alone, rows_of([name]))


def test_broken_images_to_measure_or_choose_on_are_told_before_anything_is_trained(scenes, tmp_path):
    data, out = shutil.copytree(scenes, tmp_path / "data"), tmp_path / "out"
    study = open_study(write_study(tmp_path / "study.yaml"))
    shop = Workshop(study, data, out)
    for image in ("val_0001", "train_0003"):  # the second of those that are chosen on
        path = data / "images" / f"{image}.png"
        whole = path.read_bytes()
        path.write_bytes(whole[:200])
        # A network whose training skips broken images needs no tuning.
        refused = ["unary-3scales", "full", "crf-rnn"] if image.startswith("val") else ["full", "crf-rnn"]
        for row in refused:
            with pytest.raises(DataError, match=f"{image}.png: the image cannot be decoded"):
                write_all(shop, rows_of([row]))
        path.write_bytes(whole)
    path.write_bytes(whole[:200])
    check(shop, rows_of(["unary-3scales", "pairwise-above", "fcn-8s"]))
    named = replace(study, model=replace(study.model, strengths={"above": 1.0}))
    check(Workshop(named, data, out), rows_of(["1unary+2pair"]))
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [1]", r"under model names with values, as in 'stride: 8', not \[1\]"),
        ("model: {}\nrecipe:\n", "under recipe names with values, as in 'stride: 8', not None"),
        ("[1, 2]", r"the keys model and recipe, not \[1, 2\]"),
        ("model: {}\nrecipe: {epochs: 0}", "epochs 0: expected more than 0"),
    ],
)
def test_the_error_of_a_study_says_what_was_expected(tmp_path, text, said):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"study\.yaml: expected the settings of a study: {said}"):
        open_study(str(tmp_path / "study.yaml"))


def test_the_papers_numbers():
    """Tables I and III of arXiv:1504.01013v2."""
    val = {row.name: row.val for row in ROWS if row.val} | CITED_VAL
    assert sorted(val.values()) == [58.3, 59.8, 63.5, 63.7, 63.8, 64.1, 65.2, 65.5, 66.4, 66.7, 67.8, 68.1, 68.7, 70.3]
    assert (val["deeplab-msc-largefov+dense"], val["DeepLab-M-CRF"], val["DeepLab"]) == (68.7, 65.2, 59.8)
    test = {row.name: row.test for row in ROWS if row.test} | CITED_TEST
    assert sorted(test.values()) == [51.6, 62.2, 64.4, 65.2, 66.4, 67.1, 70.4, 70.7, 71.0, 71.6, 72.7]
    assert (test["deeplab-msc-largefov+dense"], test["crf-rnn"]) == (71.6, 65.2)


def test_the_bundled_studies():
    voc, camvid = open_study("voc"), open_study("camvid")
    assert (voc.train_split, voc.model.backbone, voc.model.shared_trunk) == ("train_aug", "vgg16-fc6", False)
    assert voc.model.strengths == {"surrounding": None, "above": None}
    lin2015 = yaml.safe_load((CONFIGS / "paper" / "lin2015.yaml").read_text())
    bundled = yaml.safe_load((STUDIES / "voc.yaml").read_text())
    assert {key: bundled[key] for key in lin2015} == lin2015
    assert voc.heads.max_edges is not None
    assert camvid.model.strengths == {"surrounding": 0.5, "above": 0.5}  # one vote
    assert open_study("voc-small").model.strengths == camvid.model.strengths
    assert camvid.heads.lr == 0.001
    assert sorted(path.stem for path in STUDIES.glob("*.yaml")) == ["camvid", "voc", "voc-small"]


def test_a_stopped_training_goes_on(scenes, tmp_path, monkeypatch):
    arguments = {
        "model": ModelConfig("plain", channels=8, hidden=8, scales=(1.0,)),
        "recipe": Recipe(**{**RECIPE, "epochs": 2}),
        "data": scenes,
        "train_split": "train",
        "val_split": None,
        "pretrained": False,
    }
    whole = load(train_once("fit", {**arguments, "out": tmp_path / "whole"})).state_dict()
    parts = {**arguments, "out": tmp_path / "parts"}

    def stop(module):
        if module.current_epoch == 1:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Piecewise, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            train_once("fit", parts)
    assert not (tmp_path / "parts" / "model" / "model.safetensors").exists()
    again = load(train_once("fit", parts)).state_dict()
    assert all((again[key] == value).all() for key, value in whole.items())
    # What was trained before there was a setting was trained with its default.
    about = tmp_path / "parts" / "settings.json"
    settings = json.loads(about.read_text())
    del settings["recipe"]["loss_at"]
    about.write_text(json.dumps(settings))
    train_once("fit", parts)
    with pytest.raises(OtherSettingsError, match=r"recipe\.loss_at nodes, not pixels"):
        train_once("fit", {**parts, "recipe": replace(parts["recipe"], loss_at="pixels")})
    other = {**parts, "recipe": Recipe(**{**RECIPE, "epochs": 3})}
    shutil.rmtree(tmp_path / "parts" / "model")
    with pytest.raises(OtherSettingsError, match=r"parts: was begun with recipe\.epochs 2, not 3"):
        train_once("fit", other)
