"""Memory policies as schedules: golden texts, what each keeps, and what a schedule may never do."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime._errors import MemoryPolicyError
from throughtime.plan.memory import (
    BLOCK,
    MOST_MARKS,
    Budget,
    Costs,
    MemoryPolicy,
    Recompute,
    SaveAll,
    Schedule,
    Spill,
    Work,
    choose,
)


def shown(schedule: Schedule) -> str:
    return f"{schedule}\npeak {schedule.peak}"


def costs(steps: int, rows: int = 1, pair_bytes: int = 100, **given: int) -> Costs:
    return ragged([steps] * rows, pair_bytes=pair_bytes, **given)


def ragged(lengths: list[int], pair_bytes: int = 100, **given: int) -> Costs:
    active = np.array([sum(n > t for n in lengths) for t in range(max(lengths, default=0))], np.int64)
    offsets = np.concatenate([[0], np.cumsum(active)])
    known = {"output_bytes": 40, "row_bytes": 50, "pair_flops": 1000}
    return Costs(offsets, active, pair_bytes, **{**known, **given}, work=lambda every: Work(0, 3, 5))


@pytest.mark.parametrize(
    ("name", "policy", "of"),
    [
        ("save_all", SaveAll(), costs(100, 2)),
        ("recompute_few_steps", Recompute(), costs(20)),
        ("recompute", Recompute(), ragged([1200, 1200, 900, 5])),
        ("recompute_every_64", Recompute(64), costs(200)),
        ("recompute_every_33", Recompute(every=33), costs(200)),
        ("spill", Spill(), costs(100, pair_bytes=200_000)),
        ("spill_one_segment", Spill("/scratch"), costs(100)),
        ("budget_save_all", Budget(20_000), costs(100)),
        ("budget_recompute", Budget(40_000), costs(500)),
        ("budget_spill", Budget("70MB"), costs(320, pair_bytes=1_000_000, output_bytes=1_000_000, pair_flops=10**12)),
    ],
)
def test_schedules(golden: Callable[[str, str], None], name: str, policy: MemoryPolicy, of: Costs) -> None:
    golden(f"schedules/{name}", shown(choose(policy, of)))


def test_levels(golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """With more segments than marks may be kept: some marks in the forward pass, others in the backward pass."""
    monkeypatch.setattr("throughtime.plan.memory.MOST_MARKS", 4)
    golden("schedules/recompute_levels", shown(choose(Recompute(32), costs(200))))


@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    policy=st.sampled_from([SaveAll(), Recompute(), Recompute(32), Recompute(100), Spill(), Budget("1GB")]),
    most_marks=st.sampled_from([2, 5, MOST_MARKS]),
)
def test_every_schedule_goes_back_over_every_step_once(
    lengths: list[int], policy: MemoryPolicy, most_marks: int
) -> None:
    """And reads nothing that is not there; its peak is that of a walk over it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("throughtime.plan.memory.MOST_MARKS", most_marks)
        of = ragged(lengths, pair_bytes=100_000)
        walk = _Walk(of)
        schedule = choose(policy, of)
        walk.forward(schedule)
        walk.backward(schedule)
        assert walk.back == of.steps * [True]
        assert not walk.residuals, "all residuals are let go of"
        assert walk.peak <= schedule.peak


