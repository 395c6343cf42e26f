"""The settings of a reproduction: what is trained, how, and on which splits."""

from argparse import ArgumentError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.nets.baselines import BASELINES
from contextcrf.training.config import TrainingConfig

STUDIES = Path(__file__).parent / "studies"


@dataclass
class Study:
    """The settings of a reproduction.

    Args:
        model: its `shared_trunk` decides whether pairwise potentials have networks of their own, as in the paper, or
            are heads on the unary's.
        training: of every network.
        heads: training of heads on a shared trunk.
        inference: of every system; relation weights that it names are kept, others are tuned.
        train_split: to train on.
        val_split: to measure on.
        tune_split: to tune relation weights and dense CRFs on.
        tune_images: of that split, at most.
        copies: augmented copies of each image whose features heads are trained on, kept in memory.
        pretrained: ImageNet weights, or a file of them.
    """

    model: ModelConfig
    training: TrainingConfig
    heads: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    train_split: str = "train"
    val_split: str = "val"
    tune_split: str = "train"
    tune_images: int = 60
    copies: int = 2
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
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        _check_groups(content)
        return parser.instantiate(parser.parse_object({"study": content})).study
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected the settings of a study: {error}") from error


def _check_groups(content: Any) -> None:
    """Raise a ValueError unless groups of settings hold them by their names."""
    if not isinstance(content, dict):
        raise ValueError(f"the keys model and training, not {content!r}")
    for key in ("model", "training", "heads", "inference"):
        if key in content and not isinstance(content[key], dict):
            raise ValueError(f"under {key} names with values, as in 'stride: 8', not {content[key]!r}")


def baseline_config(model: ModelConfig, network: str) -> ModelConfig:
    """The configuration of a competitor on the backbone of a model.

    Args:
        model: of the study.
        network: the competitor, a name in `BASELINES`.
    """
    kind = BASELINES[network]
    return replace(
        model,
        network=network,
        stride=kind.stride,
        output_stride=None,
        graph_stride=None,
        channels=kind.width,
        scales=(1.0,),
        shared_trunk=True,
        block6_per_scale=False,
        pyramid=(),
    )


def crf_rnn_config(config: TrainingConfig) -> TrainingConfig:
    """The configuration under the objective "crf-rnn", without the settings that belong to piecewise training."""
    plain = replace(config, class_balance=0.0, max_edges=None, loss_at="graph", lovasz=0.0)
    return replace(plain, objective="crf-rnn")
