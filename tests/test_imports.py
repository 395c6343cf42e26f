import subprocess
import sys


def test_the_probabilistic_core_needs_torch_alone():
    """Every module of `contextcrf.crf` loads with the other dependencies out of reach."""
    program = """
import sys
for name in ("torchvision", "timm", "lightning", "torchmetrics", "jsonargparse", "PIL", "matplotlib", "yaml", "rich"):
    sys.modules[name] = None
import contextcrf.crf
from contextcrf import DenseCRF, PairwisePotential, RangeBox, UnaryPotential, mean_field
"""
    subprocess.run([sys.executable, "-c", program], check=True)
