"""What the page computes."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from contextcrf.data.images import as_pixels
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.webapp.limits import Limits, Refusal
from contextcrf.webapp.session import Session
from pictures import encoded


@pytest.fixture
def scene(scenes):
    with Image.open(sorted((scenes / "images").iterdir())[0]) as file:
        return file.convert("RGB")


@pytest.fixture
def session(tiny_model):
    return Session(tiny_model, Limits())


def counted(monkeypatch, owner, name):
    """Calls of a method, which goes on working."""
    calls, method = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: (calls.append(args), method(*args, **kwargs))[1])
    return calls


def test_the_models_own_settings_give_what_the_model_gives(session, scene):
    model = session.model
    results = session.segment(session.open(encoded(scene)), session.defaults())
    torch.testing.assert_close(results.unary.probabilities, model.segment(scene, ["unary"]).probabilities)
    torch.testing.assert_close(results.crf.probabilities, model.segment(scene).probabilities)
    torch.testing.assert_close(results.refined.probabilities, model.segment(scene, dense=True).probabilities)
    assert not torch.equal(results.crf.labels, results.refined.labels)
    crf, dense = results.changes()
    assert crf == (results.unary.labels != results.crf.labels).float().mean()
    assert 0 < dense < 1


def test_every_setting_reaches_the_inference(session, scene):
    picture, start = session.open(encoded(scene)), session.defaults()
    before = session.segment(picture, start)
    for changed in (replace(start, iterations=5), replace(start, strengths={**start.strengths, "above": 9.0})):
        found = session.segment(picture, changed)
        assert not torch.equal(found.crf.probabilities, before.crf.probabilities)
        assert torch.equal(found.unary.probabilities, before.unary.probabilities)
    for name, value in start.dense.items():
        other = 1 if name == "iterations" else value + 2
        found = session.segment(picture, replace(start, dense={**start.dense, name: other}))
        assert torch.equal(found.crf.probabilities, before.crf.probabilities)
        assert not torch.equal(found.refined.probabilities, before.refined.probabilities), name


def test_nothing_is_computed_twice(session, scene, monkeypatch):
    features = counted(monkeypatch, session.model, "features")
    infer = counted(monkeypatch, session.model, "infer")
    refine = counted(monkeypatch, session.model, "refine")
    picture, start = session.open(encoded(scene)), session.defaults()
    session.segment(picture, start)
    session.segment(picture, start)
    assert (len(features), len(infer), len(refine)) == (1, 2, 1)  # the unary alone and the CRF
    session.segment(picture, replace(start, dense={**start.dense, "bilateral_compat": 1}))
    session.explain(picture, start, (3, 4))
    assert (len(features), len(infer), len(refine)) == (1, 2, 2)
    session.segment(picture, replace(start, iterations=1))
    assert (len(features), len(infer), len(refine)) == (1, 3, 3)


def test_no_strengths_are_the_unary_and_no_push(session, scene):
    picture = session.open(encoded(scene))
    silent = replace(session.defaults(), strengths={"surrounding": 0.0, "above": 0.0})
    results = session.segment(picture, silent)
    torch.testing.assert_close(results.crf.probabilities, results.unary.probabilities)
    why = session.explain(picture, silent, (30, 40))
    assert why.picture is None
    assert "Move a weight up" in why.words


def test_the_plain_sum_is_a_setting(tiny_model, scene):
    tiny_model.config.strengths.update(above=None, surrounding=2.0)
    session = Session(tiny_model, Limits())
    assert session.defaults().strengths == {"surrounding": 2.0, "above": None}
    results = session.segment(session.open(encoded(scene)), session.defaults())
    torch.testing.assert_close(results.crf.probabilities, tiny_model.segment(scene).probabilities)


def test_an_explanation_names_who_pushed(session, scene):
    picture, start = session.open(encoded(scene)), session.defaults()
    pixel = (40, 50)
    why = session.explain(picture, start, pixel)
    found, labeled = session.model.explain(scene, pixel), session.model.segment(scene)
    label, rival = labeled.probabilities[:, 40, 50].topk(2).indices.tolist()
    names = labeled.classes.names
    assert why.words.startswith(f"**Row 40, column 50: {names[label]}**")
    for name, one in found.items():
        push = one.push(label, rival)
        assert f"- *{name}* **{float(push.sum()):+.2f}**" in why.words
    # The votes of the classes are all the votes there are, if few enough classes are named.
    strongest = max((float(value) for one in found.values() for value in one.push(label, rival)), key=abs)
    assert f"{strongest:+.3f}." in why.words
    assert why.picture.width > 2 * picture.size[1]


def test_the_strongest_neighbor_is_where_the_words_say(session, scene):
    """One relation whose only loud neighbors lie above."""
    picture, start = session.open(encoded(scene)), session.defaults()
    why = session.explain(picture, replace(start, strengths={"surrounding": 0.0, "above": 8.0}), (60, 50))
    last = why.words.splitlines()[-1]
    assert "through *above*" in last
    assert "px above" in last
    assert "*surrounding*: says nothing" in why.words


def test_a_pixel_without_neighbors(session):
    picture = session.open(encoded(Image.new("RGB", (4, 4), "green")))
    why = session.explain(picture, session.defaults(), (0, 0))
    assert why.picture is None
    assert "It has no neighbors" in why.words


def test_a_model_without_relations(session, scene):
    config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,), relations={})
    session = Session(ContextCRF(config, session.model.classes, pretrained=False), Limits())
    picture, start = session.open(encoded(scene)), session.defaults()
    assert start.strengths == {}
    results = session.segment(picture, start)
    torch.testing.assert_close(results.crf.probabilities, results.unary.probabilities)
    assert "no pairwise potentials" in session.explain(picture, start, (1, 1)).words


def test_a_learned_dense_crf_has_no_settings(tiny_model, scene):
    tiny_model.learn_dense(tiny_model.config.dense)
    session = Session(tiny_model, Limits())
    assert session.defaults().dense is None
    results = session.segment(session.open(encoded(scene)), session.defaults())
    torch.testing.assert_close(results.refined.probabilities, tiny_model.segment(scene, dense=True).probabilities)


def test_what_takes_too_long_is_refused_and_the_picture_stays(session, scene):
    picture, start = session.open(encoded(scene)), session.defaults()
    hasty = Session(session.model, Limits(seconds=1e-9))
    for attempt in (
        lambda: hasty.open(encoded(scene)),
        lambda: hasty.segment(picture, start),
        lambda: hasty.explain(picture, start, (1, 1)),
    ):
        with pytest.raises(Refusal, match="and was stopped"):
            attempt()
    torch.testing.assert_close(session.segment(picture, start).crf.image, as_pixels(scene))


def test_a_training_model_is_set_to_evaluation(tiny_model):
    assert not Session(tiny_model.train(), Limits()).model.training
