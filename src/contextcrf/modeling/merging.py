"""Several models made one: a potential from each, the paper's way, or the mean of their weights."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from contextcrf.modeling.config import UNARY, ModelConfig
from contextcrf.modeling.model import ContextCRF


def assemble(unary: ContextCRF, pairwise: Mapping[str, ContextCRF]) -> ContextCRF:
    """One model of networks that were trained each for one potential, the paper's way.

    Args:
        unary: whose network and unary potential are taken.
        pairwise: by the name of a relation, the model whose network and potential of that name are taken.

    Returns:
        A model with a trunk for each potential, without strengths.

    Raises:
        ValueError: the models do not fit together, or one has no such relation or has not learned it.
    """
    for name, part in pairwise.items():
        if name not in part.pairwise:
            raise ValueError(f"relation {name!r}: its model has {sorted(part.pairwise)}; expected that name among them")
        if name not in part.trained_relations:
            raise ValueError(f"relation {name!r}: its model was not trained for it (recipe.potentials [{name}])")
        if part.classes != unary.classes:
            raise ValueError(f"relation {name!r}: its model knows other classes than the unary's")
        for key, ours in _shape(unary.config).items():
            if ours != (theirs := _shape(part.config)[key]):
                raise ValueError(f"relation {name!r}: {key}={theirs}, the unary has {ours}; expected the same")
    relations = {name: part.config.relations[name] for name, part in pairwise.items()}
    config = replace(unary.config, relations=relations, shared_trunk=False, strengths={})
    model = ContextCRF(config, unary.classes, pretrained=False)
    for name, part in {UNARY: unary, **pairwise}.items():
        model.trunk(name).load_state_dict(part.trunk(name).state_dict())
        model.trunk(name).backbone.pretrained = True
        model.potential(name).load_state_dict(part.potential(name).state_dict())
    if model.dense is not None and unary.dense is not None:
        model.dense.load_state_dict(unary.dense.state_dict())
    return model.eval()


def average(models: Sequence[ContextCRF]) -> ContextCRF:
    """The model whose weights are the mean of those of several, trained on from a common beginning.

    It often does better than each of them, at the price of one (Wortsman et al., "Model soups", ICML 2022). Of models
    with different beginnings nothing comes of it: their units do not correspond.

    Args:
        models: of one shape and with the same classes. Strengths and the dense CRF are the first one's.

    Raises:
        ValueError: there are fewer than two, or they differ in shape or classes.
    """
    if len(models) < 2:
        raise ValueError(f"{len(models)} models: expected two or more to average")
    first = models[0]
    states = [model.state_dict() for model in models]
    for number, model in enumerate(models[1:], 2):
        if model.classes != first.classes:
            raise ValueError(f"model {number} knows other classes than the first")
        ours, theirs = _weighed(first.config), _weighed(model.config)
        for key, value in ours.items():
            if theirs[key] != value:
                raise ValueError(f"model {number} has {key}={theirs[key]}, the first {value}; expected the same")
    result = copy.deepcopy(first)
    result.load_state_dict({key: _mean([state[key] for state in states]) for key in states[0]})
    return result.eval()


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Of counts, such as those of batches, the largest."""
    stack = torch.stack(list(values))
    return stack.mean(0) if stack.is_floating_point() else stack.amax(0)


def _weighed(config: ModelConfig) -> dict[str, Any]:
    """What decides the meaning of the weights."""
    used = ("strengths", "iterations", "dense")
    return {key: value for key, value in asdict(config).items() if key not in used}


def _shape(config: ModelConfig) -> dict[str, Any]:
    """What must be the same in models that are put together."""
    keys = (
        "backbone",
        "stride",
        "depth",
        "network",
        "channels",
        "scales",
        "block6_per_scale",
        "pyramid",
        "upsampling",
        "hidden",
    )
    strides = {key: getattr(config, key) or config.stride for key in ("output_stride", "graph_stride")}
    return {**{key: getattr(config, key) for key in keys}, **strides}
