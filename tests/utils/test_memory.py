"""Memory that is freed, and is allocated again or released."""

import os
import platform
import subprocess
import sys

import pytest

from contextcrf.utils.memory import release_freed_memory, reuse_freed_memory

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
# The script prints the resident memory in MiB while four tensors of 64 MiB are in use, after they are freed, and after
# freed memory is released.
RELEASE = """
import os, torch
from contextcrf.utils.memory import release_freed_memory, reuse_freed_memory
reuse_freed_memory()
def resident():
    print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20)
tensors = [torch.ones(1 << 24) for _ in range(4)]
kept = torch.ones(1 << 10)
resident()
del tensors
resident()
release_freed_memory()
resident()
"""
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")


def run(script, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env={**environment, **variables}, check=True, capture_output=True, text=True)
    return result.stdout.split()


def count_faults(**variables):
    changed, faults = run(SCRIPT, **variables)
    return changed == "True", int(faults)


@on_glibc
def test_freed_tensors_are_allocated_again_without_page_faults():
    changed, faults = count_faults()
    assert changed
    unchanged, default_faults = count_faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert not unchanged
    # Even with huge pages of 2 MiB, ten tensors have 320 pages.
    assert faults < 100 < default_faults


@on_glibc
def test_freed_memory_is_kept_until_it_is_released():
    used, freed, released = map(int, run(RELEASE))
    assert used - freed < 50
    assert used - released > 200


def test_nothing_is_released_if_nothing_is_kept(monkeypatch):
    # Only the command line and programs that ask for it reuse freed memory.
    monkeypatch.setattr("contextcrf.utils.memory._reusing", False)
    assert not release_freed_memory()


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_settings_in_the_environment_are_respected(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not reuse_freed_memory()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr("contextcrf.utils.memory.sys.platform", "darwin")
    assert not reuse_freed_memory()
