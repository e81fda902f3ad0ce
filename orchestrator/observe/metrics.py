"""The metrics of `GET /metrics`: from the statistics' totals and the gauges, as the leader stored them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from sqlalchemy import Connection, text

from orchestrator.observe import histogram
from orchestrator.observe.gauges import OTHER, Gauges
from orchestrator.tracing.state import read_metrics
from shared.functions.security_events import KINDS

MICRO = 1e-6

TOTALS = text("SELECT * FROM statistics WHERE grain = 'total'")
STATE = text(
    """
    SELECT gauges, extract(epoch FROM now() - gauges_at)::float8 AS gauges_age,
           GREATEST(extract(epoch FROM now() - counted_at), 0)::float8 AS age
        FROM statistics_state
    """
)

Row = Mapping[str, Any]
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter: the sum of an amount over rows of one kind.

    Attributes:
        from_zero: values of the last label that have a sample before there is any. Prometheus sees no increase in a
            series that begins with 1, so an alert would miss the first ones.
    """

    name: str
    help: str
    kind: str
    labels: Labels
    amount: Callable[[Row], float] = lambda row: float(row["count"])
    only: Callable[[Row], bool] = lambda row: True
    from_zero: Labels = ()


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram: of durations in rows of one kind."""

    name: str
    help: str
    kind: str
    labels: Labels
    counts: str
    seconds: str
    only: Callable[[Row], bool] = lambda row: True


def _model_call(row: Row) -> bool:
    return bool(row["step"] == "model_call")


AGENT = ("namespace", "agent", "capability")
COUNTERS = (
    Counter("minions_tasks", "Tasks that have ended.", "task", (*AGENT, "outcome"), from_zero=("failed",)),
    Counter(
        "minions_executions",
        "Claims of tasks that have ended: succeeded, failed, retried, suspended, handed_back, lost (the worker died, "
        "and the task was rescued), cancelled, expired.",
        "execution",
        (*AGENT, "outcome"),
        from_zero=("lost",),
    ),
    Counter("minions_task_failures", "Failed tasks by the type of their error.", "failure", ("namespace", "error")),
    Counter("minions_steps", "Steps that have ended.", "step", (*AGENT, "kind", "status")),
    Counter("minions_model_calls", "Model calls that have ended.", "step", ("model", "status"), only=_model_call),
    Counter(
        "minions_model_dollars",
        "What finished model calls cost at list prices.",
        "step",
        ("namespace", "agent", "model"),
        lambda row: row["microdollars"] * MICRO,
        _model_call,
    ),
    Counter(
        "minions_cache_hits", "Steps that used a cached result.", "step", (*AGENT, "kind"), lambda row: row["cached"]
    ),
    Counter(
        "minions_journal_read_steps",
        "Finished steps that later claims read back from the journal.",
        "execution",
        AGENT,
        lambda row: row["saved_steps"],
    ),
    Counter(
        "minions_journal_saved_dollars",
        "The cost of steps that later claims read back, in place of paying again.",
        "execution",
        AGENT,
        lambda row: row["saved_microdollars"] * MICRO,
    ),
    Counter(
        "minions_security_events",
        "Denied actions and kills of sandboxed functions, and attacks of programs, by kind.",
        "security",
        ("namespace", "kind"),
        from_zero=tuple(sorted(KINDS)),
    ),
    Counter(
        "minions_webhook_deliveries",
        "Webhook deliveries that have ended.",
        "webhook",
        ("namespace", "status"),
        from_zero=("delivered", "failed"),
    ),
)
TOKENS = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
}
HISTOGRAMS = (
    Histogram(
        "minions_task_duration_seconds",
        "From the acceptance of tasks to their end.",
        "task",
        ("capability",),
        "runs",
        "run_seconds",
    ),
    Histogram(
        "minions_wait_seconds",
        "Schedule to start: from when tasks could start, or continue, to their claims.",
        "execution",
        ("capability",),
        "waits",
        "wait_seconds",
    ),
    Histogram("minions_run_seconds", "Run time of claims.", "execution", ("capability",), "runs", "run_seconds"),
    Histogram(
        "minions_model_call_seconds",
        "Duration of model calls.",
        "step",
        ("model",),
        "runs",
        "run_seconds",
        _model_call,
    ),
)
GAUGES = {
    "minions_open_tasks": "Tasks by state, without those that have ended.",
    "minions_waiting_tasks": "Pending and waiting tasks by the reason that `minion why` gives.",
    "minions_oldest_pending_seconds": "Age of the pending task that is first in line.",
    "minions_oldest_approval_seconds": "How long the oldest request to a person has waited; 0 if there is none.",
    "minions_workers": "Live workers that serve a capability.",
    "minions_worker_slots": "Slots of live workers that serve a capability, over all their capabilities.",
    "minions_worker_busy": "Busy ones among these slots.",
    "minions_dispatch_seconds": "Mean time between message and claim of the tasks that run now.",
    "minions_dead_letters": "Failed tasks without a replay, up to 10,000.",
    "minions_budgets_blocking": "Standing budgets without room in their current period.",
    "minions_alerts": "Alerts that are not resolved.",
    "minions_postgres_ping_seconds": "Round trip of a statement.",
    "minions_postgres_connections": "Connections to the PostgreSQL server.",
    "minions_postgres_connections_max": "The most connections that the server permits.",
    "minions_postgres_oldest_transaction_seconds": "Age of the oldest transaction that writes; it delays statistics.",
    "minions_redis_up": "1 if the broker answers.",
    "minions_redis_ping_seconds": "Round trip of a command.",
    "minions_redis_memory_bytes": "Memory that the broker uses.",
}
AGES = {
    "minions_statistics_age_seconds": "Everything that had ended this long ago is in the counters.",
    "minions_gauges_age_seconds": "How long ago the gauges were read.",
}
TRACE_SPANS = {
    "exported": "exported",
    "refused": "refused by the endpoint, which takes others",
    "pruned": "deleted by retention or erasure before they were exported",
}
TRACE_AGE = "minions_trace_export_age_seconds"
# What a label is called in a row of its kind, if not by its own name.
COLUMNS = {
    ("failure", "error"): "step",
    ("step", "kind"): "step",
    ("step", "status"): "outcome",
    ("step", "model"): "name",
    ("security", "kind"): "outcome",
    ("webhook", "status"): "outcome",
}


def names() -> set[str]:
    """Return the names of all series that `/metrics` can have."""
    counted = {f"{counter.name}_total" for counter in COUNTERS} | {"minions_model_tokens_total"}
    parts = {f"{each.name}_{part}" for each in HISTOGRAMS for part in ("bucket", "sum", "count")}
    return counted | parts | GAUGES.keys() | AGES.keys() | {"minions_trace_spans_total", TRACE_AGE}


def read(connection: Connection) -> list[Metric]:
    """Return all metrics."""
    rows = connection.execute(TOTALS).mappings().all()
    state = connection.execute(STATE).mappings().one_or_none()
    by_kind: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(dict(row))
    namespaces = {"default"} | {row["namespace"] for row in rows if row["namespace"]}
    found: list[Metric] = [_counter(counter, by_kind[counter.kind], namespaces) for counter in COUNTERS]
    found.append(_tokens(by_kind["step"]))
    found += [_histogram(each, by_kind[each.kind]) for each in HISTOGRAMS]
    if state is not None:
        found += _gauges(state["gauges"] or {})
        found += _ages(dict(state))
    return [*found, *_traces(connection)]


class Collected:
    """Metrics in the form that `prometheus_client` writes."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        return self._metrics


