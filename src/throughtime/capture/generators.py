"""Python's and NumPy's generators before and after a trace -> a refusal, if the step drew from them.

What they give is a plain number: the trace would keep the one that it saw, for every step of every call.
"""

import random
from typing import Any

import numpy as np

from throughtime._errors import CaptureError

__all__ = ["Generators"]


class Generators:
    """Where they stand now."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state(legacy=False)

    def restore(self) -> None:
        """What a trace drew, a run draws again."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)

    def refuse_draws(self) -> None:
        """After a step: unless they stand where they stood."""
        drawn = {"random": random.getstate() != self._python, "numpy.random": self._numpy_has_moved()}
        for module, has_moved in drawn.items():
            if has_moved:
                raise CaptureError(
                    f"the step draws a number from Python's module {module}, but it is traced once: all steps of all "
                    "calls would have that number. Draw with torch.rand or torch.randn, or give it as an input."
                )

    def _numpy_has_moved(self) -> bool:
        now: Any = np.random.get_state(legacy=False)
        return any(
            not np.array_equal(now["state"][name], before) for name, before in self._numpy["state"].items()
        ) or any(now[name] != self._numpy[name] for name in ("has_gauss", "gauss"))
