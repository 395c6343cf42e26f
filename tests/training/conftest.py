"""What the tests of training share."""

import pytest

from contextcrf.data.layouts import open_dataset
from contextcrf.data.transforms import training_transform


@pytest.fixture
def train(scenes):
    """Training images with an augmentation."""
    return open_dataset(scenes, "train", training_transform((64, 96), (0.8, 1.2), color=0.2))
