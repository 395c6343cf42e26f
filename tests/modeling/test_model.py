"""ContextCRF: networks and potentials put together."""

import numpy as np
import pytest
import torch
from PIL import Image

import contextcrf
from contextcrf import ContextCRF, InferenceConfig, ModelConfig, Predictor, System, load
from contextcrf.crf import PairwisePotential
from contextcrf.modeling.serialization import BUNDLED
from contextcrf.utils.resizing import downsample, upsample
from models import CLASSES, count_trunk_runs, images, settings, tiny, untrained


def test_marginals_are_those_of_the_predictor_at_the_images_size():
    model = tiny()
    with torch.inference_mode():
        marginals = model(images(2, 50, 70).float())
    assert marginals.shape == (2, 3, 50, 70)
    torch.testing.assert_close(marginals.sum(1), torch.ones(2, 50, 70))


def test_a_call_is_the_predictor_s_with_the_model_s_settings():
    model = tiny(inference=settings(iterations=5, relation_weights={"above": 4.0}))
    pixels = images(2).float()
    with torch.inference_mode():
        assert torch.equal(model(pixels), Predictor(model)(pixels))
        assert not torch.equal(model(pixels), Predictor(model, settings())(pixels))


def test_the_network_gets_images_with_the_channels_last_in_memory():
    model, layouts = tiny(), []
    trunk = model.trunk("unary")
    trunk.register_forward_hook(
        lambda module, inputs, maps: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    pixels = images(2)
    maps = model.features(pixels)["unary"]
    again = model.features(pixels.contiguous(memory_format=torch.channels_last).float())["unary"]
    assert layouts == [True, True]
    assert torch.equal(maps, again)


@pytest.mark.parametrize(("shared", "runs"), [(True, 1), (False, 3)])
def test_a_shared_trunk_runs_once_and_own_trunks_run_each(shared, runs):
    model = tiny(shared_trunk=shared)
    assert len(model.trunks) == runs
    with count_trunk_runs(model) as count:
        maps = model.features(images().float())
        assert count() == runs
    assert set(maps) == {"unary", "surrounding", "above"}
    assert (maps["unary"] is maps["above"]) == shared


def test_only_the_trunks_of_the_wanted_potentials_run():
    model = tiny(shared_trunk=False)
    with count_trunk_runs(model) as count:
        assert set(model.features(images().float(), ["above"])) == {"above"}
        assert count() == 1


def test_potentials_are_selected_in_the_model_s_order():
    model = tiny()
    assert model.potentials == model.select(None) == ("unary", "surrounding", "above")
    assert model.select(["above", "unary"]) == ("unary", "above")
    assert model.select(iter(["above"])) == ("above",)


def test_unknown_potentials_are_refused_by_name():
    model = tiny()
    for wrong in (["below"], []):
        with pytest.raises(ValueError, match=r"one or more of \['unary', 'surrounding', 'above'\]"):
            model.features(images().float(), wrong)
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        model.features(torch.zeros(3, 8, 8))


def test_relations_are_zero_until_they_are_trained():
    model = untrained()
    assert model.trained_relations == []
    assert all(model.pairwise_potential(name).last.is_zero for name in model.pairwise)
    model.pairwise_potential("above").last.reset_parameters()
    assert model.trained_relations == ["above"]


def test_untrained_relations_do_not_change_a_prediction():
    model, pixels = untrained(), images()[0]
    assert torch.equal(model.segment(pixels).probabilities, model.segment(pixels, "unary").probabilities)


def test_untrained_relations_cost_no_time_but_can_be_trained(monkeypatch):
    model = untrained()
    (model(images().float()) ** 2).sum().backward()
    gradient = model.pairwise_potential("above").last.interaction.weight.grad
    assert gradient is not None
    assert gradient.any()
    model.pairwise_potential("above").last.reset_parameters()
    prepared = []
    prepare = PairwisePotential.prepare
    monkeypatch.setattr(PairwisePotential, "prepare", lambda self, maps: prepared.append(self) or prepare(self, maps))
    with torch.no_grad():
        model(images().float())
    assert prepared == [model.pairwise["above"]]


@pytest.mark.parametrize("size", [(40, 60), (160, 240), (112, 112), (9, 300)])
def test_coarse_graphs_fit_images_of_every_size(size):
    model = tiny(graph_stride=64)
    with torch.inference_mode():
        assert model(images(1, *size).float()).shape == (1, 3, *size)


def test_a_coarser_graph_pools_features():
    model = tiny(graph_stride=16)
    maps = model.features(images(1, 48, 72).float())
    assert maps["unary"].shape[-2:] == (6, 9)
    assert maps["above"].shape[-2:] == (3, 5)
    torch.testing.assert_close(maps["above"][..., 0, 0], maps["unary"][..., :2, :2].mean((2, 3)))
    # The cells at the border have fewer nodes.
    torch.testing.assert_close(maps["above"][..., 0, 4], maps["unary"][..., :2, 8:].mean((2, 3)))
    assert Predictor(model).mean_field(maps, System()).shape == (1, 3, 6, 9)


def test_labels_are_resized_by_nearest_neighbor_and_marginals_bilinearly():
    masks = torch.arange(16).view(1, 4, 4)
    assert downsample(masks, (2, 2)).tolist() == [[[5, 7], [13, 15]]]
    assert downsample(torch.full((1, 4, 4), 255), (3, 3)).unique().tolist() == [255]
    up = upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 4))
    torch.testing.assert_close(up[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_a_model_keeps_its_own_configuration():
    config = ModelConfig(backbone="plain", channels=8, hidden=8)
    model = ContextCRF(config, CLASSES, pretrained=False)
    config.relations.clear()
    assert set(model.config.relations) == {"surrounding", "above"}
    model.config.relations.clear()
    assert set(ModelConfig().relations) == {"surrounding", "above"}


def test_pairwise_potentials_may_have_fewer_hidden_units_than_the_unary():
    model = tiny(hidden=16, pairwise_hidden=4)
    assert model.unary.first.out_channels == 16
    assert [potential.last.in_features for potential in model.pairwise.values()] == [4, 4]
    assert [potential.last.in_features for potential in tiny(hidden=16).pairwise.values()] == [16, 16]


def test_a_model_has_the_default_settings_of_inference_unless_others_are_given():
    config = ModelConfig(backbone="plain", channels=8, hidden=8)
    assert ContextCRF(config, CLASSES, pretrained=False).inference == InferenceConfig()
    inference = settings(iterations=5)
    assert ContextCRF(config, CLASSES, pretrained=False, inference=inference).inference == inference


@pytest.mark.parametrize(
    ("inference", "message"),
    [
        (settings(relation_weights={"below": 1.0}), r"relation_weights names \['below'\]"),
        (settings(system="unary+below"), r"system 'unary\+below' names \['below'\], but the relations"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_model_is_made(inference, message):
    with pytest.raises(ValueError, match=message):
        tiny(inference=inference)


def test_segment_takes_every_usual_form_of_an_image():
    model, pixels = tiny(), images()[0]
    array = pixels.permute(1, 2, 0).numpy()
    results = [model.segment(form) for form in (pixels, array, Image.fromarray(array), array.copy(order="F"))]
    for result in results:
        assert torch.equal(result.labels, results[0].labels)
    assert results[0].labels.shape == (48, 64)
    assert results[0].probabilities.shape == (3, 48, 64)
    assert results[0].overlay().size == (64, 48)
    assert torch.equal(results[0].image, pixels)
    assert results[0].picture.tobytes() == Image.fromarray(array).tobytes()
    assert model.segment(Image.new("L", (9, 7))).labels.shape == (7, 9)
    assert model.segment(np.zeros((1, 1, 3), np.uint8)).labels.shape == (1, 1)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, 3),
        "a.png",
        Image.new("I;16", (8, 8), 1000),
    ],
    ids=["float array", "CHW array", "float tensor", "HWC tensor", "path", "16 bits"],
)
def test_segment_refuses_what_is_not_clear(image):
    for use in (tiny().segment, lambda image: tiny().explain(image, (0, 0))):
        with pytest.raises(ValueError, match=r"expected|Scale its values"):
            use(image)


def test_the_public_names_are_there():
    for name in contextcrf.__all__:
        assert getattr(contextcrf, name) is not None
    assert set(contextcrf.__all__) <= set(dir(contextcrf))
    with pytest.raises(AttributeError, match="nothing"):
        _ = contextcrf.nothing


def test_the_bundled_model_labels_a_picture_right_after_installation():
    model = load("camvid")
    assert model.classes.names[:4] == ("sky", "building", "pole", "road")
    assert set(model.potentials) == {"unary", "surrounding", "above"}
    assert model.trained_relations == ["surrounding", "above"]
    labels = model.segment(drawn_street()).labels
    sky, building, road = (model.classes.names.index(name) for name in ("sky", "building", "road"))
    assert (labels[:30, 120:200] == sky).double().mean() > 0.9
    assert (labels[60:110, :90] == building).double().mean() > 0.9
    assert (labels[200:, 80:240] == road).double().mean() > 0.9


def test_the_second_bundled_model_uses_its_pairwise_terms():
    model = load("msrc21")
    assert len(model.classes) == 21
    assert model.predictor().system(None).name == "unary+pairwise"
    picture = drawn_street()
    features = model.features(torch.as_tensor(picture).permute(2, 0, 1)[None].float())
    weights = [model.predictor().message_weight(name, features[name]) for name in model.pairwise]
    assert all(weight.abs().max() > 0 for weight in weights)
    with_pairs, unary = model.segment(picture), model.segment(picture, system="unary")
    assert (with_pairs.probabilities - unary.probabilities).abs().max() > 0.05


@pytest.mark.parametrize("name", ["camvid", "msrc21"])
def test_the_bundled_models_have_at_most_12_megabytes(name):
    assert sum(path.stat().st_size for path in (BUNDLED / name).iterdir()) <= 12e6


def drawn_street(height=240, width=320):
    """A street in a few colors: pale sky, two houses with windows, pavements and a road that narrows.

    The ground has the grain of asphalt, since the bundled model labels smooth surfaces as sky.
    """
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = (190, 205, 225)
    middle, ground = height // 2, height * 11 // 20
    picture[height // 6 : ground, : width // 3] = (110, 80, 70)
    picture[height // 8 : ground, width * 2 // 3 :] = (95, 85, 80)
    windows = [*range(width // 30, width // 3 - 10, width // 12), *range(width * 2 // 3 + 8, width - 10, width // 12)]
    for y in range(height // 5, middle, height // 8):
        for x in windows:
            picture[y : y + height // 20, x : x + width // 25] = (40, 45, 50)
    picture[ground:] = (85, 85, 88)
    y, x = np.mgrid[:height, :width]
    picture[(y >= ground) & (abs(x - width / 2) > 1.1 * (y - middle) + 10)] = (130, 125, 120)
    grain = np.random.default_rng(0).normal(0, 5, (height - ground, width, 1))
    picture[ground:] = (picture[ground:] + grain).clip(0, 255)
    return picture
