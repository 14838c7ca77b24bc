"""Cron lines against two oracles that know nothing of the code: one reads five fields, one what the server reads."""

import datetime
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operations.cron import ALIASES, DAYS, MONTHS, parse_cron
from tests.robfig import parse_six_fields

UTC = datetime.UTC
NOON = datetime.datetime(2026, 11, 25, 12, tzinfo=UTC)  # a Wednesday
LIMITS = [(0, 59, ()), (0, 23, ()), (1, 31, ()), (1, 12, MONTHS), (0, 7, DAYS)]


def next_ones(line: str, count: int = 3, after: datetime.datetime = NOON) -> list[str]:
    times = itertools.islice(parse_cron(line).times_after(after), count)
    return [f"{time:%a %Y-%m-%d %H:%M}" for time in times]


@st.composite
def fields(draw: st.DrawFn, low: int, high: int, names: tuple[str, ...]) -> str:
    """One field as people write it, now and then one that is refused."""

    def text(number: int) -> str:
        name = names[number - low] if number - low < len(names) and draw(st.booleans()) else ""
        return draw(st.sampled_from([name, name.upper(), name.title()])) or str(number)

    if draw(st.integers(0, 2)) == 0:
        return "*"
    items = []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(low, high))
        last = draw(st.integers(first, high))
        step = draw(st.integers(1, max(1, min(9, last - first))))
        kinds = [text(first), f"{text(first)}-{text(last)}", f"{text(first)}-{text(last)}/{step}", f"*/{step}"]
        items.append(draw(st.sampled_from(kinds)))
    return ",".join(items)


lines = st.tuples(*(fields(*limits) for limits in LIMITS)).map(" ".join)
moments = st.datetimes(datetime.datetime(2023, 1, 1), datetime.datetime(2033, 1, 1), timezones=st.just(UTC))


def chosen(text: str, low: int, high: int, names: tuple[str, ...]) -> set[int]:
    """The numbers of a field, by counting through all that it could have."""
    found = set()
    for item in text.lower().split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        if span == "*":
            first, last = str(low), str(high if high != 7 else 6)
        ends = [names.index(end) + low if end in names else int(end) for end in (first, last or first)]
        if high == 7 and last == "sun":
            ends[1] = 7 if ends[0] > 0 else 0
        found |= {number for number in range(low, high + 1) if ends[0] <= number <= ends[1]
                  and (number - ends[0]) % int(step or 1) == 0}  # fmt: skip
    return {number % 7 for number in found} if high == 7 else found


def five_sets(line: str) -> list[set[int]]:
    return [chosen(part, *limits) for part, limits in zip(line.split(), LIMITS, strict=True)]


def falls_on(line: str, sets: list[set[int]], day: datetime.date) -> bool:
    parts = line.split()
    in_month, in_week = day.day in sets[2], day.isoweekday() % 7 in sets[4]
    if parts[2].split("/")[0] == "*" or parts[4].split("/")[0] == "*":
        days = in_month and in_week
    else:
        days = in_month or in_week
    return days and day.month in sets[3]


def parsed(line: str):
    try:
        return parse_cron(line)
    except ValueError:
        return None


@settings(deadline=None, max_examples=60)
@given(lines, moments)
def test_times_and_six_fields_are_those_of_stepping_minute_by_minute(line: str, moment: datetime.datetime) -> None:
    cron = parsed(line)
    if cron is None:
        return
    server = parse_six_fields(cron.six_fields())
    sets = five_sets(line)
    until, expected = moment + datetime.timedelta(hours=30), []
    step = moment.replace(second=0, microsecond=0)
    while step <= until:
        ours = step.minute in sets[0] and step.hour in sets[1] and falls_on(line, sets, step.date())
        assert ours == server.matches(step), (line, cron.six_fields(), step)
        if ours and step > moment:
            expected.append(step)
        step += datetime.timedelta(minutes=1)
    found = itertools.takewhile(lambda time: time <= until, cron.times_after(moment))
    assert list(found) == expected


@settings(deadline=None)
@given(lines, st.dates(datetime.date(2023, 1, 1), datetime.date(2030, 1, 1)))
def test_days_are_those_of_stepping_day_by_day(line: str, day: datetime.date) -> None:
    cron = parsed(line)
    if cron is None:
        return
    server, sets = parse_six_fields(cron.six_fields()), five_sets(line)
    for number in range(400):
        each = day + datetime.timedelta(days=number)
        assert cron.falls_on(each) == falls_on(line, sets, each) == server.matches_day(each), (line, each)


@settings(deadline=None)
@given(lines)
def test_a_line_written_again_means_the_same(line: str) -> None:
    cron = parsed(line)
    if cron is not None:
        again = parse_cron(cron.five_fields())
        assert again.six_fields() == cron.six_fields()
        assert cron.six_fields().split()[0] == "0"


def test_the_strategy_has_enough_lines_that_are_accepted() -> None:
    accepted = []

    @settings(derandomize=True, deadline=None)
    @given(lines)
    def look(line: str) -> None:
        accepted.append(parsed(line) is not None)

    look()
    assert sum(accepted) > len(accepted) / 3


