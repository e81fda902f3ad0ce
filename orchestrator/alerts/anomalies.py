"""Alerts from the detector's findings, each with a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

from sqlalchemy import Connection, text

from orchestrator.alerts.detector import Finding, Signal
from orchestrator.alerts.history import ANOMALY, Name, Verdict, begins_at, failures_of
from orchestrator.alerts.store import MOST_FOUND, Found, name_of
from orchestrator.explain import duration

NAMES = tuple(f"{ANOMALY}{signal}" for signal in Signal)
QUIET = timedelta(minutes=90)
"""An alert ends when two hours in a row are as expected."""
UNITS = {
    Signal.RUN: "seconds",
    Signal.WAIT: "seconds",
    Signal.FAILURES: "share",
    Signal.COST: "dollars per task",
    Signal.QUEUE: "seconds",
    Signal.VOLUME: "tasks per hour",
}
OPEN = text(
    "SELECT rule, COALESCE(namespace, '') AS namespace, subject, facts->>'from_hour' AS begin FROM alerts "
    "WHERE state <> 'resolved' AND starts_with(rule, 'anomaly.')"
)


def found(connection: Connection, verdicts: Iterable[Verdict], hour: int) -> Iterator[Found]:
    """Yield what is to be an alert: of each kind, the largest deviations."""
    begins = {
        (row.rule, row.namespace, row.subject): int(row.begin)
        for row in connection.execute(OPEN)
        if (row.begin or "").isdecimal()
    }
    taken = dict.fromkeys(Signal, 0)
    for verdict in sorted(verdicts, key=lambda verdict: -_size(verdict.finding)):
        taken[verdict.finding.signal] += 1
        if taken[verdict.finding.signal] <= MOST_FOUND:
            rule, subject = f"{ANOMALY}{verdict.finding.signal}", subject_of(verdict.name)
            begin = begins.get((rule, verdict.name[0], name_of(subject)), hour)
            yield _found(connection, verdict, rule, subject, min(begin, hour), hour)


def _found(connection: Connection, verdict: Verdict, rule: str, subject: str, begin: int, hour: int) -> Found:
    namespace, agent, capability = verdict.name
    finding = verdict.finding
    facts: dict[str, object] = {"from_hour": begin, "hour": hour, "since": begins_at(begin).isoformat()}
    sentence = sentence_of(finding, verdict.name, begin, hour)
    if finding.signal is Signal.FAILURES:
        failures = list(failures_of(connection, verdict.name, hour))
        facts["failures"] = [{"type": kind, "fingerprint": mark, "tasks": tasks} for kind, mark, tasks in failures]
        if failures:
            kind, mark, tasks = failures[0]
            sentence += f" Most of them: {name_of(kind)} ({mark or 'other kinds'}), {tasks} times in the last hour."
    return Found(
        rule=rule,
        namespace=namespace,
        subject=subject,
        agent=agent or None,
        capability=capability or None,
        sentence=sentence,
        value=finding.value,
        usual=finding.usual,
        low=finding.low,
        high=finding.high,
        unit=UNITS[finding.signal],
        facts=facts,
    )


def subject_of(name: Name) -> str:
    """Return the subject of an alert: the agent and its capability, or the capability."""
    _, agent, capability = name
    return f"{agent} / {capability}" if agent else capability


def sentence_of(finding: Finding, name: Name, begin: int, hour: int) -> str:
    """Describe a finding for people."""
    _, agent, capability = name
    who, since = name_of(agent or capability), _since(begin, hour)
    value, usual = _shown(finding.signal, finding.value), _shown(finding.signal, finding.usual)
    match finding.signal:
        case Signal.FAILURES:
            return f"Tasks of {who} fail {value} of the time since {since}; usually {usual}."
        case Signal.RUN:
            return f"Tasks of {who} run for {value} (p95) since {since}; usually {usual}."
        case Signal.WAIT:
            return f"Tasks of {who} wait for {value} (p95) before they start since {since}; usually {usual}."
        case Signal.COST:
            return f"A task of {who} costs {value} on average since {since}; usually {usual}."
        case Signal.QUEUE:
            return f"The oldest pending task of {who} is {value} old on average since {since}; usually {usual}."
    return f"{value} tasks of {who} ended in an hour since {since}; usually {usual}."


def _since(begin: int, hour: int) -> str:
    at = begins_at(begin)
    return f"{at:%H:%M} UTC" if hour - begin < 12 else f"{at:%Y-%m-%d %H:%M} UTC"


def _shown(signal: Signal, value: float) -> str:
    match signal:
        case Signal.FAILURES:
            return f"{value * 100:.0f} %" if value >= 0.01 else f"{value * 100:.1f} %"
        case Signal.COST:
            return f"{value:.4f} dollars" if value < 1 else f"{value:.2f} dollars"
        case Signal.VOLUME:
            return f"{value:.0f}"
    return duration(value)


def _size(finding: Finding) -> float:
    return abs(finding.value - finding.usual) / max(1e-9, finding.high - finding.low)
