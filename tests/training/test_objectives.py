"""The losses: piecewise, coupled, through a learned dense CRF, Lovász-Softmax."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from contextcrf import PairwisePotential, RangeBox
from contextcrf.crf import mean_field_nll, pair_table, pseudo_likelihood_nll, unrolled_nll
from contextcrf.crf.pair_table import PairTable
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.system import FULL, UNARY_ONLY
from contextcrf.training import HeadsModule, ModelModule, objectives
from contextcrf.training.objectives import OBJECTIVES, Batch, lovasz_softmax
from contextcrf.utils.resizing import downsample, upsample
from trainings import COUPLED, QUICK, losses, training_batch

CRF_RNN = replace(COUPLED, potentials=["unary"], objective="crf-rnn")
COUPLED_LOSSES = {"pseudo-likelihood": pseudo_likelihood_nll, "mean-field": mean_field_nll, "unrolled": unrolled_nll}


@pytest.fixture
def learned(tiny_model):
    """A model with a learned dense CRF."""
    dense = {"spatial_compat": 2, "bilateral_sxy": 20, "bilateral_compat": 3, "iterations": 3}
    inference = InferenceConfig(dense=dense, precision="32-true")
    config = replace(tiny_model.config, learned_dense=True)
    return ContextCRF(config, tiny_model.classes, pretrained=False, inference=inference).eval()


@pytest.fixture
def batch(scenes):
    """The first two training images and their masks."""
    images, masks = training_batch(scenes)
    return images[:2], masks[:2]


def crf_rnn(model, images, masks, potentials=("unary",)):
    step = Batch(model, model.features(images, potentials), masks, images)
    [loss] = OBJECTIVES["crf-rnn"](step, CRF_RNN).values()
    return loss


def test_the_piecewise_losses_are_those_of_each_potential_by_itself(tiny_model, scenes):
    images, masks = training_batch(scenes)
    found = losses(tiny_model, scenes, COUPLED)
    with torch.no_grad():
        features = tiny_model.features(images)
        labels = downsample(masks, features["unary"].shape[-2:])
        expected = {
            name: tiny_model.pairwise_potential(name).nll(features[name], labels) for name in ("surrounding", "above")
        }
        expected["unary"] = F.cross_entropy(tiny_model.unary(features["unary"]), labels, ignore_index=255)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_the_unary_loss_is_at_the_nodes_of_the_graph_or_at_the_pixels(tiny_model, batch):
    images, masks = batch
    masks[:, :20] = 255
    logits = tiny_model.unary(tiny_model.features(images, ["unary"])["unary"])
    expected = {
        "graph": F.cross_entropy(logits, downsample(masks, logits.shape[-2:]), ignore_index=255),
        "pixels": F.cross_entropy(upsample(logits, masks.shape[-2:]), masks, ignore_index=255),
    }
    for place, value in expected.items():
        config = replace(QUICK, potentials=["unary"], loss_at=place)
        found = ModelModule(tiny_model, config, 4).losses((images, masks))
        torch.testing.assert_close(found, {"unary": value})
    assert abs(expected["graph"] - expected["pixels"]) > 1e-3


def test_class_weights_are_those_of_the_unary(tiny_model, batch):
    images, masks = batch
    weights = torch.rand(tiny_model.num_classes)
    config = replace(QUICK, potentials=["unary"])
    found = ModelModule(tiny_model, config, 4, weights).losses((images, masks))["unary"]
    logits = tiny_model.unary(tiny_model.features(images, ["unary"])["unary"])
    labels = downsample(masks, logits.shape[-2:])
    each = F.cross_entropy(logits, labels, reduction="none", ignore_index=255)
    known = labels != 255
    torch.testing.assert_close(found, (weights[labels.clamp(max=len(weights) - 1)] * each)[known].mean())


@pytest.mark.parametrize("objective", COUPLED_LOSSES)
@pytest.mark.parametrize("graph_stride", [8, 16])
def test_coupled_losses_are_those_of_all_potentials_on_the_unarys_grid(tiny_model, batch, objective, graph_stride):
    model = with_config(tiny_model, replace(tiny_model.config, graph_stride=graph_stride))
    images, masks = batch
    config = replace(COUPLED, objective=objective)
    with torch.no_grad():
        [(name, found)] = ModelModule(model, config, 4).losses((images, masks)).items()
        features = model.features(images)
        unary = model.unary(features["unary"])
        pairs = [model.pair(relation, features[relation]) for relation in model.pairwise]
        expected = COUPLED_LOSSES[objective](unary, pairs, downsample(masks, unary.shape[-2:]))
    assert name == objective
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("objective", COUPLED_LOSSES)
def test_coupled_losses_on_cached_features_take_the_frozen_unary(tiny_model, batch, objective):
    images, masks = batch
    with torch.no_grad():
        maps = tiny_model.features(images)["above"]
        unary, labels = tiny_model.unary(maps), downsample(masks, maps.shape[-2:])
        module = HeadsModule(tiny_model, ["above"], replace(COUPLED, objective=objective), 4)
        found = module.losses((maps, labels, unary + 1.0))
        expected = COUPLED_LOSSES[objective](unary + 1.0, [(tiny_model.pairwise_potential("above"), maps)], labels)
    torch.testing.assert_close(found, {objective: expected})


@pytest.mark.parametrize("objective", COUPLED_LOSSES)
def test_coupled_losses_need_the_unary(tiny_model, batch, objective):
    images, masks = batch
    step = Batch(tiny_model, tiny_model.features(images, ["above"]), masks)
    with pytest.raises(ValueError, match=rf"objective '{objective}' needs the unary .* only \['above'\] are trained"):
        OBJECTIVES[objective](step, replace(COUPLED, objective=objective))


def test_a_learned_dense_crf_starts_as_the_dense_crf_of_the_settings(learned, batch):
    fixed = ContextCRF(replace(learned.config, learned_dense=False), learned.classes, False, learned.inference).eval()
    fixed.load_state_dict({k: v for k, v in learned.state_dict().items() if not k.startswith("dense.")})
    images, _ = batch
    with torch.inference_mode():
        refined = [Predictor(model).refine(fixed(images), images) for model in (learned, fixed)]
        torch.testing.assert_close(*refined, atol=1e-4, rtol=0)
    segmentation = learned.segment(images[0].byte(), FULL)
    torch.testing.assert_close(segmentation.probabilities, refined[0][0], atol=1e-4, rtol=0)


def test_the_loss_of_crf_rnn_is_the_likelihood_of_the_refined_pixels_and_reaches_all_weights(learned, batch):
    images, masks = batch
    masks[:, :20] = 255
    loss = crf_rnn(learned, images, masks)
    known = masks != 255
    predictor = Predictor(learned)
    marginals = predictor.mean_field(predictor.extract_features(images, [UNARY_ONLY]), UNARY_ONLY)
    refined = predictor.refine(upsample(marginals, masks.shape[-2:]), images)
    expected = -refined.gather(1, masks.masked_fill(~known, 0)[:, None])[:, 0].log()[known].mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    trained = [*learned.dense.parameters(), *learned.trunks.parameters(), *learned.unary.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_crf_rnn_trains_all_potentials_with_or_without_their_tables(learned, batch, monkeypatch):
    images, masks = batch
    for name in learned.pairwise:
        learned.pairwise_potential(name).last.reset_parameters()

    def gradients():
        learned.zero_grad()
        loss = crf_rnn(learned, images, masks, learned.potentials)
        loss.backward()
        return loss, {name: p.grad.clone() for name, p in learned.named_parameters() if p.grad is not None}

    with monkeypatch.context() as patch:
        patch.setattr(PairwisePotential, "messages", None)
        patch.setattr(PairwisePotential, "prepare", None)
        held, with_tables = gradients()
    monkeypatch.setattr(pair_table, "TRAINING_ELEMENTS", 0)
    monkeypatch.setattr(PairTable, "messages", None)
    streamed, without = gradients()
    torch.testing.assert_close(held, streamed)
    torch.testing.assert_close(with_tables, without, atol=1e-5, rtol=1e-3)
    assert all(with_tables[f"pairwise.{name}.last.interaction.weight"].abs().sum() > 0 for name in learned.pairwise)


@pytest.mark.parametrize("gap", [5.0, 12.0, 40.0])
def test_confident_errors_have_a_gradient_through_crf_rnn(learned, batch, gap):
    images, masks = batch
    torch.nn.init.zeros_(learned.unary.last.weight)
    with torch.no_grad():
        learned.unary.last.bias.copy_(gap * F.one_hot(torch.tensor(3), learned.num_classes))
    loss = crf_rnn(learned, images, torch.ones_like(masks))
    loss.backward()
    # Whatever the messages add, the wrong label wins everywhere: its logit's gradient is 1 and more.
    assert loss > gap
    assert learned.unary.last.bias.grad[3] > 0.9
    assert learned.unary.last.bias.grad[1] < -0.9


def test_unknown_pixels_alone_have_no_crf_rnn_loss(learned, batch):
    images, masks = batch
    loss = crf_rnn(learned, images, torch.full_like(masks, 255))
    assert loss.item() == 0
    loss.backward()


def test_crf_rnn_needs_a_learned_dense_crf_and_images(tiny_model, learned, batch):
    images, masks = batch
    with pytest.raises(ValueError, match=r"Set model\.learned_dense to true"):
        crf_rnn(tiny_model, images, masks)
    step = Batch(learned, learned.features(images, ["unary"]), masks)
    with pytest.raises(ValueError, match="needs images, but the batch contains cached features"):
        OBJECTIVES["crf-rnn"](step, CRF_RNN)


def test_lovasz_is_one_minus_the_mean_iou_of_confident_predictions(tiny_model):
    """At the corners of the simplex the Lovász extension is the Jaccard loss itself."""
    truth = torch.tensor([[[0, 0, 1, 1, 2, 255]]])
    predicted = torch.tensor([[[0, 1, 1, 1, 2, 0]]])
    logits = 50.0 * F.one_hot(predicted, tiny_model.num_classes).movedim(-1, 1)
    expected = 1 - (1 / 2 + 2 / 3 + 1) / 3  # over the classes that occur
    torch.testing.assert_close(lovasz_softmax(logits, truth), torch.tensor(expected))
    logits.requires_grad_(True)
    nothing = lovasz_softmax(logits, torch.full_like(truth, 255))
    nothing.backward()
    assert nothing == 0
    assert logits.grad.abs().max() == 0


def test_lovasz_is_added_to_the_unary_with_its_weight(tiny_model, batch):
    images, masks = batch
    config = replace(QUICK, potentials=["unary"], loss_at="pixels", lovasz=0.5)
    found = ModelModule(tiny_model, config, 4).losses((images, masks))
    assert list(found) == ["unary", "lovasz"]
    logits = upsample(tiny_model.unary(tiny_model.features(images, ["unary"])["unary"]), masks.shape[-2:])
    torch.testing.assert_close(found["lovasz"], 0.5 * lovasz_softmax(logits, masks))


def test_lovasz_of_many_pixels_is_that_of_a_random_part(tiny_model, batch, monkeypatch):
    _, masks = batch
    logits = torch.randn(2, tiny_model.num_classes, *masks.shape[-2:])
    whole = lovasz_softmax(logits, masks)
    monkeypatch.setattr(objectives, "LOVASZ_PIXELS", 4_000)
    parts = [lovasz_softmax(logits, masks) for _ in range(2)]
    assert parts[0] != parts[1]
    for part in parts:
        assert math.isclose(part, whole, rel_tol=0.1)


def test_lovasz_without_its_library_names_it(tiny_model, batch, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.losses", None)
    config = replace(QUICK, potentials=["unary"], lovasz=1.0)
    with pytest.raises(ValueError, match=r"segmentation_models_pytorch is not installed. Install it with `pip install"):
        ModelModule(tiny_model, config, 4).losses(batch)


def test_a_model_with_a_learned_dense_crf_can_be_built_without_values(learned):
    with torch.device("meta"):
        shape = ContextCRF(learned.config, learned.classes, pretrained=False, inference=learned.inference)
    assert shape.dense.spatial_compat.is_meta


def test_a_graph_without_edges_has_a_loss_of_zero(tiny_model, scenes):
    """A box can be smaller than a node of a small crop."""
    config = ModelConfig("plain", channels=8, hidden=8, scales=(1.0,), relations={"far": RangeBox(0.1, 0.1, 0.1, 0.1)})
    model = ContextCRF(config, tiny_model.classes, pretrained=False)
    images, masks = training_batch(scenes)
    found = ModelModule(model, QUICK, 4).losses((images[:1, :, :32, :32], masks[:1, :32, :32]))
    assert found["far"].item() == 0
    found["far"].backward()
