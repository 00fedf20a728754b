"""Dates as people write them -> the same dates as ISO 8601 has them, no line twice."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
FIRST, LAST = date(1900, 1, 1).toordinal(), date(2099, 12, 31).toordinal()


def ordinal(number: int) -> str:
    teens = 10 < number % 100 < 14
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def month(day: date) -> str:
    return MONTHS[day.month - 1]


def weekday(day: date) -> str:
    return DAYS[day.weekday()]


FORMATS: tuple[Callable[[date], str], ...] = (
    lambda d: f"{ordinal(d.day)} of {month(d)} {d.year}",
    lambda d: f"{ordinal(d.day)} {month(d)[:3]} {d.year}",
    lambda d: f"{d.day} {month(d)} {d.year}",
    lambda d: f"{d.day} {month(d)[:3].lower()} {d.year}",
    lambda d: f"{month(d)} {d.day}, {d.year}",
    lambda d: f"{month(d)[:3]}. {ordinal(d.day)}, {d.year}",
    lambda d: f"{month(d).upper()} {d.day} {d.year}",
    lambda d: f"{weekday(d)}, {d.day} {month(d)} {d.year}",
    lambda d: f"{weekday(d)}, {month(d)} {ordinal(d.day)}, {d.year}",
    lambda d: f"{weekday(d)[:3]} {month(d)[:3]} {d.day:2} {d.year}",
    lambda d: f"the {ordinal(d.day)} day of {month(d).lower()}, {d.year}",
    lambda d: f"{d.day}-{month(d)[:3].upper()}-{d.year}",
    lambda d: f"{d.day:02}.{d.month:02}.{d.year}",
    lambda d: f"{d.day}. {d.month}. {d.year}",
    lambda d: f"{d.month}/{d.day}/{d.year}",
    lambda d: f"{d.year}/{d.month}/{d.day}",
    lambda d: f"{d.year}{d.month:02}{d.day:02}",
    lambda d: f"{d.year}, {month(d)} {d.day}",
    lambda d: f"day {d.day} in month {d.month} of {d.year}",
)


def write_dates(path: Path, count: int, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        day = date.fromordinal(int(random.integers(FIRST, LAST + 1)))
        write = FORMATS[random.integers(len(FORMATS))]
        pairs[write(day)] = day.isoformat()
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs.items()))
    return path
