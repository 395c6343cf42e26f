"""Several models made one: a potential from each, the paper's way, or the mean of their weights."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from contextcrf.data.classes import Classes
from contextcrf.modeling.config import UNARY, InferenceConfig, ModelConfig
from contextcrf.modeling.model import ContextCRF

# The settings whose value None is that of `stride`.
_STRIDES = ("output_stride", "graph_stride")


def merge_potentials(unary: ContextCRF, pairwise: Mapping[str, ContextCRF]) -> ContextCRF:
    """Merge networks that were trained each for one potential into one model, the paper's way.

    Args:
        unary: the model whose network and unary potential are taken.
        pairwise: by the name of a relation, the model whose network and potential of that name are taken.

    Returns:
        A model with a trunk for each potential, and the inference settings of `unary`, except that all potentials take
        part and no relation has a weight of its own.

    Raises:
        ValueError: the models do not fit together, or one has no such relation or has not been trained for it.
    """
    relations = {}
    for name, part in pairwise.items():
        if name not in part.pairwise:
            raise ValueError(f"relation {name!r}: its model has {sorted(part.pairwise)}; expected that name among them")
        if name not in part.trained_relations:
            raise ValueError(f"relation {name!r}: its model was not trained for it (training.potentials [{name}])")
        relations[name] = part.config.relations[name]
    config = replace(unary.config, relations=relations, shared_trunk=False)
    for name, part in pairwise.items():
        # The parts of the merged model must be alike; the relations, the trunk and the dense CRF are its own.
        alike = replace(part.config, relations=relations, shared_trunk=False, learned_dense=config.learned_dense)
        _check_same(f"relation {name!r}: its model", part.classes, alike, "the unary's", unary.classes, config)
    system = replace(unary.predictor().system(None), unary=True, relations=None)
    inference = replace(unary.inference, relation_weights={}, system=system.name)
    model = ContextCRF(config, unary.classes, pretrained=False, inference=inference)
    for name, part in {UNARY: unary, **pairwise}.items():
        model.trunk(name).load_state_dict(part.trunk(name).state_dict())
        model.trunk(name).backbone.pretrained = True
        model.potential(name).load_state_dict(part.potential(name).state_dict())
    if model.dense is not None and unary.dense is not None:
        model.dense.load_state_dict(unary.dense.state_dict())
    return model.eval()


def average_weights(models: Sequence[ContextCRF]) -> ContextCRF:
    """Average the weights of several models that were trained on from a common start.

    The average is often better than each of them, at the price of one (Wortsman et al., "Model soups", ICML 2022). It
    is useless for models with different starts, whose units do not correspond.

    Args:
        models: of one configuration and with the same classes.

    Returns:
        A model with the first one's inference settings.

    Raises:
        ValueError: there are fewer than two models, or they differ in configuration or classes.
    """
    if len(models) < 2:
        raise ValueError(f"{len(models)} models: expected two or more to average")
    first = models[0]
    for number, model in enumerate(models[1:], 2):
        _check_same(f"model {number}", model.classes, model.config, "the first", first.classes, first.config)
    states = [model.state_dict() for model in models]
    result = copy.deepcopy(first)
    result.load_state_dict({key: _mean([state[key] for state in states]) for key in states[0]})
    return result.eval()


def with_config(model: ContextCRF, config: ModelConfig, inference: InferenceConfig | None = None) -> ContextCRF:
    """The same weights under another configuration, such as one with another graph stride or a learned dense CRF.

    Args:
        model: whose weights and classes are taken.
        config: its own but for what changes no shape; a learned dense CRF may be added.
        inference: None keeps the model's.

    Raises:
        RuntimeError: the weights do not fit.
    """
    result = ContextCRF(config, model.classes, pretrained=False, inference=inference or model.inference)
    fresh = {} if result.dense is None else {f"dense.{key}": v for key, v in result.dense.state_dict().items()}
    result.load_state_dict({**fresh, **model.state_dict()})
    result.metadata = dict(model.metadata)
    for name in result.potentials:
        result.trunk(name).backbone.pretrained = model.trunk(name).backbone.pretrained
    return result.to(model.device).train(model.training)


def _check_same(
    what: str, classes: Classes, config: ModelConfig, first: str, expected_classes: Classes, expected: ModelConfig
) -> None:
    """Raise a ValueError that names the first difference of a model from the first one."""
    if classes != expected_classes:
        raise ValueError(f"{what} has other classes than {first}; expected the same")
    values = _settings(config)
    for name, value in _settings(expected).items():
        if values[name] != value:
            raise ValueError(f"{what} has {name}={values[name]}, {first} {value}; expected the same")


def _settings(config: ModelConfig) -> dict[str, Any]:
    """A configuration by name, with the strides that were left out."""
    return {
        name: config.stride if name in _STRIDES and value is None else value for name, value in asdict(config).items()
    }


def _mean(values: Sequence[Tensor]) -> Tensor:
    """The mean; of counts, such as those of batches, the largest."""
    stack = torch.stack(list(values))
    return stack.mean(0) if stack.is_floating_point() else stack.amax(0)
