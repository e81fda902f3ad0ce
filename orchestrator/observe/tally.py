"""Adding up ended work into rows of statistics: totals, days and hours, in a bounded number of rows.

The number of names that callers choose (tenants, agents, fingerprints) has no limit. A bucket has rows for the first
ones; the others are summed up in folded rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.observe.ends import Group

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
"""The bucket of totals."""
LONGEST_NAME = 100
"""Characters. Longer names are folded: PostgreSQL indexes no long keys."""
MOST_TENANTS = 200
MOST_FINGERPRINTS = 50
MOST_ROWS = {"total": 1000, "day": 3000, "hour": 2000}
MOST_PLACES = 512

COUNTED = (
    "count",
    "microdollars",
    "saved_microdollars",
    "saved_steps",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cached",
)
SUMS = (*COUNTED, "run_seconds", "wait_seconds")


@dataclass(frozen=True, slots=True)
class Key:
    """The key of a row of statistics."""

    grain: str
    kind: str
    bucket: datetime
    namespace: str
    agent: str = ""
    version: int = 0
    capability: str = ""
    tenant: str = ""
    outcome: str = ""
    step: str = ""
    name: str = ""
    function: str = ""
    folded: bool = False


KEY = tuple(each.name for each in fields(Key))
NAMES = ("namespace", "agent", "capability", "tenant", "name", "function")


@dataclass(slots=True)
class Amounts:
    """The sums of a row, and its histograms by bucket."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    runs: Counter[int] = field(default_factory=Counter)
    waits: Counter[int] = field(default_factory=Counter)

    def add(self, group: Group) -> None:
        """Add a group of ended work."""
        for name in SUMS:
            self.sums[name] += group.get(name) or 0
        if group.get("run") is not None:
            self.runs[group["run"]] += group["count"]
        if group.get("wait") is not None:
            self.waits[group["wait"]] += group["count"]

    def as_columns(self) -> dict[str, Any]:
        """Return the values of the row."""
        return {**self.sums, "runs": _listed(self.runs), "waits": _listed(self.waits)}


@dataclass(slots=True)
class _Place:
    """The rows that a bucket has of one kind."""

    keys: set[Key]
    tenants: set[str] = field(default_factory=lambda: {""})
    fingerprints: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for key in self.keys:
            self.note(key)

    def note(self, key: Key) -> None:
        self.keys.add(key)
        self.tenants.add(key.tenant)
        if key.kind == "failure":
            self.fingerprints.add(key.name)

    def fold(self, key: Key) -> Key:
        """Return the key of the row that counts this one."""
        if key in self.keys:
            return key
        if key.tenant not in self.tenants and len(self.tenants) > MOST_TENANTS:
            key = replace(key, tenant="", folded=True)
        if key.kind == "failure" and key.name not in self.fingerprints and len(self.fingerprints) >= MOST_FINGERPRINTS:
            key = replace(key, name="", folded=True)
        if key not in self.keys and len(self.keys) >= MOST_ROWS[key.grain]:
            # Beyond twice the number, not even each namespace has a row.
            namespace = "" if len(self.keys) >= 2 * MOST_ROWS[key.grain] else key.namespace
            # The kinds of steps are few; the number of those of errors has no limit.
            step = "" if key.kind == "failure" else key.step
            key = Key(key.grain, key.kind, key.bucket, namespace, outcome=key.outcome, step=step, folded=True)
        self.note(key)
        return key


class Places:
    """The rows that there are, by grain, kind and bucket, as far as this process has seen them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, datetime], _Place] = {}
        self._position: int | None = None

    def follow(self, low: int, high: int) -> None:
        """Begin a pass from one position to another.

        Everything is forgotten if the last pass of this process did not end there: another process has added rows, or
        the pass was rolled back.
        """
        if low != self._position:
            self._known.clear()
        self._position = high

    def knows(self, key: Key) -> bool:
        """Return whether the rows of a key's bucket are known."""
        return (key.grain, key.kind, key.bucket) in self._known

    def learn(self, key: Key, rows: Iterable[Key]) -> None:
        """Note the rows of a key's bucket."""
        if len(self._known) >= MOST_PLACES:
            self._known.clear()
        self._known[key.grain, key.kind, key.bucket] = _Place(set(rows))

    def fold(self, key: Key) -> Key:
        """Return the key of the row that counts this one."""
        return self._known[key.grain, key.kind, key.bucket].fold(key)


def keys_of(kind: str, group: Group) -> Iterator[Key]:
    """Yield the keys of the rows that count a group. Totals have neither versions nor tenants, so they stay few."""
    key = Key("hour", kind, **{name: group[name] for name in KEY if name in group})
    hour = _bounded(key)
    yield hour
    yield replace(hour, grain="day", bucket=hour.bucket.astimezone(UTC).replace(hour=0))
    # Failures by the kind of error alone: the number of fingerprints has no limit.
    name = "" if kind == "failure" else key.name
    yield _bounded(replace(key, grain="total", bucket=BEGINNING, version=0, tenant="", name=name))


def failures(groups: Iterable[Group]) -> Iterator[Group]:
    """Yield the failed tasks among groups of tasks, by fingerprint, the most frequent first."""
    failed = [group for group in groups if group["fingerprint"] is not None]
    for group in sorted(failed, key=lambda group: -group["count"]):
        yield {**group, "name": group["fingerprint"], "step": group["error"]}


def _bounded(key: Key) -> Key:
    long: dict[str, Any] = {name: "" for name in NAMES if len(getattr(key, name)) > LONGEST_NAME}
    return replace(key, step=key.step[:LONGEST_NAME], folded=bool(long), **long)


def _listed(histogram: Counter[int]) -> list[int]:
    return [histogram[bucket] for bucket in range(max(histogram) + 1)] if histogram else []
