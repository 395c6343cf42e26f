"""The parts of the experiments that could flatter a result."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import yaml

import context
import context_cost
import ensemble
import gains
import hypotheses
import scenes as curve
from contextcrf import InferenceConfig, PairwisePotential, Predictor, RangeBox, System
from contextcrf.crf import mean_field
from contextcrf.crf.coarse_grid import enlarge
from contextcrf.crf.pair_table import PairTable
from contextcrf.data.layouts import open_dataset
from contextcrf.data.synthetic import write_scenes
from contextcrf.evaluation.comparison import read_counts, write_counts
from contextcrf.evaluation.metrics import confusion
from contextcrf.modeling.merging import merge_potentials, with_config
from contextcrf.modeling.model import load
from contextcrf.modeling.serialization import save
from contextcrf.modeling.system import UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.training.config import TrainingConfig
from contextcrf.training.jobs import OtherSettingsError
from contextcrf.utils.resizing import downsample, upsample

EXACT = InferenceConfig(precision="32-true")


def image(hits: int) -> torch.Tensor:
    """One image of two classes with ten pixels each, `hits` of each right: the more, the higher the mean IoU."""
    return torch.tensor([[hits, 10 - hits], [10 - hits, hits]])


def write_weights(model, content=b""):
    """A folder that looks like a model's to those who ask for the digest of its weights."""
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps({"weights": {"file": "model.safetensors"}}))
    (model / "model.safetensors").write_bytes(content)


def fold(work, number, best):
    """A fold of four images, every second one in the same part; in part i the weight `best[i]` is the best."""
    part = context.Fold(work, "train", "test", work / f"{number}")
    rows = {}
    for row in context.ROWS:
        chosen, stem = row.endswith(context.CHOSEN), row.removesuffix(context.CHOSEN)
        names = [f"{stem}weight {weight:g}" for weight in context.WEIGHTS] if chosen else [row]
        for name in names:
            hits = [9 if chosen and name.endswith(f"weight {weight:g}") else 5 for weight in best] * 2
            seeds = 3 if row == context.UNARY else 2
            for seed in range(seeds):
                rows[f"{name}|{seed}"] = torch.stack([image(2 if seed == 2 else right) for right in hits])
    for networks, group in context.GROUPS.items():
        for key in group.networks:
            write_weights(part.model(*key))
        mine = {name: counts for name, counts in rows.items() if context.group_of(name.partition("|")[0]) == networks}
        write_counts(context.counts_path(part, networks), [f"{number}-{letter}" for letter in "abcd"], mine)
    return part


def test_rare_classes_are_not_scored(tmp_path):
    part = fold(tmp_path, 0, (2.0, 2.0))
    # Class 0 is in all four images of the fold; take class 1 out of three of them.
    path = context.counts_path(part, "unaries")
    names, rows = read_counts(path)
    for counts in rows.values():
        counts[:3, 1] = 0
    write_counts(path, names, rows)
    assert context.scored_classes([part, part], min_images=2) == [0, 1]
    assert context.scored_classes([part, part], min_images=3) == [0]
    counts = torch.stack([image(9), image(5)])[None]
    assert context.mean_iou_by_seed(counts, [1]).item() == pytest.approx(14 / 26)
    worse = counts.clone()
    worse[0, :, 1] = torch.tensor([10, 0])
    assert context.gain_of(counts, worse, classes=[1])[0] == pytest.approx(-14 / 26)
    assert context.gain_of(counts, worse, classes=[0])[0] != pytest.approx(-14 / 26)


def test_each_part_takes_the_weight_that_is_best_on_the_other_part_not_its_own(tmp_path):
    rows = context.collect([fold(tmp_path, 0, (4.0, 1.0)), fold(tmp_path, 1, (2.0, 2.0))], False, list(context.GROUPS))
    result = rows["1unary+2pair, chosen weight"]
    assert result.weights == [1.0, 4.0, 2.0, 2.0]
    # The first part takes weight 1, at which it is no better than elsewhere; its own best, 4, does not count.
    assert torch.equal(result.counts[0], torch.stack([image(hits) for hits in (5, 5, 5, 5, 9, 9, 9, 9)]))
    assert rows[context.UNARY].weights == []
    assert context.mean_iou_by_seed(rows[context.UNARY].counts)[:2].tolist() == pytest.approx([5 / 15] * 2)


