"""Results of pure calls that several tasks share: `cache` in a definition.

`workers/result_cache.py` makes the keys. The orchestrator's cache keeper deletes expired results, and keeps the table
within its bounds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.contracts.durations import LONGEST, seconds_of
from shared.contracts.key_order import order_of, ordered
from shared.contracts.strict_json import JsonValue

MAX_BYTES = 256 << 10
"""Larger results are not kept."""

# A result from the future was stored before the clock was put back. A quarantined function gives no results.
LOOK = text(
    """
    SELECT output, output_order, task_id, step, created_at FROM cached_results c
        WHERE key = :key AND expires_at > now() AND created_at > now() - :age
          AND created_at < now() + interval '1 s'
          AND NOT EXISTS (
            SELECT 1 FROM function_versions f WHERE f.id = c.function_version_id AND f.status = 'quarantined')
    """
)
# Of calls that miss at the same time, the last one to end leaves its result.
KEEP = text(
    """
    INSERT INTO cached_results AS c (key, namespace, function_version_id, output, output_order, bytes, task_id, step,
                                     expires_at)
        VALUES (:key, :namespace, :function, :output, :order, :bytes, :task, :step, now() + :age)
        ON CONFLICT (key) DO UPDATE SET output = EXCLUDED.output, output_order = EXCLUDED.output_order,
            bytes = EXCLUDED.bytes, task_id = EXCLUDED.task_id, step = EXCLUDED.step, created_at = now(),
            expires_at = EXCLUDED.expires_at
    """
).bindparams(bindparam("output", type_=JSONB), bindparam("order", type_=JSONB(none_as_null=True)))
# No result is kept that long: such a one was stored before the clock was put back, and would be evicted last of all.
EXPIRE = text(
    "DELETE FROM cached_results WHERE key IN ("
    "SELECT key FROM cached_results WHERE expires_at <= now() OR expires_at > now() + :longest "
    "ORDER BY expires_at LIMIT :most FOR UPDATE SKIP LOCKED)"
)
# Those that expire last are kept. The index alone has what this needs.
BOUND = text(
    """
    WITH kept AS (
        SELECT expires_at, row_number() OVER newest AS rows, sum(bytes) OVER newest AS bytes FROM cached_results
            WINDOW newest AS (ORDER BY expires_at DESC ROWS UNBOUNDED PRECEDING)
    ), first_over AS (
        SELECT max(expires_at) AS expires_at FROM kept WHERE rows > :rows OR bytes > :bytes
    )
    DELETE FROM cached_results c WHERE key IN (
        SELECT o.key FROM cached_results o, first_over f WHERE o.expires_at <= f.expires_at
            ORDER BY o.expires_at LIMIT :most FOR UPDATE OF o SKIP LOCKED)
    """
)


@dataclass(frozen=True, slots=True)
class Cached:
    """A result, and the step that left it."""

    output: JsonValue
    task_id: UUID
    step: int
    created_at: datetime


def look(connection: Connection, key: str, *, seconds: int) -> Cached | None:
    """Return the result of this key that is no older than `seconds`, if there is one."""
    row = connection.execute(LOOK, {"key": key, "age": timedelta(seconds=seconds)}).one_or_none()
    if row is None:
        return None
    return Cached(ordered(row.output, row.output_order), row.task_id, row.step, row.created_at)


def keep(
    connection: Connection,
    key: str,
    output: JsonValue,
    *,
    seconds: int,
    namespace: str,
    function: UUID | None,
    task: UUID,
    step: int,
) -> bool:
    """Keep a result, unless it is larger than `MAX_BYTES`. Return whether it was kept.

    Args:
        function: the function version whose result it is, if it is one.
    """
    size = len(json.dumps(output, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        return False
    connection.execute(
        KEEP,
        {
            "key": key,
            "namespace": namespace,
            "function": function,
            "output": output,
            "order": order_of(output),
            "bytes": size,
            "task": task,
            "step": step,
            "age": timedelta(seconds=seconds),
        },
    )
    return True


def tidy(connection: Connection, *, rows: int, size: int, limit: int = 5000) -> tuple[int, int]:
    """Delete expired results, and those that expire first while there are too many. Return the number of each.

    Args:
        rows: the number of results that may stay.
        size: the bytes of their outputs that may stay.
        limit: of each deletion.
    """
    longest = timedelta(seconds=seconds_of(LONGEST) + 1)
    expired = connection.execute(EXPIRE, {"most": limit, "longest": longest}).rowcount
    return expired, connection.execute(BOUND, {"rows": rows, "bytes": size, "most": limit}).rowcount
