"""The state dict of the dense CRF: the same entries for learned and fixed values."""

from typing import Any

import pytest
import torch
from torch import nn

from contextcrf.crf import DenseCRF

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(1, 3, 8, 9, generator=GENERATOR)
IMAGE = torch.randint(0, 256, (1, 3, 8, 9), generator=GENERATOR, dtype=torch.uint8)
VALUES: dict[str, Any] = {
    "spatial_sxy": (2, 5),
    "spatial_compat": 1.7,
    "bilateral_sxy": 33,
    "bilateral_srgb": 7,
    "bilateral_compat": [-1.0, -2.0, -3.0],
}
SHAPES: dict[str, Any] = {"spatial_sxy": (1, 1), "bilateral_compat": [0.0, 0.0, 0.0]}


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("target", [True, False])
def test_either_kind_loads_the_other(source: bool, target: bool) -> None:
    first, second = DenseCRF(**VALUES, learnable=source), DenseCRF(**SHAPES, learnable=target)
    second.load_state_dict(first.state_dict())
    for name in VALUES:
        torch.testing.assert_close(getattr(second, name), getattr(first, name), rtol=1e-6, atol=0, check_dtype=True)
    torch.testing.assert_close(second(LOGITS, IMAGE), first(LOGITS, IMAGE))
    assert first.state_dict().keys() == second.state_dict().keys()
    assert len(list(second.parameters())) == (5 if target else 0)


def test_fixed_values_come_back_bit_by_bit() -> None:
    values = (0.1 + 300 * torch.rand(100, generator=GENERATOR)).tolist()
    first, second = DenseCRF(bilateral_srgb=values), DenseCRF(bilateral_srgb=[1] * 100)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.bilateral_srgb, first.bilateral_srgb)
    learned = DenseCRF(bilateral_srgb=values, learnable=True)
    second.load_state_dict(learned.state_dict())
    assert torch.equal(second.bilateral_srgb, learned.bilateral_srgb)


def test_the_state_is_a_copy() -> None:
    first = DenseCRF()
    state = {key: value.clone() for key, value in first.state_dict().items()}
    second = DenseCRF(bilateral_compat=1)
    second.load_state_dict(state)
    state["bilateral_compat"].fill_(0)
    assert second.bilateral_compat == 10


@pytest.mark.parametrize("target", [True, False])
def test_other_shapes_are_refused_with_the_way_out(target: bool) -> None:
    matrix = DenseCRF(bilateral_compat=-torch.eye(3), learnable=True)
    plain = DenseCRF(bilateral_srgb=5, learnable=target)
    with pytest.raises(RuntimeError, match=r"bilateral_compat has the shape \[3, 3\] .*, but one number"):
        plain.load_state_dict(matrix.state_dict())
    assert plain.bilateral_srgb.item() == pytest.approx(5)
    with pytest.raises(RuntimeError, match=r"value of spatial_sxy that has the shape \[2\]"):
        plain.load_state_dict(DenseCRF(spatial_sxy=(1, 2)).state_dict())


@pytest.mark.parametrize("learnable", [True, False])
def test_missing_and_unknown_entries(learnable: bool) -> None:
    state = DenseCRF(learnable=True).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*other"):
        DenseCRF(learnable=learnable).load_state_dict({**state, "other": torch.zeros(1)})
    del state["spatial_compat"]
    with pytest.raises(RuntimeError, match=r"Missing key.*spatial_compat"):
        DenseCRF(learnable=learnable).load_state_dict(state)
    found = DenseCRF(learnable=learnable).load_state_dict(state, strict=False)
    assert found.missing_keys == ["spatial_compat"]


def test_a_network_without_a_dense_crf_still_loads_into_one_with_fixed_values() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), DenseCRF(bilateral_sxy=20))
    network.load_state_dict({key: value for key, value in network.state_dict().items() if key.startswith("0.")})
    assert network[1].bilateral_sxy == 20
    network.load_state_dict(nn.Sequential(nn.Conv2d(3, 3, 1), DenseCRF(bilateral_sxy=40, learnable=True)).state_dict())
    assert network[1].bilateral_sxy.item() == pytest.approx(40)
