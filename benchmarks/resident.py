"""Peak resident memory by the operating system's count, and measurements in processes of their own."""

import ctypes
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["MB", "Failed", "Peak", "available", "fresh"]

MB = 1e6
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "8192"}
"""Of glibc: what is freed goes back to the system, and holes that a compilation left in the heap are not filled anew.

Those alone move a peak by 2 to 5 MB, from run to run.
"""


def _resident(line: str) -> float:
    """Bytes of a line of /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return 1024.0 * int(text.split(f"{line}:")[1].split()[0])


def _clocks() -> tuple[float, float, float]:
    return time.process_time(), time.thread_time(), time.perf_counter()


class Peak:
    """`with Peak() as peak: ...`: seconds, and bytes above what was resident before.

    seconds: of the processor, in all threads; own: in this thread; clock: what went by.

    What was freed before is given back to the system first, so that what is allocated within counts. With `since`,
    bytes above what was resident before that one.
    """

    def __init__(self, since: "Peak | None" = None) -> None:
        self._since = since

    def __enter__(self) -> "Peak":
        if self._since is None:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident("VmRSS") if self._since is None else self._since._before
        self._began = _clocks()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.own, self.clock = (now - then for now, then in zip(_clocks(), self._began))
        self.bytes = _resident("VmHWM") - self._before


def available() -> float:
    """Bytes that the system could give to a process now."""
    return 1024.0 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])


class Failed(Exception):
    """A measurement's process ended without a result."""

    def __init__(self, measurement: str, code: int, errors: str) -> None:
        self.reason = f"its process ended by {signal.Signals(-code).name}" if code < 0 else errors.splitlines()[-1]
        super().__init__(f"{measurement} failed, {self.reason}:\n{errors}")


def fresh(script: str, name: str, *arguments: object, threads: int = 1, stack: int | None = None) -> dict:
    """`python script --measure name arguments` in a process of its own; it prints one line of JSON at the end.

    Raises Failed when it does not. stack: bytes, where the usual 8 MB are too few.
    """
    command = [sys.executable, script, "--measure", name, json.dumps(arguments)]
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": str(threads)}
    before = resource.getrlimit(resource.RLIMIT_STACK)
    if stack is not None:
        resource.setrlimit(resource.RLIMIT_STACK, (stack, before[1]))
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, before)
    if done.returncode:
        raise Failed(f"{name} {arguments}", done.returncode, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])
