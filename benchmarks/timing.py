"""Calls by turns -> the median time of each. Shared by the scripts of this directory."""

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["interleaved"]

WARM_UP = 2


def _quiet_clock() -> Callable[[], float]:
    """With one thread the processor's time, which other processes do not disturb."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def interleaved(
    runs: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """Median seconds, after two rounds to warm up and compile; by the quiet clock, unless said."""
    clock = clock or _quiet_clock()
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(WARM_UP + rounds):
        for name, call in runs.items():
            begin = clock()
            call()
            if round_ >= WARM_UP:
                seen[name].append(clock() - begin)
    return {name: statistics.median(times) for name, times in seen.items()}
