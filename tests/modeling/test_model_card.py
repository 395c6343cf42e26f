"""The card of a model: what is in its configuration and metadata, and nothing else."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from contextcrf import load
from contextcrf.evaluation.evaluate import EvaluationResults, SystemResult
from contextcrf.modeling.merging import merge_potentials, with_config
from contextcrf.modeling.model_card import measured, model_card
from contextcrf.modeling.serialization import fingerprint
from contextcrf.utils.errors import DataError
from models import CLASSES, settings, tiny


def front(card):
    return yaml.safe_load(card.content.split("---\n")[1])


def table_row(text, name):
    """The cells of the one row of a table in the text that begins with a name."""
    [row] = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in row]


def test_a_card_describes_the_model():
    weights = {"surrounding": 0.0, "above": None}
    model = tiny(inference=settings(relation_weights=weights, dense={"bilateral_sxy": 20}), graph_stride=16)
    card = model_card(model)
    assert front(card)["library_name"] == "contextcrf"
    assert front(card)["pipeline_tag"] == "image-segmentation"
    text = card.content
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    for part in (
        "one of 3 classes",
        "- Scales of the input image: 1, 0.5\n- Stride of the feature map: 8 pixels per node\n",
        "A dense CRF can refine the marginals. The parameters that are not in this table",
        f"- Parameters: {size:.1f} million\n",
        "contextcrf import ContextCRF",
    ):
        assert part in text
    assert table_row(text, "2") == ["2", "sand", "200, 200, 0"]
    assert table_row(text, "surrounding") == ["surrounding", "0 (switched off)"]
    assert table_row(text, "above") == ["above", "plain sum of the messages"]
    assert table_row(text, "bilateral_sxy") == ["bilateral_sxy", "20"]
    assert not set("{}'") & set(text.split("---\n")[2])


def test_weights_and_the_dense_crf_are_described_as_they_are():
    text = model_card(tiny(inference=settings(relation_weights={"above": 2.0}))).content
    assert table_row(text, "above") == ["above", "2"]
    assert table_row(text, "surrounding") == ["surrounding", "0.5"]
    assert "dense CRF" not in text.split("## Use")[0]
    learned = with_config(tiny(), replace(tiny().config, learned_dense=True))
    assert "A dense CRF can refine the marginals. Its parameters were learned." in model_card(learned).content


def test_every_step_that_used_data_is_named():
    model = tiny()
    model.metadata = {
        "fit": {"data": "scenes", "split": "train", "training": {"epochs": 7, "potentials": None, "lr": 0.1}},
        "tune": {"data": "scenes", "split": "val", "mean_iou": 0.5},
        "note": "by hand",
    }
    text = model_card(model).content
    assert table_row(text, "step") == ["step", "data", "split", "epochs", "learning rate"]
    assert table_row(text, "fit") == ["fit", "scenes", "train", "7", "0.1"]
    assert table_row(text, "tune") == ["tune", "scenes", "val", "", ""]
    assert "The weights were trained on scenes, so the terms of these data apply" in text
    merged = merge_potentials(model, {"above": tiny()})
    merged.metadata = {"unary": model.metadata, "above": {"fit": {"data": "beach", "split": "train"}}}
    text = model_card(merged).content
    assert table_row(text, "unary, fit") == ["unary, fit", "scenes", "train", "7", "0.1"]
    assert table_row(text, "above, fit") == ["above, fit", "beach", "train", "", ""]
    assert "trained on beach, scenes" in text


def test_what_was_not_recorded_is_not_made_up():
    text = model_card(tiny()).content
    assert "## Training\n\nThe training data were not recorded." in text
    assert "The training data were not recorded. Their terms" in text
    assert "No measurements were recorded." in text


def test_the_card_of_the_bundled_model_has_its_table():
    text = model_card(load("camvid")).content
    assert "On CamVid val, 101 images:" in text
    # As results/camvid.md has it.
    assert table_row(text, "unary+pairwise+dense") == ["unary+pairwise+dense", "75.1", "94.7"]


@pytest.fixture
def results(tmp_path):
    """A model and a folder with results of it, as `evaluate` writes them."""
    model = tiny(inference=settings(relation_weights={"above": 2.0}))
    systems = [SystemResult(name, torch.tensor([[[3, 1, 0], [0, 4, 0], [0, 0, 2]]])) for name in ("unary", "above")]
    metadata = {"data": "beach val, 1 images", "model": fingerprint(model), "inference": model.inference.changes()}
    EvaluationResults(CLASSES.names, systems, metadata).write(tmp_path)
    return model, tmp_path


def test_a_card_takes_the_table_of_this_model(results):
    model, folder = results
    table = measured(model, folder)
    assert table["data"] == "beach val, 1 images"
    assert [system["name"] for system in table["systems"]] == ["unary", "above"]
    model.metadata = {"measured": [table]}
    text = model_card(model).content
    assert "On beach val, 1 images:" in text
    assert table_row(text.split("## Results")[1], "above") == ["above", f"{100 * (3 / 4 + 4 / 5 + 1) / 3:.1f}", "90.0"]


def test_a_card_takes_no_table_of_another_model(results):
    model, folder = results
    with torch.no_grad():
        model.unary.last.bias[0] += 1
    with pytest.raises(DataError, match=rf"results\.json contains .* the fingerprint {fingerprint(model)}"):
        measured(model, folder)


@pytest.mark.parametrize(
    ("inference", "message"),
    [
        (settings(), r"the relation_weights \{'above': 2\.0\}, but the model has the relation_weights \(default\)"),
        (settings(relation_weights={"above": 2.0}, iterations=3), r"the iterations \(default\), .* iterations 3"),
        (settings(relation_weights={"above": 2.0}, dense={"iterations": 3}), r"the dense \(default\)"),
    ],
)
def test_a_card_takes_no_table_of_other_settings(results, inference, message):
    model, folder = results
    with pytest.raises(DataError, match=rf"results\.json was measured with {message}"):
        measured(with_config(model, model.config, inference), folder)


def test_a_card_takes_tables_of_another_system_and_precision(results):
    model, folder = results
    other = replace(model.inference, system="unary", precision="auto", tile=64)
    assert measured(with_config(model, model.config, other), folder) == measured(model, folder)


def test_results_that_are_none_are_named(results):
    model, folder = results
    with pytest.raises(DataError, match=r"results\.json does not exist"):
        measured(model, folder / "elsewhere")
    for content in ("{", "[]", json.dumps({"metadata": {"data": "x"}, "systems": [{}]})):
        (folder / "results.json").write_text(content)
        with pytest.raises(DataError, match=r"results\.json cannot be read: .*of `contextcrf evaluate`"):
            measured(model, folder)
