import json

import numpy as np
import pytest
import torch
from PIL import Image

import contextcrf
from contextcrf import ContextCRF, ModelConfig, RangeBox, load, mean_field
from contextcrf.crf import PairwisePotential
from contextcrf.crf.meanfield import shrink
from contextcrf.data.classes import Classes
from contextcrf.modeling.merging import assemble, average
from contextcrf.modeling.serialization import BUNDLED, ModelError, save
from contextcrf.utils.resizing import downsample, upsample

CLASSES = Classes(("sky", "sea", "sand"), ((0, 0, 255), (0, 128, 128), (200, 200, 0)))


def tiny(classes=CLASSES, **changes):
    settings = {"backbone": "plain", "channels": 8, "hidden": 8, "scales": (1.0, 0.5), **changes}
    model = ContextCRF(ModelConfig(**settings), classes, pretrained=False).eval()
    for head in model.pairwise.values():
        head.last.reset_parameters()  # as if trained
    return model


def images(batch=1, height=48, width=64):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def test_the_whole_way_of_an_image():
    model = tiny()
    with torch.inference_mode():
        marginals = model(images(2, 50, 70).float())
    assert marginals.shape == (2, 3, 50, 70)
    torch.testing.assert_close(marginals.sum(1), torch.ones(2, 50, 70))


def test_a_shared_trunk_runs_once_and_own_trunks_run_each(monkeypatch):
    for shared, runs in ((True, 1), (False, 3)):
        model = tiny(shared_trunk=shared)
        assert len(model.trunks) == runs
        calls = []
        for trunk in model.trunks.values():
            trunk.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        maps = model.features(images().float())
        assert len(calls) == runs
        assert set(maps) == {"unary", "surrounding", "above"}
        assert (maps["unary"] is maps["above"]) == shared


def test_inference_is_mean_field_over_the_heads():
    model = tiny()
    with torch.inference_mode():
        maps = model.features(images().float())
        pairs = [(model.pairwise[name], maps[name]) for name in ("surrounding", "above")]
        plain = dict.fromkeys(model.pairwise)
        expected = mean_field(model.unary(maps["unary"]), pairs, 2)
        torch.testing.assert_close(model.infer(maps, strengths=plain), expected)
        torch.testing.assert_close(model.infer(maps, ["unary"]), model.unary(maps["unary"]).softmax(1))


def test_strengths_are_unary_votes_of_the_mean_neighborhood():
    model = tiny(strengths={"surrounding": 3.0})
    with torch.inference_mode():
        maps = model.features(images().float(), ["unary", "surrounding"])
        potential = model.pairwise["surrounding"]
        weight = 3.0 / potential.graph(maps["surrounding"]).mean_degree()
        pairs = [(potential, maps["surrounding"])]
        expected = mean_field(model.unary(maps["unary"]), pairs, 2, [weight])
        torch.testing.assert_close(model.infer(maps, ["unary", "surrounding"]), expected)


def test_relations_without_a_strength_share_one_vote():
    model = tiny()
    with torch.inference_mode():
        maps = model.features(images().float())
        halves = dict.fromkeys(model.pairwise, 0.5)
        torch.testing.assert_close(model.infer(maps), model.infer(maps, strengths=halves))
        assert not torch.allclose(model.infer(maps), model.infer(maps, strengths=dict.fromkeys(model.pairwise)))


def test_without_the_unary_inference_starts_at_the_edges_own_marginals():
    model = tiny()
    with torch.inference_mode():
        maps = model.features(images().float(), ["above"])
        own = model.pairwise["above"].edge_marginals(maps["above"])
        torch.testing.assert_close(model.infer(maps, ["above"], iterations=0), own)


def test_an_untrained_head_says_nothing():
    settings = ModelConfig(backbone="plain", channels=8, hidden=8)
    model = ContextCRF(settings, CLASSES, pretrained=False).eval()
    with torch.inference_mode():
        maps = model.features(images().float())
        torch.testing.assert_close(model.infer(maps), model.infer(maps, ["unary"]))


