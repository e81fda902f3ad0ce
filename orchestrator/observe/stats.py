"""Statistics for people: counts, times and costs by agent, capability, function, model or tenant, for a time range."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from orchestrator.observe import histogram
from orchestrator.observe.tally import COUNTED
from shared.errors import InvalidInput

By = Literal["namespace", "agent", "version", "capability", "key", "model", "function", "hour", "day"]
BY: tuple[By, ...] = get_args(By)
COLUMNS: dict[str, str] = {
    "key": "tenant",
    "model": "CASE step WHEN 'model_call' THEN name ELSE '' END",
    "hour": "bucket",
    "day": "bucket",
}
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
HOURS_FOR = timedelta(days=14)
"""Longer ranges are answered from days."""
HOURS_KEPT = timedelta(days=89)
MOST_FAILURES = 10
FRACTIONS = (0.5, 0.95, 0.99)
FILTERS = """
    grain = :grain AND kind = ANY (:kinds) AND bucket >= :since AND bucket < :until
    AND (CAST(:namespace AS text) IS NULL OR namespace = :namespace)
    AND (CAST(:agent AS text) IS NULL OR agent = :agent)
    AND (CAST(:version AS integer) IS NULL OR version = :version)
    AND (CAST(:capability AS text) IS NULL OR capability = :capability)
    AND (CAST(:key AS text) IS NULL OR tenant = :key)
    AND (CAST(:model AS text) IS NULL OR step = 'model_call' AND name = :model)
    AND (CAST(:function AS text) IS NULL OR function = :function)
    AND (NOT :only_models OR step = 'model_call') AND (NOT :only_functions OR function <> '')
    AND (:only_agents = '{}' OR agent = ANY (:only_agents))
    AND (:only_capabilities = '{}' OR capability = ANY (:only_capabilities))
    AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)
    AND (CAST(:tenant_prefix AS text) IS NULL OR starts_with(tenant, :tenant_prefix))
"""
HISTOGRAMS = {
    column: f"ARRAY[{', '.join(f'sum({column}[{n}])' for n in range(1, len(histogram.BOUNDS) + 2))}]::bigint[]"
    for column in ("runs", "waits")
}
LISTS = [bindparam(name, type_=ARRAY(TEXT)) for name in ("kinds", "only_agents", "only_capabilities")]
AGE = text("SELECT GREATEST(extract(epoch FROM now() - counted_at), 0)::float8 FROM statistics_state")

Group = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about ended work in a time range.

    Attributes:
        by: what the items are grouped by.
        kinds: the kinds of work that are summed up, if it is not about steps.
        coarse: days answer, also in a range of 14 days at most.
        filters: values of `namespace`, `agent`, `version`, `capability`, `key`, `model`, `function`, and the bounds of
            the reader's scope: see `shared.access.scope.Scope.conditions`.
    """

    since: datetime
    until: datetime
    by: tuple[By, ...] = ()
    kinds: tuple[str, ...] = ("task", "execution", "step")
    coarse: bool = False
    filters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.since >= self.until:
            raise InvalidInput("Invalid time range: `since` must be before `until`.")
        if {"hour", "day"} <= set(self.by):
            raise InvalidInput("Invalid `by`: it must not have both `hour` and `day`.")
        if "hour" in self.by and self.grain == "day":
            raise InvalidInput("Invalid `by`: `hour` needs a range of 14 days at most, in the last 89 days. Use `day`.")

    @property
    def grain(self) -> str:
        """The size of the buckets that answer."""
        recent = self.since > datetime.now(UTC) - HOURS_KEPT
        short = self.until - self.since <= HOURS_FOR and not self.coarse
        return "hour" if recent and short and "day" not in self.by else "day"

    @property
    def about_steps(self) -> bool:
        """Whether items are about steps: tasks have no model and no function."""
        named = {name for name in ("model", "function") if self.filters.get(name) is not None}
        return bool(named | ({"model", "function"} & set(self.by)))

    @property
    def range(self) -> tuple[datetime, datetime]:
        """The range in whole buckets."""
        whole = {"minute": 0, "second": 0, "microsecond": 0} | ({"hour": 0} if self.grain == "day" else {})
        return self.since.astimezone(UTC).replace(**whole), self.until.astimezone(UTC)  # type: ignore[arg-type]


@dataclass(slots=True)
class _Sums:
    """The sums of one item."""

    amounts: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    outcomes: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    runs: Sequence[int] = ()
    waits: Sequence[int] = ()
    calls: int = 0


def answer(
    connection: Connection,
    question: Question,
    *,
    limit: int,
    times: Sequence[str] = tuple(HISTOGRAMS),
    failures: bool = True,
) -> dict[str, Any]:
    """Return the items with the highest counts first.

    Args:
        times: the histograms to read, which take most of the work; without one there are no quantiles of it.
        failures: with the most frequent failures of each item.
    """
    values = values_of(question)
    items: dict[Group, _Sums] = defaultdict(_Sums)
    _read_sums(connection, question, values, items)
    if times:
        _read_times(connection, question, values, items, times)
    main = "step" if question.about_steps else "task"
    ranked = sorted(items.items(), key=lambda item: (-item[1].amounts[main]["count"], str(item[0])))[:limit]
    found = _failures(connection, question, values) if failures and not question.about_steps else {}
    return {
        "since": values["since"],
        "until": values["until"],
        "grain": question.grain,
        "about": f"{main}s",
        "age_seconds": connection.scalar(AGE),
        "items": [
            {
                **dict(zip(question.by, group, strict=True)),
                **_item(sums, main),
                "failures": found.get(group, []),
            }
            for group, sums in ranked
        ],
    }


