"""The predictor: the one way from an image to labels."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import contextcrf
from contextcrf import InferenceConfig, Predictor, RangeBox, System
from contextcrf.crf import PairwisePotential, logits_from_probabilities, mean_field
from contextcrf.crf.coarse_grid import shrink
from contextcrf.inference import FULL, UNARY_ONLY, UNARY_PAIRWISE, Prediction
from contextcrf.modeling.merging import with_config
from contextcrf.utils import runtime
from contextcrf.utils.resizing import upsample
from models import count_trunk_runs, images, settings, tiny

SOURCE = Path(contextcrf.__file__).parent
ABOVE_ONLY = System(unary=False, relations=("above",))
ALL = [UNARY_ONLY, ABOVE_ONLY, System(relations=("above",)), UNARY_PAIRWISE, FULL]


def features_of(predictor, pixels):
    with torch.inference_mode():
        return predictor.extract_features(pixels.float())


@torch.inference_mode()
def marginals(predictor, features, system=UNARY_PAIRWISE, tabulate=False):
    return predictor.mean_field(features, system, tabulate)


MEAN_FIELD = {"mean_field", "unrolled_nll", "mean_field_nll"}
CORE = {"contextcrf", "contextcrf.crf", "contextcrf.crf.meanfield", "contextcrf.crf.likelihoods"}


def mean_field_of(path):
    """The names of `MEAN_FIELD` from `contextcrf.crf` that a module uses."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    origin = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            origin |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in origin:
            module, name = origin[node.id]
            found |= {name} if module in CORE and name in MEAN_FIELD else set()
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in origin:
            module = ".".join(origin[node.value.id])
            found |= {node.attr} if module in CORE and node.attr in MEAN_FIELD else set()
    return found


def test_mean_field_is_called_by_the_predictor_and_by_objectives_alone():
    """So that nothing predicts in another way than the predictor."""
    outside = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] != "crf"]
    found = {path.relative_to(SOURCE).as_posix(): names for path in outside if (names := mean_field_of(path))}
    assert found == {
        "inference/predictor.py": {"mean_field"},
        "training/objectives.py": {"unrolled_nll", "mean_field_nll"},
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from contextcrf.crf import mean_field\nmean_field(x, [])", {"mean_field"}),
        ("from contextcrf import mean_field as infer\ninfer(x, [])", {"mean_field"}),
        ("from contextcrf import crf\ncrf.mean_field(x, [])", {"mean_field"}),
        ("from contextcrf.crf import meanfield\nrun = meanfield.mean_field", {"mean_field"}),
        ("def mean_field(x): ...\npredictor.mean_field(mean_field)", set()),
    ],
)
def test_other_ways_would_be_found(text, found, tmp_path):
    (tmp_path / "module.py").write_text(text)
    assert mean_field_of(tmp_path / "module.py") == found


def test_marginals_are_mean_field_over_the_heads():
    model = tiny()
    plain = Predictor(model, settings(relation_weights=dict.fromkeys(model.pairwise), iterations=3))
    features = features_of(plain, images(2))
    with torch.inference_mode():
        pairs = [(model.pairwise_potential(name), features[name]) for name in ("surrounding", "above")]
        unary = model.unary(features["unary"])
        assert torch.equal(marginals(plain, features), mean_field(unary, pairs, 3))
        assert torch.equal(marginals(plain, features, System(relations=("above",))), mean_field(unary, pairs[1:], 3))
        assert torch.equal(marginals(plain, features, UNARY_ONLY), unary.softmax(1))


def test_marginals_on_a_coarser_graph_are_on_the_grid_of_the_unary():
    model = tiny(graph_stride=16)
    predictor = Predictor(model)
    features = features_of(predictor, images(1, 48, 72))
    assert marginals(predictor, features).shape == (1, 3, 6, 9)
    assert marginals(predictor, features, ABOVE_ONLY).shape == (1, 3, 3, 5)


