"""Memory policies -> schedules: when to run, keep, mark, save, load and go back. Values; nothing here runs anything.

A schedule is two lists of actions over ranges of steps. *Residuals* are what the backward pass reads of a range: the
saved values and traced states of its pairs. A *mark* is the state before a step.

| action | meaning |
|---|---|
| mark t | keep a copy of the state before step t |
| run a:b | run these steps; nothing is kept but outputs |
| run a:b keep | run these steps and keep their residuals |
| save a:b | write the residuals to the file, and let go of them |
| load a:b | read them back |
| restore t | go on from the mark |
| back a:b | the backward pass over these steps |
| free a:b | let go of the residuals and of the mark at a |

Sources: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (recomputation in sqrt(T) segments); Griewank
and Walther 2000 (levels of marks).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from throughtime._errors import MemoryPolicyError

__all__ = [
    "BLOCK",
    "Action",
    "Budget",
    "Costs",
    "MemoryPolicy",
    "Recompute",
    "SaveAll",
    "Schedule",
    "Spill",
    "Work",
    "choose",
]

BLOCK = 32
"""Segments begin at multiples of this many steps: the blocks in which weight gradients are summed."""
SEGMENT_PAIRS = 512
"""A shorter segment costs more in calls than it saves in memory."""
MOST_MARKS = 4096
SEGMENT_BYTES = 4 << 20
"""Residuals that one write or read of a spill moves: written while the cache still holds them."""
OBJECT_BYTES = 2000
"""Of a segment, beside its arrays: what holds the tensors of its mark, and its lines of the schedule."""


@dataclass(frozen=True)
class SaveAll:
    """Keep every residual in memory: the fastest, and the memory grows with the number of steps. The default."""


@dataclass(frozen=True)
class Recompute:
    """Keep the state every `every` steps; the backward pass runs each segment again before it goes back over it.

    Args:
        every: steps in a segment, rounded up to a multiple of 32; by default about sqrt(T), and more with few rows,
            so that a segment has 512 pairs of a row and a step. With more than 4096 segments, marks are kept on two
            levels, and a segment is run twice again.
    """

    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise MemoryPolicyError(f"Recompute(every=...) is a number of steps, at least 1, got {self.every}.")


@dataclass(frozen=True)
class Spill:
    """Write residuals to a private file behind the forward pass, and read them ahead of the backward pass.

    The file has no name once it is open, its space is reserved first, and it goes with the graph of the call.

    Args:
        directory: where; by default the system's directory for temporary files.
    """

    directory: str | None = None


@dataclass(frozen=True)
class Budget:
    """The cheapest of `SaveAll`, `Recompute` and `Spill` whose predicted peak fits.

    Args:
        limit: bytes, or a text such as "512MB" or "1.5GiB", for the peak of what one call allocates, forwards and
            backwards, beside inputs (and their copy in the order of time, where they are batch-major), outputs and
            the gradients of both. Within: residuals, marks, a chunk's work, packed weights, the sums that become the
            weights' gradients. Not within: the compiler, at the first call, and what the loss allocates.
    """

    limit: int | str

    def __post_init__(self) -> None:
        if self.bytes <= 0:
            raise MemoryPolicyError(f"Budget(limit) must be more than 0 bytes, got {self.limit!r}.")

    @property
    def bytes(self) -> int:
        if isinstance(self.limit, int):
            return self.limit
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(self.limit), re.IGNORECASE)
        if match is None:
            raise MemoryPolicyError(
                f"Budget(limit) is a number of bytes or a text such as '512MB', got {self.limit!r}."
            )
        number, unit, binary = match.groups()
        return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))


MemoryPolicy = SaveAll | Recompute | Spill | Budget


@dataclass(frozen=True)
class Action:
    """One line of a schedule, over the steps [start, stop) or at `start`."""

    kind: Literal["mark", "run", "save", "load", "restore", "back", "free"]
    start: int
    stop: int = 0
    keep: bool = False

    def __str__(self) -> str:
        place = str(self.start) if self.kind in ("mark", "restore") else f"{self.start}:{self.stop}"
        return f"{self.kind} {place}{' keep' if self.keep else ''}"


@dataclass(frozen=True)
class Schedule:
    """What to do in the forward pass and in the backward pass. predict: how many bytes they allocate at most."""

    policy: MemoryPolicy
    forward: tuple[Action, ...]
    backward: tuple[Action, ...]
    predict: Callable[[], int] = field(compare=False, repr=False)

    @cached_property
    def peak(self) -> int:
        """The predicted peak. Only a budget and a reader ask for it."""
        return self.predict()

    @property
    def runs_again(self) -> bool:
        """Whether the backward pass makes all outputs and residuals itself."""
        return any(action.kind == "run" for action in self.backward)

    def __str__(self) -> str:
        return "\n".join([str(self.policy), "forward", *_indent(self.forward), "backward", *_indent(self.backward)])


@dataclass(frozen=True)
class Costs:
    """What a plan keeps and computes. offsets: pairs before each step, N at the end. active: rows of each step."""

    offsets: np.ndarray
    active: np.ndarray
    pair_bytes: int
    """Residuals of one pair that are not outputs."""
    output_bytes: int
    """Outputs of one pair, which a segment that is run again has once more."""
    row_bytes: int
    """The state of one row."""
    pair_flops: int
    """Floating-point operations of the forward step, for one pair."""
    work: Callable[[int], "Work"]
    """In segments of so many steps."""

    @property
    def steps(self) -> int:
        return len(self.active)

    def pairs(self, start: int, stop: int) -> int:
        return int(self.offsets[stop] - self.offsets[start])

    def residuals(self, start: int, stop: int) -> int:
        return self.pairs(start, stop) * self.pair_bytes

    def again(self, start: int, stop: int) -> int:
        return self.pairs(start, stop) * (self.pair_bytes + self.output_bytes)

    def mark(self, t: int) -> int:
        return int(self.active[t]) * self.row_bytes + OBJECT_BYTES


class Work(NamedTuple):
    """Bytes that passes work with, however many steps there are: always, in one forwards, and in one backwards."""

    always: int
    forward: int
    backward: int

    @property
    def one_pass(self) -> int:
        """At most, when they run one after the other."""
        return self.always + max(self.forward, self.backward)

    @property
    def both(self) -> int:
        """When steps run again within the backward pass."""
        return self.always + self.forward + self.backward


def choose(policy: MemoryPolicy, costs: Costs) -> Schedule:
    """The schedule of a policy for one call. Raises MemoryPolicyError for a budget that nothing fits."""
    if isinstance(policy, SaveAll):
        return _save_all(policy, costs)
    if isinstance(policy, Recompute):
        return _recompute(policy, costs)
    if isinstance(policy, Spill):
        return _spill(policy, costs)
    return _within(policy, costs)


def _save_all(policy: SaveAll, costs: Costs) -> Schedule:
    end = costs.steps
    forward = (Action("run", 0, end, keep=True),)
    backward = (Action("back", 0, end), Action("free", 0, end))
    return Schedule(policy, forward, backward, lambda: costs.residuals(0, end) + costs.work(end).one_pass)


def _recompute(policy: Recompute, costs: Costs) -> Schedule:
    every = _whole_blocks(policy.every or _default_length(costs))
    segments = _segments(0, costs.steps, every)
    levels = [segments]
    if len(segments) <= MOST_MARKS:
        backward = [a for s in reversed(segments) for a in _again(s)]
    else:
        levels = [_segments(0, costs.steps, every * (math.isqrt(len(segments)) + 1)), segments]
        backward = [a for s in reversed(levels[0]) for a in _again_in_parts(s, every)]
    forward = [a for s in levels[0] for a in (Action("mark", s[0]), Action("run", *s))]

    def predict() -> int:
        work, marks = costs.work(every), sum(costs.mark(start) for start, _ in levels[0])
        if len(levels) > 1:
            marks += work.forward + max(sum(costs.mark(t) for t, _ in _segments(*s, every)) for s in levels[0])
        return marks + max((costs.again(*s) for s in segments), default=0) + work.both

    return Schedule(policy, tuple(forward), tuple(backward), predict)


def _default_length(costs: Costs) -> int:
    most_rows = int(costs.active.max(initial=1))
    return max(math.isqrt(max(costs.steps - 1, 0)) + 1, SEGMENT_PAIRS // most_rows)


def _again(segment: tuple[int, int]) -> list[Action]:
    start, _ = segment
    run = Action("run", *segment, keep=True)
    return [Action("restore", start), run, Action("back", *segment), Action("free", *segment)]


def _again_in_parts(wide: tuple[int, int], every: int) -> list[Action]:
    """Run a wide segment again for its marks, then each of its parts."""
    parts = _segments(*wide, every)
    marking = [a for s in parts[:-1] for a in (Action("run", *s), Action("mark", s[1]))]
    return [Action("restore", wide[0]), *marking, *(a for s in reversed(parts) for a in _again(s))]


def _spill(policy: Spill, costs: Costs) -> Schedule:
    most_rows = int(costs.active.max(initial=1))
    every = _whole_blocks(max(1, SEGMENT_BYTES // max(1, costs.pair_bytes * most_rows)))
    one_call = max(1, SEGMENT_PAIRS // most_rows // BLOCK) * BLOCK
    every -= every % one_call if every > one_call else 0
    segments = _segments(0, costs.steps, every)
    forward = [a for s in segments for a in (Action("mark", s[0]), Action("run", *s, keep=True), Action("save", *s))]
    backward = [a for s in reversed(segments) for a in (Action("load", *s), Action("back", *s), Action("free", *s))]

    def predict() -> int:
        marks = sum(costs.mark(start) for start, _ in segments)
        two = 2 * max((costs.residuals(*s) for s in segments), default=0)
        return marks + two + costs.work(every).one_pass

    return Schedule(policy, tuple(forward), tuple(backward), predict)


def _within(policy: Budget, costs: Costs) -> Schedule:
    options = [choose(SaveAll(), costs), *_recomputations(costs), choose(Spill(), costs)]
    fitting = [option for option in options if option.peak <= policy.bytes]
    if not fitting:
        least = min(option.peak for option in options)
        raise MemoryPolicyError(
            f"{policy} is too small for these {costs.steps} steps: the least that works is {least} bytes "
            f"(Budget({least})). Raise the limit, or shorten the sequences."
        )
    return min(fitting, key=lambda option: (_extra_seconds(option, costs), option.peak))


def _recomputations(costs: Costs) -> list[Schedule]:
    """Segments of the default length, and shorter ones, which a tight budget may want."""
    default = _whole_blocks(_default_length(costs))
    lengths = {default, *(_whole_blocks(default // part) for part in (2, 4, 8, 16))}
    return [choose(Recompute(every), costs) for every in sorted(lengths, reverse=True)]


FLOPS_PER_SECOND, DISK_BYTES_PER_SECOND, SECONDS_PER_SEGMENT = 60e9, 1e9, 0.3e-3


def _extra_seconds(schedule: Schedule, costs: Costs) -> float:
    """What a schedule costs beyond SaveAll, on a common machine: only the order of these figures matters."""
    if isinstance(schedule.policy, Spill):
        return 2 * costs.residuals(0, costs.steps) / DISK_BYTES_PER_SECOND
    again = [costs.pairs(a.start, a.stop) for a in schedule.backward if a.kind == "run"]
    return sum(again) * costs.pair_flops / FLOPS_PER_SECOND + len(again) * SECONDS_PER_SEGMENT


def _segments(start: int, stop: int, every: int) -> list[tuple[int, int]]:
    return [(t, min(t + every, stop)) for t in range(start, stop, every)]


def _whole_blocks(steps: int) -> int:
    return max(1, -(-steps // BLOCK)) * BLOCK


def _indent(actions: Sequence[Action]) -> list[str]:
    return [f"  {action}" for action in actions]