@pytest.mark.parametrize(
    ("line", "six", "times"),
    [
        ("0 3 * * 1", "0 0 3 * * 1", "Mon 2026-11-30 03:00, Mon 2026-12-07 03:00, Mon 2026-12-14 03:00"),
        ("0 3 * * 7", "0 0 3 * * 0", "Sun 2026-11-29 03:00, Sun 2026-12-06 03:00, Sun 2026-12-13 03:00"),
        ("0 3 * * 0,7", "0 0 3 * * 0", "Sun 2026-11-29 03:00, Sun 2026-12-06 03:00, Sun 2026-12-13 03:00"),
        ("0 3 * * 5-7", "0 0 3 * * 0,5,6", "Fri 2026-11-27 03:00, Sat 2026-11-28 03:00, Sun 2026-11-29 03:00"),
        ("0 3 * * FRI-sun", "0 0 3 * * 0,5,6", "Fri 2026-11-27 03:00, Sat 2026-11-28 03:00, Sun 2026-11-29 03:00"),
        ("*/30 12 25 11 *", "0 0,30 12 25 11 *", "Wed 2026-11-25 12:30, Thu 2027-11-25 12:00, Thu 2027-11-25 12:30"),
        # both fields of days: either
        ("0 0 13 * 5", "0 0 0 13 * 5", "Fri 2026-11-27 00:00, Fri 2026-12-04 00:00, Fri 2026-12-11 00:00"),
        # a range over the whole field is no star: still either, so every day
        ("0 0 1-31 * 5", "0 0 0 1-31 * 5", "Thu 2026-11-26 00:00, Fri 2026-11-27 00:00, Sat 2026-11-28 00:00"),
        ("0 0 29 feb *", "0 0 0 29 2 *", "Tue 2028-02-29 00:00, Sun 2032-02-29 00:00, Fri 2036-02-29 00:00"),
        ("  @Weekly ", "0 0 0 * * 0", "Sun 2026-11-29 00:00, Sun 2026-12-06 00:00, Sun 2026-12-13 00:00"),
        ("@daily", "0 0 0 * * *", "Thu 2026-11-26 00:00, Fri 2026-11-27 00:00, Sat 2026-11-28 00:00"),
    ],
)
def test_a_line_becomes_six_fields_and_times(line: str, six: str, times: str) -> None:
    assert parse_cron(line).six_fields() == six
    assert ", ".join(next_ones(line)) == times


def test_a_line_of_five_fields_sent_as_it_is_would_be_misread() -> None:
    """Why lines are converted: the server takes the five for seconds to months."""
    misread = parse_six_fields("0 3 * * 1")
    assert misread.matches(datetime.datetime(2026, 1, 15, 17, 3))  # any hour of any day in January
    assert not misread.matches(datetime.datetime(2026, 11, 30, 3, 0))  # the Monday that was meant


def test_no_time_is_lost_at_the_end_of_a_day_a_month_or_a_year() -> None:
    end_of_year = datetime.datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert next_ones("* * * * *", 2, end_of_year) == ["Fri 2027-01-01 00:00", "Fri 2027-01-01 00:01"]
    assert next_ones("0 0 31 * *", 2, NOON) == ["Thu 2026-12-31 00:00", "Sun 2027-01-31 00:00"]
    abroad = datetime.timezone(datetime.timedelta(hours=5))
    assert next_ones("0 12 * * *", 1, NOON.astimezone(abroad)) == ["Thu 2026-11-26 12:00"]
    assert next_ones("0 0 29 2 *", 1, datetime.datetime(2096, 3, 1, tzinfo=UTC)) == ["Fri 2104-02-29 00:00"]


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_are_known(alias: str) -> None:
    assert parse_cron(alias) == parse_cron(ALIASES[alias])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "it has 0 fields and must have 5"),
        ("0 0 3 * * 1", "it has 6 fields and must have 5.*leave the seconds out"),
        ("3 * *", "it has 3 fields"),
        ("@reboot", "there is no '@reboot'; choose one of: @yearly"),
        ("@every 6h", "there is no '@every 6h'"),
        ("60 * * * *", "the minute is 60; it goes from 0 to 59"),
        ("0 24 * * *", "the hour is 24"),
        ("0 0 0 * *", "the day of the month is 0; it goes from 1"),
        ("0 0 * 13 *", "the month is 13"),
        ("0 0 * * 8", "the day of the week is 8; it goes from 0 to 7"),
        ("0 0 * * monday", "the day of the week has 'monday'; it is a number from 0 to 7 or sun, mon"),
        ("0 0 ? * *", "the day of the month has '[?]', which not every cron knows"),
        ("0 0 L * *", "has 'L'"),
        ("0 0 15W * *", "has 'W'"),
        ("0 0 * * 5#2", "has '#'"),
        ("0 22-2 * * *", "the hour '22-2' runs backwards; write 22-23,0-2"),
        ("0 0 * * sat-mon", "'sat-mon' runs backwards"),
        ("5/15 * * * *", "'5/...' has a step without a range; write 5-59/..."),
        ("0 0 * * 0/7", "has a step without a range"),
        ("*/0 * * * *", "the step '0'"),
        ("*/x * * * *", "the step 'x'"),
        ("*/90 * * * *", "the step 90, which leaves only the first"),
        ("0-5/9 * * * *", "the step 9, which leaves only the first"),
        ("*,3 * * * *", "a star in a list"),
        ("1,,2 * * * *", "the minute has ''"),
        ("-1 * * * *", "the minute has ''"),
        ("1-2-3 * * * *", "the minute has '2-3'"),
        ("٣ * * * *", "the minute has '٣'"),
        ("0 0 30 2 *", "there is no such day in any year"),
        ("0 0 31 4,6,9,11 *", "there is no such day in any year"),
        ("0 0 */2 * 1", "cron programs disagree on a star with a step; write 1,3,5"),
        ("0 0 13 * */2", "cron programs disagree on a star with a step; write 0,2,4,6"),
    ],
)
def test_what_is_no_cron_or_means_two_things_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_cron(line)