def test_weights_are_relative_to_the_unary_over_the_mean_neighborhood():
    model = tiny()
    predictor = Predictor(model, settings(relation_weights={"surrounding": 3.0}))
    features = features_of(predictor, images())
    potential = model.pairwise_potential("surrounding")
    weight = 3.0 / potential.graph(features["surrounding"]).mean_degree()
    assert predictor.message_weight("surrounding", features["surrounding"]) == weight
    with torch.inference_mode():
        expected = mean_field(model.unary(features["unary"]), [(potential, features["surrounding"])], 2, [weight])
    assert torch.equal(marginals(predictor, features, System(relations=("surrounding",))), expected)
    assert Predictor(model, settings(relation_weights={"above": None})).message_weight("above", features["above"]) == 1


def test_a_graph_of_few_edges_does_not_raise_a_weight():
    # A node has less than one neighbor on average: the weight is divided by 1 at least.
    model = tiny(relations={"corner": RangeBox(0.0, 0.9, 0.0, 0.0)})
    predictor = Predictor(model, settings(relation_weights={"corner": 3.0}))
    features = features_of(predictor, images(1, 16, 16))
    assert model.pairwise_potential("corner").graph(features["corner"]).mean_degree() <= 1
    assert predictor.message_weight("corner", features["corner"]) == 3.0


def test_relations_without_a_weight_share_a_weight_of_1():
    model = tiny()
    features = features_of(Predictor(model), images())
    halves = Predictor(model, settings(relation_weights=dict.fromkeys(model.pairwise, 0.5)))
    plain = Predictor(model, settings(relation_weights=dict.fromkeys(model.pairwise)))
    assert torch.equal(marginals(Predictor(model), features), marginals(halves, features))
    assert not torch.allclose(marginals(Predictor(model), features), marginals(plain, features))


def test_relations_of_weight_0_are_not_computed(monkeypatch):
    model = tiny()
    prepared = []
    prepare = PairwisePotential.prepare
    monkeypatch.setattr(PairwisePotential, "prepare", lambda self, maps: prepared.append(self) or prepare(self, maps))
    off = Predictor(model, settings(relation_weights={"surrounding": 0.0}))
    features = features_of(off, images())
    found = marginals(off, features)
    assert prepared == [model.pairwise_potential("above")]
    # The weight that is left is the one of a relation that was not named, of two.
    assert off.weights == {"surrounding": 0.0, "above": 0.5}
    assert torch.equal(found, marginals(off, features, System(relations=("above",))))


def test_without_the_unary_mean_field_starts_at_the_edges_own_marginals_and_weights_do_not_apply():
    model = tiny()
    features = features_of(Predictor(model), images())
    with torch.inference_mode():
        own = [model.pairwise_potential(name).edge_marginals(features[name]) for name in ("surrounding", "above")]
    start = Predictor(model, settings(iterations=0))
    assert torch.equal(marginals(start, features, ABOVE_ONLY), own[1])
    assert torch.equal(marginals(start, features, System(unary=False)), torch.stack(own).mean(0))
    with torch.inference_mode():
        expected = mean_field(
            torch.zeros_like(own[1]), [(model.pairwise_potential("above"), features["above"])], 2, start=own[1]
        )
    for weight in (None, 0.0, 3.0):
        predictor = Predictor(model, settings(relation_weights={"above": weight}))
        assert torch.equal(marginals(predictor, features, ABOVE_ONLY), expected)


@pytest.mark.parametrize("graph_stride", [None, 16])
@pytest.mark.parametrize("system", [UNARY_PAIRWISE, ABOVE_ONLY, UNARY_ONLY], ids=lambda system: system.name)
def test_a_table_of_pair_logits_changes_no_marginal(system, graph_stride):
    model = tiny(graph_stride=graph_stride)
    predictor = Predictor(model)
    features = features_of(predictor, images(2))
    expected = marginals(predictor, features, system)
    for tabulate in (True, None):
        torch.testing.assert_close(marginals(predictor, features, system, tabulate), expected)


