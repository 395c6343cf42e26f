"""Functions that build a model from other models: one potential from each, or the mean of their weights."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from contextcrf.data.classes import Classes
from contextcrf.modeling.config import UNARY, InferenceConfig, ModelConfig
from contextcrf.modeling.model import ContextCRF

# If one of these settings is None, it has the value of `stride`.
_STRIDES = ("output_stride", "graph_stride")


# The entries of the state dict with the learned parts of the CRF.
_LEARNED = ("dense.", "weight_offsets.", "gate.")


def merge_potentials(unary: ContextCRF, pairwise: Mapping[str, ContextCRF]) -> ContextCRF:
    """Merge models, each trained for one potential, into a single model, as in the paper.

    Args:
        unary: the model that provides the unary potential and its network.
        pairwise: for each relation, the model that provides the potential of this relation and its network.

    Returns:
        A model in evaluation mode. It has a separate network for each potential, or one network if that of all models
        is the same, as after `fit_heads` on one model. It has the inference settings of `unary`, but its system uses
        all potentials, and all relations have the default weight.

    Raises:
        ValueError: If the models are not compatible, or if a model does not have its relation or was not trained for
            it.

    Example:
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> config = ModelConfig(backbone="plain", channels=8, hidden=8)
        >>> first, second = (ContextCRF(config, classes, pretrained=False) for _ in range(2))
        >>> second.pairwise_potential("above").last.reset_parameters()  # stands in for training
        >>> merge_potentials(first, {"above": second}).potentials
        ('unary', 'above')
    """
    relations = {}
    for name, part in pairwise.items():
        if name not in part.pairwise:
            raise ValueError(
                f"The model for the relation {name!r} has the relations {sorted(part.pairwise)}, but {name!r} is not "
                "one of them."
            )
        if name not in part.trained_relations:
            raise ValueError(
                f"The model for the relation {name!r} was not trained for this relation. Train it with "
                f"training.potentials [{name}]."
            )
        relations[name] = part.config.relations[name]
    shared = _same_trunk([unary, *pairwise.values()])
    own: dict[str, Any] = {"shared_trunk": shared, "learned_weights": False, "learned_gate": False}
    config = replace(unary.config, relations=relations, **own)
    for name, part in pairwise.items():
        # The relations, the sharing of the trunk and the learned parts of the CRF may differ. All other settings
        # must be equal.
        alike = replace(part.config, relations=relations, learned_dense=config.learned_dense, **own)
        what = f"The model for the relation {name!r}"
        _check_same(what, part.classes, alike, "the model for the unary", unary.classes, config)
    system = replace(unary.predictor().system(None), unary=True, relations=None)
    inference = replace(unary.inference, relation_weights={}, system=system.name)
    model = ContextCRF(config, unary.classes, False, inference, unary.image_format)
    for name, part in {UNARY: unary, **pairwise}.items():
        model.trunk(name).load_state_dict(part.trunk(name).state_dict())
        model.trunk(name).backbone.pretrained = True
        model.potential(name).load_state_dict(part.potential(name).state_dict())
    if model.dense is not None and unary.dense is not None:
        model.dense.load_state_dict(unary.dense.state_dict())
    return model.eval()


def average_weights(models: Sequence[ContextCRF]) -> ContextCRF:
    """Average the weights of several models that were trained from the same initial weights.

    The average often has a higher accuracy than each of the models, and prediction costs as much as with one model
    (Wortsman et al., "Model soups", ICML 2022). Models with different initial weights cannot be averaged, because their
    units do not correspond.

    Args:
        models: two or more models with the same configuration and the same classes.

    Returns:
        A model in evaluation mode with the inference settings of the first model.

    Raises:
        ValueError: If there are fewer than two models, or if their configurations or classes differ.

    Example:
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> first = ContextCRF(ModelConfig(backbone="plain", channels=8, hidden=8), classes, pretrained=False)
        >>> second = copy.deepcopy(first)
        >>> with torch.no_grad():
        ...     bias = second.unary.last.bias.add_(1.0)
        >>> mean = average_weights([first, second])
        >>> torch.allclose(mean.unary.last.bias, first.unary.last.bias + 0.5)
        True
    """
    if len(models) < 2:
        raise ValueError(f"The number of models is {len(models)}, but two or more are needed for an average.")
    first = models[0]
    for number, model in enumerate(models[1:], 2):
        _check_same(f"Model {number}", model.classes, model.config, "the first model", first.classes, first.config)
    states = [model.state_dict() for model in models]
    result = copy.deepcopy(first)
    result.load_state_dict({key: _mean([state[key] for state in states]) for key in states[0]})
    return result.eval()


def with_config(model: ContextCRF, config: ModelConfig, inference: InferenceConfig | None = None) -> ContextCRF:
    """Return a model with the same weights and another configuration, such as another graph stride.

    Args:
        model: the model that provides the weights, the classes and the metadata.
        config: the new configuration. It may add or leave out learned parts of the CRF. Other changes must not change
            the shape of a weight.
        inference: the new inference settings. None keeps the settings of the model.

    Returns:
        A model on the same device and in the same mode (training or evaluation).

    Raises:
        RuntimeError: If the weights do not fit the new configuration.
        ValueError: If the inference settings name a relation that the model does not have.

    Example:
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(ModelConfig(backbone="plain", channels=8, hidden=8), classes, pretrained=False)
        >>> with_config(model, replace(model.config, graph_stride=16)).config.coarse_factor
        2
    """
    result = ContextCRF(config, model.classes, False, inference or model.inference, model.image_format)
    # The learned parts of the CRF may be new, or may be left out.
    own = result.state_dict()
    fresh = {key: value for key, value in own.items() if key.startswith(_LEARNED)}
    kept = {key: value for key, value in model.state_dict().items() if key in own or not key.startswith(_LEARNED)}
    result.load_state_dict({**fresh, **kept})
    result.metadata = dict(model.metadata)
    for name in result.potentials:
        result.trunk(name).backbone.pretrained = model.trunk(name).backbone.pretrained
    return result.to(model.device).train(model.training)


def _same_trunk(models: Sequence[ContextCRF]) -> bool:
    """Return whether all models have one trunk for all potentials, and the same one."""
    if not all(model.config.shared_trunk for model in models):
        return False
    first, *others = (model.trunk(UNARY).state_dict() for model in models)
    return all(
        first.keys() == other.keys() and all(torch.equal(first[key], other[key]) for key in first) for other in others
    )


def _check_same(
    what: str, classes: Classes, config: ModelConfig, first: str, expected_classes: Classes, expected: ModelConfig
) -> None:
    """Raise a ValueError that names the first difference between a model and the expected classes and settings."""
    if classes != expected_classes:
        raise ValueError(f"{what} and {first} have different classes, but the same classes are expected.")
    values = _settings(config)
    for name, value in _settings(expected).items():
        if values[name] != value:
            raise ValueError(
                f"{what} has {name}={values[name]}, but {first} has {name}={value}. The two values must be equal."
            )


def _settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings of a configuration by name, with the values that stand for None."""
    implied = {**dict.fromkeys(_STRIDES, config.stride), "pairwise_hidden": config.hidden}
    return {name: implied.get(name) if value is None else value for name, value in asdict(config).items()}


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Return the mean of the values, or the largest value if they are integers, such as counts of batches."""
    stack = torch.stack(list(values))
    return stack.mean(0) if stack.is_floating_point() else stack.amax(0)
