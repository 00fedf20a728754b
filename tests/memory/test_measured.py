"""What the operating system measures, in fresh processes: budgets are kept, and memory does not grow with chunks.

A few of the figures of `benchmarks/memory.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "8192"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is set back through /proc"),
]


def measured(name: str, *arguments: Any) -> dict:
    command = [sys.executable, str(SCRIPT), "--measure", name, json.dumps(arguments)]
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("seed", [0, 5, 11])
def test_a_budget_is_kept_and_the_prediction_is_near(seed: int) -> None:
    found = measured("budget", seed)
    assert found["measured"] <= 1.05 * found["limit"]
    assert abs(found["measured"] - found["predicted"]) <= max(0.1 * found["predicted"], 4e6)


def test_memory_does_not_grow_with_the_chunks() -> None:
    """But for what is said: some bytes a step (losses, their gradient, the numbers of rows), and the root of T.

    The inputs alone are 768 bytes a step.
    """
    more, fewer = (measured("chunks", steps)["bytes"] for steps in (120_000, 20_000))
    assert more - fewer < 100_000 * 60
