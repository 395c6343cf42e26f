"""Small models for tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from contextcrf import ContextCRF, InferenceConfig, ModelConfig
from contextcrf.data.classes import Classes

CLASSES = Classes(("sky", "sea", "sand"), ((0, 0, 255), (0, 128, 128), (200, 200, 0)))


def settings(**changes: Any) -> InferenceConfig:
    """Settings in single precision: results are compared exactly, on machines with and without bfloat16."""
    return InferenceConfig(precision="32-true", **changes)


def tiny(classes: Classes = CLASSES, inference: InferenceConfig | None = None, **changes: Any) -> ContextCRF:
    """A small model of random weights, as if all its potentials had been trained."""
    config = ModelConfig(**{"backbone": "plain", "channels": 8, "hidden": 8, "scales": (1.0, 0.5), **changes})
    model = ContextCRF(config, classes, pretrained=False, inference=inference or settings()).eval()
    for name in model.pairwise:
        model.pairwise_potential(name).last.reset_parameters()
    return model


def untrained(inference: InferenceConfig | None = None, **changes: Any) -> ContextCRF:
    """A small model as it is made, whose relations are zero."""
    config = ModelConfig(**{"backbone": "plain", "channels": 8, "hidden": 8, "scales": (1.0,), **changes})
    return ContextCRF(config, CLASSES, pretrained=False, inference=inference or settings()).eval()


def images(batch: int = 1, height: int = 48, width: int = 64) -> Tensor:
    """Noise, uint8 [B, 3, H, W]."""
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def same_weights(first: ContextCRF, second: ContextCRF) -> bool:
    """Whether all tensors of two models are equal."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@contextmanager
def count_trunk_runs(model: ContextCRF) -> Iterator[Callable[[], int]]:
    """A function that gives how often the trunks of a model have run within the block."""
    runs: list[int] = []
    hooks = [trunk.register_forward_hook(lambda *_: runs.append(1)) for trunk in model.trunks.values()]
    try:
        yield lambda: len(runs)
    finally:
        for hook in hooks:
            hook.remove()
