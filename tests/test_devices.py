"""Everything that touches a device, on the CPU and, where there is one, on a GPU: nothing is left on the wrong one."""

from dataclasses import replace

import pytest
import torch

from contextcrf.crf import DenseCRF
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.evaluate import evaluate
from contextcrf.evaluation.tuning import tune_dense, tune_relation_weights
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.config import InferenceConfig
from contextcrf.modeling.merging import with_config
from contextcrf.modeling.system import FULL, UNARY_PAIRWISE
from contextcrf.training import augmentation, fit, fit_heads
from contextcrf.training.objectives import OBJECTIVES, Batch
from trainings import COUPLED, QUICK

ONCE = replace(QUICK, epochs=1, batch_size=3, val_every=1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def model(request, tiny_model):
    return tiny_model.to(request.param).eval()


def test_inference_is_that_of_the_cpu(model, scenes):
    image, _ = open_dataset(scenes, "val")[0]
    systems = (UNARY_PAIRWISE, FULL)
    found = [model.segment(image, system).probabilities for system in systems]
    expected = [model.cpu().segment(image, system).probabilities for system in systems]
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there, atol=2e-3, rtol=0)


def test_losses_and_their_gradients_are_those_of_the_cpu(model, scenes):
    image, mask = open_dataset(scenes, "train")[0]

    def gradient():
        images, masks = image[None].float().to(model.device), mask[None].to(model.device)
        model.zero_grad()
        batch = Batch(model, model.features(images), masks, images)
        losses = [*OBJECTIVES["piecewise"](batch, COUPLED).values(), *OBJECTIVES["unrolled"](batch, COUPLED).values()]
        torch.stack(losses).sum().backward()
        return model.pairwise_potential("above").owner.weight.grad.cpu().clone()

    here = gradient()
    model.cpu()
    torch.testing.assert_close(here, gradient(), atol=1e-4, rtol=1e-3)


def test_training_leaves_a_model_where_it_was(model, scenes, tmp_path):
    where = {p.device for p in model.parameters()}
    train, val = open_dataset(scenes, "train", augmentation(ONCE)), open_dataset(scenes, "val")
    fit(model, train, val, ONCE, tmp_path / "fit")
    assert {p.device for p in model.parameters()} == where
    fit_heads(model, train, ONCE, tmp_path / "heads", copies=1)
    assert {p.device for p in model.parameters()} == where
    [result] = evaluate(Predictor(model), val, [UNARY_PAIRWISE])
    assert 0 <= result.matrix.mean_iou() <= 1


def test_tuning_works_there(model, scenes):
    val = open_dataset(scenes, "val").spread(1)
    assert len(tune_relation_weights(model, val)) > 1
    assert len(tune_dense(model, val, rounds=1)) > 1


def test_a_learned_dense_crf_is_trained_there(model, scenes):
    inference = InferenceConfig(dense={"bilateral_sxy": 20, "iterations": 2}, precision="32-true")
    learned = with_config(model, replace(model.config, learned_dense=True), inference)
    assert learned.device == model.device
    image, mask = open_dataset(scenes, "train")[0]
    images, masks = image[None].float().to(model.device), mask[None].to(model.device)
    batch = Batch(learned, learned.features(images), masks, images)
    OBJECTIVES["crf-rnn"](batch, replace(COUPLED, objective="crf-rnn"))["crf-rnn"].backward()
    assert isinstance(learned.dense, DenseCRF)
    assert all(p.grad is not None and p.grad.device.type == model.device.type for p in learned.dense.parameters())
