"""Counting ended work, once each, in the order of commits.

A pass reads the rows whose transactions are below the oldest that still runs, and from where the last pass ended. It
adds them to the statistics and moves on in one transaction, which holds the state: a process that is killed in a pass
leaves nothing of it, and a second pass waits for the first. A transaction that runs for long delays counting; it loses
nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, Row, text

from orchestrator.observe import canaries, evaluations
from orchestrator.observe.ends import MARKED, SOURCES, Group
from orchestrator.observe.tally import KEY, SUMS, Amounts, Key, Places, failures, keys_of
from shared.database.connections import persist

log = structlog.get_logger(__name__)

MOST_ENDS = 10_000
"""Rows of one table that a pass reads, but for one transaction that has more."""
NO_BOUND = 2**62

# It takes no snapshot, so that the transaction sees what the pass before it has committed.
WAIT_FOR_OTHERS = text("LOCK TABLE statistics_state IN SHARE ROW EXCLUSIVE MODE")
SETTINGS = text("SELECT set_config('jit', 'off', true), set_config('enable_seqscan', 'off', true)")
BEGIN_STATE = text(
    "INSERT INTO statistics_state (marked_below, cluster) "
    "VALUES (pg_snapshot_xmax(pg_current_snapshot())::text::bigint, minion_cluster()) ON CONFLICT DO NOTHING"
)
# All transactions below `horizon` have ended; none at `next` or above has begun.
STATE = text(
    """
    SELECT counted_below, counted_at, marked_below, marked_at, moved_at, now() AS moment,
           COALESCE(cluster <> minion_cluster(), false) AS elsewhere,
           pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
           pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next
        FROM statistics_state
    """
)
NTH = "(SELECT ended_in FROM {} WHERE ended_in >= :low AND ended_in < :high ORDER BY ended_in OFFSET :most LIMIT 1)"
UNTIL = text(f"SELECT min(ended_in) FROM ({' UNION ALL '.join(map(NTH.format, MARKED))}) AS nth")  # noqa: S608
MOVE = text(
    """
    UPDATE statistics_state SET counted_below = :high, counted_at = :counted_at, marked_below = :marked_below,
                                marked_at = :marked_at, moved_at = clock_timestamp(), cluster = minion_cluster()
    """
)
FORGET_RETRIED = text("DELETE FROM retried_steps WHERE ended_in < :high")
KNOWN = text(
    f"SELECT {', '.join(KEY)} FROM statistics WHERE grain = :grain AND kind = :kind AND bucket = :bucket"  # noqa: S608
)
ADDED = ", ".join(f"{name} = s.{name} + EXCLUDED.{name}" for name in SUMS)
ADD = text(
    f"""
    INSERT INTO statistics AS s ({", ".join((*KEY, *SUMS, "runs", "waits"))})
        VALUES ({", ".join(f":{name}" for name in (*KEY, *SUMS, "runs", "waits"))})
        ON CONFLICT ({", ".join(KEY)}) DO UPDATE SET {ADDED},
            runs = ARRAY(SELECT COALESCE(a, 0) + COALESCE(b, 0)
                             FROM unnest(s.runs, EXCLUDED.runs) WITH ORDINALITY AS u (a, b, n) ORDER BY n),
            waits = ARRAY(SELECT COALESCE(a, 0) + COALESCE(b, 0)
                              FROM unnest(s.waits, EXCLUDED.waits) WITH ORDINALITY AS u (a, b, n) ORDER BY n)
    """  # noqa: S608
)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of counting after a pass.

    Attributes:
        complete: nothing is left that can be counted now.
        age: seconds since everything had ended that is counted.
    """

    complete: bool
    age: float


def count_ends(engine: Engine, places: Places) -> Progress:
    """Make one pass.

    Args:
        places: what this process knows of the statistics' rows, to be passed to its next pass too.
    """
    with engine.execution_options(isolation_level="REPEATABLE READ").begin() as connection:
        return _count(connection, places)


def catch_up(engine: Engine) -> None:
    """Count everything that can be counted now."""
    places = Places()
    # The statistician may make a pass at the same time.
    while not persist(lambda: count_ends(engine, places)).complete:
        pass


