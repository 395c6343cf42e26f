"""Systems: the parts of a model that predict, and their names."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextcrf import InferenceConfig, Predictor, System
from contextcrf.crf import mean_field
from contextcrf.evaluation.evaluate import default_systems
from contextcrf.inference import FULL, UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.modeling.config import RESERVED
from models import images, settings, tiny, untrained

WORDS = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True).filter(lambda word: word not in RESERVED)


@st.composite
def systems(draw):
    unary = draw(st.booleans())
    relations = draw(st.none() | st.lists(WORDS, unique=True, min_size=0 if unary else 1, max_size=4).map(tuple))
    return System(unary, relations, draw(st.booleans()))


@given(system=systems())
def test_a_system_has_one_name_and_a_name_one_system(system):
    assert System.from_name(system.name) == system


@given(parts=st.lists(st.sampled_from(["unary", "pairwise", "dense", "above", "beside", "", "a b"]), max_size=5))
def test_a_name_is_that_of_a_system_or_refused(parts):
    name = "+".join(parts)
    relations = [part for part in parts if part not in ("unary", "pairwise", "dense")]
    good = len(set(parts)) == len(parts) and all(part.isidentifier() for part in parts)
    good &= not (relations and "pairwise" in parts) and bool(set(parts) - {"dense"})
    if not good:
        with pytest.raises(ValueError, match=r"^The system '.*' is not valid. Expected unary, pairwise"):
            System.from_name(name)
        return
    found = System.from_name(name)
    assert set(found.name.split("+")) == set(parts)
    assert (found.unary, found.dense) == ("unary" in parts, "dense" in parts)
    assert found.relations == (None if "pairwise" in parts else tuple(relations))


@pytest.mark.parametrize(
    ("system", "name"),
    [
        (UNARY_ONLY, "unary"),
        (UNARY_PAIRWISE, "unary+pairwise"),
        (FULL, "unary+pairwise+dense"),
        (System(unary=False, relations=("above",)), "above"),
        (System(unary=False), "pairwise"),
        (System(relations=("b", "a"), dense=True), "unary+b+a+dense"),
    ],
)
def test_names(system, name):
    assert system.name == name
    assert System.from_name(name) == system


def test_the_default_settings_name_a_system():
    assert System.from_name(InferenceConfig().system) == UNARY_PAIRWISE


def test_systems_are_values():
    with pytest.raises(FrozenInstanceError):
        UNARY_ONLY.dense = True
    assert System(relations=["above"]) == System(relations=("above",))
    assert len({System(), UNARY_PAIRWISE, FULL, System(dense=True)}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unary": False, "relations": ()}, "The system has no potentials"),
        ({"unary": False, "relations": (), "dense": True}, "The system has no potentials"),
        (
            {"relations": ("above", "above")},
            r"relations are \['above', 'above'\], but names of relations are expected",
        ),
        ({"relations": ("unary",)}, r"relations are \['unary'\], but names"),
        ({"relations": ("dense",)}, r"relations are \['dense'\], but names"),
        ({"relations": ("a+b",)}, r"relations are \['a\+b'\], but names"),
        ({"relations": ("",)}, r"relations are \[''\], but names"),
    ],
)
def test_impossible_systems_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        System(**arguments)


@pytest.mark.parametrize(
    ("name", "potentials"),
    [
        ("unary", ("unary",)),
        ("unary+pairwise", ("unary", "surrounding", "above")),
        ("unary+pairwise+dense", ("unary", "surrounding", "above")),
        ("pairwise", ("surrounding", "above")),
        ("above+surrounding", ("surrounding", "above")),
        ("unary+above+dense", ("unary", "above")),
    ],
)
def test_potentials_are_in_the_order_of_the_model(name, potentials):
    assert System.from_name(name).potentials(tiny().pairwise) == potentials


def test_relations_that_the_model_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"system 'unary\+below' names .*the model are \['surrounding', 'above'\]"):
        System.from_name("unary+below").potentials(tiny().pairwise)
    without = tiny(relations={})
    assert UNARY_PAIRWISE.potentials(without.pairwise) == ("unary",)
    with pytest.raises(ValueError, match="system 'pairwise' has no potentials, because the model has no relations"):
        System(unary=False).potentials(without.pairwise)


def test_the_default_systems_are_those_that_the_model_has_been_trained_for():
    def names(model):
        return [system.name for system in default_systems(model)]

    assert names(tiny()) == ["unary", "surrounding", "above", "unary+pairwise"]
    assert names(untrained()) == ["unary"]
    assert names(tiny(relations={})) == ["unary"]
    half = untrained()
    half.pairwise_potential("above").last.reset_parameters()
    assert names(half) == ["unary", "above", "unary+pairwise"]
    tuned = settings(dense={"bilateral_sxy": 20})
    assert names(tiny(inference=tuned))[-2:] == ["unary+pairwise", "unary+pairwise+dense"]
    assert names(untrained(inference=tuned)) == ["unary", "unary+pairwise+dense"]
    assert names(untrained(learned_dense=True)) == ["unary", "unary+pairwise+dense"]


DENSE = {"iterations": 2, "bilateral_sxy": 20}


@torch.inference_mode()
def by_hand(model, pixels, name):
    """Marginals [K, H, W] of one of the public systems, computed with the CRF's functions alone."""
    features = model.features(pixels[None].float())
    pairs, weights = [], []
    for relation in model.pairwise if "pairwise" in name else ():
        potential = model.pairwise_potential(relation)
        pairs.append((potential, features[relation]))
        weights.append(0.5 / potential.graph(features[relation]).mean_degree())
    marginals = mean_field(model.unary(features["unary"]), pairs, 2, weights)
    marginals = torch.nn.functional.interpolate(marginals, pixels.shape[1:], mode="bilinear", align_corners=False)
    if name.endswith("dense"):
        crf = InferenceConfig(dense=DENSE).dense_crf()
        marginals = crf(marginals.clamp(min=1e-5).log(), pixels[None])
    return marginals[0]


@pytest.mark.parametrize("name", ["unary", "unary+pairwise", "unary+pairwise+dense"])
def test_segment_takes_a_system_by_its_name_as_a_value_and_from_the_settings(name):
    model, pixels = tiny(inference=settings(dense=DENSE)), images()[0]
    found = model.segment(pixels, system=name).probabilities
    torch.testing.assert_close(found, by_hand(model, pixels, name))
    assert torch.equal(found, model.segment(pixels, system=System.from_name(name)).probabilities)
    configured = Predictor(model, settings(dense=DENSE, system=name))
    assert torch.equal(found, configured.segment(pixels).probabilities)
    assert torch.equal(found, configured.segment(pixels, None).probabilities)


def test_the_public_systems_differ():
    model, pixels = tiny(inference=settings(dense=DENSE)), images()[0]
    unary, pairwise, dense = (
        model.segment(pixels, system).probabilities for system in (UNARY_ONLY, UNARY_PAIRWISE, FULL)
    )
    assert (unary - pairwise).abs().max() > 1e-4
    assert (pairwise - dense).abs().max() > 1e-3
    assert torch.equal(model.segment(pixels).probabilities, pairwise)


@pytest.mark.parametrize("name", ["unary+below", "crf", "dense", "", "unary+unary"])
def test_segment_refuses_unknown_systems(name):
    with pytest.raises(ValueError, match=rf"system '{name}' ".replace("+", r"\+")):
        tiny().segment(images()[0], system=name)
