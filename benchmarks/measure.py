"""Times as ratios within one run, and the peak memory of a function in a process of its own."""

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from contextcrf.utils.files import write_json

FIGURES = Path(__file__).parent.parent / "results" / "crf" / "figures.json"


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each function; they take turns, so that other load on the machine affects all of them alike."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for repeat in range(repeats):
        # Another one comes first each time, since a function that follows a large one finds cold caches.
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(function: Callable[..., object], *arguments: Any, processes: int = 1) -> float:
    """MiB that a function takes beyond the memory in use before: the median high-water mark of fresh processes.

    Args:
        function: a generator: it prepares, yields once, and then does the work that is measured.
        arguments: its arguments.
        processes: how much of the freed memory a process keeps is a matter of chance; for small amounts take several.
    """
    return statistics.median(cost_of(function, *arguments).added for _ in range(processes))


class Cost(NamedTuple):
    """Seconds of a function, and its most MiB: beyond the memory in use before, and in all."""

    seconds: float
    added: float
    total: float


def cost_of(function: Callable[..., object], *arguments: Any) -> Cost:
    """The cost of a function in a process of its own; arguments as for `peak_memory`."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_cost_here, (function, arguments))


def _cost_here(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Cost:
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
    """KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def matmul_rate(dtype: torch.dtype = torch.float32, size: int = 4096) -> float:
    """The rate of a square matrix product on this machine, GFLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / interleaved({"product": lambda: a @ b}, 3)["product"] / 1e9


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Round the factors of float32 matrix products to bfloat16, where that is faster; sums stay in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def machine() -> str:
    """Processor, threads and version of torch, for the record of the figures."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return (
        f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def run_parts(
    parser: argparse.ArgumentParser, parts: Mapping[str, Callable[[argparse.Namespace], None]], need_data: set[str]
) -> None:
    """Run the parts that are named on the command line, all of them if none is, each under its heading.

    Args:
        parser: with the options of the parts.
        parts: by name.
        need_data: the parts that need `--data`.
    """
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all if none")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of every time, of which the median counts")
    if need_data:
        parser.add_argument("--data", type=Path, help=f"folder of a data set, for {', '.join(sorted(need_data))}")
    options = parser.parse_args()
    chosen = options.parts or list(parts)
    if unknown := sorted(set(chosen) - set(parts)):
        parser.error(f"{unknown}: expected some of {', '.join(parts)}")
    if (without := sorted(need_data & set(chosen))) and options.data is None:
        parser.error(f"{', '.join(without)}: expected --data")
    print(machine())
    for name in chosen:
        print(f"\n## {name}\n", flush=True)
        parts[name](options)


def store(values: dict[str, Any], path: Path = FIGURES) -> None:
    """Add values to a JSON file of figures."""
    known = json.loads(path.read_text()) if path.exists() else {}
    machines = {**known.get("machine", {}), **dict.fromkeys(values, machine())}
    write_json(path, {**known, **values, "machine": machines})
