"""Piecewise training (Section IV-B) with Lightning.

`fit` trains any choice of potentials end to end. `fit_heads` is the advantage of "piecewise": given the trunk the
potentials are independent, so the trunk's features are computed once and kept, and the pairwise heads alone are trained
on them. `jobs` leads from data to a model on disk.
"""

from contextcrf.training.config import TrainingConfig
from contextcrf.training.feature_cache import CachedFeatures, cache_features
from contextcrf.training.jobs import FitHeadsJob, FitJob, run
from contextcrf.training.modules import HeadsModule, ModelModule, TrainingModule
from contextcrf.training.sampler import SeededSampler
from contextcrf.training.trainer import augmentation, class_weights, fit, fit_heads

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
