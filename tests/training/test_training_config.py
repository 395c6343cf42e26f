"""The values of `TrainingConfig`."""

from typing import get_args

import pytest

from contextcrf.training import TrainingConfig
from contextcrf.training.config import ObjectiveName
from contextcrf.training.objectives import OBJECTIVES


def test_the_names_of_objectives_are_those_of_the_table():
    assert get_args(ObjectiveName) == tuple(OBJECTIVES)
    for name in OBJECTIVES:
        assert TrainingConfig(objective=name).objective == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "likelihood"}, "objective is 'likelihood', but must be one of piecewise, pseudo-likelihood, "),
        ({"optimizer": "SGD"}, "optimizer is 'SGD', but must be one of adamw, sgd"),
        ({"loss_at": "nodes"}, "loss_at is 'nodes', but must be one of graph, pixels"),
        ({"broken_images": "skp"}, "broken_images is 'skp', but must be one of stop, skip"),
        ({"precision": "bf16"}, "precision is 'bf16', but must be one of auto, bf16-mixed, 32-true"),
        ({"epochs": -1}, "epochs is -1, but must be 0 or greater"),
        ({"lr": float("nan")}, "lr is nan, but must be greater than 0"),
        ({"workers": -1}, "workers is -1, but must be 0 or greater"),
        ({"max_edges": 0}, "max_edges is 0, but must be 1 or greater, or null for all edges"),
        ({"ema": 1.0}, "ema is 1.0, but must be a decay per step of 0"),
        ({"color": -1}, "color is -1, but must be 0 or greater"),
        ({"scale": (2.0, 1.0)}, r"scale is \[2.0, 1.0\], but must be a smallest and a largest factor"),
        ({"crop": (0, 96)}, r"crop is \[0, 96\], but must be a height and a width"),
    ],
)
def test_values_without_a_meaning_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**change)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "piecewise"])
@pytest.mark.parametrize(
    "change", [{"max_edges": 64}, {"class_balance": 0.5}, {"loss_at": "pixels"}, {"lovasz": 1.0}], ids=str
)
def test_settings_of_the_pieces_are_refused_by_the_other_objectives(objective, change):
    TrainingConfig(**change)
    [name] = change
    if objective == "end-to-end" and name in ("class_balance", "lovasz"):
        assert TrainingConfig(objective=objective, **change).objective == objective
        return
    with pytest.raises(ValueError, match=name) as error:
        TrainingConfig(objective=objective, **change)
    assert repr(objective) in str(error.value)
