"""Semantic segmentation with deep structured models: CNN unary and pairwise CRF potentials, trained piecewise."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextcrf.crf import DenseCRF, PairwisePotential, RangeBox, UnaryPotential, mean_field
    from contextcrf.inference import Predictor, Segmentation, System
    from contextcrf.modeling.config import InferenceConfig, ModelConfig
    from contextcrf.modeling.model import ContextCRF, load

# Public names by module. They are imported when first used, so that `import contextcrf.crf` needs torch alone.
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
