"""The table that `tune` and `tune-refine` print."""

from collections.abc import Sequence

from contextcrf.evaluation.tuning import Trial, gain_of, trial_without


def print_trials(trials: Sequence[Trial], best: Trial) -> None:
    """Print the mean IoU of each trial, its gain over the trial without the tuned terms, and its settings."""
    without = trial_without(trials)
    print(f"mean IoU and gain over {100 * without.mean_iou:.2f} without these terms, with its 95% confidence interval")
    for trial in trials:
        values = {key: "plain sum" if value is None else f"{value:g}" for key, value in trial.settings.items()}
        name = ", ".join(f"{key} {value}" for key, value in values.items()) or "default weights, 1 in total"
        marks = ("  <- before" if trial is trials[0] else "") + ("  <- chosen" if trial is best else "")
        gain = str(gain_of(trial, without)).partition(": ")[2]
        print(f"{100 * trial.mean_iou:6.2f}  {gain:<24}  {name}{marks}")
