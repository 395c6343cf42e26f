"""CRF-as-RNN: a dense CRF that is trained as a part of the network."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from contextcrf import ContextCRF, PairwisePotential, load
from contextcrf.cli.main import main
from contextcrf.crf import table
from contextcrf.crf.pair_table import PairTable
from contextcrf.data.dataset import open_dataset
from contextcrf.modeling.merging import assemble
from contextcrf.modeling.serialization import save
from contextcrf.training import Piecewise, augmentation, fit, fit_heads
from contextcrf.training.config import Recipe

DENSE = {"spatial_compat": 2, "bilateral_sxy": 20, "bilateral_compat": 3, "iterations": 3}
RECIPE = Recipe(potentials=["unary"], objective="crf-rnn", epochs=1, crop=(64, 96), batch_size=3, lr=0.1)


@pytest.fixture
def model(tiny_model):
    config = replace(tiny_model.config, learned_dense=True, dense=DENSE)
    return ContextCRF(config, tiny_model.classes, pretrained=False).eval()


def sample(scenes):
    image, mask = open_dataset(scenes, "train")[0]
    return image[None].float(), mask[None]


def test_it_begins_as_the_dense_crf_of_the_configuration(model, scenes):
    fixed = ContextCRF(replace(model.config, learned_dense=False), model.classes, pretrained=False).eval()
    fixed.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("dense.")})
    images, _ = sample(scenes)
    with torch.inference_mode():
        marginals = fixed(images)
        torch.testing.assert_close(model.refine(marginals, images), fixed.refine(marginals, images), atol=1e-4, rtol=0)
        segmentation = model.segment(images[0].byte(), dense=True)
        torch.testing.assert_close(segmentation.probabilities, model.refine(marginals, images)[0], atol=1e-4, rtol=0)


def test_the_loss_is_the_likelihood_of_the_pixels_behind_it_and_reaches_everything(model, scenes):
    images, masks = sample(scenes)
    masks[:, :20] = 255
    features = model.features(images, ["unary"])
    loss = model.refined_nll(features, images, masks)
    known = masks != 255
    refined = model.refine(model(images, ["unary"]), images)
    expected = -refined.gather(1, masks.masked_fill(~known, 0)[:, None])[:, 0].log()[known].mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    trained = [*model.dense.parameters(), *model.trunks.parameters(), *model.unary.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_it_trains_all_potentials_with_or_without_their_tables(model, scenes, monkeypatch):
    images, masks = sample(scenes)
    images, masks = torch.cat([images, images.flip(3)]), torch.cat([masks, masks.flip(2)])

    def gradients():
        model.zero_grad()
        loss = model.refined_nll(model.features(images), images, masks)
        loss.backward()
        return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with monkeypatch.context() as patch:
        patch.setattr(PairwisePotential, "messages", None)
        patch.setattr(PairwisePotential, "prepare", None)
        held, with_tables = gradients()
    monkeypatch.setattr(table, "TRAINING_ELEMENTS", 0)
    monkeypatch.setattr(PairTable, "messages", None)
    streamed, without = gradients()
    torch.testing.assert_close(held, streamed)
    torch.testing.assert_close(with_tables, without, atol=1e-5, rtol=1e-3)
    assert all(with_tables[f"pairwise.{name}.last.interaction.weight"].abs().sum() > 0 for name in model.pairwise)


@pytest.mark.parametrize("gap", [5.0, 12.0, 40.0])
def test_what_is_quite_wrong_has_a_gradient(model, scenes, gap):
    images, masks = sample(scenes)
    torch.nn.init.zeros_(model.unary.last.weight)
    with torch.no_grad():
        model.unary.last.bias.copy_(gap * F.one_hot(torch.tensor(3), model.num_classes))
    loss = model.refined_nll(model.features(images, ["unary"]), images, torch.ones_like(masks))
    loss.backward()
    # Whatever the messages add, the wrong label wins everywhere: its logit's gradient is 1 and more.
    assert loss > gap
    assert model.unary.last.bias.grad[3] > 0.9
    assert model.unary.last.bias.grad[1] < -0.9


def test_the_recipe_trains_it_with_the_network(model, scenes, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train = open_dataset(scenes, "train", augmentation(RECIPE))
    images, masks = sample(scenes)

    def loss():
        with torch.inference_mode():
            return float(model.refined_nll(model.features(images, ["unary"]), images, masks))

    first = loss()
    fit(model, train, open_dataset(scenes, "val"), replace(RECIPE, epochs=4, lr=0.02), tmp_path, progress=False)
    assert loss() < first
    changed = {key for key, value in before.items() if not torch.equal(model.state_dict()[key], value)}
    assert {"dense.spatial_compat", "dense.log_bilateral_sxy", "unary.last.weight"} <= changed
    assert not any(key.startswith("pairwise") for key in changed)
    assert "val/full" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    # Labels learn to differ: the matrix is not of the Potts model any more.
    compat = model.dense.spatial_compat
    assert compat.diagonal().std() > 0
    save(model, tmp_path / "model")
    torch.testing.assert_close(load(tmp_path / "model").dense.spatial_compat, compat)


def test_its_parameters_do_not_decay(model):
    module = Piecewise(model, replace(RECIPE, weight_decay=0.1), 4)
    groups = {group["name"]: group for group in module.configure_optimizers()[0][0].param_groups}
    assert groups["dense"]["weight_decay"] == 0
    assert {id(p) for p in groups["dense"]["params"]} == {id(p) for p in model.dense.parameters()}
    assert groups["new"]["weight_decay"] == 0.1
    # Other objectives leave it as it is.
    others = Piecewise(model, Recipe(potentials=["unary"]), 4).parameter_groups()
    assert not {id(p) for group in others for p in group["params"]} & {id(p) for p in model.dense.parameters()}


def test_it_goes_with_the_unary_into_an_assembled_model(model):
    torch.nn.init.constant_(model.dense.spatial_compat, 0.5)
    for head in model.pairwise.values():
        head.last.reset_parameters()
    together = assemble(model, {"above": model})
    torch.testing.assert_close(together.dense.spatial_compat, model.dense.spatial_compat)


def test_what_does_not_go_together_is_refused(model, tiny_model, scenes, tmp_path, capsys):
    images, masks = sample(scenes)
    with pytest.raises(ValueError, match=r"set model\.learned_dense"):
        tiny_model.refined_nll(tiny_model.features(images), images, masks)
    with pytest.raises(ValueError, match="is learned: it is trained, not tuned"):
        model.refine(F.one_hot(masks.clamp(max=1), model.num_classes).movedim(-1, 1).float(), images, {"iterations": 1})
    with pytest.raises(ValueError, match="needs images, not features alone"):
        fit_heads(model, open_dataset(scenes, "train"), RECIPE, tmp_path, progress=False)
    save(model, tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["tune", str(tmp_path / "model"), "--data", str(scenes), "--dense", "true"])
    assert "its dense CRF is learned" in capsys.readouterr().err


def test_void_alone_has_no_loss(model, scenes):
    images, masks = sample(scenes)
    features = model.features(images, ["unary"])
    loss = model.refined_nll(features, images, torch.full_like(masks, 255))
    assert loss.item() == 0
    assert "spatial_compat=[10, 10]" in repr(model.dense)


def test_it_can_be_made_without_any_values(model):
    with torch.device("meta"):
        shape = ContextCRF(model.config, model.classes, pretrained=False)
    assert shape.dense.spatial_compat.is_meta
