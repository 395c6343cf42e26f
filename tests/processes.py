"""A function that runs in two processes at the same time."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch


def run_in_two(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return the results of two processes, each with one thread, which call a function at the same time.

    Args:
        function: a function of a module, with the arguments of this call and a barrier. It waits at the barrier when it
            is ready.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_run, args=(function, arguments, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=240) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return found


def _run(function: Callable[..., Any], arguments: tuple[Any, ...], barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    results.put(function(*arguments, barrier))
