"""Piecewise training (Section IV-B) with Lightning.

`fit` trains any choice of potentials end to end. `fit_heads` is what "piecewise" buys: given the trunk the potentials
are independent, so the trunk's features are computed once and kept, and the pairwise heads alone are trained on them.
`runs` brings them from data to a model on disk.
"""

from contextcrf.training.feature_cache import CachedFeatures, cache_features
from contextcrf.training.objectives import CachedHeads, Objective, Piecewise
from contextcrf.training.sampler import SeededSampler
from contextcrf.training.trainer import augmentation, class_weights, fit, fit_heads

__all__ = [
    "CachedFeatures",
    "CachedHeads",
    "Objective",
    "Piecewise",
    "SeededSampler",
    "augmentation",
    "cache_features",
    "class_weights",
    "fit",
    "fit_heads",
]