class _Walk:
    """What a schedule holds, action by action."""

    def __init__(self, of: Costs) -> None:
        self.of, self.at, self.peak = of, 0, 0
        self.marks, self.residuals, self.saved = {0}, {}, set()
        self.back = [False] * of.steps

    def forward(self, schedule: Schedule) -> None:
        for action in schedule.forward:
            self._do(action.kind, action.start, action.stop, action.keep, self.of.residuals)
        assert self.at == self.of.steps

    def backward(self, schedule: Schedule) -> None:
        for action in schedule.backward:
            self._do(action.kind, action.start, action.stop, action.keep, self.of.again)

    def _do(self, kind: str, start: int, stop: int, keep: bool, size: Callable[[int, int], int]) -> None:
        assert start % BLOCK == 0, "weight gradients are summed in blocks of absolute time"
        if kind == "mark":
            assert self.at == start
            self.marks.add(start)
        elif kind == "restore":
            assert start in self.marks
            self.at = start
        elif kind == "run":
            assert self.at == start
            self.at = stop
            if keep:
                self.residuals[start] = size(start, stop)
        elif kind == "save":
            del self.residuals[start]
            self.saved.add(start)
        elif kind == "load":
            assert start in self.saved
            self.residuals[start] = self.of.residuals(start, stop)
        elif kind == "back":
            assert start in self.residuals
            assert start in self.marks
            assert all(self.back[stop:]), "later steps come first"
            self.back[start:stop] = [True] * (stop - start)
        else:
            del self.residuals[start]
            self.marks.remove(start)
        self.peak = max(self.peak, sum(self.residuals.values()) + sum(map(self.of.mark, self.marks - {0})))


def test_memory_of_recompute_grows_as_the_root() -> None:
    """And on two levels more slowly than the marks of one."""
    peaks = [choose(Recompute(), costs(steps, rows=16)).peak for steps in (10_000, 1_000_000)]
    assert peaks[1] < 12 * peaks[0]
    wide = choose(Recompute(32), costs(1_000_000)).peak
    assert wide < MOST_MARKS * costs(1).mark(0)


@pytest.mark.parametrize(
    ("text", "number"),
    [("512MB", 512_000_000), ("1.5 GiB", 1.5 * 2**30), ("64k", 64_000), ("100", 100), ("3 b", 3), (7, 7)],
)
def test_a_limit_in_words(text: int | str, number: int) -> None:
    assert Budget(text).bytes == number


def test_a_budget_takes_the_cheapest_that_fits() -> None:
    of = costs(10_000, 8)
    options = [choose(Budget(limit), of) for limit in ("1GB", "2MB", "400KB")]
    assert isinstance(options[0].policy, SaveAll)
    assert all(isinstance(option.policy, Recompute) for option in options[1:])
    assert all(option.peak <= limit for option, limit in zip(options, (10**9, 2_000_000, 400_000)))


def test_a_budget_takes_the_longest_segments_that_fit() -> None:
    """Short ones cost more: with one row, 1.9 times SaveAll's time instead of 1.3."""
    of = costs(5000)
    whole, half = (choose(Recompute(every), of) for every in (512, 256))
    assert half.peak < whole.peak < choose(SaveAll(), of).peak
    assert choose(Budget(whole.peak), of).backward == whole.backward
    assert choose(Budget(whole.peak - 1), of).backward == half.backward


def test_the_least_budget_that_works_works() -> None:
    of = costs(500, 3)
    with pytest.raises(MemoryPolicyError, match="too small for these 500 steps: the least that works") as failed:
        choose(Budget(1000), of)
    least = int(str(failed.value).split("Budget(")[2].split(")")[0])
    assert choose(Budget(least), of).peak == least
    with pytest.raises(MemoryPolicyError):
        choose(Budget(least - 1), of)


@pytest.mark.parametrize("limit", ["512 apples", "1.2.3MB", "", "-3MB", 0.5j])
def test_a_limit_that_says_nothing(limit: str) -> None:
    with pytest.raises(MemoryPolicyError, match="is a number of bytes or a text such as"):
        Budget(limit)


@pytest.mark.parametrize("limit", [0, -1, "0MB"])
def test_a_limit_of_nothing(limit: int | str) -> None:
    with pytest.raises(MemoryPolicyError, match="must be more than 0 bytes"):
        Budget(limit)


def test_no_segments_of_no_steps() -> None:
    with pytest.raises(MemoryPolicyError, match=r"every=\.\.\.\) is a number of steps, at least 1"):
        Recompute(every=0)