def test_parts_of_photographs_hold_all_subjects_and_parts_of_a_video_hold_no_neighbors():
    images = list(range(7))
    assert [images[part] for part in context.two_parts(7, video=False)] == [[0, 2, 4, 6], [1, 3, 5]]
    assert [images[part] for part in context.two_parts(7, video=True)] == [[0, 1, 2], [3, 4, 5, 6]]


def test_rows_on_two_unaries_are_compared_with_these_two(tmp_path, monkeypatch):
    monkeypatch.setattr(context, "RESULTS", tmp_path)
    # The third unary is much worse: that must not look like a gain of the rows that are not built on it.
    context.write_tables("msrc", False, [fold(tmp_path, 0, (2.0, 2.0))])
    table = json.loads((tmp_path / "msrc.json").read_text())
    found = {row["row"]: row["over one unary"][0] for row in table if "row" in row}
    assert found["1unary+2pair, weight 1"] == found[context.UNARY] == 0
    assert found["1unary+2pair, chosen weight"] > 0
    assert found["shared trunk: 1unary+2pair, weight 1"] == 0
    assert found["pairwise-above"] > 0
    contrast = next(row for row in table if row.get("without") == context.THREE)
    assert contrast["difference"][0] == pytest.approx(9 / 11 - 5 / 15)


def test_new_networks_are_evaluated_anew(tmp_path):
    part = fold(tmp_path, 0, (2.0, 2.0))
    before = {name: context.counts_path(part, name) for name in context.GROUPS}
    write_weights(part.model("above", 1), b"others")
    assert context.counts_path(part, "own") != before["own"]
    assert context.counts_path(part, "shared") == before["shared"]
    assert context.collect([part], False, ["unaries", "shared"])
    with pytest.raises(SystemExit, match="own-"):
        context.collect([part], False, list(context.GROUPS))


@pytest.fixture(params=[None, 16])
def study_models(request, tiny_model, scenes, tmp_path):
    """A fold with another model for every potential and seed, by potential and seed."""
    model = with_config(tiny_model, replace(tiny_model.config, graph_stride=request.param), EXACT)
    part, models = context.Fold(scenes, "train", "val", tmp_path), {}
    keys = [("unary", seed) for seed in context.UNARY_SEEDS]
    keys += [(name, seed) for name in (*context.RELATIONS, context.HEADS) for seed in context.SEEDS]
    for key in keys:
        for name, parameter in model.named_parameters():
            # Heads are trained on a unary network, whose weights are copied below.
            if key[0] != context.HEADS or name.startswith("pairwise"):
                torch.nn.init.normal_(parameter, std=0.2)
        save(model, part.model(*key))
        models[key] = load(part.model(*key))
    for seed in context.SEEDS:
        models[context.HEADS, seed].trunks.load_state_dict(models["unary", seed].trunks.state_dict())
        models[context.HEADS, seed].unary.load_state_dict(models["unary", seed].unary.state_dict())
        save(models[context.HEADS, seed], part.model(context.HEADS, seed))
    return part, models


def assert_rows_are_mean_field(rows, model, features, prefix=""):
    """Rows of a model are two iterations of mean field, at weights of both relations and as a plain sum."""

    def expected(system, **settings):
        return Predictor(model, replace(EXACT, **settings)).mean_field(features, system)

    for row, weight in (("weight 2", 1.0), ("plain sum", None)):
        found = expected(UNARY_PAIRWISE, relation_weights=dict.fromkeys(context.RELATIONS, weight))
        torch.testing.assert_close(rows[f"{prefix}1unary+2pair, {row}"], found)
    for name in context.RELATIONS:
        torch.testing.assert_close(rows[f"{prefix}pairwise-{name}"], expected(System(unary=False, relations=(name,))))
        found = expected(System(relations=(name,)), relation_weights={name: 2.0})
        torch.testing.assert_close(rows[f"{prefix}1unary+{name}, weight 2"], found)
    # As classifiers the potentials are the mean of their edges' marginals, with the unary's times a power.
    edges = expected(System(unary=False), iterations=0)
    edges = enlarge(edges, model.config.coarse_factor, features["unary"].shape[-2:])
    product = expected(UNARY_ONLY) * edges**2
    torch.testing.assert_close(
        rows[f"{prefix}1unary + edge marginals, weight 2"], product / product.sum(1, keepdim=True)
    )


