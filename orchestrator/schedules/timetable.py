"""Times at which a schedule runs: by a cron expression in a time zone, or at a fixed interval.

Nothing here reads the clock or the database: timestamps go in, timestamps come out, all in UTC.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice, takewhile
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from shared.errors import InvalidInput

Missed = Literal["skip", "once", "all"]

# A run that is at most this late was delayed (a restart, another leader); one that is later was missed.
GRACE = timedelta(seconds=60)
# Runs that one check starts; the rest is left for the next one.
MAX_RUNS = 100
LONGEST_EXPRESSION = 200


class Timetable(Protocol):
    """The times at which a schedule runs."""

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the run times after this moment, in order."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression: minute, hour, day of month, month, day of week; with six fields, seconds come first.

    As in Debian's cron, a fixed time of day that the clock skips runs immediately after the gap, and one that occurs
    twice runs the first time; an expression with `*` in the minutes or hours follows the real time through both.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        """Raise InvalidInput if the expression or the time zone is invalid."""
        zone = self._zone()
        if len(self.expression) > LONGEST_EXPRESSION:
            raise InvalidInput(
                f"`cron` has {len(self.expression)} characters; at most {LONGEST_EXPRESSION} are accepted."
            )
        try:
            found = next(CronSim(self.expression, datetime.now(zone)), None)
        except CronSimError as error:
            raise InvalidInput(
                f"The cron expression {self.expression!r} cannot be used: {str(error).lower()}. Write minute, hour, "
                "day of month, month and day of week, such as '30 7 * * MON-FRI'."
            ) from None
        if found is None:
            raise InvalidInput(f"The cron expression {self.expression!r} has no run in the next 50 years.")

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the run times after this moment, in order."""
        seconds, minutes = self._split()
        latest = moment
        start = moment.astimezone(UTC).replace(second=0, microsecond=0) - timedelta(seconds=1)
        for minute in CronSim(minutes, start.astimezone(self._zone())):
            for second in seconds:
                found = minute.astimezone(UTC) + second
                # Runs that the clock skips may coincide with the following ones; and from within a repeated hour,
                # the first answer may be in the hour before.
                if found > latest:
                    latest = found
                    yield found

    def _split(self) -> tuple[list[timedelta], str]:
        """Return the seconds of a minute, and the five fields: the library follows clock changes only with five."""
        *first, minute, hour, day, month, weekday = self.expression.split()
        start = datetime(2000, 1, 1, tzinfo=UTC)
        sim = CronSim(f"{first[0] if first else 0} * * * * *", start - timedelta(seconds=1))
        seconds = [run - start for run in takewhile(lambda run: run < start + timedelta(minutes=1), sim)]
        return seconds, f"{minute} {hour} {day} {month} {weekday}"

    def _zone(self) -> ZoneInfo:
        # The name `localtime` would mean a different zone on each machine.
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9_+/-]{0,99}", self.timezone) and self.timezone != "localtime":
            try:
                return ZoneInfo(self.timezone)
            except (KeyError, ValueError, OSError):
                pass
        raise InvalidInput(f"There is no time zone {self.timezone[:100]!r}. Name one like 'Europe/Berlin' or 'UTC'.")


@dataclass(frozen=True, slots=True)
class Every:
    """An interval, counted from an anchor: a run that starts late does not shift the following ones."""

    interval: timedelta
    anchor: datetime

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the run times after this moment, in order."""
        found = self.anchor + ((moment - self.anchor) // self.interval + 1) * self.interval
        while True:
            yield found
            found += self.interval


@dataclass(frozen=True, slots=True)
class Due:
    """Runs to be started now, and the time of the first run that is not among them."""

    runs: list[datetime]
    next_at: datetime


def due(timetable: Timetable, next_at: datetime, now: datetime, missed: Missed) -> Due:
    """Return the runs to start, where `next_at` is the earliest run that was not started yet.

    Args:
        missed: handling of runs that were not started in time, which is the case if the earliest is later than
            `GRACE`: `skip` starts the newest one if that is still in time, and nothing else; `once` starts the newest
            one; `all` starts each, `MAX_RUNS` at a time.
    """
    if next_at > now:
        return Due([], next_at)
    if missed == "all" or now - next_at <= GRACE:
        all_due = takewhile(lambda run: run <= now, chain([next_at], timetable.after(next_at)))
        runs = list(islice(all_due, MAX_RUNS))
        return Due(runs, next(timetable.after(runs[-1])))
    newest = _newest(timetable, next_at, now)
    in_time = now - newest <= GRACE
    return Due([newest] if missed == "once" or in_time else [], next(timetable.after(now)))


def _newest(timetable: Timetable, next_at: datetime, now: datetime) -> datetime:
    """Return the newest run up to now, searched in a window that doubles: a schedule may have missed millions."""
    window = GRACE
    while now - window > next_at:
        if found := _last(takewhile(lambda run: run <= now, timetable.after(now - window))):
            return found
        window *= 2
    return _last(takewhile(lambda run: run <= now, timetable.after(next_at))) or next_at


def _last(runs: Iterable[datetime]) -> datetime | None:
    return next(iter(deque(runs, maxlen=1)), None)
