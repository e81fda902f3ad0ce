"""The hourly figures of agents and queues, read from the statistics, in the form that the detector judges.

Nothing is stored: a new leader reads four weeks again, a day of hours at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Connection, text

from orchestrator.alerts.detector import HOURS_BEFORE, Finding, Hour, Signal, Subject
from orchestrator.alerts.queues import hour_of
from orchestrator.observe import histogram
from orchestrator.observe.ends import TRIALS

log = structlog.get_logger(__name__)

MOST_SUBJECTS = 2000
"""Agents and queues that are judged: the first that are seen. 34 MB for 1,000."""
FORGET_AFTER = HOURS_BEFORE
CHUNK = 24
JUDGED = 2
"""Hours at the end of what is read that are judged, so that a deviation of two hours is one after a restart too."""
FRACTION = 0.95
ANOMALY = "anomaly."
MICRO = 1e-6

STATE = text("SELECT date_trunc('hour', LEAST(now(), counted_at), 'UTC') AS through FROM statistics_state")
SETTINGS = text("SELECT set_config('jit', 'off', true), set_config('enable_seqscan', 'off', true)")
FIRST = text(
    "SELECT LEAST((SELECT min(bucket) FROM statistics WHERE grain = 'hour' AND kind = 'task'), "
    "(SELECT min(bucket) FROM watched_hours))"
)
ENDED = text(
    """
    SELECT namespace, agent, capability, sum(count) FILTER (WHERE outcome IN ('succeeded', 'failed'))::bigint AS ended,
           COALESCE(sum(count) FILTER (WHERE outcome = 'failed'), 0)::bigint AS failed
        FROM statistics WHERE grain = 'hour' AND kind = 'task' AND bucket = :bucket AND NOT folded AND agent <> ''
          AND NOT agent LIKE :trials
        GROUP BY 1, 2, 3
    """
)
TIMED = text(
    """
    SELECT namespace, agent, capability, runs, waits FROM statistics
        WHERE grain = 'hour' AND kind = 'execution' AND bucket = :bucket AND NOT folded AND agent <> ''
          AND NOT agent LIKE :trials
    """
)
COST = text(
    """
    SELECT namespace, agent, capability, sum(microdollars)::bigint AS microdollars FROM statistics
        WHERE grain = 'hour' AND kind = 'step' AND bucket = :bucket AND NOT folded AND agent <> ''
          AND NOT agent LIKE :trials GROUP BY 1, 2, 3
    """
)
WATCHED = text("SELECT namespace, capability, seconds / samples AS age FROM watched_hours WHERE bucket = :bucket")
DEVIATING = text(
    "SELECT rule, namespace, agent, capability, facts->'from_hour' AS since, facts->'hour' AS until FROM alerts "
    "WHERE starts_with(rule, 'anomaly.') AND last_seen > now() - interval '35 days'"
)

Name = tuple[str, str, str]
"""Namespace, agent (empty: the queue of a capability) and capability."""


@dataclass(slots=True)
class _Figures:
    """What was read of one subject in one hour."""

    ended: int = 0
    failed: int = 0
    runs: list[list[int]] = field(default_factory=list)
    waits: list[list[int]] = field(default_factory=list)
    microdollars: int = 0

    def as_hour(self) -> Hour:
        runs, waits = histogram.add(self.runs), histogram.add(self.waits)
        return Hour(
            ended=self.ended,
            failed=self.failed,
            run=histogram.quantile(runs, FRACTION),
            wait=histogram.quantile(waits, FRACTION),
            claims=sum(runs),
            cost=self.microdollars * MICRO / self.ended if self.ended else None,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding about a subject."""

    name: Name
    finding: Finding


