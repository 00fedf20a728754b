"""Calls by turns -> the median time of each. Shared by the scripts of this directory."""

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["interleaved"]

WARM_UP = 2
SECONDS_A_TURN = 0.1


def _quiet_clock() -> Callable[[], float]:
    """With one thread the processor's time, which other processes do not disturb."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def interleaved(
    runs: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """Median seconds of a call, after two rounds to warm up and compile; by the quiet clock, unless said.

    Short calls follow each other for a while, as they do in training, before it is the next one's turn.
    """
    clock = clock or _quiet_clock()
    seen: dict[str, list[float]] = {name: [] for name in runs}
    calls = dict.fromkeys(runs, 1)
    for round_ in range(WARM_UP + rounds):
        for name, call in runs.items():
            begin = clock()
            for _ in range(calls[name]):
                call()
            taken = (clock() - begin) / calls[name]
            if round_ >= WARM_UP:
                seen[name].append(taken)
            else:
                calls[name] = max(1, int(SECONDS_A_TURN / taken))
    return {name: statistics.median(times) for name, times in seen.items()}
