"""Settings of the whole suite."""

import os

import pytest
import torch
from hypothesis import settings

# The model hub is never asked in tests: what depends on the network would pass or fail with it.
os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("contextcrf", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("contextcrf")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
