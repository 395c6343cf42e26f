"""Device, precision and batch size that suit a machine."""

import logging

import pytest
import torch

from contextcrf.utils import runtime
from contextcrf.utils.runtime import autocast, default_batch_size, default_device, default_workers, resolve_precision


@pytest.fixture(params=[True, False], ids=["bfloat16", "no bfloat16"])
def fast(request, monkeypatch):
    """Whether the machine seems to have fast bfloat16."""
    monkeypatch.setattr(runtime, "has_bfloat16", lambda device=None: request.param)
    return request.param


def test_automatic_precision_is_the_faster_one(fast, caplog):
    assert resolve_precision("auto") == ("bf16-mixed" if fast else "32-true")
    assert resolve_precision("32-true") == "32-true"
    assert not caplog.messages


def test_slow_bfloat16_is_used_with_a_warning(fast, caplog):
    with caplog.at_level(logging.WARNING):
        assert resolve_precision("bf16-mixed") == "bf16-mixed"
    assert [record.levelname for record in caplog.records] == ([] if fast else ["WARNING"])
    if not fast:
        assert "no bfloat16 hardware" in caplog.text


@pytest.mark.parametrize("use", [resolve_precision, lambda value: autocast(torch.device("cpu"), value)])
def test_unknown_precisions_are_refused(use):
    with pytest.raises(ValueError, match="precision is 'fp16', but must be one of auto, bf16-mixed, 32-true"):
        use("fp16")


def test_autocast_computes_in_the_precision(fast):
    for precision, dtype in [("auto", torch.bfloat16 if fast else torch.float32), ("32-true", torch.float32)]:
        with autocast(torch.device("cpu"), precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_bfloat16_of_processors_is_that_of_their_capabilities(monkeypatch):
    monkeypatch.setattr(runtime, "default_device", lambda: torch.device("cpu"))
    for capabilities, expected in [({"avx512_bf16": True, "avx2": True}, True), ({"amx_bf16": False}, False)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert runtime.has_bfloat16() is expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_of_nvidia_gpus_is_that_of_their_generation(monkeypatch, capability, expected):
    monkeypatch.setattr(runtime, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert runtime.has_bfloat16() is expected


def test_an_accelerator_has_larger_batches_and_loading_processes(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert (default_batch_size(), default_workers()) == (4, 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for cores, workers in [(None, 1), (1, 1), (6, 3), (64, 8)]:
        monkeypatch.setattr(runtime.os, "cpu_count", lambda found=cores: found)
        assert (default_batch_size(), default_workers()) == (8, workers)


def test_the_default_device_is_the_accelerator_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert default_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert default_device() == torch.device("mps")
