"""Networks that were trained each for one potential, the paper's way, put together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from contextcrf.model import ContextCRF
from contextcrf.model_config import UNARY, ModelConfig


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
