"""Settings of the whole suite."""

import os

import pytest
import torch
from hypothesis import settings

# Tests send no requests to the model hub: their results would depend on the network.
os.environ["HF_HUB_OFFLINE"] = "1"

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Each of several processes takes its share of the cores.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))

settings.register_profile("contextcrf", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("contextcrf")


def pytest_collection_modifyitems(items):
    """Tests that are marked `cuda` need a GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A folder data set of a few small context scenes."""
    from contextcrf.data.synthetic import write_scenes

    return write_scenes(tmp_path_factory.mktemp("scenes"), train=6, val=3, height=64, width=96)


@pytest.fixture
def tiny_model(scenes):
    """A ContextCRF of the scenes' classes that trains in no time and predicts in single precision."""
    from contextcrf.data.layouts import open_dataset
    from contextcrf.modeling.config import InferenceConfig, ModelConfig
    from contextcrf.modeling.model import ContextCRF

    config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
    inference = InferenceConfig(precision="32-true")
    model = ContextCRF(config, open_dataset(scenes, "train").classes, pretrained=False, inference=inference)
    for head in model.pairwise.values():
        head.last.reset_parameters()  # as if trained
    return model