def test_rows_are_mean_field_of_the_networks_they_name(study_models, scenes):
    part, models = study_models
    image = open_dataset(scenes, "val")[0][0]
    pixels = image[None].float()
    with torch.inference_mode():
        alone, own, shared = (list(group.open(part).rows(pixels)) for group in context.GROUPS.values())
        assert (len(alone), len(own), len(shared)) == (3, 2, 2)
        unaries = [
            models["unary", seed].predictor().predict(image, [UNARY_ONLY])[0].marginals[None]
            for seed in context.UNARY_SEEDS
        ]
        for rows, unary in zip(alone, unaries, strict=True):
            torch.testing.assert_close(upsample(rows[context.UNARY], pixels.shape[-2:]), unary)
        three = upsample(alone[0][context.THREE], pixels.shape[-2:])
        torch.testing.assert_close(three, torch.stack(unaries).mean(0))
        for seed in context.SEEDS:
            pairs = {name: models[name, 1 - seed] for name in context.RELATIONS}
            model = merge_potentials(models["unary", seed], pairs)
            features = model.features(pixels)
            assert_rows_are_mean_field(own[seed], model, features)
            # Three unaries with pairwise networks: their mean in place of a unary's logits.
            heads = [model.pair(name, features[name]) for name in context.RELATIONS]
            expected = mean_field(alone[0][context.THREE].log(), heads)
            torch.testing.assert_close(own[seed]["three unaries+2pair, plain sum"], expected)
            heads = models[context.HEADS, seed]
            assert_rows_are_mean_field(shared[seed], heads, heads.features(pixels), "shared trunk: ")


def test_heads_on_another_trunk_are_refused(study_models):
    part, models = study_models
    save(models["unary", 2], part.model("unary", 1))
    with pytest.raises(SystemExit, match="heads-1 has another trunk than unary-1"):
        context.SharedTrunk(part)