def test_a_call_gives_marginals_at_the_images_size_with_gradients():
    model = tiny()
    pixels = images(2, 50, 70).float()
    found = Predictor(model)(pixels)
    assert found.shape == (2, 3, 50, 70)
    features = features_of(Predictor(model), pixels)
    expected = upsample(marginals(Predictor(model), features), (50, 70))
    torch.testing.assert_close(found.detach(), expected)
    (found**2).sum().backward()
    for parameter in (model.unary.last.weight, model.pairwise_potential("above").last.owner.weight):
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_the_dense_crf_refines_at_full_resolution():
    model = tiny()
    predictor = Predictor(model, settings(dense={"iterations": 3, "bilateral_sxy": 20}))
    pixels = images()[0]
    plain, refined = predictor.predict(pixels, [UNARY_PAIRWISE, FULL])
    crf = InferenceConfig(dense={"iterations": 3, "bilateral_sxy": 20}).dense_crf()
    expected = crf(logits_from_probabilities(plain.marginals[None]), pixels[None])[0]
    torch.testing.assert_close(refined.marginals, expected)
    assert (refined.marginals - plain.marginals).abs().max() > 1e-3
    unrefined = Predictor(model, settings(dense={"iterations": 0})).predict(pixels, [FULL])[0]
    torch.testing.assert_close(unrefined.marginals, plain.marginals)


def test_an_almost_black_image_is_refined_and_fractions_are_refused():
    predictor = Predictor(tiny(), settings(dense={"iterations": 1}))
    black = torch.arange(2, dtype=torch.uint8).expand(1, 3, 4, 2)
    marginals = torch.full((1, 2, 4, 2), 0.5)
    torch.testing.assert_close(predictor.refine(marginals, black), marginals)
    with pytest.raises(ValueError, match=r"in 0\.\.1"):
        predictor.refine(marginals, black.float())


def test_a_learned_dense_crf_is_used_and_cannot_be_set():
    dense = {"iterations": 2, "bilateral_sxy": 20}
    model = tiny(inference=settings(dense=dense), learned_dense=True)
    pixels = images()[0]
    plain = model.segment(pixels, UNARY_PAIRWISE).probabilities
    assert (model.segment(pixels, FULL).probabilities - plain).abs().max() > 1e-3
    with torch.no_grad():
        model.dense.bilateral_compat.zero_()
        model.dense.spatial_compat.zero_()
    torch.testing.assert_close(model.segment(pixels, FULL).probabilities, plain, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="The dense CRF of this model is learned, so its parameters cannot be set"):
        Predictor(model, settings(dense={**dense, "bilateral_sxy": 30}))
    # Other settings can be changed, and so can the dense CRF of a model that has not learned its own.
    Predictor(model, settings(dense=dict(dense), iterations=5))
    Predictor(tiny(), settings(dense=dense))


