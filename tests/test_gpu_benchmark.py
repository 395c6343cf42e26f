"""The benchmark of a GPU runs on the CPU too, so that it works where there is a GPU."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the peak memory of a process can be measured on Linux only"
)
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """The module `benchmarks/gpu.py`, which imports its neighbors."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def test_every_problem_is_measured(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "default_device", lambda: CPU)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--sizes", "tiny", "--repeats", "1", "--out", str(tmp_path / "out")])
    gpu.main()
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["device"].startswith("CPU")
    assert {row["part"] for row in found["rows"]} == set(gpu.PARTS)
    assert len(found["rows"]) == 2 + 1 + 3 + 2
    assert all(row["seconds"] > 0 and row["MiB in total"] > 0 for row in found["rows"])
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert all(row["name"] in page for row in found["rows"])
    assert "tiny" in page


def test_a_problem_that_does_not_fit_is_reported(gpu):
    def prepare(device):
        return lambda: torch.empty(1 << 50, device=device)

    row = gpu.measured(gpu.Problem("dense", "too large", prepare), CPU, 1)
    assert str(1 << 52) in row["error"]
    assert "seconds" not in row
    found = {"device": "CPU", "sizes": "tiny", "note": "", "repeats": 1, "float32 products": "highest", "rows": [row]}
    assert "not enough memory" in gpu.markdown(found)
    assert row["error"] in gpu.markdown(found)


def test_other_errors_end_the_benchmark(gpu):
    with pytest.raises(RuntimeError, match="size of tensor"):
        gpu.measured(gpu.Problem("dense", "wrong", lambda device: lambda: torch.ones(2) + torch.ones(3)), CPU, 1)


def test_marginals_are_compared(gpu):
    found = torch.tensor([[[[0.6, 0.2]], [[0.4, 0.8]]]])
    other = torch.tensor([[[[0.6, 0.7]], [[0.4, 0.3]]]])
    assert gpu.agreement(found, other) == pytest.approx({"same labels": 0.5, "largest difference": 0.5})
    assert gpu.agreement(found, found) == {"same labels": 1.0, "largest difference": 0.0}


@pytest.mark.cuda
def test_a_gpu_agrees_with_the_cpu(gpu):
    for problem in gpu.problems(gpu.SIZES["tiny"]):
        row = gpu.measured(problem, torch.device("cuda"), 1)
        assert row["MiB in total"] > 0
        assert not problem.compared or row["same labels"] > 0.99