def test_untrained_heads_cost_nothing_but_can_learn(monkeypatch):
    model = ContextCRF(ModelConfig(backbone="plain", channels=8, hidden=8), CLASSES, pretrained=False).eval()
    maps = model.features(images().float())
    (model.infer(maps) ** 2).sum().backward()
    gradient = model.pairwise["above"].last.interaction.weight.grad
    assert gradient is not None
    assert gradient.any()
    model.pairwise["above"].last.reset_parameters()
    asked = []
    prepare = PairwisePotential.prepare
    monkeypatch.setattr(PairwisePotential, "prepare", lambda self, maps: asked.append(self) or prepare(self, maps))
    with torch.no_grad():
        model.infer(maps)
    assert asked == [model.pairwise["above"]]


def test_strengths_are_relative_to_the_unary_and_do_not_apply_without_it():
    weighted, plain = tiny(strengths={"above": 0.0}), tiny()
    plain.load_state_dict(weighted.state_dict())
    with torch.inference_mode():
        maps = weighted.features(images().float())
        torch.testing.assert_close(weighted.infer(maps, ["above"]), plain.infer(maps, ["above"]))
        torch.testing.assert_close(weighted.infer(maps, ["unary", "above"]), weighted.infer(maps, ["unary"]))


@pytest.mark.parametrize("size", [(40, 60), (160, 240), (112, 112), (9, 300)])
def test_coarse_graphs_fit_images_of_every_size(size):
    model = tiny(graph_stride=64)
    with torch.inference_mode():
        assert model(images(1, *size).float()).shape == (1, 3, *size)


def test_a_model_keeps_its_own_configuration():
    config = ModelConfig(backbone="plain", channels=8, hidden=8)
    model = ContextCRF(config, CLASSES, pretrained=False)
    model.config.strengths["above"] = 5.0
    assert config.strengths == {}


def test_a_coarser_graph_pools_features_and_labels():
    model = tiny(graph_stride=16)
    maps = model.features(images(1, 48, 72).float())
    assert maps["unary"].shape[-2:] == (6, 9)
    assert maps["above"].shape[-2:] == (3, 5)
    torch.testing.assert_close(maps["above"][..., 0, 0], maps["unary"][..., :2, :2].mean((2, 3)))
    losses = model.nll(maps, torch.randint(3, (1, 48, 72)))
    assert set(losses) == {"unary", "surrounding", "above"}
    assert model.infer(maps).shape == (1, 3, 6, 9)


def test_the_unary_s_loss_at_nodes_and_at_pixels():
    model, masks = tiny(), torch.randint(3, (2, 48, 64))
    model.unary.last.weight.data *= 100  # so that it matters which label belongs where
    masks[:, :20] = 255
    maps = model.features(images(2).float(), ["unary"])
    nodes, pixels = (model.nll(maps, masks, loss_at=place)["unary"] for place in ("nodes", "pixels"))
    torch.testing.assert_close(nodes, model.unary.nll(maps["unary"], downsample(masks, (6, 8))))
    # As prediction has it: scores are brought to the pixels, and every known one counts.
    marginals = upsample(model.unary(maps["unary"]), (48, 64)).softmax(1)
    truth = marginals.gather(1, masks.where(masks < 3, 0)[:, None])[:, 0]
    torch.testing.assert_close(pixels, -truth.log()[masks < 3].mean())
    assert abs(nodes - pixels) > 1e-4
    weights = torch.tensor([1.0, 0.0, 0.0])
    only = model.nll(maps, masks, class_weights=weights, loss_at="pixels")["unary"]
    torch.testing.assert_close(only, -truth.log()[masks == 0].sum() / (masks < 3).sum())


