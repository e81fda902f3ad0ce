"""Record of changes and effects during the faults, and the questions that are asked afterwards.

Triggers and the test tool make the record, so that it does not depend on the code under test. One sequence numbers
everything; a number is drawn while the task's row is locked, which puts a task's transitions and effects in the
order in which they happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from shared.tasks.states import FINAL, INITIAL, TRANSITIONS

INSTALL = text(
    """
    CREATE SEQUENCE chaos_ticks;
    CREATE TABLE chaos_log (
        tick bigint PRIMARY KEY DEFAULT nextval('chaos_ticks'), task_id uuid NOT NULL, before text, after text NOT NULL,
        claim_before integer, claim integer NOT NULL);
    CREATE INDEX ON chaos_log (task_id, tick);
    CREATE TABLE chaos_calls (
        id uuid PRIMARY KEY, task_id uuid NOT NULL, claim integer NOT NULL, key text NOT NULL);
    CREATE INDEX ON chaos_calls (task_id);
    CREATE TABLE chaos_effects (
        tick bigint PRIMARY KEY DEFAULT nextval('chaos_ticks'), task_id uuid NOT NULL, claim integer NOT NULL,
        key text NOT NULL, repeated boolean NOT NULL);
    CREATE INDEX ON chaos_effects (key);
    CREATE INDEX ON chaos_effects (task_id);

    CREATE FUNCTION chaos_record() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_log (task_id, before, after, claim_before, claim) VALUES (
            NEW.task_id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state,
            CASE WHEN TG_OP = 'UPDATE' THEN OLD.claim END, NEW.claim);
        RETURN NULL;
    END $$;
    -- Also when a state is written that the task is in already: to finish again is to finish twice.
    CREATE TRIGGER chaos_record AFTER INSERT OR UPDATE OF state, claim ON task_status
        FOR EACH ROW EXECUTE FUNCTION chaos_record();

    -- An effect under the product's fence. A claim may be lost between the effect and the journal, and the next one
    -- makes the same call again: that is known by its key, and whatever passed the fence is on record all the same.
    CREATE FUNCTION chaos_commit(t uuid, c integer, k text) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT minion_fence(t, c) THEN
            RETURN false;
        END IF;
        INSERT INTO chaos_effects (task_id, claim, key, repeated)
            SELECT t, c, k, EXISTS (SELECT 1 FROM chaos_effects WHERE key = k);
        RETURN true;
    END $$;
    """
)

COUNTS = text(
    """
    SELECT
        (SELECT count(*) FROM tasks) AS accepted,
        (SELECT count(*) FROM task_status WHERE state = 'succeeded') AS finished,
        (SELECT count(*) FROM task_status WHERE state = ANY (:final) AND state <> 'succeeded') AS failed,
        (SELECT count(*) FROM task_status WHERE NOT state = ANY (:final)) AS stuck,
        (SELECT count(*) FROM (SELECT task_id FROM chaos_log WHERE after = ANY (:final)
            GROUP BY task_id HAVING count(*) > 1) AS again) AS finished_twice,
        (SELECT count(*) FROM chaos_effects e LEFT JOIN LATERAL (
            SELECT l.after, l.claim FROM chaos_log l WHERE l.task_id = e.task_id AND l.tick < e.tick
                ORDER BY l.tick DESC LIMIT 1) AS held ON true
            WHERE (held.after = 'running' AND held.claim = e.claim) IS NOT TRUE) AS fenced_effects,
        (SELECT count(*) FROM task_status s JOIN tasks t ON t.id = s.task_id
            WHERE s.state = 'succeeded' AND t.agent_name = 'chaos' AND NOT EXISTS (
                SELECT 1 FROM chaos_effects e WHERE e.task_id = s.task_id)) AS effects_missing,
        (SELECT count(*) FROM (SELECT task_id FROM chaos_effects WHERE NOT repeated
            GROUP BY task_id HAVING count(*) > 1) AS more) AS effects_double,
        (SELECT count(*) FROM executions x JOIN task_status s USING (task_id)
            WHERE x.outcome = 'running' AND s.state = ANY (:final)) AS left_open,
        (SELECT count(*) FROM (SELECT task_id FROM chaos_calls GROUP BY task_id HAVING count(*) > 1) AS more)
            AS repeated_calls
    """
)
LOG = text(
    "SELECT before, after, claim_before, claim, lag(after) OVER of_task AS before_that, "
    "lag(claim) OVER of_task AS claim_before_that FROM chaos_log WINDOW of_task AS (PARTITION BY task_id ORDER BY tick)"
)
# Without chains, which wait for sub-tasks, and those for every task before them.
IN_FLIGHT = text(
    "SELECT s.task_id FROM task_status s JOIN tasks t ON t.id = s.task_id "
    "WHERE s.state IN ('queued', 'running') AND t.agent_name = 'chaos'"
)
# The later of two times: when the last of the tasks in flight ended, and when a task first ended after the fault.
RECOVERED = text(
    "SELECT extract(epoch FROM GREATEST("
    "(SELECT max(finished_at) FROM task_outcomes WHERE task_id = ANY (CAST(:tasks AS uuid[]))), "
    "(SELECT min(finished_at) FROM task_outcomes WHERE finished_at > to_timestamp(:ended))))"
)
# A gap does not count if the task that ended it did not exist when the gap began.
LONGEST_PAUSE = text(
    "SELECT extract(epoch FROM max(finished_at - GREATEST(before, created_at))) FROM ("
    "SELECT o.finished_at, t.created_at, lag(o.finished_at) OVER (ORDER BY o.finished_at) AS before "
    "FROM task_outcomes o JOIN tasks t ON t.id = o.task_id) AS ends"
)


@dataclass(frozen=True)
class Findings:
    """The counts after a scenario. Only `accepted`, `finished` and `repeated_calls` may differ from 0.

    Attributes:
        accepted: tasks in the database.
        finished: tasks that succeeded.
        failed: tasks that ended otherwise, although nothing is wrong with any of them.
        stuck: tasks that have not ended.
        finished_twice: tasks whose final state was written more than once.
        fenced_effects: effects that passed the fence while another claim, or none, held the task.
        effects_missing: tasks that succeeded without their effect. (Chains have none, only their sub-tasks.)
        effects_double: tasks with more than one effect.
        left_open: executions of ended tasks that still look as if they ran.
        illegal_transitions: changes of state that are not in the transition table, that do not begin where the
            previous one ended, or whose claim number did not increase with a claim.
        repeated_calls: tasks whose tool was called more than once; no system can prevent that without a fence.
    """

    accepted: int
    finished: int
    failed: int
    stuck: int
    finished_twice: int
    fenced_effects: int
    effects_missing: int
    effects_double: int
    left_open: int
    illegal_transitions: int
    repeated_calls: int

    def broken(self, tasks: int) -> list[str]:
        """Return the broken promises, if this is the expected number of tasks."""
        wanted = {
            "accepted": tasks,
            "finished": tasks,
            **dict.fromkeys(
                "failed stuck finished_twice fenced_effects effects_missing effects_double left_open "
                "illegal_transitions".split(),
                0,
            ),
        }
        found = {name: getattr(self, name) for name in wanted}
        return [f"{name}: {found[name]} (not {wanted[name]})" for name in wanted if found[name] != wanted[name]]


def install(connection: Connection) -> None:
    """Add the record to a fresh schema."""
    connection.execute(INSTALL)


def examine(connection: Connection) -> Findings:
    """Ask all questions."""
    counts = connection.execute(COUNTS, {"final": sorted(FINAL)}).mappings().one()
    return Findings(**counts, illegal_transitions=len(illegal_transitions(connection)))


def illegal_transitions(connection: Connection) -> list[Row[Any]]:
    """Return changes of state that are not permitted, or do not begin where the previous one ended."""
    return [row for row in connection.execute(LOG) if not _legal(row)]


def in_flight(connection: Connection) -> list[str]:
    """Return the tasks that are queued or running, without chains."""
    return [str(task) for task in connection.scalars(IN_FLIGHT)]


def recovery(connection: Connection, in_flight: Sequence[str], ended: float) -> float:
    """Return the seconds from the end of a fault until the system had recovered.

    It had recovered when the last of the tasks that were in flight at the beginning of the fault had ended, and another
    task had ended after the fault. The result is 0 if the tasks in flight had ended before the fault was over.

    Args:
        ended: when the fault was over, in seconds since 1970.
    """
    recovered = connection.scalar(RECOVERED, {"tasks": list(in_flight), "ended": ended})
    return max(0.0, float(recovered or ended) - ended)


def longest_pause(connection: Connection) -> float:
    """Return the longest time in seconds in which no task ended although there were some."""
    return float(connection.scalar(LONGEST_PAUSE) or 0.0)


def _legal(change: Row[Any]) -> bool:
    if change.before is None:
        return change.after in INITIAL and change.claim == 0
    if (change.before, change.claim_before) != (change.before_that, change.claim_before_that):
        return False
    if change.before == change.after:
        return change.after not in FINAL and change.claim == change.claim_before
    claimed = change.after == "running"
    return (change.before, change.after) in TRANSITIONS and change.claim == change.claim_before + claimed
