"""Several stages in one job: their order, their folders, resumption and errors."""

from dataclasses import replace

import pytest
import torch

from contextcrf import load
from contextcrf.training import FitHeadsJob, ModelModule
from contextcrf.training.jobs import OtherSettingsError, run
from contextcrf.training.stages import stages_of
from trainings import COUPLED, QUICK, fit_job, heads_job, weights

WHOLE = replace(COUPLED, objective="end-to-end", epochs=2)


def staged(scenes, out, **changes):
    job = fit_job(scenes, out, heads=replace(QUICK, epochs=2), end_to_end=WHOLE, copies=1)
    model = replace(job.model, learned_weights=True, learned_gate=True, learned_dense=True)
    return replace(job, **{"model": model, "training": replace(QUICK, potentials=["unary"]), **changes})


def test_one_job_is_the_three_stages_one_after_the_other(scenes, tmp_path):
    job = staged(scenes, tmp_path / "all")
    found = load(run(job))
    plain = replace(job.model, learned_weights=False, learned_gate=False, learned_dense=False)
    single = {"training": job.training, "model": plain}
    run(fit_job(scenes, tmp_path / "first", **single))
    run(heads_job(tmp_path / "first", scenes, tmp_path / "second", training=job.heads, copies=1))
    last = fit_job(scenes, tmp_path / "third", init=str(tmp_path / "second"), model=job.model, training=WHOLE)
    assert torch.equal(weights(found), weights(load(run(last))))
    assert found.gate.weight.abs().sum() > 0
    assert found.dense is not None
    for name in ("piecewise", "heads"):
        before = load(tmp_path / "all" / name)
        assert before.config == plain
        assert before.trained_relations == ([] if name == "piecewise" else ["surrounding", "above"])


def test_an_interrupted_job_resumes_in_its_stage(scenes, tmp_path, monkeypatch):
    whole = load(run(staged(scenes, tmp_path / "whole")))

    def stop(module):
        if module.config.objective == "end-to-end" and module.current_epoch == 1:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(ModelModule, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(InterruptedError):
            run(staged(scenes, tmp_path / "halves"))
    trained = []
    monkeypatch.setattr(
        ModelModule, "on_train_epoch_start", lambda module: trained.append(module.config.objective), raising=False
    )
    assert torch.equal(weights(load(run(staged(scenes, tmp_path / "halves")))), weights(whole))
    assert trained == ["end-to-end"]
    run(staged(scenes, tmp_path / "halves"))
    assert trained == ["end-to-end"]
    with pytest.raises(OtherSettingsError, match=r"training\.epochs 3"):
        run(staged(scenes, tmp_path / "halves", training=replace(QUICK, potentials=["unary"], epochs=4)))


def test_the_last_stage_has_the_folder_of_the_job(scenes, tmp_path):
    job = staged(scenes, tmp_path)
    without = stages_of(replace(job, end_to_end=None))
    assert [stage.out for stage in without.values()] == [tmp_path / "piecewise", tmp_path]
    assert isinstance(without["heads"], FitHeadsJob)
    assert without["piecewise"].model == job.model  # there is no later stage that could add the learned parts
    two = stages_of(replace(job, heads=None, copies=None))
    assert two["end-to-end"].init == str(tmp_path / "piecewise")
    assert [stage.budget for stage in stages_of(replace(job, budget="10m")).values()] == ["300s", "120s", "180s"]
    assert [stage.budget for stage in stages_of(replace(job, heads=None, copies=None, budget="8m")).values()] == [
        "300s",
        "180s",
    ]
    resumed = stages_of(replace(job, checkpoint="last"))
    assert [stage.checkpoint for stage in resumed.values()] == [None, None, "last"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end_to_end": QUICK}, "end_to_end.objective is 'piecewise', but this stage needs one of crf-rnn, end-to-end"),
        ({"heads": None}, "copies is 1, but it is a setting of the stage heads"),
        ({"heads": WHOLE}, "heads.objective is 'end-to-end', but the heads are trained on cached features"),
        ({"end_to_end": replace(WHOLE, patience=1)}, "end_to_end.patience is 1, but there is no validation split"),
    ],
)
def test_contradictions_are_named_before_the_first_stage(scenes, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(staged(scenes, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()