def test_labels_go_down_by_nearest_neighbor_and_marginals_up_bilinearly():
    masks = torch.arange(16).view(1, 4, 4)
    assert downsample(masks, (2, 2)).tolist() == [[[5, 7], [13, 15]]]
    assert downsample(torch.full((1, 4, 4), 255), (3, 3)).unique().tolist() == [255]
    up = upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 4))
    torch.testing.assert_close(up[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_segment_takes_every_usual_form_of_an_image():
    model, pixels = tiny(), images()[0]
    array = pixels.permute(1, 2, 0).numpy()
    results = [model.segment(form) for form in (pixels, array, Image.fromarray(array), array.copy(order="F"))]
    for result in results:
        assert torch.equal(result.labels, results[0].labels)
    assert results[0].labels.shape == (48, 64)
    assert results[0].probabilities.shape == (3, 48, 64)
    assert results[0].overlay().size == (64, 48)
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
        Image.new("I;16", (8, 8)),
    ],
    ids=["float array", "CHW array", "float tensor", "HWC tensor", "path", "16 bits"],
)
def test_segment_refuses_what_is_not_clear(image):
    with pytest.raises(ValueError, match="expected"):
        tiny().segment(image)


def test_segment_leaves_the_mode_as_it_was():
    model = tiny().train()
    model.segment(images()[0])
    assert model.training


def test_an_explanation_adds_up_to_what_inference_adds_to_the_unary():
    model = tiny(strengths={"surrounding": 2.0, "above": None}, stride=8, graph_stride=16)
    image = images(1, 96, 160)[0]
    found = model.explain(image, (70, 140))
    assert set(found) == {"surrounding", "above"}
    with torch.no_grad():
        features = model.features(image[None].float())
        cells = shrink(model.infer(features), model.cell)
        for name, explanation in found.items():
            maps = features[name]
            weight = 2.0 / model.pairwise[name].graph(maps).mean_degree() if name == "surrounding" else 1.0
            message = weight * model.pairwise[name].messages(maps, cells)[0, :, 70 // 16, 140 // 16]
            torch.testing.assert_close(explanation.messages.sum(0), message)
            assert explanation.size == (6, 10)
    with pytest.raises(ValueError, match="pixel"):
        model.explain(image, (96, 0))


def test_relations_of_several_boxes_and_holes_are_saved(tmp_path):
    relations = {
        "sides": (RangeBox.leftward(), RangeBox.rightward()),
        "ring": RangeBox.ring(),
        "few": RangeBox(1, 1, 1, 1, grid=5),
    }
    save(tiny(relations=relations), tmp_path)
    assert load(tmp_path).config.relations == relations


def test_an_assembled_model_says_of_each_potential_what_its_own_model_says(tmp_path):
    parts = {"surrounding": tiny(shared_trunk=False), "above": tiny(strengths={"above": 3.0})}
    unary = tiny(relations={})
    save(assemble(unary, parts), tmp_path)
    model = load(tmp_path)
    assert model.potentials == ("unary", "surrounding", "above")
    assert model.config.strengths == {}
    picture = images().float()
    with torch.inference_mode():
        for name, part in {"unary": unary, **parts}.items():
            expected = part.infer(part.features(picture, [name]), [name])
            torch.testing.assert_close(model.infer(model.features(picture, [name]), [name]), expected)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: tiny(relations={}), "relation 'above': its model has"),
        (lambda: tiny(channels=4), "relation 'above': channels=4, the unary has 8"),
        (lambda: tiny(graph_stride=16), "relation 'above': graph_stride=16, the unary has 8"),
        (lambda: tiny(classes=Classes(("a", "b"), ((0, 0, 0), (1, 1, 1)))), "relation 'above': its model knows other"),
        (lambda: ContextCRF(tiny().config, CLASSES, pretrained=False), "relation 'above': its model was not trained"),
    ],
)
def test_models_that_do_not_fit_together_are_not_assembled(part, message):
    with pytest.raises(ValueError, match=message):
        assemble(tiny(), {"above": part()})


def test_the_same_shape_in_other_words_is_assembled(tmp_path):
    save(tiny(output_stride=8, graph_stride=8), tmp_path)
    assert assemble(tiny(), {"above": load(tmp_path)}).potentials == ("unary", "above")


