"""Memory that is freed and allocated again."""

import os
import platform
import subprocess
import sys

import pytest

from contextcrf.utils.memory import reuse_freed_memory

# Tensors of 64 MiB are freed and allocated again. The script prints the page faults of the last ten.
SCRIPT = """
import resource, torch
from contextcrf.utils.memory import reuse_freed_memory
print(reuse_freed_memory())
def faults():
    for _ in range(10):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")


def run(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.run(
        command, env={**environment, **variables}, check=True, capture_output=True, text=True
    ).stdout
    changed, faults = output.split()
    return changed == "True", int(faults)


@on_glibc
def test_freed_tensors_are_allocated_again_without_page_faults():
    changed, faults = run()
    assert changed
    unchanged, default_faults = run(MALLOC_MMAP_THRESHOLD_="131072")
    assert not unchanged
    # Even with huge pages of 2 MiB, ten tensors have 320 pages.
    assert faults < 100 < default_faults


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_settings_in_the_environment_are_respected(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not reuse_freed_memory()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr("contextcrf.utils.memory.sys.platform", "darwin")
    assert not reuse_freed_memory()
