"""Piecewise training (Section IV-B) with Lightning.

`fit` trains any choice of potentials end to end. `fit_heads` is the advantage of "piecewise": given the trunk the
potentials are independent, so the trunk's features are computed once and kept, and the pairwise heads alone are trained
on them. `jobs` leads from data to a model on disk.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextcrf.training.config import FitHeadsJob, FitJob, TrainingConfig
    from contextcrf.training.feature_cache import CachedFeatures, cache_features
    from contextcrf.training.jobs import run
    from contextcrf.training.modules import HeadsModule, ModelModule, TrainingModule
    from contextcrf.training.sampler import SeededSampler
    from contextcrf.training.trainer import augmentation, class_weights, fit, fit_heads

# Public names by module. They are imported when first used, so that the command line does not wait for Lightning.
_MODULES = {
    "CachedFeatures": "feature_cache",
    "FitHeadsJob": "config",
    "FitJob": "config",
    "HeadsModule": "modules",
    "ModelModule": "modules",
    "SeededSampler": "sampler",
    "TrainingConfig": "config",
    "TrainingModule": "modules",
    "augmentation": "trainer",
    "cache_features": "feature_cache",
    "class_weights": "trainer",
    "fit": "trainer",
    "fit_heads": "trainer",
    "run": "jobs",
}

__all__ = [
    "CachedFeatures",
    "FitHeadsJob",
    "FitJob",
    "HeadsModule",
    "ModelModule",
    "SeededSampler",
    "TrainingConfig",
    "TrainingModule",
    "augmentation",
    "cache_features",
    "class_weights",
    "fit",
    "fit_heads",
    "run",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"contextcrf.training.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'contextcrf.training' has no attribute {name!r}")
