"""Networks to compare with: FCN-8s and two DeepLab variants, with which the paper compares, and DeepLabV3+.

Each one computes a feature map from the maps of any backbone, and its unary potential is a linear classifier of that
map. `ModelConfig.network` selects one by its name. Training, evaluation and pairwise potentials are the same as for the
multi-scale network of the paper.
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

__all__ = ["BASELINES", "Baseline"]
