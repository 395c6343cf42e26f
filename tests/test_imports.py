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


def test_the_page_loads_gradio_alone():
    """Neither the package nor what the page computes needs the library that draws it."""
    program = """
import sys
sys.modules["gradio"] = None
import contextcrf
import contextcrf.cli
import contextcrf.web.session
from contextcrf import ContextCRF, load
"""
    subprocess.run([sys.executable, "-c", program], check=True)
