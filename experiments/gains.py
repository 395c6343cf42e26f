"""Draw one figure of all experiments: the gain of context against the mean IoU of the unary.

    python experiments/gains.py

This command reads the results of `context.py` and `scenes.py` in results/context/ and draws results/context/gains.png.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from context import CHOSEN, CONTEXT_STUDIES, RESULTS, THREE
from contextcrf.evaluation.figures import save_figure
from contextcrf.modeling.config import UNARY

CRF = f"1unary+2pair, {CHOSEN}"


@dataclass(frozen=True)
class ContextGain:
    """The gain of one experiment, in points of mean IoU.

    Attributes:
        name: the name of the experiment.
        unary: mean IoU of its unary, in percent.
        over_one: gain of the CRF over the unary, with the bounds of its 95 % confidence interval: (value, low, high).
        over_three: gain of the CRF over the mean of three unaries, in the same form.
    """

    name: str
    unary: float
    over_one: tuple[float, float, float]
    over_three: tuple[float, float, float]


def read_gains(folder: Path) -> list[ContextGain]:
    """Return the gains of the experiments whose results are in a folder.

    Raises:
        SystemExit: if the folder has no results.
    """
    found = []
    for study in CONTEXT_STUDIES:
        if (path := folder / f"{study}.json").exists():
            rows = {row["row"]: row for row in json.loads(path.read_text()) if "row" in row}
            one, three = (_points(rows[CRF][f"over {against}"]) for against in ("one unary", THREE))
            found.append(ContextGain(study, 100 * rows[UNARY]["mean_iou"], one, three))
    if (path := folder / "scenes.json").exists():
        for name, point in json.loads(path.read_text()).items():
            one, three = (_points([point["crf"] - point[row], *point[f"crf - {row}"]]) for row in (UNARY, THREE))
            found.append(ContextGain(f"scenes {name}", 100 * point[UNARY], one, three))
    if not found:
        raise SystemExit(f"{folder} has no results. Run experiments/context.py or experiments/scenes.py first.")
    return found


def _points(fractions: list[float]) -> tuple[float, float, float]:
    value, low, high = (100 * fraction for fraction in fractions)
    return value, low, high


def plot_gains(found: list[ContextGain]) -> Figure:
    """Plot both gains against the unary; the scenes are dots without names."""
    fig = Figure(figsize=(10, 4), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    for ax, title, key in zip(axes, ("over one unary", "over three unaries"), ("over_one", "over_three"), strict=True):
        for gain in found:
            scene = gain.name.startswith("scenes")
            value, low, high = getattr(gain, key)
            color = "#56B4E9" if scene else "#D55E00"
            ax.errorbar(gain.unary, value, [[value - low], [high - value]], fmt="o", color=color, capsize=3)
            if not scene:
                ax.annotate(gain.name, (gain.unary, value), xytext=(6, 6), textcoords="offset points")
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(f"gain of 1unary+2pair {title}")
        ax.set_xlabel("mean IoU of the unary, %")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("points of mean IoU")
    return fig


if __name__ == "__main__":
    save_figure(plot_gains(read_gains(RESULTS)), RESULTS / "gains.png")
