"""The public names of contextcrf, a library for semantic segmentation with deep structured models.

A model has CNN unary and pairwise CRF potentials, which are trained piecewise.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextcrf.crf import DenseCRF, PairwisePotential, RangeBox, UnaryPotential, mean_field
    from contextcrf.inference import Predictor, Segmentation, System
    from contextcrf.modeling.config import InferenceConfig, ModelConfig
    from contextcrf.modeling.model import ContextCRF, load

# The module of each public name. Names are imported on first use, so that `import contextcrf.crf` needs only torch.
_MODULES = {
    "ContextCRF": "contextcrf.modeling.model",
    "DenseCRF": "contextcrf.crf",
    "InferenceConfig": "contextcrf.modeling.config",
    "ModelConfig": "contextcrf.modeling.config",
    "PairwisePotential": "contextcrf.crf",
    "Predictor": "contextcrf.inference",
    "RangeBox": "contextcrf.crf",
    "Segmentation": "contextcrf.inference",
    "System": "contextcrf.inference",
    "UnaryPotential": "contextcrf.crf",
    "load": "contextcrf.modeling.model",
    "mean_field": "contextcrf.crf",
}

__all__ = [
    "ContextCRF",
    "DenseCRF",
    "InferenceConfig",
    "ModelConfig",
    "PairwisePotential",
    "Predictor",
    "RangeBox",
    "Segmentation",
    "System",
    "UnaryPotential",
    "load",
    "mean_field",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("contextcrf")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'contextcrf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
