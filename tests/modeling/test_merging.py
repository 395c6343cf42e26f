"""Several models made one, and one model under another configuration."""

from dataclasses import replace

import pytest
import torch

from contextcrf import System, load
from contextcrf.data.classes import Classes
from contextcrf.modeling.merging import average_weights, merge_potentials, with_config
from contextcrf.modeling.serialization import save
from models import CLASSES, images, same_weights, settings, tiny, untrained

OTHERS = Classes(("sky", "sea", "land"), CLASSES.palette)


def alone(name):
    """The system of one potential."""
    return System(relations=()) if name == "unary" else System(unary=False, relations=(name,))


def marginals(model, name, pixels):
    predictor = model.predictor()
    with torch.inference_mode():
        return predictor.mean_field(predictor.extract_features(pixels, [alone(name)]), alone(name))


def test_each_potential_of_a_merged_model_predicts_as_in_its_own_model(tmp_path):
    parts = {
        "surrounding": tiny(shared_trunk=False),
        "above": tiny(inference=settings(relation_weights={"above": 3.0})),
    }
    unary = tiny(relations={})
    save(merge_potentials(unary, parts), tmp_path)
    model = load(tmp_path)
    assert model.potentials == ("unary", "surrounding", "above")
    assert not model.config.shared_trunk
    for name, part in {"unary": unary, **parts}.items():
        pixels = images().float()
        assert torch.equal(marginals(model, name, pixels), marginals(part, name, pixels))


def test_a_merged_model_has_the_unary_s_settings_with_all_potentials_and_no_weights():
    unary = tiny(inference=settings(system="unary", iterations=5, relation_weights={"surrounding": 3.0}))
    found = merge_potentials(unary, {"above": tiny()})
    assert found.inference == settings(system="unary+pairwise", iterations=5)
    # A system that names a relation of the unary's model, which the merged one need not have.
    refined = tiny(inference=settings(system="surrounding+dense", dense={"iterations": 2}))
    found = merge_potentials(refined, {"above": tiny()})
    assert found.inference == settings(system="unary+pairwise+dense", dense={"iterations": 2})
    assert found.segment(images()[0]).labels.shape == (48, 64)


def test_a_learned_dense_crf_is_merged_with_the_unary():
    unary = tiny(learned_dense=True)
    with torch.no_grad():
        unary.dense.spatial_compat += 0.5
    found = merge_potentials(unary, {"above": tiny()})
    assert torch.equal(found.dense.spatial_compat, unary.dense.spatial_compat)
    assert merge_potentials(tiny(), {"above": tiny(learned_dense=True)}).dense is None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: tiny(relations={}), r"relation 'above' has the relations \[\], but 'above' is not one"),
        (lambda: tiny(channels=4), "relation 'above' has channels=4, but the model for the unary has channels=8"),
        (
            lambda: tiny(graph_stride=16),
            "relation 'above' has graph_stride=16, but .* has graph_stride=8",
        ),
        (lambda: tiny(classes=OTHERS), "relation 'above' and the model for the unary have different classes"),
        (lambda: untrained(scales=(1.0, 0.5)), "relation 'above' was not trained"),
    ],
)
def test_models_that_do_not_fit_together_are_not_merged(part, message):
    with pytest.raises(ValueError, match=message):
        merge_potentials(tiny(), {"above": part()})


def test_strides_that_were_left_out_are_those_that_are_meant(tmp_path):
    save(tiny(output_stride=8, graph_stride=8), tmp_path)
    assert merge_potentials(tiny(), {"above": load(tmp_path)}).potentials == ("unary", "above")


def test_an_average_is_the_mean_of_all_weights():
    models = [tiny(inference=settings(iterations=number)) for number in (1, 2, 3)]
    found = average_weights(models)
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, torch.stack([model.state_dict()[name] for model in models]).mean(0))
    assert found.inference == models[0].inference
    assert found is not models[0]
    assert not same_weights(found, models[0])


def test_models_with_the_same_number_of_pairwise_hidden_units_are_averaged():
    # None stands for `hidden`.
    found = average_weights([tiny(hidden=8), tiny(hidden=8, pairwise_hidden=8)])
    assert found.pairwise_potential("above").last.in_features == 8
    with pytest.raises(ValueError, match=r"Model 2 has pairwise_hidden=4, but the first model has pairwise_hidden=8"):
        average_weights([tiny(hidden=8), tiny(hidden=8, pairwise_hidden=4)])


def test_models_that_do_not_correspond_are_not_averaged():
    for models in ([], [tiny()]):
        with pytest.raises(ValueError, match=f"The number of models is {len(models)}, but two or more"):
            average_weights(models)
    with pytest.raises(ValueError, match=r"Model 2 has hidden=16, but the first model has hidden=8"):
        average_weights([tiny(), tiny(hidden=16)])
    # The weights would fit, but belong to other scales.
    with pytest.raises(ValueError, match=r"Model 3 has scales=\(1\.0, 0\.25\)"):
        average_weights([tiny(), tiny(), tiny(scales=(1.0, 0.25))])
    with pytest.raises(ValueError, match="Model 2 and the first model have different classes"):
        average_weights([tiny(), tiny(classes=OTHERS)])


def test_counts_of_batches_are_not_averaged():
    first, second = (tiny(backbone="resnet10t", stride=16) for _ in range(2))
    for model, count in ((first, 3), (second, 8)):
        model.trunk("unary").backbone.body.bn1.num_batches_tracked.fill_(count)
    assert average_weights([first, second]).trunk("unary").backbone.body.bn1.num_batches_tracked == 8


@pytest.mark.parametrize("training", [True, False])
def test_another_configuration_keeps_everything_else(training):
    model = tiny(inference=settings(iterations=5)).train(training)
    model.metadata = {"fit": {"data": "beach"}}
    model.trunk("unary").backbone.pretrained = True
    found = with_config(model, replace(model.config, graph_stride=16))
    assert found.config == replace(model.config, graph_stride=16)
    assert model.config.graph_stride is None
    assert same_weights(found, model)
    assert (found.inference, found.metadata, found.classes) == (model.inference, model.metadata, model.classes)
    assert found.training is training
    assert found.trunk("unary").backbone.pretrained
    # The two share no weights.
    with torch.no_grad():
        found.unary.last.bias += 1
    assert not same_weights(found, model)


def test_another_configuration_may_come_with_other_settings():
    model, other = tiny(), settings(relation_weights={"above": 2.0})
    assert with_config(model, model.config, other).inference == other
    with pytest.raises(ValueError, match="below"):
        with_config(model, model.config, settings(relation_weights={"below": 2.0}))


def test_a_learned_dense_crf_may_be_added_and_is_kept():
    model = tiny(inference=settings(dense={"bilateral_sxy": 20}))
    learned = with_config(model, replace(model.config, learned_dense=True))
    torch.testing.assert_close(learned.dense.bilateral_sxy, torch.tensor(20.0))
    with torch.no_grad():
        learned.dense.spatial_compat += 0.5
    again = with_config(learned, replace(learned.config, graph_stride=16))
    assert torch.equal(again.dense.spatial_compat, learned.dense.spatial_compat)


@pytest.mark.parametrize("changes", [{"hidden": 16}, {"relations": {}}])
def test_weights_that_do_not_fit_another_configuration_are_refused(changes):
    model = tiny()
    with pytest.raises(RuntimeError, match=r"size mismatch|Unexpected key"):
        with_config(model, replace(model.config, **changes))