def _counter(counter: Counter, rows: Iterable[Row], namespaces: set[str]) -> Metric:
    sums: dict[Labels, float] = defaultdict(float)
    for row in filter(counter.only, rows):
        sums[_labels(counter.kind, counter.labels, row)] += counter.amount(row)
    known = {labels[:-1] for labels in sums} | ({(each,) for each in namespaces} if len(counter.labels) == 2 else set())
    for value in counter.from_zero:
        for labels in known:
            sums[*labels, value] += 0.0
    family = CounterMetricFamily(counter.name, counter.help, labels=counter.labels)
    for labels, amount in sorted(sums.items()):
        family.add_metric(labels, amount)
    return family


def _tokens(rows: Iterable[Row]) -> Metric:
    sums: dict[Labels, float] = defaultdict(float)
    for row in filter(_model_call, rows):
        for kind, column in TOKENS.items():
            sums[row["name"] or OTHER, kind] += row[column]
    family = CounterMetricFamily(
        "minions_model_tokens",
        "Tokens of finished model calls. `input` includes those that were read from and written to the prompt cache.",
        labels=("model", "type"),
    )
    for labels, amount in sorted(sums.items()):
        family.add_metric(labels, amount)
    return family


def _histogram(described: Histogram, rows: Iterable[Row]) -> Metric:
    counts: dict[Labels, list[list[int]]] = defaultdict(list)
    sums: dict[Labels, float] = defaultdict(float)
    for row in filter(described.only, rows):
        labels = _labels(described.kind, described.labels, row)
        counts[labels].append(row[described.counts])
        sums[labels] += row[described.seconds]
    family = HistogramMetricFamily(described.name, described.help, labels=described.labels)
    for labels in sorted(counts):
        family.add_metric(labels, histogram.exposed(histogram.add(counts[labels])), sums[labels])
    return family


def _gauges(gauges: Gauges) -> Iterator[Metric]:
    for name, about in GAUGES.items():
        samples = gauges.get(name, [])
        family = GaugeMetricFamily(name, about, labels=list(samples[0][0]) if samples else ())
        for labels, value in samples:
            family.add_metric(list(labels.values()), value)
        yield family


def _ages(state: Row) -> Iterator[Metric]:
    values = (state["age"], state["gauges_age"])
    for (name, about), age in zip(AGES.items(), values, strict=True):
        if age is not None:
            yield GaugeMetricFamily(name, about, value=age)


def _traces(connection: Connection) -> Iterator[Metric]:
    """Return what became of the spans of traces; nothing where no traces were ever exported."""
    state = read_metrics(connection)
    if state is None:
        return
    about = "; ".join(f"{outcome}: {meaning}" for outcome, meaning in TRACE_SPANS.items())
    family = CounterMetricFamily("minions_trace_spans", f"Spans of traces by outcome. {about}.", labels=("outcome",))
    for outcome in TRACE_SPANS:
        family.add_metric([outcome], state[outcome])
    yield family
    if state["age"] is not None:
        yield GaugeMetricFamily(TRACE_AGE, "How long ago ended what is to be exported next.", value=state["age"])


def _labels(kind: str, labels: Labels, row: Row) -> Labels:
    return tuple(_shown(row, COLUMNS.get((kind, label), label)) for label in labels)


def _shown(row: Row, column: str) -> str:
    value = str(row[column])
    return OTHER if row["folded"] and not value else value
