"""Prediction: features, mean field, upsampling, the dense CRF and labels, with one class for all predictions."""

from contextcrf.inference.predictor import Prediction, Predictor
from contextcrf.inference.segmentation import Segmentation
from contextcrf.modeling.config import InferenceConfig
from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE, System

__all__ = [
    "FULL",
    "UNARY_ONLY",
    "UNARY_PAIRWISE",
    "InferenceConfig",
    "Prediction",
    "Predictor",
    "Segmentation",
    "System",
]
