"""The configs of a reproduction and the splits that it uses."""

from argparse import ArgumentError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from contextcrf.modeling.config import InferenceConfig, ModelConfig
from contextcrf.nets.baselines import BASELINES
from contextcrf.training.config import TrainingConfig
from contextcrf.utils.yaml_files import parse_yaml

STUDIES = Path(__file__).parent / "studies"


@dataclass
class Study:
    """The configs of a reproduction.

    Args:
        model: config of the model; `shared_trunk` false trains a separate network for each pairwise potential, as in
            the paper, and true trains pairwise heads on the trunk of the unary.
        training: config of the training of each network.
        heads: config of the training of heads on a shared trunk.
        inference: inference settings of all systems; relation weights that it does not set are tuned.
        train_split: split that the networks are trained on.
        val_split: split that the systems are evaluated on.
        tune_split: split on which relation weights and dense CRFs are tuned. The default is the training split, so that
            no image of `val_split` is used.
        tune_images: maximum number of images of this split that are used.
        copies: number of augmented copies of each image whose features are kept in memory for the training of heads.
        pretrained: whether backbones are initialized with ImageNet weights; a path loads the weights from a file.

    Example:
        >>> study = Study(ModelConfig(backbone="plain"), TrainingConfig(epochs=3))
        >>> study.train_split, study.tune_images
        ('train', 60)
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
    """Read a study.

    Args:
        name: name of a bundled study ("camvid", "voc" or "voc-small"), or path of a YAML file.

    Raises:
        ValueError: there is neither a file nor a bundled study of this name, or the file does not contain a study.

    Example:
        >>> open_study("voc").model.backbone
        'vgg16-fc6'
    """
    path = Path(name) if Path(name).is_file() else STUDIES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in STUDIES.glob("*.yaml")))
        raise ValueError(f"There is no study {name!r}. Pass the path of a YAML file, or one of {known}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--study", type=Study)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
        _check_groups(content)
        return parser.instantiate(parser.parse_object({"study": content})).study
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a study: {error}") from error


def _check_groups(content: Any) -> None:
    """Raise a ValueError if the content of a study, or one of its groups of settings, is not a mapping."""
    if not isinstance(content, dict):
        raise ValueError(f"Expected a mapping with the keys model and training, got {content!r}.")
    for key in ("model", "training", "heads", "inference"):
        if key in content and not isinstance(content[key], dict):
            raise ValueError(f"Expected settings under {key}, such as 'stride: 8', got {content[key]!r}.")


def baseline_config(model: ModelConfig, network: str) -> ModelConfig:
    """Return the config of a competitor with the backbone and the pairwise graph of a model.

    Args:
        model: config of the model.
        network: name of the competitor in `BASELINES`.

    Example:
        >>> config = baseline_config(ModelConfig(backbone="resnet18"), "fcn-8s")
        >>> config.backbone, config.network, config.stride
        ('resnet18', 'fcn-8s', 8)
    """
    kind = BASELINES[network]
    graph_stride = model.graph_stride or model.stride
    return replace(
        model,
        network=network,
        stride=kind.stride,
        output_stride=None,
        graph_stride=graph_stride if graph_stride % kind.stride == 0 else None,
        channels=kind.width,
        scales=(1.0,),
        shared_trunk=True,
        block6_per_scale=False,
        pyramid=(),
    )


def crf_rnn_config(config: TrainingConfig) -> TrainingConfig:
    """Return a config with the objective "crf-rnn", without the settings of piecewise training.

    Args:
        config: config of a training run.

    Example:
        >>> config = crf_rnn_config(TrainingConfig(max_edges=8192, loss_at="pixels"))
        >>> config.objective, config.max_edges, config.loss_at
        ('crf-rnn', None, 'graph')
    """
    plain = replace(config, class_balance=0.0, max_edges=None, loss_at="graph", lovasz=0.0)
    return replace(plain, objective="crf-rnn")


def end_to_end_config(config: TrainingConfig) -> TrainingConfig:
    """Return a config with the objective "end-to-end", without the settings of piecewise training.

    Args:
        config: config of a training run.

    Example:
        >>> end_to_end_config(TrainingConfig(max_edges=8192)).objective
        'end-to-end'
    """
    return replace(crf_rnn_config(config), objective="end-to-end", part_lr={"weights": 2.0})


def with_learned_crf(config: ModelConfig) -> ModelConfig:
    """Return a config with learned relation weights and a learned dense CRF, for the objective "end-to-end".

    It has no gate, which closes on training images (section 4.6 of the report).

    Example:
        >>> with_learned_crf(ModelConfig()).learned_weights
        True
    """
    return replace(config, learned_dense=True, learned_weights=True, message_upsampling="bilinear")