def range_of(since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    """Return a time range, by default the day until `until`, which is now by default."""
    end = until or datetime.now(UTC)
    return since or max(end, EARLIEST) - timedelta(days=1), end


def values_of(question: Question) -> dict[str, Any]:
    """Return the parameters of `FILTERS`."""
    since, until = question.range
    names = ("namespace", "agent", "version", "capability", "key", "model", "function", "tenant", "tenant_prefix")
    return {
        **{name: question.filters.get(name) for name in names},
        "only_agents": list(question.filters.get("only_agents", ())),
        "only_capabilities": list(question.filters.get("only_capabilities", ())),
        "only_models": "model" in question.by,
        "only_functions": "function" in question.by,
        "grain": question.grain,
        "kinds": ["step"] if question.about_steps else list(question.kinds),
        "since": since,
        "until": until,
    }


def _select(question: Question, columns: str, more: str = "") -> Any:
    groups = [*(COLUMNS.get(name, name) for name in question.by), *filter(None, more.split(", "))]
    grouped = f" GROUP BY {', '.join(map(str, range(1, len(groups) + 1)))}" if groups else ""
    selected = ", ".join([*groups, columns])
    return text(f"SELECT {selected} FROM statistics WHERE {FILTERS}{grouped}").bindparams(*LISTS)  # noqa: S608


def _read_sums(connection: Connection, question: Question, values: dict[str, Any], items: dict[Group, _Sums]) -> None:
    sums = ", ".join(f"sum({name})::bigint" for name in COUNTED)
    width = len(question.by)
    for row in connection.execute(_select(question, sums, "kind, outcome, step"), values):
        kind, outcome, step = row[width : width + 3]
        item = items[tuple(row[:width])]
        amounts = dict(zip(COUNTED, row[width + 3 :], strict=True))
        item.outcomes[kind][outcome] += amounts["count"]
        for name, amount in amounts.items():
            item.amounts[kind][name] += amount
        if step == "model_call":
            item.calls += amounts["count"]


def _read_times(
    connection: Connection,
    question: Question,
    values: dict[str, Any],
    items: dict[Group, _Sums],
    columns: Sequence[str],
) -> None:
    """Add the histograms of claims, or of steps if the items are about those."""
    timed = values | {"kinds": ["step" if question.about_steps else "execution"]}
    statement = _select(question, ", ".join(HISTOGRAMS[column] for column in columns))
    width = len(question.by)
    for row in connection.execute(statement, timed):
        if (item := items.get(tuple(row[:width]))) is not None:
            for column, counts in zip(columns, row[width:], strict=True):
                setattr(item, column, [count or 0 for count in counts])


def _failures(connection: Connection, question: Question, values: dict[str, Any]) -> dict[Group, list[dict[str, Any]]]:
    """Return the most frequent failures of each group."""
    width = len(question.by)
    found: dict[Group, list[dict[str, Any]]] = defaultdict(list)
    statement = _select(question, "sum(count)::bigint", "name, step")
    rows = connection.execute(statement, values | {"kinds": ["failure"], "only_models": False})
    for row in sorted(rows, key=lambda row: -row[-1]):
        fingerprint, error, tasks = row[width:]
        if len(found[tuple(row[:width])]) < MOST_FAILURES:
            found[tuple(row[:width])].append({"fingerprint": fingerprint or None, "type": error, "tasks": tasks})
    return found


def _item(sums: _Sums, main: str) -> dict[str, Any]:
    steps, executions = sums.amounts["step"], sums.amounts["execution"]
    return {
        "count": sums.amounts[main]["count"],
        "outcomes": dict(sorted(sums.outcomes[main].items())),
        "run": _quantiles(sums.runs),
        "wait": _quantiles(sums.waits),
        "retries": sums.outcomes["execution"]["retried"],
        "lost": sums.outcomes["execution"]["lost"],
        "model_calls": sums.calls,
        "tokens": {
            "input": steps["input_tokens"],
            "output": steps["output_tokens"],
            "cache_read": steps["cache_read_tokens"],
            "cache_write": steps["cache_write_tokens"],
        },
        "dollars": steps["microdollars"] / 1e6,
        "saved_dollars": executions["saved_microdollars"] / 1e6,
        "cache_hits": steps["cached"],
    }


def _quantiles(counts: Sequence[int]) -> dict[str, float] | None:
    if not any(counts):
        return None
    values: Iterable[float | None] = (histogram.quantile(counts, fraction) for fraction in FRACTIONS)
    return {
        f"p{fraction * 100:g}": value for fraction, value in zip(FRACTIONS, values, strict=True) if value is not None
    }
