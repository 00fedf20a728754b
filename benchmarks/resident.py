"""Peak resident memory by the operating system's count, and measurements in processes of their own."""

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["MB", "Peak", "fresh"]

MB = 1e6
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "8192"}
"""Of glibc: what is freed goes back to the system, and holes that a compilation left in the heap are not filled anew.

Those alone move a peak by 2 to 5 MB, from run to run.
"""


def _resident(line: str) -> float:
    """Bytes of a line of /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return 1024.0 * int(text.split(f"{line}:")[1].split()[0])


class Peak:
    """`with Peak() as peak: ...`: seconds (of the processor, of the clock), and bytes above what was resident before.

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
        self._began = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.clock = time.process_time() - self._began[0], time.perf_counter() - self._began[1]
        self.bytes = _resident("VmHWM") - self._before


def fresh(script: str, name: str, *arguments: object, threads: int = 1) -> dict:
    """`python script --measure name arguments` in a process of its own; it prints one line of JSON at the end."""
    command = [sys.executable, script, "--measure", name, json.dumps(arguments)]
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} {arguments} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
