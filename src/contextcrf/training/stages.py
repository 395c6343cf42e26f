"""The three stages of training in one job: piecewise, pairwise heads on frozen features, and the whole system.

Each stage is a job of its own in a subfolder, with its own checkpoints and record of provenance. An interrupted job
therefore resumes in the stage that it has reached.
"""

from dataclasses import replace
from typing import Any

from contextcrf.training.budget import seconds_of
from contextcrf.training.config import LEARNED, THROUGH_CRF, FitHeadsJob, FitJob, Job, TrainingConfig

# The shares of the stages in a budget.
SHARES = {"piecewise": 0.5, "heads": 0.2, "end-to-end": 0.3}


def stages_of(job: FitJob) -> dict[str, Job]:
    """Return the jobs of the stages of a job by name, in order.

    Args:
        job: a job with the settings `heads`, `end_to_end` or both.

    Returns:
        The jobs "piecewise", "heads" and "end-to-end". The last of them has the output folder of the job itself, and
        the others have subfolders.

    Raises:
        ValueError: the settings of the stages contradict each other.

    Example:
        >>> from pathlib import Path
        >>> whole = TrainingConfig(objective="end-to-end", epochs=4)
        >>> job = FitJob(Path("camvid"), Path("runs/all"), heads=TrainingConfig(), end_to_end=whole)
        >>> {name: str(stage.out) for name, stage in stages_of(job).items()}
        {'piecewise': 'runs/all/piecewise', 'heads': 'runs/all/heads', 'end-to-end': 'runs/all'}
    """
    check_stages(job)
    names = ["piecewise", *(["heads"] if job.heads else []), *(["end-to-end"] if job.end_to_end else [])]
    folders = {name: job.out if name == names[-1] else job.out / name for name in names}
    budgets = _budgets(job, names)
    # The learned parts of the CRF belong to the last stage. Before it, they would be saved untrained.
    left_out: dict[str, Any] = dict.fromkeys(LEARNED, False) if job.end_to_end else {}
    plain = replace(job.model, **left_out)
    single = replace(job, heads=None, end_to_end=None, copies=None)
    jobs: dict[str, Job] = {
        "piecewise": replace(single, out=folders["piecewise"], model=plain, budget=budgets["piecewise"])
    }
    before = str(folders["piecewise"])
    if job.heads is not None:
        jobs["heads"] = FitHeadsJob(
            model=before,
            data=job.data,
            out=folders["heads"],
            training=job.heads,
            train_split=job.train_split,
            copies=FitHeadsJob.copies if job.copies is None else job.copies,
            checkpoint=job.checkpoint,
            budget=budgets["heads"],
        )
        before = str(folders["heads"])
    if job.end_to_end is not None:
        jobs["end-to-end"] = replace(
            single, out=folders["end-to-end"], training=job.end_to_end, init=before, budget=budgets["end-to-end"]
        )
    for name in names[:-1]:
        jobs[name] = replace(jobs[name], checkpoint=None)
    return jobs


def check_stages(job: FitJob) -> None:
    """Raise a ValueError if the settings of the stages contradict each other, before the first stage is trained."""
    if job.heads is None and job.copies is not None:
        raise ValueError(
            f"copies is {job.copies}, but it is a setting of the stage heads, which the job does not have. If the "
            "config is for `contextcrf fit-heads`, use that command. Otherwise, remove copies."
        )
    if job.heads is not None and job.heads.objective in THROUGH_CRF:
        raise ValueError(
            f"heads.objective is {job.heads.objective!r}, but the heads are trained on cached features without images. "
            'Use "piecewise", and train through the CRF in the stage end_to_end.'
        )
    whole: TrainingConfig | None = job.end_to_end
    if whole is None:
        return
    if whole.objective not in THROUGH_CRF:
        raise ValueError(
            f"end_to_end.objective is {whole.objective!r}, but this stage needs one of {', '.join(THROUGH_CRF)}."
        )
    if whole.patience is not None and job.val_split is None:
        raise ValueError(
            f"end_to_end.patience is {whole.patience}, but there is no validation split. Choose one with --val-split, "
            "or set patience to null."
        )


def _budgets(job: FitJob, names: list[str]) -> dict[str, str | None]:
    """Return the budget of each stage, in proportion to `SHARES`."""
    if job.budget is None:
        return dict.fromkeys(names)
    total = sum(SHARES[name] for name in names)
    return {name: f"{seconds_of(job.budget) * SHARES[name] / total:.0f}s" for name in names}


def has_stages(job: Job) -> bool:
    """Return whether a job has more than one stage."""
    return isinstance(job, FitJob) and not (job.heads is None and job.end_to_end is None)
