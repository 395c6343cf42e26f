"""What the page computes."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from contextcrf.data.images import as_pixels
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.webapp.limits import Limits, Refusal
from contextcrf.webapp.session import DENSE_PARAMETERS, Session, with_dense
from pictures import encoded


@pytest.fixture
def scene(scenes):
    with Image.open(sorted((scenes / "images").iterdir())[0]) as file:
        return file.convert("RGB")


@pytest.fixture
def session(tiny_model):
    return Session(tiny_model, Limits())


def with_inference(model, **settings):
    """The model with some other inference settings."""
    return with_config(model, model.config, replace(model.inference, **settings))


def with_weights(inference, **weights):
    """The settings with some other relation weights."""
    return replace(inference, relation_weights={**inference.relation_weights, **weights})


def counted(monkeypatch, owner, name):
    """The list of all later calls of a method, which works as before."""
    calls, method = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: (calls.append(args), method(*args, **kwargs))[1])
    return calls


def assert_as_predicted(labelings, model, scene):
    """The labelings are those that the model predicts."""
    for found, system in ((labelings.unary, UNARY_ONLY), (labelings.pairwise, UNARY_PAIRWISE), (labelings.dense, FULL)):
        torch.testing.assert_close(found.probabilities, model.segment(scene, system).probabilities)


def test_the_models_own_settings_give_the_models_predictions(session, scene):
    labelings = session.segment(session.open(encoded(scene)), session.inference)
    assert_as_predicted(labelings, session.model, scene)
    assert not torch.equal(labelings.pairwise.labels, labelings.dense.labels)
    pairwise, dense = labelings.changes()
    assert pairwise == (labelings.unary.labels != labelings.pairwise.labels).float().mean()
    assert 0 < dense < 1


def test_all_settings_are_written_out(tiny_model):
    dense = {"bilateral_sxy": 20, "normalization": "none"}
    session = Session(with_inference(tiny_model, iterations=3, dense=dense), Limits())
    assert session.inference.iterations == 3
    assert session.inference.relation_weights == {"surrounding": 0.5, "above": 0.5}
    # Parameters that the page cannot change stay as they are.
    assert set(session.inference.dense) == {*DENSE_PARAMETERS, "normalization"}
    assert session.inference.dense == {
        "spatial_sxy": 3,
        "spatial_compat": 3,
        "bilateral_sxy": 20,
        "bilateral_srgb": 13,
        "bilateral_compat": 10,
        "iterations": 10,
        "normalization": "none",
    }


def test_dense_iterations_become_a_whole_number(session):
    dense = with_dense(session.inference, {"iterations": 4.0, "bilateral_sxy": 7.5}).dense
    assert dense == {**session.inference.dense, "iterations": 4, "bilateral_sxy": 7.5}
    assert isinstance(dense["iterations"], int)


def test_test_time_augmentation_is_left_out(tiny_model, scene):
    session = Session(with_inference(tiny_model, scales=(0.5, 1.0), flip=True), Limits())
    labelings = session.segment(session.open(encoded(scene)), session.inference)
    assert_as_predicted(labelings, tiny_model, scene)


def test_every_setting_reaches_the_inference(session, scene):
    image, start = session.open(encoded(scene)), session.inference
    before = session.segment(image, start)
    for changed in (replace(start, iterations=5), with_weights(start, above=9.0)):
        found = session.segment(image, changed)
        assert not torch.equal(found.pairwise.probabilities, before.pairwise.probabilities)
        assert torch.equal(found.unary.probabilities, before.unary.probabilities)
    for name in DENSE_PARAMETERS:
        other = 1 if name == "iterations" else start.dense[name] + 2
        found = session.segment(image, replace(start, dense={**start.dense, name: other}))
        assert torch.equal(found.pairwise.probabilities, before.pairwise.probabilities)
        assert not torch.equal(found.dense.probabilities, before.dense.probabilities), name


def test_nothing_is_computed_twice(session, scene, monkeypatch):
    features = counted(monkeypatch, Predictor, "extract_features")
    mean_field = counted(monkeypatch, Predictor, "mean_field")
    refine = counted(monkeypatch, Predictor, "refine")
    network = counted(monkeypatch, session.model, "features")
    image, start = session.open(encoded(scene)), session.inference
    session.segment(image, start)
    session.segment(image, start)
    # Mean field runs for unary and for unary+pairwise.
    assert (len(features), len(mean_field), len(refine)) == (1, 2, 1)
    session.segment(image, replace(start, dense={**start.dense, "bilateral_compat": 1}))
    session.explain(image, start, (3, 4))
    assert (len(features), len(mean_field), len(refine)) == (1, 2, 2)
    session.segment(image, replace(start, iterations=1))
    assert (len(features), len(mean_field), len(refine)) == (1, 3, 3)
    assert len(network) == 1


def test_weights_of_zero_give_the_unary_and_no_messages(session, scene):
    image = session.open(encoded(scene))
    zero = with_weights(session.inference, surrounding=0.0, above=0.0)
    labelings = session.segment(image, zero)
    torch.testing.assert_close(labelings.pairwise.probabilities, labelings.unary.probabilities)
    explanation = session.explain(image, zero, (30, 40))
    assert explanation.picture is None
    assert "Raise a weight" in explanation.text


def test_the_plain_sum_is_a_setting(tiny_model, scene):
    session = Session(with_inference(tiny_model, relation_weights={"above": None, "surrounding": 2.0}), Limits())
    assert session.inference.relation_weights == {"surrounding": 2.0, "above": None}
    labelings = session.segment(session.open(encoded(scene)), session.inference)
    assert_as_predicted(labelings, session.model, scene)


def test_an_explanation_has_the_sums_and_the_strongest_message(session, scene):
    image = session.open(encoded(scene))
    pixel = (40, 50)
    explanation = session.explain(image, session.inference, pixel)
    found, labeled = session.model.explain(scene, pixel), session.model.segment(scene, UNARY_PAIRWISE)
    label, rival = labeled.probabilities[:, 40, 50].topk(2).indices.tolist()
    names = labeled.classes.names
    assert explanation.text.startswith(f"**Row 40, column 50 is labeled {names[label]}**")
    total = 0.0
    for name, one in found.items():
        push = one.push(label, rival)
        total += float(push.sum())
        assert f"- Messages through *{name}* add **{float(push.sum()):+.2f}**" in explanation.text
    verb = "raise" if total > 0 else "lower"
    summary = f"The neighbors {verb} the score of {names[label]} over {names[rival]} by {abs(total):.2f} log-odds:"
    assert summary in explanation.text
    strongest = max((float(value) for one in found.values() for value in one.push(label, rival)), key=abs)
    assert f"The strongest message adds {strongest:+.3f}." in explanation.text
    assert explanation.picture.width > 2 * image.size[1]


def test_the_strongest_neighbor_lies_where_the_text_places_it(session, scene):
    """The only relation with a weight joins a pixel near the lower border to neighbors above it."""
    image = session.open(encoded(scene))
    explanation = session.explain(image, with_weights(session.inference, surrounding=0.0, above=8.0), (60, 50))
    last = explanation.text.splitlines()[-1]
    assert "through *above*" in last
    assert "px above" in last
    assert "Messages through *surrounding* add nothing" in explanation.text


def test_a_pixel_without_neighbors(session):
    image = session.open(encoded(Image.new("RGB", (4, 4), "green")))
    explanation = session.explain(image, session.inference, (0, 0))
    assert explanation.picture is None
    assert "The pixel has no neighbors" in explanation.text


def test_a_model_without_relations(session, scene):
    config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,), relations={})
    session = Session(ContextCRF(config, session.model.classes, pretrained=False), Limits())
    image = session.open(encoded(scene))
    assert session.inference.relation_weights == {}
    labelings = session.segment(image, session.inference)
    torch.testing.assert_close(labelings.pairwise.probabilities, labelings.unary.probabilities)
    assert "no pairwise potentials" in session.explain(image, session.inference, (1, 1)).text


def test_a_coarse_graph_has_the_models_explanation(tiny_model, scene):
    model = with_config(tiny_model, replace(tiny_model.config, graph_stride=16))
    session, pixel = Session(model, Limits()), (80, 100)
    scene = scene.resize((192, 128))  # so that the coarse graph has neighbors in both relations
    image = session.open(encoded(scene))
    text = session.explain(image, session.inference, pixel).text
    label, rival = model.segment(scene, UNARY_PAIRWISE).probabilities[:, 80, 100].topk(2).indices.tolist()
    for name, one in model.explain(scene, pixel).items():
        assert f"- Messages through *{name}* add **{float(one.push(label, rival).sum()):+.2f}**" in text


def test_explanations_in_bfloat16(tiny_model, scene):
    """Features in half precision, as on machines where that is faster; the messages are about those in single."""
    session = Session(with_inference(tiny_model, precision="bf16-mixed"), Limits())
    image = session.open(encoded(scene))
    assert {maps.dtype for maps in image.features.values()} == {torch.bfloat16}
    labelings = session.segment(image, session.inference)
    assert_as_predicted(labelings, session.model, scene)
    single = Session(with_inference(tiny_model, precision="32-true"), Limits())
    expected = single.segment(single.open(encoded(scene)), single.inference)
    torch.testing.assert_close(labelings.pairwise.probabilities, expected.pairwise.probabilities, atol=0.02, rtol=0)
    assert "The strongest message adds" in session.explain(image, session.inference, (40, 50)).text


def test_a_learned_dense_crf_has_no_settings(tiny_model, scene):
    model = with_config(tiny_model, replace(tiny_model.config, learned_dense=True))
    session = Session(model, Limits())
    assert session.inference.dense == model.inference.dense
    labelings = session.segment(session.open(encoded(scene)), session.inference)
    assert_as_predicted(labelings, model, scene)


def test_a_computation_that_takes_too_long_is_refused_and_the_image_stays(session, scene):
    image, start = session.open(encoded(scene)), session.inference
    hasty = Session(session.model, Limits(seconds=1e-9))
    for attempt in (
        lambda: hasty.open(encoded(scene)),
        lambda: hasty.segment(image, start),
        lambda: hasty.explain(image, start, (1, 1)),
    ):
        with pytest.raises(Refusal, match="and was stopped"):
            attempt()
    torch.testing.assert_close(session.segment(image, start).pairwise.image, as_pixels(scene))


def test_a_training_model_is_set_to_evaluation(tiny_model):
    assert not Session(tiny_model.train(), Limits()).model.training
