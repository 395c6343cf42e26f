"""Measure times as ratios within one run, and the peak memory of a function in a separate process."""

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from contextcrf.utils.files import write_json

FIGURES = Path(__file__).parent.parent / "results" / "crf" / "figures.json"


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Return the median seconds of each function; they run alternately, so that other load affects all alike."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for repeat in range(repeats):
        # The order rotates, since a function that runs after a large one starts with cold caches.
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(function: Callable[..., object], *arguments: Any, processes: int = 1) -> float:
    """Return the MiB that a function takes beyond the memory in use before: the median peak of fresh processes.

    Args:
        function: a generator function that prepares, yields once, and then does the work that is measured.
        arguments: the arguments of the function.
        processes: number of processes. The amount of freed memory that a process keeps varies by chance, so use several
            processes for small amounts.
    """
    return statistics.median(cost_of(function, *arguments).added for _ in range(processes))


class Cost(NamedTuple):
    """The seconds of a function and its peak memory in MiB: beyond the memory in use before, and in total."""

    seconds: float
    added: float
    total: float


def cost_of(function: Callable[..., object], *arguments: Any) -> Cost:
    """Measure the cost of a function in a separate process, with arguments as for `peak_memory`."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(cost_here, (function, *arguments))


def cost_here(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Like `cost_of`, but in this process. The memory is too low if the process has kept memory that was freed."""
    work = function(*arguments)
    next(work)
    # On Linux, writing 5 resets the high-water mark to the resident memory.
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _water_mark(), time.perf_counter()
    for _ in work:
        pass
    seconds, total = time.perf_counter() - start, _water_mark()
    return Cost(seconds, (total - before) / 1024, total / 1024)


def _water_mark() -> int:
    """Return the peak resident memory of this process in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status has no line VmHWM. Peak memory can be measured on Linux only.")


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the exponent of a power law that is fitted to costs: 1 is growth in proportion to the sizes."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def matmul_rate(dtype: torch.dtype = torch.float32, size: int = 4096) -> float:
    """Measure the rate of a square matrix product on this machine, in GFLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / interleaved({"product": lambda: a @ b}, 3)["product"] / 1e9


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Round the factors of float32 matrix products to bfloat16 where this is faster; sums stay in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def machine() -> str:
    """Return the processor, the number of threads and the version of torch, which are stored with the figures."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return (
        f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def run_parts(
    parser: argparse.ArgumentParser, parts: Mapping[str, Callable[[argparse.Namespace], None]], need_data: set[str]
) -> None:
    """Run the parts that the command line names, or all parts if it names none, each under its heading.

    Args:
        parser: a parser with the options of the parts.
        parts: the functions of the parts, by name.
        need_data: the names of the parts that need `--data`.
    """
    parser.add_argument("parts", nargs="*", help=f"parts to run: {', '.join(parts)} (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="number of measurements; their median is reported")
    if need_data:
        parser.add_argument("--data", type=Path, help=f"folder of the data set (parts: {', '.join(sorted(need_data))})")
    options = parser.parse_args()
    chosen = options.parts or list(parts)
    if unknown := sorted(set(chosen) - set(parts)):
        parser.error(f"Unknown parts: {', '.join(unknown)}. Choose from {', '.join(parts)}.")
    if (without := sorted(need_data & set(chosen))) and options.data is None:
        parser.error(f"These parts need a data set: {', '.join(without)}. Give its folder with --data.")
    print(machine())
    for name in chosen:
        print(f"\n## {name}\n", flush=True)
        parts[name](options)


def store(values: dict[str, Any], path: Path = FIGURES) -> None:
    """Add values and the machine that measured them to a JSON file of figures."""
    known = json.loads(path.read_text()) if path.exists() else {}
    machines = {**known.get("machine", {}), **dict.fromkeys(values, machine())}
    write_json(path, {**known, **values, "machine": machines})
