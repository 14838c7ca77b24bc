"""Times of a schedule: a cron line of five fields, as Kubeflow Pipelines reads it and as it will happen, in UTC.

Kubeflow Pipelines reads cron lines with robfig/cron, whose lines have six fields, seconds first. It takes a line of
five for one without the day of the week, and so runs at other times than were meant. Cron programs also disagree on a
few expressions. What is accepted here is what they agree on; what is sent has numbers, lists and ranges only.
"""

import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
LONGEST_WAIT = 366 * 8 + 1  # days from one 29 February to the next, over a year like 2100
ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
EXAMPLE = '"0 3 * * 1" is Mondays at 03:00 UTC'


@dataclasses.dataclass(frozen=True)
class Field:
    """What one place of a cron line can hold.

    Attributes:
        name: for people.
        low: smallest number.
        high: largest number; 7 for days of the week, which is Sunday like 0.
        names: texts that stand for numbers.
    """

    name: str
    low: int
    high: int
    names: Mapping[str, int] = dataclasses.field(default_factory=dict)


FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of the month", 1, 31),
    Field("month", 1, 12, {name: number for number, name in enumerate(MONTHS, 1)}),
    Field("day of the week", 0, 7, {name: number for number, name in enumerate(DAYS)}),
)
SUNDAY_AT_THE_END = 7


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The numbers of one field.

    Attributes:
        numbers: in order; Sunday is 0.
        star: whether it was written as a star, so that it leaves the choice of days to the other field of days.
        stepped: whether a star with a step is in it.
    """

    numbers: tuple[int, ...]
    star: bool = False
    stepped: bool = False

    def text(self) -> str:
        """Numbers and ranges; a star where one was written."""
        return "*" if self.star else ",".join(_ranges(self.numbers))


@dataclasses.dataclass(frozen=True)
class Cron:
    """The times of a cron line, in UTC.

    Where both fields of days choose some, a day that either chooses is taken, as in every cron.
    """

    minute: Chosen
    hour: Chosen
    day: Chosen
    month: Chosen
    weekday: Chosen

    def five_fields(self) -> str:
        """As people write it."""
        return " ".join(getattr(self, field.name).text() for field in dataclasses.fields(self))

    def six_fields(self) -> str:
        """As Kubeflow Pipelines reads it: seconds first."""
        return f"0 {self.five_fields()}"

    def falls_on(self, day: datetime.date) -> bool:
        """Whether something happens on a day."""
        if day.month not in self.month.numbers:
            return False
        in_month, in_week = day.day in self.day.numbers, day.isoweekday() % 7 in self.weekday.numbers
        return in_month and in_week if self.day.star or self.weekday.star else in_month or in_week

    def times_after(self, moment: datetime.datetime) -> Iterator[datetime.datetime]:
        """The times after a moment, in order, without end; none where no day ever comes.

        Args:
            moment: with a time zone.
        """
        moment = moment.astimezone(datetime.UTC)
        day, waited = moment.date(), 0
        while waited <= LONGEST_WAIT:
            waited += 1
            if self.falls_on(day):
                for hour in self.hour.numbers:
                    for minute in self.minute.numbers:
                        time = datetime.datetime.combine(day, datetime.time(hour, minute), datetime.UTC)
                        if time > moment:
                            waited = 0
                            yield time
            day += datetime.timedelta(days=1)


def parse_cron(line: str) -> Cron:
    """A cron line of five fields, or one of @hourly, @daily, @weekly, @monthly, @yearly.

    Raises:
        ValueError: it is none, it never happens, or cron programs disagree on what it means; says what to write.
    """
    text = " ".join(line.split())
    if text.startswith("@"):
        if text.lower() not in ALIASES:
            raise _error(line, f"there is no '{text}'; choose one of: {', '.join(ALIASES)}, or write five fields")
        text = ALIASES[text.lower()]
    parts = text.split(" ") if text else []
    if len(parts) != len(FIELDS):
        six = "; leave the seconds out, Rankone adds them" if len(parts) == 6 else ""
        raise _error(line, f"it has {len(parts)} fields and must have 5: {', '.join(f.name for f in FIELDS)}{six}")
    chosen = [_chosen(line, part, field) for part, field in zip(parts, FIELDS, strict=True)]
    cron = Cron(*chosen)
    for one, other in ((cron.day, cron.weekday), (cron.weekday, cron.day)):
        if one.stepped and not other.star:
            days = _numbers_text(one)
            raise _error(
                line, f"with both fields of days given, cron programs disagree on a star with a step; write {days}"
            )
    if next(cron.times_after(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)), None) is None:
        raise _error(line, "there is no such day in any year, so it never happens")
    return cron


def _chosen(line: str, part: str, field: Field) -> Chosen:
    """The numbers of one field."""
    if part in ("*", "*/1"):
        return Chosen(_in_order(range(field.low, field.high + 1), field), star=True)
    if odd := re.search(r"[?LW#H]", re.sub("[A-Za-z]{3}", "", part)):
        raise _error(line, f"the {field.name} has '{odd[0]}', which not every cron knows; write numbers, or * for any")
    numbers, stepped = list[int](), False
    for item in part.split(","):
        bounds, slash, step = item.partition("/")
        if bounds == "*" and not slash:
            raise _error(line, f"the {field.name} has a star in a list; write * alone, which is every one")
        stepped |= bounds == "*"
        first, last = _bounds(line, bounds, field, slash)
        numbers += range(first, last + 1, _step(line, step, field, last - first) if slash else 1)
    return Chosen(_in_order(numbers, field), stepped=stepped)


def _bounds(line: str, text: str, field: Field, slash: str) -> tuple[int, int]:
    """First and last of a range, a number, or a star."""
    if text == "*":
        return field.low, 6 if field.high == SUNDAY_AT_THE_END else field.high
    first, dash, last = text.partition("-")
    start = _number(line, first, field)
    if not dash:
        if slash:
            raise _error(
                line, f"the {field.name} '{text}/...' has a step without a range; write {text}-{field.high}/..."
            )
        return start, start
    end = _number(line, last, field)
    if field.high == SUNDAY_AT_THE_END and last.lower() == "sun" and start > 0:
        end = SUNDAY_AT_THE_END
    if start > end:
        top = 6 if field.high == SUNDAY_AT_THE_END else field.high
        split = f"{start}-{top},{field.low}-{end}" if end > field.low else f"{start}-{top},{end}"
        raise _error(line, f"the {field.name} '{text}' runs backwards; write {split}")
    return start, end


def _number(line: str, text: str, field: Field) -> int:
    if text.lower() in field.names:
        return field.names[text.lower()]
    if not re.fullmatch(r"[0-9]{1,4}", text):
        names = f" or {', '.join(field.names)}" if field.names else ""
        raise _error(line, f"the {field.name} has '{text}'; it is a number from {field.low} to {field.high}{names}")
    if not field.low <= int(text) <= field.high:
        raise _error(line, f"the {field.name} is {text}; it goes from {field.low} to {field.high}")
    return int(text)


def _step(line: str, text: str, field: Field, longest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) == 0:
        raise _error(line, f"the {field.name} has the step '{text}'; it is a whole number of 1 or more")
    if int(text) > max(longest, 1):
        raise _error(line, f"the {field.name} has the step {text}, which leaves only the first; write that alone")
    return int(text)


def _in_order(numbers: Sequence[int] | range, field: Field) -> tuple[int, ...]:
    """Each number once; the day 7 of the week is 0."""
    return tuple(sorted({0 if field.high == number == SUNDAY_AT_THE_END else number for number in numbers}))


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """Numbers in order, runs of three or more as ranges."""
    rest = list(numbers)
    while rest:
        length = 1
        while length < len(rest) and rest[length] == rest[0] + length:
            length += 1
        if length >= 3:
            yield f"{rest[0]}-{rest[length - 1]}"
        else:
            length = 1
            yield str(rest[0])
        rest = rest[length:]


def _numbers_text(chosen: Chosen) -> str:
    return ",".join(_ranges(chosen.numbers))


def _error(line: str, why: str) -> ValueError:
    return ValueError(f"cron is '{line}': {why} ({EXAMPLE}).")
