"""Piecewise training (Section IV-B) with Lightning.

`fit` trains any choice of potentials end to end. `fit_heads` trains only the pairwise heads on a frozen trunk: in
piecewise training the potentials are independent given the trunk, so its features are computed once.
`jobs` trains a model from a data set on disk and saves it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextcrf.training.config import FitHeadsJob, FitJob, TrainingConfig
    from contextcrf.training.feature_cache import CachedFeatures, StoredFeatures, cache_features
    from contextcrf.training.jobs import run
    from contextcrf.training.modules import HeadsModule, ModelModule, TrainingModule
    from contextcrf.training.sampler import SeededSampler
    from contextcrf.training.trainer import augmentation, class_weights, fit, fit_heads

# The module of each public name. Names are imported on first use, since the import of Lightning is slow.
_MODULES = {
    "CachedFeatures": "feature_cache",
    "FitHeadsJob": "config",
    "FitJob": "config",
    "HeadsModule": "modules",
    "ModelModule": "modules",
    "SeededSampler": "sampler",
    "StoredFeatures": "feature_cache",
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
    "StoredFeatures",
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