class Hours:
    """All subjects and their hours, as far as they were read. For one leader."""

    def __init__(self) -> None:
        self._subjects: dict[Name, Subject] = {}
        self._seen: dict[Name, int] = {}
        self._next: int | None = None
        self.behind = True
        """Whether complete hours are left to read."""
        self._deviating: dict[tuple[Name, Signal], list[tuple[int, int]]] = {}

    def advance(self, connection: Connection) -> tuple[int | None, list[Verdict]]:
        """Read the next hours that are complete and counted, up to a day of them.

        Returns:
            the last complete hour, if it was read just now (None: nothing is new, or more must be read first); and what
            is wrong in it.
        """
        connection.execute(SETTINGS)
        through = connection.scalar(STATE)
        if through is None:
            self.behind = False
            return None, []
        last = hour_of(through) - 1
        begin = self._begin(connection, last)
        verdicts: list[Verdict] = []
        for hour in range(begin, min(begin + CHUNK, last + 1)):
            found = self._read(connection, hour, judge=hour > last - JUDGED)
            verdicts = found if hour == last else []
        self._next = min(begin + CHUNK, last + 1)
        self.behind = self._next <= last
        return (last if begin <= last < self._next else None), verdicts

    def _begin(self, connection: Connection, last: int) -> int:
        """Return the next hour. After a jump of the clock, everything is read again."""
        begin = last + 1 - HOURS_BEFORE
        if self._next is None or not begin <= self._next <= last + 2:
            self._subjects.clear()
            self._seen.clear()
            self._deviating = _deviating(connection)
            first = connection.scalar(FIRST)
            return last + 1 if first is None else min(max(begin, hour_of(first)), last + 1)
        return self._next

    def _read(self, connection: Connection, number: int, *, judge: bool) -> list[Verdict]:
        """Add an hour to all subjects."""
        bucket = datetime.fromtimestamp(number * 3600, UTC)
        agents, ages = _figures(connection, bucket), _ages(connection, bucket)
        self._meet([*agents, *(ages or {})], number)
        verdicts = []
        for name, subject in self._subjects.items():
            hour = self._hour_of(name, agents, ages)
            if judge:
                verdicts += [Verdict(name, finding) for finding in subject.judge(hour)]
            else:
                subject.learn(hour, self._deviations(name, number))
        return verdicts

    def _hour_of(self, name: Name, agents: dict[Name, _Figures], ages: dict[Name, float] | None) -> Hour:
        if not name[1]:
            return Hour() if ages is None else Hour(queue=ages.get(name, 0.0))
        if name in agents:
            return agents[name].as_hour()
        # Without a watching orchestrator, nothing could end: that is no reason to expect nothing.
        return Hour() if ages is None else Hour(ended=0)

    def _meet(self, names: list[Name], number: int) -> None:
        """Begin with new subjects, and forget those that have had nothing for weeks."""
        for name in names:
            if name not in self._subjects:
                if len(self._subjects) >= MOST_SUBJECTS:
                    continue
                self._subjects[name] = Subject((Signal.QUEUE,) if not name[1] else OF_AGENTS)
            self._seen[name] = number
        for name in [name for name, seen in self._seen.items() if seen < number - FORGET_AFTER]:
            del self._seen[name], self._subjects[name]

    def _deviations(self, name: Name, number: int) -> frozenset[Signal]:
        return frozenset(
            signal
            for signal in Signal
            if any(since <= number <= until for since, until in self._deviating.get((name, signal), ()))
        )


OF_AGENTS = tuple(signal for signal in Signal if signal is not Signal.QUEUE)


def _figures(connection: Connection, bucket: datetime) -> dict[Name, _Figures]:
    found: dict[Name, _Figures] = defaultdict(_Figures)
    values = {"bucket": bucket, "trials": f"%{TRIALS}"}
    for row in connection.execute(ENDED, values):
        found[row.namespace, row.agent, row.capability].ended = row.ended or 0
        found[row.namespace, row.agent, row.capability].failed = row.failed
    for row in connection.execute(TIMED, values):
        figures = found[row.namespace, row.agent, row.capability]
        figures.runs.append(row.runs)
        figures.waits.append(row.waits)
    for row in connection.execute(COST, values):
        found[row.namespace, row.agent, row.capability].microdollars = row.microdollars or 0
    return dict(found)


def _ages(connection: Connection, bucket: datetime) -> dict[Name, float] | None:
    """Return the mean ages of queues in an hour; None if no orchestrator watched then."""
    rows = connection.execute(WATCHED, {"bucket": bucket}).all()
    return {(row.namespace, "", row.capability): row.age for row in rows if row.capability} if rows else None


def _deviating(connection: Connection) -> dict[tuple[Name, Signal], list[tuple[int, int]]]:
    """Return the hours of alerts that were raised before: they are no examples of what to expect."""
    found: dict[tuple[Name, Signal], list[tuple[int, int]]] = defaultdict(list)
    for row in connection.execute(DEVIATING):
        signal = row.rule.removeprefix(ANOMALY)
        if signal in set(Signal) and isinstance(row.since, int) and isinstance(row.until, int):
            name = (row.namespace or "", row.agent or "", row.capability or "")
            found[name, Signal(signal)].append((row.since, row.until))
    return dict(found)


def begins_at(hour: int) -> datetime:
    """Return when an hour begins."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=hour)


def failures_of(connection: Connection, name: Name, hour: int) -> Iterator[tuple[str, str, int]]:
    """Yield the most frequent failures of an agent in an hour: type, fingerprint, number."""
    values: dict[str, Any] = dict(zip(("namespace", "agent", "capability"), name, strict=True))
    for row in connection.execute(FAILURES, values | {"bucket": begins_at(hour)}):
        yield row.step, row.name, row.tasks


FAILURES = text(
    """
    SELECT step, name, sum(count)::bigint AS tasks FROM statistics
        WHERE grain = 'hour' AND kind = 'failure' AND bucket = :bucket AND namespace = :namespace AND agent = :agent
          AND capability = :capability GROUP BY 1, 2 ORDER BY tasks DESC LIMIT 3
    """
)