def _count(connection: Connection, places: Places) -> Progress:
    connection.execute(WAIT_FOR_OTHERS)
    connection.execute(SETTINGS)
    state = connection.execute(STATE).one_or_none()
    if state is None:
        connection.execute(BEGIN_STATE)
        state = connection.execute(STATE).one()
    if state.elsewhere or state.counted_below > state.next:
        return _continue_elsewhere(connection, places, state)
    high = _until(connection, state)
    places.follow(state.counted_below, high)
    _add(connection, places, low=state.counted_below, high=high)
    connection.execute(FORGET_RETRIED, {"high": high})
    return _move(connection, state, high)


def _until(connection: Connection, state: Row[Any]) -> int:
    """Return the end of the range of this pass."""
    values = {"low": state.counted_below, "high": state.horizon, "most": MOST_ENDS}
    nth: int | None = connection.scalar(UNTIL, values)
    low, horizon = int(state.counted_below), int(state.horizon)
    if nth is None:
        return max(horizon, low)
    # All ends of one transaction are counted together, however many they are.
    return max(nth, low + 1)


def _move(connection: Connection, state: Row[Any], high: int) -> Progress:
    counted_at, mark = state.counted_at, (state.marked_below, state.marked_at)
    if high >= state.next:
        counted_at = state.moment
    elif high >= state.marked_below:
        counted_at, mark = max(state.counted_at, state.marked_at), (state.next, state.moment)
    values = {"high": high, "counted_at": counted_at, "marked_below": mark[0], "marked_at": mark[1]}
    connection.execute(MOVE, values)
    age = (state.moment - counted_at).total_seconds()
    return Progress(complete=high >= state.horizon, age=max(0.0, age))


def _add(connection: Connection, places: Places, *, low: int, high: int, since: Any = None) -> None:
    """Add the ends of a range of transactions to the statistics, and to the figures of canaries; choose evaluations."""
    canaries.count(connection, low=low, high=high, since=since)
    evaluations.sample(connection, low=low, high=high, since=since)
    rows: dict[Key, Amounts] = defaultdict(Amounts)
    for kind, groups in _read(connection, low=low, high=high, since=since):
        for group in groups:
            for key in keys_of(kind, group):
                if not places.knows(key):
                    places.learn(key, _known(connection, key))
                rows[places.fold(key)].add(group)
    if rows:
        ordered = sorted(rows.items(), key=lambda row: astuple(row[0]))
        connection.execute(ADD, [dict(zip(KEY, astuple(key), strict=True)) | row.as_columns() for key, row in ordered])


def _read(connection: Connection, **values: Any) -> Iterator[tuple[str, list[Group]]]:
    for source in SOURCES:
        groups = [dict(group) for group in connection.execute(source.statement, values).mappings()]
        yield source.kind, groups
        if source.kind == "task":
            yield "failure", list(failures(groups))


def _known(connection: Connection, key: Key) -> Iterator[Key]:
    values = {"grain": key.grain, "kind": key.kind, "bucket": key.bucket}
    return (Key(*row) for row in connection.execute(KNOWN, values))


# ------------------------------------------------------------------------------------------------------- restore


def _continue_elsewhere(connection: Connection, places: Places, state: Row[Any]) -> Progress:
    """Continue in another cluster, into which a dump was restored: its transactions have other numbers.

    Below the position are ends that were counted before the dump, and those of this cluster, which are later. At the
    position and above it, nothing is counted: what had ended before the dump, or here. The next pass counts from the
    horizon, so marks of the other cluster are removed above it, once they are counted.
    """
    log.warning("statistics_restored", counted_below=state.counted_below, transaction=state.next)
    below, horizon, following = int(state.counted_below), int(state.horizon), int(state.next)
    places.follow(below, horizon)
    _add(connection, places, low=max(below, following), high=NO_BOUND)
    _add(connection, places, low=below, high=horizon)
    _add(connection, places, low=0, high=min(below, horizon), since=state.moved_at)
    counted = "ended_in >= :horizon AND ended_in < :below AND {moment} <= :moved_at"
    for table, moment in MARKED.items():
        change = "DELETE FROM retried_steps" if table == "retried_steps" else f"UPDATE {table} SET ended_in = NULL"  # noqa: S608
        connection.execute(
            text(f"{change} WHERE ended_in >= :next OR ({counted.format(moment=moment)})"),
            {"next": following, "horizon": horizon, "below": below, "moved_at": state.moved_at},
        )
    values = {"high": horizon, "counted_at": state.moment, "marked_below": following, "marked_at": state.moment}
    connection.execute(MOVE, values)
    return Progress(complete=True, age=0.0)
