"""Studies from files, and the bundled ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from contextcrf.modeling.config import InferenceConfig
from contextcrf.nets.baselines import BASELINES
from contextcrf.reproduction import STUDIES, baseline_config, crf_rnn_config, open_study

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def test_a_study_is_read_from_a_file(write_study):
    study = open_study(write_study(epochs=7, inference={"iterations": 3, "relation_weights": {"above": None}}))
    assert (study.model.backbone, study.training.epochs, study.heads.epochs) == ("resnet10t", 7, 1)
    assert study.inference == InferenceConfig(iterations=3, relation_weights={"above": None})
    assert (study.tune_images, study.copies, study.pretrained) == (2, 2, False)


def test_an_unknown_study_is_refused():
    with pytest.raises(
        ValueError,
        match=r"no study 'cityscapes'\. Pass the path of a YAML file, or one of camvid, voc, voc-small",
    ):
        open_study("cityscapes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", ""),
        ("nothing", "Expected a mapping with the keys model and training, got 'nothing'"),
        ("a: [", ""),
        ("[1, 2]", r"Expected a mapping with the keys model and training, got \[1, 2\]"),
        ("model: 3", "Expected settings under model, such as 'stride: 8', got 3"),
        ("model: [1]", r"Expected settings under model, such as 'stride: 8', got \[1\]"),
        ("model: {}\ntraining:\n", "Expected settings under training, such as 'stride: 8', got None"),
        ("model: {}\ntraining: {epochs: -1}", "epochs is -1, but must be 0 or greater"),
        ("model: {iterations: 2}\ntraining: {}", ".*iterations"),
    ],
)
def test_the_error_of_a_file_that_is_no_study_names_what_was_expected(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"study\.yaml is not a study: {message}"):
        open_study(str(tmp_path / "study.yaml"))


def test_the_bundled_studies():
    voc, camvid = open_study("voc"), open_study("camvid")
    assert (voc.train_split, voc.model.backbone, voc.model.shared_trunk) == ("train_aug", "vgg16-fc6", False)
    assert (voc.inference.iterations, voc.inference.relation_weights) == (2, {"surrounding": None, "above": None})
    lin2015 = yaml.safe_load((CONFIGS / "paper" / "lin2015.yaml").read_text())
    bundled = yaml.safe_load((STUDIES / "voc.yaml").read_text())
    assert {key: bundled[key] for key in lin2015} == lin2015
    assert voc.heads.max_edges is not None
    assert camvid.inference.relation_weights == {"surrounding": 0.5, "above": 0.5}  # 1 together
    assert open_study("voc-small").inference == camvid.inference
    assert camvid.heads.lr == 0.001
    assert sorted(path.stem for path in STUDIES.glob("*.yaml")) == ["camvid", "voc", "voc-small"]


@pytest.mark.parametrize("name", ["camvid", "voc", "voc-small"])
def test_the_bundled_studies_can_be_trained_through_the_dense_crf(name):
    training = open_study(name).training
    through = crf_rnn_config(training)
    assert (through.objective, through.crop, through.precision) == ("crf-rnn", training.crop, training.precision)


@pytest.mark.parametrize("network", BASELINES)
def test_competitors_have_the_backbone_of_the_study(network):
    model = open_study("camvid").model
    config = baseline_config(model, network)
    assert (config.backbone, config.network, config.relations) == (model.backbone, network, model.relations)
    assert (config.stride, config.graph_stride, config.scales) == (BASELINES[network].stride, 16, (1.0,))
    # Maps that do not fit the graph have their own.
    odd = baseline_config(replace(model, stride=4, graph_stride=4), network)
    assert odd.graph_stride == (4 if BASELINES[network].stride == 4 else None)
