"""Everything that touches a device, on the CPU and, where there is one, on a GPU: nothing is left on the wrong one."""

import pytest
import torch

from contextcrf.crf import DenseCRF
from contextcrf.data.dataset import open_dataset
from contextcrf.evaluation.evaluate import evaluate, systems
from contextcrf.evaluation.tuning import tune_dense, tune_strengths
from contextcrf.training import augmentation, fit, fit_heads
from contextcrf.training.config import Recipe

RECIPE = Recipe(epochs=1, batch_size=3, crop=(64, 96), max_edges=64, precision="32-true", workers=0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def model(request, tiny_model):
    return tiny_model.to(request.param).eval()


def test_inference_is_that_of_the_cpu(model, scenes):
    image, _ = open_dataset(scenes, "val")[0]
    found = [model.segment(image, dense=dense).probabilities for dense in (False, True)]
    expected = [model.cpu().segment(image, dense=dense).probabilities for dense in (False, True)]
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there, atol=2e-3, rtol=0)


def test_losses_and_their_gradients_are_those_of_the_cpu(model, scenes):
    image, mask = open_dataset(scenes, "train")[0]

    def gradient():
        device = next(model.parameters()).device
        images, masks = image[None].float().to(device), mask[None].to(device)
        model.zero_grad()
        features = model.features(images)
        losses = [*model.nll(features, masks).values(), model.coupled_nll(features, masks, "unrolled")]
        torch.stack(losses).sum().backward()
        return model.pairwise["above"].owner.weight.grad.cpu().clone()

    here = gradient()
    model.cpu()
    torch.testing.assert_close(here, gradient(), atol=1e-4, rtol=1e-3)


def test_training_leaves_a_model_whole_where_it_was(model, scenes, tmp_path):
    where = {p.device for p in model.parameters()}
    train, val = open_dataset(scenes, "train", augmentation(RECIPE)), open_dataset(scenes, "val")
    fit(model, train, val, RECIPE, tmp_path / "fit", progress=False)
    assert {p.device for p in model.parameters()} == where
    fit_heads(model, train, RECIPE, tmp_path / "heads", views=1, progress=False)
    assert {p.device for p in model.parameters()} == where
    [row] = evaluate(model, val, systems(model, ["crf"]), "32-true")
    assert 0 <= row.matrix.mean_iou() <= 1


def test_tuning_tries_everything_there(model, scenes):
    val = open_dataset(scenes, "val").spread(1)
    assert len(tune_strengths(model, val, progress=False)) > 1
    assert len(tune_dense(model, val, rounds=1, progress=False)) > 1


def test_a_learned_dense_crf_learns_there(model, scenes):
    model.learn_dense({"bilateral_sxy": 20, "iterations": 2})
    device = next(model.trunks.parameters()).device
    image, mask = open_dataset(scenes, "train")[0]
    images, masks = image[None].float().to(device), mask[None].to(device)
    model.refined_nll(model.features(images), images, masks).backward()
    assert isinstance(model.dense, DenseCRF)
    assert all(p.grad is not None and p.grad.device.type == device.type for p in model.dense.parameters())
