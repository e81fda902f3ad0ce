"""When schedules run: cron with time zones, intervals, and missed runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.schedules.timetable import GRACE, MAX_RUNS, Cron, Every, Timetable, due
from shared.errors import InvalidInput

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca"]
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
MISSED = st.sampled_from(["skip", "once", "all"])
SECONDS = st.sampled_from(["", "", "0 ", "59 ", "*/20 ", "5,6 "])
MINUTES = st.sampled_from(["*", "*/15", "0", "30", "5,50", "59"])
HOURS = st.sampled_from(["*", "*/2", "0", "1", "2", "3", "1-3", "23"])
DAYS = st.sampled_from(["* * *", "* * SUN", "1 * *", "L * *", "29 2 *", "* 3,10 0L"])
CRONS = st.builds(
    lambda second, minute, hour, days, zone: Cron(f"{second}{minute} {hour} {days}", zone),
    SECONDS,
    MINUTES,
    HOURS,
    DAYS,
    st.sampled_from(ZONES),
)
INTERVALS = st.builds(
    lambda seconds, anchor: Every(timedelta(seconds=seconds), anchor), st.floats(1, 1_000_000), MOMENTS
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local(timetable: Cron, after: str, number: int) -> list[str]:
    """Return the next runs in the time zone's own time, with its offset."""
    zone = ZoneInfo(timetable.timezone)
    runs = islice(timetable.after(datetime.fromisoformat(after).replace(tzinfo=zone)), number)
    return [run.astimezone(zone).strftime("%m-%d %H:%M %z") for run in runs]


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # Europe/Berlin: 2 o'clock does not exist on 2026-03-29, and occurs twice on 2026-10-25.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28", ["03-28 02:30 +0100", "03-29 03:00 +0200", "03-30 02:30 +0200"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24", ["10-24 02:30 +0200", "10-25 02:30 +0200", "10-26 02:30 +0100"]),
        ("0 7 * * *", "Europe/Berlin", "2026-03-28", ["03-28 07:00 +0100", "03-29 07:00 +0200"]),
        ("0 * * * *", "Europe/Berlin", "2026-03-29T00:30", ["03-29 01:00 +0100", "03-29 03:00 +0200"]),
        (
            "0 * * * *",
            "Europe/Berlin",
            "2026-10-25T01:30",
            ["10-25 02:00 +0200", "10-25 02:00 +0100", "10-25 03:00 +0100"],
        ),
        # America/New_York: 2026-03-08 and 2026-11-01.
        ("15 2 * * *", "America/New_York", "2026-03-08", ["03-08 03:00 -0400", "03-09 02:15 -0400"]),
        ("15 1 * * *", "America/New_York", "2026-11-01", ["11-01 01:15 -0400", "11-02 01:15 -0500"]),
        ("*/30 * * * *", "America/New_York", "2026-11-01T00:45", ["11-01 01:00 -0400", "11-01 01:30 -0400",
                                                                    "11-01 01:00 -0500", "11-01 01:30 -0500"]),
        # Leap days.
        ("0 12 29 2 *", "UTC", "2026-01-01", ["02-29 12:00 +0000"]),
        ("0 0 L 2 *", "UTC", "2027-02-27T01:00", ["02-28 00:00 +0000", "02-29 00:00 +0000"]),
        # Six fields begin with seconds.
        ("*/20 * * * * *", "UTC", "2026-01-01", ["01-01 00:00 +0000"] * 2 + ["01-01 00:01 +0000"]),
        ("0 0 2 * * *", "Europe/Berlin", "2026-10-24T03:00", ["10-25 02:00 +0200", "10-26 02:00 +0100"]),
        ("0 0 2 * * *", "Europe/Berlin", "2026-03-28T03:00", ["03-29 03:00 +0200", "03-30 02:00 +0200"]),
        ("9 15 2 * * *", "Australia/Lord_Howe", "2026-10-03T03:00", ["10-04 02:30 +1100", "10-05 02:15 +1100"]),
        ("0 0 2 * * *", "Australia/Lord_Howe", "2026-04-04T03:00", ["04-05 02:00 +1030", "04-06 02:00 +1030"]),
        ("0 45 1 * * *", "Australia/Lord_Howe", "2026-04-04T03:00", ["04-05 01:45 +1100", "04-06 01:45 +1030"]),
        ("0 30 1,2 * * *", "Australia/Lord_Howe", "2026-04-05T01:00", ["04-05 01:30 +1100", "04-05 02:30 +1030"]),
        ("0 0 * * * *", "Europe/Berlin", "2026-10-25T01:30", ["10-25 02:00 +0200", "10-25 02:00 +0100"]),
    ],
)  # fmt: skip
def test_cron_follows_the_clocks_of_its_zone(expression: str, zone: str, after: str, expected: list[str]) -> None:
    assert local(Cron(expression, zone), after, len(expected)) == expected


def test_repeated_hour_runs_once() -> None:
    # 01:15 UTC is the second 02:15 of that night; the run was at the first 02:30.
    assert next(Cron("30 2 * * *", "Europe/Berlin").after(utc("2026-10-25T01:15"))) == utc("2026-10-26T01:30")


def test_runs_within_a_skipped_hour_keep_their_seconds() -> None:
    runs = [utc(f"2026-03-29T01:00:{second}") for second in ("10", "40")]
    twice_a_minute = Cron("10,40 0,30 2 * * *", "Europe/Berlin")
    assert list(islice(twice_a_minute.after(utc("2026-03-29T00:00")), 3)) == [*runs, utc("2026-03-30T00:00:10")]
    assert next(twice_a_minute.after(runs[0])) == runs[1]