def test_a_study_from_data_to_tables(scenes, tmp_path, monkeypatch, capsys):
    other = write_scenes(tmp_path / "other", 3, 1)
    config = tmp_path / "config.yaml"
    shape = {"backbone": "plain", "channels": 8, "hidden": 8, "scales": [1.0]}
    training = {"epochs": 1, "crop": [64, 96], "max_edges": 64, "batch_size": 3}
    config.write_text(yaml.safe_dump({"model": shape, "training": training, "pretrained": False}))
    heads = tmp_path / "heads.yaml"
    heads.write_text(yaml.safe_dump({"training": training, "copies": 1}))
    monkeypatch.setitem(context.CONTEXT_STUDIES, "msrc", context.ContextStudy(config, heads, folds=2))
    monkeypatch.setattr(context, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(context, "WEIGHTS", (1.0, 2.0))
    monkeypatch.setattr("sys.argv", ["context.py", "msrc", "--data", str(scenes), "--work", str(tmp_path / "work")])
    arguments = list(sys.argv)
    monkeypatch.setattr("sys.argv", [*arguments, "--groups", "shared"])
    context.main()
    rows = json.loads((tmp_path / "results" / "msrc-shared.json").read_text())
    assert [row["row"] for row in rows if "row" in row] == [
        row for row in context.ROWS if row in (context.UNARY, context.THREE) or row.startswith("shared trunk: ")
    ]
    assert [row["without"] for row in rows if "without" in row] == [context.CONTRASTS[2][0]]
    assert not list((tmp_path / "work").glob("fold*/above-*"))
    monkeypatch.setattr("sys.argv", arguments)
    context.main()
    rows = json.loads((tmp_path / "results" / "msrc.json").read_text())
    contrasts = [rows.pop() for _ in context.CONTRASTS]
    assert [(row["without"], row["with"]) for row in reversed(contrasts)] == list(context.CONTRASTS)
    assert [row["row"] for row in rows] == list(context.ROWS)
    assert [len(row["seeds"]) for row in rows] == [3] + [2] * 8 + [1] + [2] * 9
    # Seeds are other trainings, folds other images, and nothing is trained on what it is tested on.
    assert len(set(rows[0]["seeds"])) == 3
    for number in range(2):
        folder = tmp_path / "work" / f"fold{number}"
        fit = load(folder / "above-1" / "model").metadata["fit"]
        assert fit["split"] == f"fold{number}-train"
        assert (fit["training"]["potentials"], fit["training"]["seed"]) == (["above"], 1)
        tested = [path.stem for path, _ in open_dataset(tmp_path / "work" / "data", f"fold{number}-test").pairs]
        for networks in context.GROUPS:
            [counts] = folder.glob(f"{networks}-*.npz")
            assert read_counts(counts)[0] == tested
        heads = load(folder / "heads-1" / "model")
        assert heads.metadata["fit-heads"]["split"] == f"fold{number}-train"
        own = load(folder / "unary-1" / "model").state_dict()
        kept = {name for name, value in heads.state_dict().items() if torch.equal(value, own[name])}
        assert {name for name in own if name.startswith(("trunks", "unary"))} <= kept
        assert not any(name.startswith("pairwise") for name in kept)
    written = (tmp_path / "work" / "fold0" / "unary-0" / "model" / "model.safetensors").stat().st_mtime_ns
    context.main()
    assert (tmp_path / "work" / "fold0" / "unary-0" / "model" / "model.safetensors").stat().st_mtime_ns == written
    assert "over three unaries" in capsys.readouterr().out
    config.write_text(yaml.safe_dump({"model": shape, "training": {**training, "epochs": 2}, "pretrained": False}))
    with pytest.raises(OtherSettingsError, match=r"was trained with training\.epochs 1, not 2"):
        context.main()
    # Begun with two epochs and stopped after one.
    shutil.rmtree(tmp_path / "work" / "fold0" / "unary-0" / "model")
    with pytest.raises(OtherSettingsError, match=r"unary-0 was started with training\.epochs 1, not 2"):
        context.main()
    monkeypatch.setattr("sys.argv", ["context.py", "msrc", "--data", str(other), "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit, match="has folds of other images"):
        context.main()


def test_a_point_of_the_curve_is_tuned_on_scenes_that_are_neither_trained_on_nor_measured(tmp_path, monkeypatch):
    for name, value in {"TRAIN": 4, "VAL": 3, "TUNING": 2, "RELATION_WEIGHTS": (1.0,)}.items():
        monkeypatch.setattr(curve, name, value)
    config, tune, used = curve.training_config, curve.tune_relation_weights, []
    monkeypatch.setattr(
        curve, "training_config", lambda *arguments: replace(config(*arguments), epochs=1, max_edges=64)
    )

    def spy(model, data, *arguments, **options):
        used.extend(data.without_transform())
        return tune(model, data, *arguments, **options)

    monkeypatch.setattr(curve, "tune_relation_weights", spy)
    found = curve.measure_point(curve.ScenePoint(1.0, 15, 0), tmp_path)
    assert 0 <= found["crf"] <= 1
    others = [open_dataset(tmp_path / "a1-r15-s0" / "scenes", split).without_transform() for split in ("train", "val")]
    seen = [bytes(picture.flatten().tolist()) for part in (used, *others) for picture, _ in part]
    assert len(used) == 2
    assert len(set(seen)) == len(seen) == 9


def evidence(seed):
    """An image of noise: "message a" is the truth, but for class 2, where it is the contrary."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (8, 9), generator=generator)
    message = torch.nn.functional.one_hot(labels, 3).movedim(-1, 0).float()
    message[2] *= -1
    noise = torch.randn(3, 8, 9, generator=generator).log_softmax(0)
    return hypotheses.Evidence({"unary": noise, "message a": message}, {}, labels)


def test_learned_weights_are_each_classs_own_and_none_are_the_unarys():
    images, names = [evidence(seed) for seed in range(6)], ["unary", "message a"]
    weights = hypotheses.learn_weights(images[:5], names)
    assert hypotheses.weighted_marginals(images[5], names, weights).argmax(0).eq(images[5].labels).float().mean() > 0.95
    assert weights[1, :2].min() > 0 > weights[1, 2]
    kept = hypotheses.learn_weights(images[:5], names, decay=1e6)
    torch.testing.assert_close(kept, torch.tensor([[1.0] * 3, [0.0] * 3]), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        hypotheses.weighted_marginals(images[5], names, kept), images[5].logs["unary"].softmax(0), atol=1e-2, rtol=0
    )


def test_balanced_edges_are_as_many_between_labels_as_within_them():
    head = hypotheses.BalancedEdges(4, 3, RangeBox.surrounding(1.0), 8)
    labels = torch.zeros(2, 6, 6, dtype=torch.int64)
    labels[:, 0, :2], labels[:, 5, 5] = 1, 255
    image, p, q = head._labeled_edges(torch.zeros(2, 4, 6, 6), labels.flatten(1), 255)
    first, second = labels.flatten(1)[image, p], labels.flatten(1)[image, q]
    assert 255 not in torch.cat([first, second])
    assert int((first != second).sum()) == int((first == second).sum()) > 0
    # All that lie between labels, once.
    edges = head.graph(torch.zeros(1, 4, 6, 6)).edges()
    ends = labels.flatten(1)[0][edges]
    assert int((first != second).sum()) == 2 * int(((ends[0] != ends[1]) & (ends != 255).all(0)).sum())


def test_dropout_is_of_training_alone():
    head = hypotheses.DropoutFeatures(4, 3, RangeBox.surrounding(1.0), 8)
    torch.nn.init.normal_(head.last.interaction.weight)
    features, labels = torch.randn(1, 4, 6, 6), torch.randint(3, (1, 6, 6))
    first, second = (head.nll(features, labels) for _ in range(2))
    assert first != second
    head.eval()
    assert head.nll(features, labels) == PairwisePotential.nll(head, features, labels)


def test_sum_product_messages_are_those_of_the_table():
    torch.manual_seed(0)
    head = PairwisePotential(4, 3, RangeBox.above(0.5, 0.8), 8)
    torch.nn.init.normal_(head.last.interaction.weight)
    features, marginals = torch.randn(1, 4, 5, 6), torch.randn(1, 3, 5, 6).softmax(1)
    with torch.inference_mode():
        edges, logits = head.pair_logits(features)
        found = hypotheses.sum_product(PairTable(head, features), marginals)
    joint, by_node = logits[0].flatten(1).softmax(1).unflatten(1, (3, 3)), marginals[0].flatten(1).T
    messages = [[] for _ in range(30)]
    for (p, q), table in zip(edges.T.tolist(), joint, strict=True):
        messages[p].append((table @ by_node[q]).log())
        messages[q].append((by_node[p] @ table).log())
    expected = torch.stack([torch.stack(own).mean(0) for own in messages])
    torch.testing.assert_close(found[0].flatten(1).T, expected)


def test_chosen_and_learned_weights_come_from_the_other_folds(monkeypatch):
    folds = [[evidence(10 * fold + i) for i in range(2)] for fold in range(3)]
    for number, part in enumerate(folds):
        for image in part:
            right = torch.nn.functional.one_hot(image.labels, 3).movedim(-1, 0).float()
            # In fold 0 weight 1 is right, in the others weight 2.
            best, worse = ("1", "2") if number == 0 else ("2", "1")
            image.rows.update({"unary": image.logs["unary"].exp(), f"mean field, weight {best}": right})
            image.rows[f"mean field, weight {worse}"] = 1 - right
    monkeypatch.setattr(hypotheses, "WEIGHTED", ("mean field",))
    taught, learn = [], hypotheses.learn_weights
    monkeypatch.setattr(
        hypotheses, "learn_weights", lambda images, names: taught.append((images, names)) or learn(images, names)
    )
    found = hypotheses.counts_by_row(folds, [[image.labels for image in part] for part in folds])
    # Fold 0 takes weight 2, which is best in folds 1 and 2 and wrong here.
    hits = found["mean field, chosen weight"].diagonal(dim1=1, dim2=2).sum(1) / 72
    assert hits[:2].tolist() == [0, 0]
    assert len(taught) == 3 * len(hypotheses.LEARNED)
    for number, (images, _) in enumerate(taught[:: len(hypotheses.LEARNED)]):
        assert not any(image is own for image in images for own in folds[number])
        assert len(images) == 4
    assert [names for _, names in taught[: len(hypotheses.LEARNED)]] == [
        ["unary"],
        ["unary"],
        ["unary", "message a"],
        ["unary"],
        ["unary", "message a"],
    ]
    assert (
        found["learned: unary, messages"].diagonal(dim1=1, dim2=2).sum() / found["learned: unary, messages"].sum()
    ) > 0.9


def test_hypotheses_are_trained_on_one_part_and_measured_on_the_other(tiny_model, scenes, tmp_path, monkeypatch):
    fold = context.Fold(scenes, "train", "val", tmp_path)
    for name in ("unary", *context.RELATIONS):
        save(tiny_model, fold.model(name, 0))
    used, cache = [], hypotheses.cache_features

    def spy(model, data, *rest, **options):
        used.append(data.pairs)
        return cache(model, data, *rest, **options)

    monkeypatch.setattr(hypotheses, "cache_features", spy)
    monkeypatch.setattr(hypotheses, "RESULTS", tmp_path / "results")
    known = {hypothesis.name: hypothesis for table in hypotheses.HYPOTHESES.values() for hypothesis in table}
    wanted = [known[name] for name in ("own networks", "seen images", "unseen images", "then unrolled mean field")]
    monkeypatch.setattr(hypotheses, "HYPOTHESES", {"all": (*wanted, known["four sides"])})
    runner = hypotheses.FoldRunner(fold, TrainingConfig(epochs=1, crop=(64, 96), max_edges=64))
    for hypothesis in wanted:
        path = hypotheses.evidence_path(tmp_path, hypothesis, fold)
        path.parent.mkdir(parents=True)
        hypotheses.write_evidence(runner, hypothesis, path)
    train, val = open_dataset(scenes, "train"), open_dataset(scenes, "val")
    assert used == [train.pairs, val.pairs[::2]]
    truth = [mask for _, mask in val.without_transform()][1::2]
    images = torch.load(hypotheses.evidence_path(tmp_path, wanted[0], fold), weights_only=True)
    assert len(images) == len(truth) > 0
    # The networks of the study, with the predictor's marginals.
    for image, (pixels, mask) in zip(images, list(val.without_transform())[1::2], strict=True):
        with torch.inference_mode():
            features = tiny_model.eval().features(pixels[None].float())
            weighted = Predictor(tiny_model, replace(EXACT, relation_weights={"surrounding": 1.0, "above": 1.0}))
            expected = weighted.mean_field(features, UNARY_PAIRWISE)
            torch.testing.assert_close(image["rows"]["mean field, weight 2"][None], expected)
            start = Predictor(tiny_model, replace(EXACT, iterations=0))
            alone = start.mean_field(features, System(unary=False, relations=("above",)))
            torch.testing.assert_close(image["logs"]["edges above"].exp()[None], alone)
        assert torch.equal(image["labels"], downsample(mask[None], image["labels"].shape)[0])
    # Folds of the same images: that is enough for the table.
    hypotheses.write_table("all", [runner, runner], tmp_path)
    table = json.loads((tmp_path / "results" / "hypotheses-all.json").read_text())
    rows = [(row["hypothesis"], row["row"]) for row in table]
    assert ("unseen images", "sum-product, chosen weight") in rows
    assert ("then unrolled mean field", "plain sum") in rows
    assert ("then unrolled mean field", "sum-product, chosen weight") not in rows
    assert table[0]["row"] == "unary"
    assert table[0]["over unary, base"] == [[0, 0, 0], [0, 0, 0]]
    expected = torch.stack(
        [confusion(q["rows"]["unary"].argmax(0), q["labels"], tiny_model.num_classes) for q in images]
    )
    assert table[0]["mean_iou"] == pytest.approx(float(context.mean_iou_by_seed(expected[None])), abs=0.05)
    assert "Missing in some fold: four sides." in (tmp_path / "results" / "hypotheses-all.md").read_text()


def test_gains_are_drawn_where_the_results_put_them(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no results"):
        gains.read_gains(tmp_path)
    monkeypatch.setattr(context, "RESULTS", tmp_path)
    context.write_tables("msrc", False, [fold(tmp_path, 0, (2.0, 2.0))])
    point = {"unary": 0.6, "three unaries": 0.7, "crf": 0.8, "crf - unary": [0.1, 0.3], "crf - three unaries": [0, 0.2]}
    (tmp_path / "scenes.json").write_text(json.dumps({"a1-r15-s0": point}))
    study, scene = gains.read_gains(tmp_path)
    # Two unaries with IoU 5 / 15 and one with 2 / 18; the CRF's has 9 / 11 and is built on the first two.
    assert study.unary == pytest.approx(100 * (5 / 15 * 2 + 2 / 18) / 3)
    assert study.over_one[0] == study.over_three[0] == pytest.approx(100 * (9 / 11 - 5 / 15))
    assert (scene.name, scene.unary) == ("scenes a1-r15-s0", 60)
    assert scene.over_one == pytest.approx((20, 10, 30))
    assert scene.over_three == pytest.approx((10, 0, 20))
    left, right = gains.plot_gains([study, scene]).axes
    for axes, key in ((left, "over_one"), (right, "over_three")):
        centers = [bars[0].get_xydata()[0].tolist() for bars in axes.containers]
        assert centers == [[gain.unary, getattr(gain, key)[0]] for gain in (study, scene)]
        assert [text.get_text() for text in axes.texts] == ["msrc"]


def test_cheaper_potentials_are_trained_and_measured_on_one_network(tiny_model, scenes, tmp_path, monkeypatch):
    save(tiny_model, tmp_path / "unary")
    monkeypatch.setattr(context_cost, "VARIANTS", [context_cost.Variant(8, 4, None), context_cost.Variant(16, 8, 3)])
    small = TrainingConfig(epochs=1, batch_size=2, max_edges=32, crop=(64, 96), precision="32-true", workers=0)
    monkeypatch.setattr(context_cost, "HEADS", small)
    monkeypatch.setattr(context_cost, "RESULTS", tmp_path / "results")
    arguments = ["msrc", "--model", tmp_path / "unary", "--data", scenes, "--work", tmp_path / "work"]
    monkeypatch.setattr("sys.argv", ["context_cost.py", *map(str, arguments)])
    context_cost.main()
    rows = json.loads((tmp_path / "results" / "cost-msrc.json").read_text())["rows"]
    assert [(row["stride"], row["hidden"], row["neighbors"], row["iterations"]) for row in rows] == [
        (stride, hidden, neighbors, count)
        for stride, hidden, neighbors in ((8, 4, "all"), (16, 8, "3 x 3"))
        for count in (1, 2, 3)
    ]
    data, variant = open_dataset(scenes, "val"), load(tmp_path / "work" / "stride16-hidden8-grid3")
    assert variant.config.relations["above"].grid == 3
    assert variant.trained_relations == ["surrounding", "above"]
    counts = read_counts(tmp_path / "work" / "stride16-hidden8-grid3.npz")[1]
    for index, (pixels, mask) in enumerate(data.without_transform()):
        for name, system, iterations in (("unary", UNARY_ONLY, 2), ("1", UNARY_PAIRWISE, 1), ("3", UNARY_PAIRWISE, 3)):
            predictor = Predictor(variant, replace(variant.inference, iterations=iterations))
            assert torch.equal(counts[name][index], confusion(predictor.label(pixels, system), mask, 10))


def test_an_ensemble_averages_marginals(tiny_model, scenes, tmp_path, monkeypatch, capsys):
    save(tiny_model, tmp_path / "first")
    with torch.no_grad():
        tiny_model.unary.last.bias += torch.arange(10.0)
    save(tiny_model, tmp_path / "second")
    models = [tmp_path / "first", tmp_path / "second"]
    arguments = [*models, "--data", scenes, "--out", tmp_path / "both"]
    monkeypatch.setattr("sys.argv", ["ensemble.py", *map(str, arguments)])
    ensemble.main()
    [counts] = read_counts(tmp_path / "both" / "images.npz")[1].values()
    data = open_dataset(scenes, "val")
    for found, (pixels, mask) in zip(counts, data.without_transform(), strict=True):
        marginals = [Predictor(load(model)).predict(pixels, [UNARY_ONLY])[0].marginals for model in models]
        assert torch.equal(found, confusion(((marginals[0] + marginals[1]) / 2).argmax(0), mask, 10))
    assert capsys.readouterr().out.startswith("mean IoU ")
