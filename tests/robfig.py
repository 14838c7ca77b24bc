"""Cron lines as the library of Kubeflow Pipelines reads them, github.com/robfig/cron, from what it documents.

Six fields, seconds first. A day has to match both fields of days where one of them has a star, and either of them else.
A number with a step goes on to the end of its field, and 7 is no day of the week.
"""

import datetime
from dataclasses import dataclass

BOUNDS = {"second": (0, 59), "minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 6)}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
NAMES = {
    "month": {name: number for number, name in enumerate(MONTHS, 1)},
    "weekday": {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))},
}


@dataclass(frozen=True)
class SixFields:
    numbers: dict[str, set[int]]
    starred: set[str]

    def matches(self, moment: datetime.datetime) -> bool:
        now = {"second": moment.second, "minute": moment.minute, "hour": moment.hour, "month": moment.month}
        return self.matches_day(moment) and all(value in self.numbers[name] for name, value in now.items())

    def matches_day(self, day: datetime.date) -> bool:
        in_month = day.day in self.numbers["day"]
        in_week = day.isoweekday() % 7 in self.numbers["weekday"]
        both = in_month and in_week if self.starred & {"day", "weekday"} else in_month or in_week
        return both and day.month in self.numbers["month"]


def parse_six_fields(line: str) -> SixFields:
    parts = line.split()
    if len(parts) == 5:
        parts.append("*")  # no day of the week: the trap
    if len(parts) != 6:
        raise ValueError(f"expected 5 or 6 fields, found {len(parts)}")
    numbers: dict[str, set[int]] = {}
    starred = set()
    for (name, (low, high)), part in zip(BOUNDS.items(), parts, strict=True):
        numbers[name] = set()
        for item in part.split(","):
            span, _, step = item.partition("/")
            first, dash, last = span.partition("-")
            if first in ("*", "?"):
                start, end = low, high
                starred.add(name)
            else:
                start = number(name, first)
                end = number(name, last) if dash else high if step else start
            if start < low or end > high or start > end:
                raise ValueError(f"{item} is out of {low} to {high}")
            numbers[name] |= set(range(start, end + 1, int(step or 1)))
    return SixFields(numbers, starred)


def number(name: str, text: str) -> int:
    return NAMES.get(name, {}).get(text.lower(), -1) if text.isalpha() else int(text)
