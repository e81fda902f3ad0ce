"""Checks of the tables after each call: they agree with the model, and no promise is broken."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.tasks.states import FINAL, TRANSITIONS

OBSERVE = text(
    """
    SELECT s.task_id, s.state, s.claim, s.attempts, s.losses, s.cancel_requested AS cancel, s.worker_id AS worker,
           s.open_waits, o.state AS outcome,
           (SELECT jsonb_object_agg(number, jsonb_build_array(kind, status, output)) FROM steps p
                WHERE p.task_id = s.task_id) AS steps,
           (SELECT jsonb_object_agg(claim, outcome) FROM executions e WHERE e.task_id = s.task_id) AS executions,
           (SELECT key FROM unique_tasks u WHERE u.task_id = s.task_id) AS unique_key,
           (SELECT count(*) FROM signals g WHERE g.task_id = s.task_id AND g.step IS NULL) AS untaken
        FROM task_status s LEFT JOIN task_outcomes o ON o.task_id = s.task_id
    """
)


def observe(connection: Connection) -> dict[UUID, dict[str, Any]]:
    """Return what `Model.view` returns, as the database has it."""
    return {row.pop("task_id"): _plain(row) for row in map(dict, connection.execute(OBSERVE).mappings())}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    steps = {int(n): (kind, status, plain_output(output)) for n, (kind, status, output) in (row["steps"] or {}).items()}
    executions = {int(n): outcome for n, outcome in (row["executions"] or {}).items()}
    return {**row, "steps": dict(sorted(steps.items())), "executions": dict(sorted(executions.items()))}


def plain_output(output: Any) -> Any:
    """Return a step's output without the values of the clock."""
    if isinstance(output, dict) and "signal" in output:
        return output["payload"]
    return "timed out" if output == {"timed_out": True} else output


# Every change of state, and every change of an ended task.
LOG_CHANGES = """
    CREATE TABLE state_changes (n bigint GENERATED ALWAYS AS IDENTITY, task_id uuid, before text, after text,
                                claim_before integer, claim_after integer);
    CREATE FUNCTION log_state_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO state_changes (task_id, before, after, claim_before, claim_after)
            VALUES (NEW.task_id, OLD.state, NEW.state, OLD.claim, NEW.claim);
        RETURN NULL;
    END $$;
    CREATE TRIGGER log_state_change AFTER INSERT OR UPDATE ON task_status
        FOR EACH ROW EXECUTE FUNCTION log_state_change();
"""
FORGET_CHANGES = (
    "DROP TRIGGER log_state_change ON task_status; DROP FUNCTION log_state_change; DROP TABLE state_changes"
)

_PERMITTED = ", ".join(f"('{before}', '{after}')" for before, after in TRANSITIONS)
_ENDED = ", ".join(f"'{state}'" for state in FINAL)
# Each row is a broken promise, by name. The statements use neither the model nor the counters that they check.
BROKEN_PROMISES = text(
    f"""
    SELECT 'forbidden transition', task_id, before || ' -> ' || after FROM state_changes
        WHERE before <> after AND (before, after) NOT IN ({_PERMITTED})
    UNION ALL
    SELECT 'a task that has ended was changed', task_id, before || ' -> ' || after FROM state_changes
        WHERE before IN ({_ENDED})
    UNION ALL
    SELECT 'a claim number went back, or jumped', task_id, claim_before || ' -> ' || claim_after FROM state_changes
        WHERE claim_after - claim_before <> (before = 'queued' AND after = 'running')::integer
    UNION ALL
    SELECT 'woken more than once in one suspension', task_id, claim_after::text FROM state_changes
        WHERE before = 'waiting' AND after <> 'waiting' GROUP BY task_id, claim_after HAVING count(*) > 1
    UNION ALL
    SELECT 'began twice', task_id, count(*)::text FROM state_changes
        WHERE before IS NULL GROUP BY task_id HAVING count(*) > 1
    UNION ALL
    SELECT 'an execution runs that is not the current claim', e.task_id, e.claim::text
        FROM executions e JOIN task_status s ON s.task_id = e.task_id
        WHERE e.outcome = 'running' AND (s.state <> 'running' OR s.claim <> e.claim)
    UNION ALL
    SELECT 'a task runs without an execution', s.task_id, s.claim::text FROM task_status s
        WHERE s.state = 'running' AND NOT EXISTS (
            SELECT 1 FROM executions e WHERE e.task_id = s.task_id AND e.claim = s.claim AND e.outcome = 'running')
    UNION ALL
    SELECT 'succeeded twice', task_id, count(*)::text FROM executions
        WHERE outcome = 'succeeded' GROUP BY task_id HAVING count(*) > 1
    UNION ALL
    SELECT 'the count of waits is wrong', s.task_id, s.open_waits::text FROM task_status s
        WHERE s.state = 'waiting' AND s.open_waits <> (
            SELECT count(*) FROM steps w WHERE w.task_id = s.task_id AND w.kind IN ('subtask', 'wait')
                AND w.status = 'started') + (
            SELECT count(*) FROM remote_calls r
                WHERE r.task_id = s.task_id AND r.state IN ('working', 'input_required'))
    UNION ALL
    SELECT 'waits for nothing', s.task_id, s.wait_reason FROM task_status s
        WHERE s.state = 'waiting' AND s.open_waits = 0 AND s.due_at IS NULL
    UNION ALL
    SELECT 'a sub-task that has ended is waited for', t.id, p.id::text
        FROM tasks t JOIN task_outcomes o ON o.task_id = t.id JOIN tasks p ON p.id = t.parent_id
        JOIN steps w ON w.task_id = p.id AND w.number = t.parent_step WHERE w.status = 'started'
    UNION ALL
    SELECT 'two tasks of a conversation have begun', min(t.id::text)::uuid, t.conversation_id
        FROM tasks t JOIN task_status s ON s.task_id = t.id
        WHERE t.conversation_id IS NOT NULL AND s.claim > 0 AND s.state NOT IN ({_ENDED})
        GROUP BY t.conversation_id HAVING count(*) > 1
    UNION ALL
    SELECT 'a unique key is held by a task that has ended', u.task_id, u.key
        FROM unique_tasks u JOIN task_outcomes o ON o.task_id = u.task_id
    UNION ALL
    SELECT 'an outcome without an end, or the other way round', s.task_id, s.state
        FROM task_status s LEFT JOIN task_outcomes o ON o.task_id = s.task_id
        WHERE s.state IS DISTINCT FROM COALESCE(o.state, s.state) OR (o.state IS NULL AND s.state IN ({_ENDED}))
    """
)