@given(CRONS, MOMENTS)
def test_cron_runs_are_ordered_and_independent_of_the_start(timetable: Cron, moment: datetime) -> None:
    runs = list(islice(timetable.after(moment), 5))
    assert all(earlier < later for earlier, later in pairwise([moment, *runs]))
    for asked, expected in pairwise(runs):
        assert next(timetable.after(asked)) == expected
        assert next(timetable.after(expected - timedelta(seconds=1))) == expected


@given(INTERVALS, MOMENTS, st.integers(0, 1000))
def test_interval_does_not_drift(timetable: Every, moment: datetime, number: int) -> None:
    after = moment + number * timetable.interval
    first, second = islice(timetable.after(after), 2)
    assert after < first <= after + timetable.interval
    assert second - first == timetable.interval
    assert (first - timetable.anchor) % timetable.interval == timedelta(0)


@given(st.one_of(CRONS, INTERVALS), MOMENTS, st.timedeltas(timedelta(0), timedelta(hours=3)), MISSED)
def test_every_run_is_started_once_or_counted_as_missed(
    timetable: Timetable, asked: datetime, late: timedelta, missed: str
) -> None:
    next_at = next(timetable.after(asked))
    now = next_at + late
    found = due(timetable, next_at, now, missed)  # type: ignore[arg-type]
    assert all(next_at <= run <= now for run in found.runs)
    assert sorted(set(found.runs)) == found.runs
    # The next look continues where this one stopped.
    assert next(timetable.after(found.runs[-1] if found.runs else now)) == found.next_at or found.next_at > now
    if missed == "all":
        wanted = [next_at, *islice(timetable.after(next_at), MAX_RUNS)]
        assert found.runs == [run for run in wanted if run <= now][:MAX_RUNS]
    elif late > GRACE:
        assert len(found.runs) <= 1
        assert found.next_at > now
        newest = max(_up_to(timetable, next_at, now))
        assert found.runs == ([newest] if missed == "once" or now - newest <= GRACE else [])


def _up_to(timetable: Timetable, next_at: datetime, now: datetime) -> list[datetime]:
    runs = [next_at]
    for run in timetable.after(next_at):
        if run > now or len(runs) > 300_000:
            return runs
        runs.append(run)
    raise AssertionError("a timetable has no end")


HOURLY = Cron("0 * * * *")
NEXT = utc("2026-05-01T12:00")


@pytest.mark.parametrize(
    ("missed", "now", "runs", "next_at"),
    [
        ("skip", "11:59", [], "12:00"),
        ("skip", "12:00", ["12:00"], "13:00"),
        ("skip", "12:01", ["12:00"], "13:00"),
        ("skip", "12:02", [], "13:00"),
        ("skip", "15:30", [], "16:00"),
        ("skip", "15:00", ["15:00"], "16:00"),
        ("once", "15:30", ["15:00"], "16:00"),
        ("once", "12:30", ["12:00"], "13:00"),
        ("all", "15:30", ["12:00", "13:00", "14:00", "15:00"], "16:00"),
    ],
)
def test_missed_runs_follow_the_policy(missed: str, now: str, runs: list[str], next_at: str) -> None:
    found = due(HOURLY, NEXT, utc(f"2026-05-01T{now}"), missed)  # type: ignore[arg-type]
    assert [f"{run:%H:%M}" for run in found.runs] == runs
    assert f"{found.next_at:%H:%M}" == next_at


def test_many_missed_runs_are_made_up_over_several_looks() -> None:
    now, seen, next_at = NEXT + timedelta(hours=249), [], NEXT
    while next_at <= now:
        found = due(HOURLY, next_at, now, "all")
        assert 0 < len(found.runs) <= MAX_RUNS
        seen += found.runs
        next_at = found.next_at
    assert seen == [NEXT + timedelta(hours=hour) for hour in range(250)]


def test_gap_of_years_is_handled_quickly() -> None:
    every_second = Every(timedelta(seconds=1), NEXT)
    now = NEXT + timedelta(days=3650, milliseconds=300)
    assert due(every_second, NEXT, now, "once").runs == [NEXT + timedelta(days=3650)]


@pytest.mark.parametrize(
    ("expression", "zone", "said"),
    [
        ("", "UTC", "wrong number of fields"),
        ("* * *", "UTC", "wrong number of fields"),
        ("61 * * * *", "UTC", "bad minute"),
        ("0 0 30 2 *", "UTC", "bad day-of-month"),
        ("@daily", "UTC", "wrong number of fields"),
        ("9" * 5000 + " * * * *", "UTC", "at most"),
        ("0 0 * * 1#6", "UTC", "bad day-of-week"),
        ("² * * * *", "UTC", "bad minute"),
        ("* * * * *", "Europe/Berlim", "no time zone"),
        ("* * * * *", "../../etc/passwd", "no time zone"),
        ("* * * * *", "Europe", "no time zone"),
        ("* * * * *", "localtime", "no time zone"),
        ("* * * * *", "", "no time zone"),
    ],
)
def test_invalid_cron_or_zone_is_refused(expression: str, zone: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Cron(expression, zone)


@given(st.text(st.sampled_from("0123456789*/,-#L WMONJAN"), max_size=30))
def test_any_expression_is_used_or_refused(expression: str) -> None:
    try:
        timetable = Cron(expression)
    except InvalidInput:
        return
    assert next(timetable.after(NEXT)) > NEXT
