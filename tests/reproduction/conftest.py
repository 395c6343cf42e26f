"""A study of the smallest size."""

import pytest
import yaml

TRAINING = {"epochs": 1, "crop": [64, 96], "batch_size": 3, "max_edges": 64, "precision": "32-true", "workers": 0}


@pytest.fixture
def write_study(tmp_path):
    """A function that writes a study into a file and returns its path."""

    def write(name="study.yaml", shared=True, inference=None, **training):
        model = {"backbone": "resnet10t", "stride": 16, "channels": 8, "hidden": 8, "shared_trunk": shared}
        study = {
            "model": model,
            "training": {**TRAINING, **training},
            "heads": TRAINING,
            "inference": inference or {},
            "tune_images": 2,
            "pretrained": False,
        }
        (tmp_path / name).write_text(yaml.safe_dump(study))
        return str(tmp_path / name)

    return write
