"""What is trained for a table, and how: a study."""

from argparse import ArgumentError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from contextcrf.modeling.config import ModelConfig
from contextcrf.nets.baselines import BASELINES
from contextcrf.training.config import Recipe

STUDIES = Path(__file__).parent.parent / "studies"


@dataclass
class Study:
    """What is trained, how, and on which splits.

    Args:
        model: its `shared_trunk` decides whether pairwise potentials have networks of their own, as in the paper, or
            are heads on the unary's.
        recipe: of every network.
        heads: of heads on a shared trunk.
        train_split: to train on.
        val_split: to measure on.
        tune_split: to choose strengths and dense CRFs on; strengths that the study names are kept.
        tune_images: of that split, at most.
        views: augmented copies of each image whose features heads are trained on, kept in memory.
        pretrained: ImageNet weights, or a file of them.
    """

    model: ModelConfig
    recipe: Recipe
    heads: Recipe = field(default_factory=Recipe)
    train_split: str = "train"
    val_split: str = "val"
    tune_split: str = "train"
    tune_images: int = 60
    views: int = 2
    pretrained: bool | Path = True


def open_study(name: str) -> Study:
    """A study by the name of a bundled one, or from a YAML file.

    Raises:
        ValueError: there is neither, or the file is no study.
    """
    path = Path(name) if Path(name).is_file() else STUDIES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in STUDIES.glob("*.yaml")))
        raise ValueError(f"study {name!r}: expected a YAML file, or one of {known}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--study", type=Study)
    try:
        content = yaml.safe_load(path.read_text())
        _check_groups(content)
        return parser.instantiate(parser.parse_object({"study": content})).study
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected the settings of a study: {error}") from error


def _check_groups(content: Any) -> None:
    """Whether what holds settings holds them by their names."""
    if not isinstance(content, dict):
        raise ValueError(f"the keys model and recipe, not {content!r}")
    for key in ("model", "recipe", "heads"):
        if key in content and not isinstance(content[key], dict):
            raise ValueError(f"under {key} names with values, as in 'stride: 8', not {content[key]!r}")


def shape_of(network: str) -> dict[str, Any]:
    """What a competitor changes in the study's model."""
    kind = BASELINES[network]
    shape: dict[str, Any] = {"network": network, "stride": kind.stride, "output_stride": None, "graph_stride": None}
    shape |= {"channels": kind.width, "scales": (1.0,), "shared_trunk": True, "block6_per_scale": False, "pyramid": ()}
    return {**shape, "strengths": {}}


def through_dense(recipe: Recipe) -> Recipe:
    """A recipe with the objective "crf-rnn", which takes nothing that shapes the loss of a unary."""
    plain = replace(recipe, class_balance=0.0, max_edges=None, loss_at="nodes", lovasz=0.0)
    return replace(plain, objective="crf-rnn")
