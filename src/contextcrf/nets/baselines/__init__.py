"""Baseline networks: FCN-8s and two variants of DeepLab, with which the paper compares, and DeepLabV3+.

A baseline computes a feature map from the maps of any backbone. Its unary potential is a linear classifier of this map.
`ModelConfig.network` selects a baseline by its name. Training, evaluation and the pairwise potentials are the same as
for the multi-scale network of the paper.
"""

from contextcrf.nets.baselines.base import Baseline
from contextcrf.nets.baselines.deeplab import DeepLabV3Plus, LargeFOV, MultiScaleLargeFOV
from contextcrf.nets.baselines.fcn import FCN8s

BASELINES: dict[str, type[Baseline]] = {
    "fcn-8s": FCN8s,
    "deeplab-largefov": LargeFOV,
    "deeplab-msc-largefov": MultiScaleLargeFOV,
    "deeplabv3plus": DeepLabV3Plus,
}
"""The class of each baseline by its name in `ModelConfig.network`."""

__all__ = ["BASELINES", "Baseline"]
