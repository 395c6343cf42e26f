"""The parts of the experiments that could flatter a result."""

import json
import multiprocessing
from dataclasses import replace

import pytest
import torch
import yaml

import context
import scenes as curve
from contextcrf.comparison import read_counts, write_counts
from contextcrf.data.dataset import open_dataset
from locks import claim


def image(hits: int) -> torch.Tensor:
    """One image of two classes with ten pixels each, `hits` of each right: the more, the higher the mean IoU."""
    return torch.tensor([[hits, 10 - hits], [10 - hits, hits]])


def fold(work, number, best):
    """A fold of two images on which the strength `best` does best."""
    part = context.Fold(work, "train", "test", work / f"{number}")
    rows = {}
    for row in context.ROWS:
        names = [row] if not row.endswith("?") else [f"{row[:-1]}{strength:g}" for strength in context.STRENGTHS]
        for name in names:
            hits = 9 if name.endswith(f"strength {best:g}") and row.endswith("?") else 5
            for seed in range(2):
                rows[f"{name}|{seed}"] = torch.stack([image(hits), image(hits)])
    part.counts.parent.mkdir(parents=True)
    write_counts(part.counts, [f"{number}-a", f"{number}-b"], rows)
    return part


def test_a_fold_takes_the_strength_that_is_best_on_the_others_not_its_own(tmp_path):
    folds = [fold(tmp_path, 0, 4.0), fold(tmp_path, 1, 1.0), fold(tmp_path, 2, 1.0)]
    rows = context.collect(folds)
    measured = rows["1unary+2pair, strength ?"]
    assert measured.strengths[0] == 1.0
    # Fold 0 is read at strength 1, where it is no better than anything; its own best, 4, is not looked at.
    assert torch.equal(measured.counts[0, 0], image(5))
    assert measured.counts.shape == (2, 6, 2, 2)
    assert rows[context.UNARY_ROW].strengths == []
    assert context.mean_iou(rows[context.UNARY_ROW].counts) == pytest.approx(5 / 15)


def test_of_one_validation_split_each_half_takes_the_strength_that_is_best_on_the_other(tmp_path):
    first, second = fold(tmp_path, 0, 4.0), fold(tmp_path, 1, 1.0)
    names, rows = [], {}
    for part in (first, second):
        images, found = read_counts(part.counts)
        names += images
        rows = {name: torch.cat([rows[name], found[name]]) if rows else found[name] for name in found}
    both = context.Fold(tmp_path, "train", "val", tmp_path / "both")
    both.folder.mkdir()
    write_counts(both.counts, names, rows)
    measured = context.collect([both])["1unary+2pair, strength ?"]
    assert measured.strengths == [1.0, 4.0]
    assert torch.equal(measured.counts[0], torch.stack([image(5)] * 4))


def attempt(path, answers):
    with claim(path) as mine:
        answers.put(mine)


def test_a_task_is_claimed_once_and_again_when_its_process_has_ended_without_a_result(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()

    def another():
        process = spawn.Process(target=attempt, args=(tmp_path / "result", answers))
        process.start()
        answer = answers.get(timeout=120)
        process.join()
        return answer

    with claim(tmp_path / "result") as mine:
        assert mine
        assert not another()
    assert another()
    (tmp_path / "result").touch()
    assert not another()


def test_the_whole_way_of_a_study(scenes, tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.yaml"
    shape = {"backbone": "plain", "channels": 8, "hidden": 8, "scales": [1.0]}
    recipe = {"epochs": 1, "crop": [64, 96], "max_edges": 64, "batch_size": 3}
    config.write_text(yaml.safe_dump({"model": shape, "recipe": recipe, "pretrained": False}))
    monkeypatch.setitem(context.STUDIES, "msrc", context.Study(config, folds=2))
    monkeypatch.setattr(context, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(context, "STRENGTHS", (1.0, 2.0))
    monkeypatch.setattr("sys.argv", ["context.py", "msrc", "--data", str(scenes), "--work", str(tmp_path / "work")])
    context.main()
    rows = json.loads((tmp_path / "results" / "msrc.json").read_text())
    assert [row["row"] for row in rows] == list(context.ROWS)
    assert [len(row["seeds"]) for row in rows] == [3, 2, 2, 2, 2, 2, 2, 1, 2]
    # Seeds are other trainings, and what was trained is not trained again.
    assert len(set(rows[0]["seeds"])) == 3
    written = (tmp_path / "work" / "fold0" / "unary-0" / "model" / "model.safetensors").stat().st_mtime_ns
    context.main()
    assert (tmp_path / "work" / "fold0" / "unary-0" / "model" / "model.safetensors").stat().st_mtime_ns == written
    assert "over three unaries" in capsys.readouterr().out


def test_a_point_of_the_curve_tunes_on_scenes_it_is_not_measured_on(tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "TRAIN", 4)
    monkeypatch.setattr(curve, "VAL", 3)
    monkeypatch.setattr(curve, "TUNING", 2)
    monkeypatch.setattr(curve, "STRENGTHS", (1.0,))
    recipe = curve.recipe
    monkeypatch.setattr(curve, "recipe", lambda *arguments: replace(recipe(*arguments), epochs=1, max_edges=64))
    found = curve.measure(curve.Point(1.0, 15, 0), tmp_path)
    assert 0 <= found["crf"] <= 1
    train, tuning, val = (
        open_dataset(tmp_path / "a1-r15-s0" / folder, split).without_transform()
        for folder, split in (("scenes", "train"), ("tuning", "train"), ("scenes", "val"))
    )
    seen = [bytes(picture.flatten().tolist()) for part in (train, tuning, val) for picture, _ in part]
    assert len(set(seen)) == len(seen) == 9