def test_unknown_potentials_are_refused_by_name():
    model = tiny()
    for wrong in (["below"], []):
        with pytest.raises(ValueError, match="surrounding"):
            model.features(images().float(), wrong)
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        model.features(torch.zeros(3, 8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relations": {"unary": RangeBox.above()}}, "unary"),
        ({"strengths": {"below": 1.0}}, "below"),
        ({"dense": {"sxy": 3}}, "sxy"),
        ({"dense": {"bilateral_sxy": 0}}, "bilateral_sxy"),
        ({"graph_stride": 12}, "graph_stride=12"),
        ({"graph_stride": 4}, "graph_stride=4"),
    ],
)
def test_impossible_shapes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_model_labels_as_before(tmp_path, half):
    model = tiny(
        strengths={"above": 2.0}, relations={"above": RangeBox(0.5, 0.1, 0.2, 0.3, hole=RangeBox(0.0, 0.0, 0.1, 0.1))}
    )
    save(model, tmp_path / "m", {"data": "beach"}, half=half)
    again = load(tmp_path / "m")
    assert again.config.relations == model.config.relations
    assert (again.config.strengths, again.classes, again.about) == ({"above": 2.0}, CLASSES, {"data": "beach"})
    pixels = images()[0]
    difference = (again.segment(pixels).probabilities - model.segment(pixels).probabilities).abs().max()
    assert difference < (2e-3 if half else 1e-7)
    sizes = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert sizes < 4.2 * sum(p.numel() for p in model.parameters()) / (2 if half else 1) + 5000


def test_models_that_cannot_be_loaded_are_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        load("nowhere")
    save(tiny(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(ModelError, match="format"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model": {"depth": 3}}))
    with pytest.raises(ModelError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    blob = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(blob[: len(blob) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load(tmp_path)


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
    assert all(head.last.weight.abs().sum() > 0 for head in model.pairwise.values())
    size = sum(path.stat().st_size for path in (BUNDLED / "camvid").iterdir())
    assert size < 30e6
    labels = model.segment(drawn_street()).labels
    sky, building, road = (model.classes.names.index(name) for name in ("sky", "building", "road"))
    assert (labels[:30, 120:200] == sky).double().mean() > 0.9
    assert (labels[60:110, :90] == building).double().mean() > 0.9
    assert (labels[200:, 80:240] == road).double().mean() > 0.9


def drawn_street(height=240, width=320):
    """A street in a few colors: pale sky, two houses with windows, pavements and a road that narrows.

    The ground has the grain of asphalt: what is quite smooth is sky to the bundled model.
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


def test_models_that_do_not_correspond_are_not_averaged():
    with pytest.raises(ValueError, match="1 models: expected two or more"):
        average([tiny()])
    with pytest.raises(ValueError, match=r"model 2 has hidden=16, the first 8; expected the same"):
        average([tiny(), tiny(hidden=16)])
    # Weights would fit, but mean other scales.
    with pytest.raises(ValueError, match=r"model 3 has scales=\(1\.0, 0\.25\)"):
        average([tiny(), tiny(), tiny(scales=(1.0, 0.25))])
    others = Classes(("sky", "sea", "land"), CLASSES.palette)
    with pytest.raises(ValueError, match="model 2 knows other classes"):
        average([tiny(), tiny(classes=others)])


def test_counts_of_batches_are_not_averaged():
    first, second = (tiny(backbone="resnet10t", stride=16) for _ in range(2))
    for model, count in ((first, 3), (second, 8)):
        model.trunk("unary").backbone.body.bn1.num_batches_tracked.fill_(count)
    assert average([first, second]).trunk("unary").backbone.body.bn1.num_batches_tracked == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [("relations", []), ("hidden", -1), ("upsampling", "x"), ("iterations", -1), ("strengths", {"above": "much"})],
)
def test_a_configuration_that_is_none_is_named(tmp_path, key, value):
    save(tiny(), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["model"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json: not the configuration of a model"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["a.b", "keys", "crf", "iou", "a+b", "unary", ""])
def test_relations_have_names_that_rows_and_parts_can_have(name):
    with pytest.raises(ValueError, match=r"relations: .*expected a word"):
        ModelConfig(relations={name: RangeBox.above()})


def test_weights_that_cannot_be_written_say_where(tmp_path):
    (tmp_path / "model.safetensors.part").mkdir()
    with pytest.raises(OSError, match=r"model\.safetensors\.part: the weights cannot be written"):
        save(tiny(), tmp_path)