@pytest.mark.parametrize(
    ("inference", "message"),
    [
        (settings(relation_weights={"below": 1.0}), r"relation_weights names \['below'\]"),
        (settings(system="unary+below"), r"system 'unary\+below'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(inference, message):
    with pytest.raises(ValueError, match=message):
        Predictor(tiny(), inference)


def test_neither_the_model_nor_its_settings_are_changed():
    model, other = tiny(), settings(iterations=5, relation_weights={"above": 4.0})
    before = model.segment(images(1, 48, 64)[0].zero_()).probabilities
    Predictor(model, other).predict(images()[0], ALL)
    assert model.inference == settings()
    assert torch.equal(model.segment(images(1, 48, 64)[0].zero_()).probabilities, before)
    assert Predictor(model).inference is model.inference
    assert model.predictor(other).inference is other


@pytest.mark.parametrize(("shared", "runs"), [(True, 1), (False, 3)])
def test_the_network_runs_once_per_image_for_all_systems(shared, runs):
    predictor = Predictor(tiny(shared_trunk=shared))
    with count_trunk_runs(predictor.model) as count:
        found = predictor.predict(images()[0], ALL)
        assert count() == runs
    assert [prediction.system for prediction in found] == ALL


def test_systems_predict_together_as_alone():
    predictor, pixels = Predictor(tiny()), images()[0]
    for prediction in predictor.predict(pixels, ALL):
        [alone] = predictor.predict(pixels, [prediction.system])
        assert torch.equal(alone.marginals, prediction.marginals)
        assert torch.equal(alone.labels, prediction.marginals.argmax(0))
        assert alone.marginals.dtype == torch.float32
        torch.testing.assert_close(alone.marginals.sum(0), torch.ones(48, 64))
        assert prediction.seconds > 0


def test_a_batch_has_the_marginals_of_its_images():
    predictor, batch = Predictor(tiny(), settings(flip=True)), images(3)
    together = predictor.predict_batch(batch, [FULL, UNARY_ONLY])
    for pixels, found in zip(batch, together, strict=True):
        alone = predictor.predict(pixels, [FULL, UNARY_ONLY])
        for one, other in zip(found, alone, strict=True):
            assert one.system == other.system
            torch.testing.assert_close(one.marginals, other.marginals, atol=1e-5, rtol=0)
    labels = torch.stack([predictor.label(pixels, "unary") for pixels in batch])
    assert torch.equal(predictor.label_batch(batch, "unary"), labels)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ({}, [("surrounding", "above"), ()]),
        ({"surrounding": 0.0}, [("above",), ()]),
        ({"surrounding": 0.0, "above": 0.0}, [()]),
    ],
)
def test_mean_field_runs_once_for_systems_with_the_same_messages(weights, wanted, monkeypatch):
    predictor, runs = Predictor(tiny(), settings(relation_weights=weights)), []
    original = Predictor.mean_field

    def counted(self, features, system, **options):
        runs.append(system)
        return original(self, features, system, **options)

    monkeypatch.setattr(Predictor, "mean_field", counted)
    found = predictor.predict(images()[0], [FULL, UNARY_PAIRWISE, UNARY_ONLY, FULL])
    assert [prediction.system for prediction in found] == [FULL, UNARY_PAIRWISE, UNARY_ONLY, FULL]
    assert [system.relations for system in runs] == wanted


def test_a_relation_of_weight_0_is_used_by_a_system_without_the_unary():
    model, [image] = tiny(), images(1)
    weightless, usual = (Predictor(model, settings(relation_weights=weights)) for weights in ({"above": 0.0}, {}))
    [found], [expected] = (predictor.predict(image, [ABOVE_ONLY]) for predictor in (weightless, usual))
    assert torch.equal(found.marginals, expected.marginals)


def test_the_time_of_a_system_includes_the_network_and_its_own_steps_alone(monkeypatch):
    # A clock that counts the calls: each step takes one second.
    predictor = Predictor(tiny(), settings(scales=(1.0, 0.5)))
    ticks = iter(range(100))
    monkeypatch.setattr(Predictor, "_clock", lambda self: float(next(ticks)))
    found = predictor.predict(images()[0], [UNARY_ONLY, UNARY_PAIRWISE])
    # Two scales of network, unary and mean field, and the average.
    assert [prediction.seconds for prediction in found] == [7.0, 7.0]
    batch = predictor.predict_batch(images(2), [UNARY_ONLY])
    assert [[prediction.seconds for prediction in found] for found in batch] == [[3.5], [3.5]]
    # Without the unary, its seconds are not included.
    [above, _] = predictor.predict(images()[0], [ABOVE_ONLY, UNARY_ONLY])
    assert above.seconds == 5.0


@pytest.mark.parametrize(("systems", "runs"), [(ALL, 1), ([ABOVE_ONLY], 0)])
def test_the_unary_runs_once_for_all_systems(systems, runs, monkeypatch):
    predictor = Predictor(tiny())
    calls = []
    predictor.model.unary.register_forward_hook(lambda *_: calls.append(1))
    predictor.predict(images()[0], systems)
    assert len(calls) == runs


def test_unary_logits_may_be_given_for_a_batch_and_its_tables():
    predictor = Predictor(tiny())
    features = features_of(predictor, images(2))
    with torch.inference_mode():
        unary = predictor.unary_logits(features)
        assert torch.equal(unary, predictor.model.unary(features["unary"]))
        for tabulate in (False, True):
            found = predictor.mean_field(features, UNARY_PAIRWISE, tabulate, unary=unary)
            torch.testing.assert_close(found, predictor.mean_field(features, UNARY_PAIRWISE, tabulate))
            other = predictor.mean_field(features, UNARY_PAIRWISE, tabulate, unary=unary.flip(0))
            assert not torch.allclose(found, other)


@pytest.mark.parametrize("names", [("above",), None])
def test_a_system_without_the_unary_computes_its_pair_logits_once(names, monkeypatch):
    predictor, system, pixels = Predictor(tiny()), System(unary=False, relations=names), images()
    expected = marginals(predictor, features_of(predictor, pixels), system)
    runs, original = [], PairwisePotential.pair_logits
    monkeypatch.setattr(PairwisePotential, "pair_logits", lambda self, *args: runs.append(1) or original(self, *args))
    # It would compute them again.
    monkeypatch.delattr(PairwisePotential, "edge_marginals")
    [found] = predictor.predict(pixels[0], [system])
    assert len(runs) == len(names or ("surrounding", "above"))
    torch.testing.assert_close(found.marginals[None], upsample(expected, (48, 64)))


def test_freed_memory_is_released_when_the_size_changes_and_before_each_large_image(monkeypatch):
    predictor, released = Predictor(tiny()), []
    monkeypatch.setattr("contextcrf.inference.predictor.release_freed_memory", lambda: released.append(1))
    counts = []
    for height in (48, 48, 32, 48):
        predictor.predict(images(1, height, 64)[0], [UNARY_ONLY])
        counts.append(len(released))
    assert counts == [1, 1, 2, 3]
    monkeypatch.setattr("contextcrf.inference.predictor._RELEASED_ABOVE", 48 * 64)
    predictor.predict_batch(images(1), [UNARY_ONLY])
    assert len(released) == 3
    for _ in range(2):
        predictor.predict_batch(images(2), [UNARY_ONLY])
    assert len(released) == 5


def test_only_the_trunks_that_the_systems_need_run():
    predictor = Predictor(tiny(shared_trunk=False))
    with count_trunk_runs(predictor.model) as count:
        predictor.predict(images()[0], [UNARY_ONLY])
        assert count() == 1
        predictor.predict(images()[0], [UNARY_ONLY, System(relations=("above",))])
        assert count() == 3
    with pytest.raises(ValueError, match=r"potentials are \[\]"):
        predictor.predict(images()[0], [])


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("mode", ["training", "evaluation", "mixed"])
def test_every_part_of_the_model_keeps_its_mode(mode):
    model = tiny(backbone="resnet10t").train(mode != "evaluation")
    if mode == "mixed":
        model.trunk("unary").backbone.eval()  # as where statistics of batches are frozen
    before = modes(model)
    predictor, pixels = Predictor(model), images()[0]
    during = []
    model.unary.register_forward_hook(lambda *_: during.append(any(modes(model))))
    predictor.predict(pixels, [UNARY_PAIRWISE])
    predictor.segment(pixels)
    predictor.label(pixels)
    predictor.explain(pixels, (0, 0))
    assert modes(model) == before
    assert during == [False] * 4
    with pytest.raises(ValueError, match="potentials"):
        predictor.predict(pixels, [])
    assert modes(model) == before


def test_predictions_in_training_mode_are_those_in_evaluation_mode():
    model, pixels = tiny(backbone="resnet10t"), images()[0]
    expected = model.segment(pixels).probabilities
    assert torch.equal(model.train().segment(pixels).probabilities, expected)
    assert not torch.equal(Predictor(model)(pixels[None].float())[0], expected)  # a call is a step of training


def test_explanations_add_up_to_the_message_that_mean_field_adds_to_the_unary():
    model = tiny(inference=settings(relation_weights={"surrounding": 2.0, "above": None}), graph_stride=16)
    pixels = images(1, 96, 160)[0]
    predictor = Predictor(model)
    found = model.explain(pixels, (70, 140))
    assert set(found) == {"surrounding", "above"}
    features = features_of(predictor, pixels[None])
    final = marginals(predictor, features)
    cells = shrink(final, model.config.coarse_factor)
    with torch.inference_mode():
        for name, explanation in found.items():
            maps = features[name]
            weight = 2.0 / model.pairwise_potential(name).graph(maps).mean_degree() if name == "surrounding" else 1.0
            message = weight * model.pairwise_potential(name).messages(maps, cells)[0, :, 70 // 16, 140 // 16]
            torch.testing.assert_close(explanation.messages.sum(0), message)
            assert explanation.size == (6, 10)
    again = predictor.explain_marginals(features, final, (70, 140), (96, 160))
    for name, explanation in found.items():
        assert torch.equal(again[name].messages, explanation.messages)


@pytest.mark.parametrize("pixel", [(96, 0), (0, 160), (-1, 0), (0, -1)])
def test_a_pixel_outside_the_image_has_no_explanation(pixel):
    with pytest.raises(ValueError, match=r"Expected a row in 0\.\.95 and a column in 0\.\.159"):
        tiny().explain(images(1, 96, 160)[0], pixel)


def test_bfloat16_is_close_to_single_precision():
    model, pixels = tiny(), images()[0]
    exact, mixed = (
        Predictor(model, replace(settings(), precision=precision)).predict(pixels, ALL)
        for precision in ("32-true", "bf16-mixed")
    )
    for one, other in zip(exact, mixed, strict=True):
        assert other.marginals.dtype == torch.float32
        difference = (one.marginals - other.marginals).abs().max()
        assert 0 < difference < 0.05
        torch.testing.assert_close(other.marginals.sum(0), torch.ones(48, 64))


@pytest.mark.parametrize("fast", [True, False])
def test_automatic_precision_is_the_faster_one_of_the_model_s_device(fast, monkeypatch):
    asked = []
    monkeypatch.setattr(runtime, "has_bfloat16", lambda device=None: asked.append(device) or fast)
    model, pixels = tiny(), images()[0]
    auto, expected = (
        Predictor(model, replace(settings(), precision=precision)).predict(pixels, [UNARY_PAIRWISE])[0].marginals
        for precision in ("auto", "bf16-mixed" if fast else "32-true")
    )
    assert torch.equal(auto, expected)
    assert set(asked) == {model.device}


def test_explanations_and_calls_are_in_the_precision_too():
    model, pixels = tiny(), images()[0]
    mixed = Predictor(model, InferenceConfig(precision="bf16-mixed"))
    exact = Predictor(model)
    with torch.inference_mode():
        difference = (mixed(pixels[None].float()) - exact(pixels[None].float())).abs().max()
    assert 0 < difference < 0.05
    for name, explanation in mixed.explain(pixels, (5, 5)).items():
        assert explanation.messages.dtype == torch.float32
        expected = exact.explain(pixels, (5, 5))[name].messages
        torch.testing.assert_close(explanation.messages, expected, rtol=0.1, atol=0.01)


def test_a_prediction_has_labels():
    found = Prediction(UNARY_ONLY, torch.tensor([[[0.2, 0.6]], [[0.8, 0.4]]]), 0.0)
    assert found.labels.tolist() == [[1, 0]]


def test_a_model_under_another_configuration_predicts_with_it():
    model, pixels = tiny(), images()[0]
    coarser = with_config(model, replace(model.config, graph_stride=16))
    assert torch.equal(coarser.segment(pixels, "unary").probabilities, model.segment(pixels, "unary").probabilities)
    assert not torch.equal(coarser.segment(pixels).probabilities, model.segment(pixels).probabilities)


@pytest.mark.parametrize(
    ("change", "way_out"),
    [
        (lambda values: values / 255, "Multiply them by 255"),
        (lambda values: (values / 255 - 0.45) / 0.225, "Undo the normalization"),
        (lambda values: values * 0 + 0.5, None),
        (lambda values: (values / 100).byte(), None),
        (lambda values: values.double(), None),
        (lambda values: values - 20, None),
    ],
)
def test_images_in_another_unit_are_refused(tiny_model, change, way_out):
    values = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    if way_out is None:
        assert tiny_model(change(values)).shape[2:] == (64, 96)
        return
    with pytest.raises(ValueError, match=way_out):
        tiny_model(change(values))
