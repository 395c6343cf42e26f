"""The paper's competitors and today's reference, as networks whose feature map is classified linearly.

They stand on any backbone of ours and are trained, evaluated and joined with pairwise potentials as our own network is:
`ModelConfig.network` names them.
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
