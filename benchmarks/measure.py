"""Times as ratios of one run, and peak memory of one function in a process of its own."""

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

FIGURES = Path(__file__).parent.parent / "results" / "crf" / "figures.json"


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each function; they take turns, so that a busy moment of the machine falls on all."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for repeat in range(repeats):
        # Another one first each time: what runs after a large one finds its caches cold.
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(function: Callable[..., object], *arguments: Any, processes: int = 1) -> float:
    """MiB that a function takes beyond what stood before: the median high-water mark of fresh processes.

    Args:
        function: a generator: it prepares, yields once, and then does what is measured.
        arguments: what it is called with.
        processes: how much of the freed memory a process keeps is a matter of chance; for small things take several.
    """

    return statistics.median(apart(function, *arguments).added for _ in range(processes))


class Cost(NamedTuple):
    """Of a function: seconds, and the most MiB that it took beyond what stood before, and in all."""

    seconds: float
    added: float
    total: float


def apart(function: Callable[..., object], *arguments: Any) -> Cost:
    """What a function costs in a process of its own; arguments as `peak_memory`'s."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (function, arguments))


def _measured(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Cost:
    work = function(*arguments)
    next(work)
    # Linux: writing 5 sets the high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _water_mark(), time.perf_counter()
    for _ in work:
        pass
    seconds, total = time.perf_counter() - start, _water_mark()
    return Cost(seconds, (total - before) / 1024, total / 1024)


def _water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def matmul_rate(dtype: torch.dtype = torch.float32, size: int = 4096) -> float:
    """The machine's own rate of a square matrix product, GFLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / interleaved({"product": lambda: a @ b}, 3)["product"] / 1e9


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Matrix products of float32 numbers that are rounded to bfloat16, with sums in float32, where it is faster."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def machine() -> str:
    """What the figures were measured on."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return (
        f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def run_parts(
    parser: argparse.ArgumentParser, parts: Mapping[str, Callable[[argparse.Namespace], None]], needy: set[str]
) -> None:
    """Run the parts that the command line names, all if none, each under its heading.

    Args:
        parser: with the options that the parts take.
        parts: by name.
        needy: those that need `--data`.
    """
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all if none")
    parser.add_argument("--repeats", type=int, default=5, help="of everything that is timed")
    parser.add_argument("--data", type=Path, help=f"a data set, for {', '.join(sorted(needy))}")
    options = parser.parse_args()
    chosen = options.parts or list(parts)
    if unknown := sorted(set(chosen) - set(parts)):
        parser.error(f"{unknown}: expected some of {', '.join(parts)}")
    if options.data is None and (without := sorted(needy & set(chosen))):
        parser.error(f"{', '.join(without)}: expected --data")
    print(machine())
    for name in chosen:
        print(f"\n## {name}\n", flush=True)
        parts[name](options)


def store(values: dict[str, Any], path: Path = FIGURES) -> None:
    """Add values to a JSON file of figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    machines = {**known.get("machine", {}), **dict.fromkeys(values, machine())}
    path.write_text(json.dumps({**known, **values, "machine": machines}, indent=1) + "\n")
