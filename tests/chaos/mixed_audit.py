"""The record and the questions of the mixed scenario: every promise that a user of all features relies on.

Triggers keep a record beside the product's tables, so that it outlives rows that retention deletes. `Witness` adds the
observations from outside the database (submissions, decisions, webhooks, requests to the model) at the end. Every
question is one statement that finds the violations of one promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, TextClause, text

from shared.tasks.states import FINAL
from tests.chaos import audit

TOKENS_A_CALL = 115  # of the local model, including cached ones
SHOWN = 5

INSTALL = text(
    """
    CREATE TABLE chaos_tasks (
        tick bigint PRIMARY KEY DEFAULT nextval('chaos_ticks'), id uuid NOT NULL, root_id uuid NOT NULL, parent_id uuid,
        agent text, key text, conversation text, number integer, submitted_by text, replay_of uuid);
    CREATE UNIQUE INDEX ON chaos_tasks (id);
    CREATE INDEX ON chaos_tasks (root_id);
    CREATE FUNCTION chaos_accepted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_tasks (id, root_id, parent_id, agent, key, conversation, number, submitted_by, replay_of)
            VALUES (NEW.id, NEW.root_id, NEW.parent_id, NEW.agent_name, NEW.key, NEW.conversation_id,
                    (NEW.labels->>'chaos')::integer, NEW.submitted_by, NEW.replay_of);
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_accepted AFTER INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION chaos_accepted();

    CREATE TABLE chaos_deleted (tick bigint PRIMARY KEY DEFAULT nextval('chaos_ticks'), id uuid NOT NULL);
    CREATE FUNCTION chaos_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_deleted (id) VALUES (OLD.id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_deleted AFTER DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION chaos_deleted();

    CREATE TABLE chaos_steps (
        tick bigint PRIMARY KEY DEFAULT nextval('chaos_ticks'), task_id uuid NOT NULL, number integer NOT NULL,
        kind text NOT NULL, status text NOT NULL, before text);
    CREATE INDEX ON chaos_steps (task_id, number, tick);
    CREATE FUNCTION chaos_journaled() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_steps (task_id, number, kind, status, before) VALUES (
            NEW.task_id, NEW.number, NEW.kind, NEW.status, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END);
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_journaled AFTER INSERT OR UPDATE OF status, output, claim ON steps
        FOR EACH ROW EXECUTE FUNCTION chaos_journaled();

    CREATE TABLE chaos_budgets (task_id uuid PRIMARY KEY, tokens bigint, steps bigint, overrun boolean NOT NULL);
    CREATE FUNCTION chaos_spent() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_budgets AS b VALUES (NEW.task_id, NEW.tokens, NEW.steps,
                (NEW.spent_tokens > NEW.tokens OR NEW.spent_steps > NEW.steps) IS TRUE)
            ON CONFLICT (task_id) DO UPDATE SET overrun = b.overrun OR EXCLUDED.overrun;
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_spent AFTER INSERT OR UPDATE ON budgets FOR EACH ROW EXECUTE FUNCTION chaos_spent();

    -- Slots of schedules: the time in the idempotency key of each run, and every place that a schedule was moved to.
    CREATE TABLE chaos_slots (schedule uuid NOT NULL, slot timestamptz NOT NULL, task_id uuid NOT NULL);
    CREATE FUNCTION chaos_run() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_slots VALUES (split_part(NEW.key, ':', 2)::uuid,
                substr(NEW.key, length('schedule:') + 38)::timestamptz, NEW.task_id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_run AFTER INSERT ON idempotency_keys FOR EACH ROW WHEN (NEW.key LIKE 'schedule:%')
        EXECUTE FUNCTION chaos_run();
    CREATE TABLE chaos_schedules (
        tick bigint PRIMARY KEY DEFAULT nextval('chaos_ticks'), id uuid NOT NULL, name text NOT NULL,
        seconds double precision NOT NULL, next_at timestamptz NOT NULL);
    CREATE FUNCTION chaos_scheduled() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_schedules (id, name, seconds, next_at)
            VALUES (NEW.id, NEW.name, NEW.interval_seconds, NEW.next_at);
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_scheduled AFTER INSERT OR UPDATE ON schedules FOR EACH ROW WHEN (NEW.enabled)
        EXECUTE FUNCTION chaos_scheduled();

    -- What was seen outside the database.
    CREATE TABLE chaos_submitted (number integer PRIMARY KEY, kind text NOT NULL, ends text[] NOT NULL);
    CREATE TABLE chaos_limits (key text PRIMARY KEY, max_running integer NOT NULL);
    CREATE TABLE chaos_decided (task_id uuid NOT NULL, proposal text NOT NULL, verdict text NOT NULL);
    CREATE TABLE chaos_received (
        message text NOT NULL, task_id uuid NOT NULL, state text NOT NULL, verified boolean NOT NULL);
    CREATE TABLE chaos_asked (number integer NOT NULL, turn integer NOT NULL, requests integer NOT NULL);

    CREATE VIEW chaos_spans AS
        SELECT t.id, t.root_id, t.parent_id, t.agent, t.key, t.conversation, t.number, t.submitted_by, t.replay_of,
               t.tick AS accepted, l.begun, l.ended, l.ends, l.state
        FROM chaos_tasks t LEFT JOIN LATERAL (
            SELECT min(tick) FILTER (WHERE after = 'running') AS begun,
                   min(tick) FILTER (WHERE after IN ('succeeded', 'failed', 'cancelled', 'expired')) AS ended,
                   count(*) FILTER (WHERE after IN ('succeeded', 'failed', 'cancelled', 'expired')) AS ends,
                   max(after) FILTER (WHERE after IN ('succeeded', 'failed', 'cancelled', 'expired')) AS state
            FROM chaos_log WHERE task_id = t.id) AS l ON true;
    """
)

# Name of the promise: a statement that finds its violations, a row each.
QUESTIONS: dict[str, TextClause] = {
    name: text(question)
    for name, question in {
        "every submission is exactly one task": """
            SELECT s.kind, s.number, count(t.id) AS tasks FROM chaos_submitted s
                LEFT JOIN chaos_tasks t ON t.number = s.number AND t.parent_id IS NULL AND t.replay_of IS NULL
                GROUP BY s.kind, s.number HAVING count(t.id) <> 1""",
        "every task ends exactly once": "SELECT id, agent, ends FROM chaos_spans WHERE ends <> 1",
        "tasks end as they should": """
            SELECT s.kind, t.id, t.state FROM chaos_spans t JOIN chaos_submitted s USING (number)
                WHERE t.parent_id IS NULL AND NOT t.state = ANY (s.ends)
            UNION ALL SELECT 'schedule', id, state FROM chaos_spans
                WHERE submitted_by LIKE 'schedule:%' AND state <> 'succeeded'""",
        "claims that are lost have no effect": """
            SELECT e.task_id, e.claim FROM chaos_effects e LEFT JOIN LATERAL (
                SELECT l.after, l.claim FROM chaos_log l WHERE l.task_id = e.task_id AND l.tick < e.tick
                    ORDER BY l.tick DESC LIMIT 1) AS held ON true
                WHERE (held.after = 'running' AND held.claim = e.claim) IS NOT TRUE""",
        "every success has its effect": """
            SELECT id, agent FROM chaos_spans t WHERE state = 'succeeded' AND agent = ANY (:effective)
                AND NOT EXISTS (SELECT 1 FROM chaos_effects e WHERE e.task_id = t.id)""",
        "a call is repeated only under its key": """
            SELECT task_id, count(DISTINCT key) AS keys FROM chaos_calls GROUP BY task_id HAVING count(DISTINCT key) > 1
            UNION ALL SELECT min(task_id::text)::uuid, count(*) FROM chaos_effects WHERE NOT repeated
                GROUP BY key HAVING count(*) > 1""",
        # One claim may write its effect twice if the answer to the commit was lost; calls are counted below.
        "an unsafe effect happens once": """
            SELECT t.id, count(DISTINCT e.claim) AS claims FROM chaos_tasks t JOIN chaos_effects e ON e.task_id = t.id
                WHERE t.agent = :unsafe GROUP BY t.id HAVING count(DISTINCT e.claim) > 1""",
        "an unsafe call is repeated only where a person said so": """
            SELECT t.id, count(c.id) AS calls, again.verdicts FROM chaos_tasks t JOIN chaos_calls c ON c.task_id = t.id
                CROSS JOIN LATERAL (SELECT count(DISTINCT proposal) AS verdicts FROM chaos_decided d
                    WHERE d.task_id = t.id AND d.verdict = 'again') AS again
                WHERE t.agent = :unsafe GROUP BY t.id, again.verdicts HAVING count(c.id) > 1 + again.verdicts""",
        "nothing is called that was not approved": """
            SELECT DISTINCT t.id FROM chaos_tasks t JOIN chaos_calls c ON c.task_id = t.id
                WHERE t.agent = :approved
                  AND NOT EXISTS (SELECT 1 FROM chaos_decided d WHERE d.task_id = t.id AND d.verdict = 'approve')""",
        "limits hold": """
            SELECT key, max(running) AS most FROM (
                SELECT t.key, sum((l.after = 'running')::integer - (l.before = 'running')::integer)
                        OVER (PARTITION BY t.key ORDER BY l.tick) AS running
                    FROM chaos_log l JOIN chaos_tasks t ON t.id = l.task_id WHERE l.before IS NOT NULL) AS counted
                JOIN chaos_limits m USING (key) GROUP BY key, max_running HAVING max(running) > max_running""",
        "budgets are not overrun": """
            SELECT b.task_id, b.tokens, asked.tokens AS paid, b.steps, made.steps AS made FROM chaos_budgets b
                CROSS JOIN LATERAL (SELECT COALESCE(sum(a.requests), 0) * :tokens AS tokens
                    FROM chaos_asked a JOIN chaos_tasks t ON t.number = a.number
                    WHERE t.id = b.task_id) AS asked
                CROSS JOIN LATERAL (SELECT count(DISTINCT (s.task_id, s.number)) AS steps
                    FROM chaos_steps s JOIN chaos_tasks t ON t.id = s.task_id WHERE t.root_id = b.task_id) AS made
                WHERE b.overrun OR asked.tokens > b.tokens OR made.steps > b.steps""",
        "conversations run in order": """
            SELECT a.conversation, a.id AS first, b.id AS second FROM chaos_spans a JOIN chaos_spans b
                ON b.conversation = a.conversation AND b.id > a.id AND a.accepted < b.begun
                WHERE a.parent_id IS NULL AND b.parent_id IS NULL AND (b.begun > a.ended) IS NOT TRUE""",
        "every slot of a schedule is one task": """
            SELECT COALESCE(due.slot, run.slot) AS slot, count(run.task_id) AS tasks FROM (
                SELECT s.id, generate_series(min(s.next_at), max(s.next_at) - interval '1 ms',
                                             make_interval(secs => min(s.seconds))) AS slot
                    FROM chaos_schedules s GROUP BY s.id) AS due
                FULL JOIN chaos_slots run ON run.schedule = due.id AND run.slot = due.slot
                GROUP BY 1 HAVING count(run.task_id) <> 1 OR count(due.id) = 0
            UNION ALL SELECT NULL, count(*) FROM chaos_tasks t WHERE t.submitted_by LIKE 'schedule:%'
                AND NOT EXISTS (SELECT 1 FROM chaos_slots s WHERE s.task_id = t.id) HAVING count(*) > 0""",
        "a replay shows the keys of its original": """
            SELECT r.id, r.replay_of, mine.keys AS keys, its.keys AS original FROM chaos_spans r
                CROSS JOIN LATERAL (SELECT array_agg(DISTINCT c.key) AS keys FROM chaos_calls c
                    JOIN chaos_tasks t ON t.id = c.task_id WHERE t.root_id = r.id) AS mine
                CROSS JOIN LATERAL (SELECT array_agg(DISTINCT c.key) AS keys FROM chaos_calls c
                    JOIN chaos_tasks t ON t.id = c.task_id WHERE r.replay_of IN (t.root_id, t.id)) AS its
                WHERE r.replay_of IS NOT NULL AND r.parent_id IS NULL AND mine.keys IS DISTINCT FROM its.keys
            UNION ALL SELECT r.id, r.replay_of, array_agg(e.key), NULL FROM chaos_tasks r
                JOIN chaos_tasks t ON t.root_id = r.id JOIN chaos_effects e ON e.task_id = t.id
                WHERE r.replay_of IS NOT NULL AND r.parent_id IS NULL AND NOT e.repeated GROUP BY r.id, r.replay_of""",
        "webhooks deliver every end, signed, under one id": """
            SELECT t.id, t.state, count(r.message) AS messages FROM chaos_spans t
                LEFT JOIN chaos_received r ON r.task_id = t.id AND r.verified AND r.state = 'task.' || t.state
                WHERE t.parent_id IS NULL AND t.state <> 'cancelled' AND :listening GROUP BY t.id, t.state
                HAVING count(DISTINCT r.message) <> 1
            UNION ALL SELECT r.task_id, r.state, 1 FROM chaos_received r LEFT JOIN chaos_spans t ON t.id = r.task_id
                WHERE NOT r.verified OR r.state IS DISTINCT FROM 'task.' || t.state OR t.parent_id IS NOT NULL""",
        "only what is over is pruned, whole trees at a time": """
            SELECT d.id, r.state, t.state FROM chaos_deleted d JOIN chaos_spans t ON t.id = d.id
                JOIN chaos_spans r ON r.id = t.root_id
                WHERE r.state IS DISTINCT FROM 'cancelled' OR (t.ended < d.tick) IS NOT TRUE
                   OR EXISTS (SELECT 1 FROM chaos_tasks m WHERE m.root_id = t.root_id
                                  AND m.id NOT IN (SELECT id FROM chaos_deleted))""",
        "a finished step is not run again": """
            SELECT task_id, number, kind, status FROM chaos_steps WHERE before = 'finished'""",
        "a model is asked only for a step that was begun": """
            SELECT a.number, a.turn, a.requests, begun.times FROM chaos_asked a
                JOIN chaos_tasks t ON t.number = a.number AND t.parent_id IS NULL AND t.replay_of IS NULL
                LEFT JOIN (SELECT task_id, dense_rank() OVER (PARTITION BY task_id ORDER BY number) - 1 AS turn,
                                  count(*) FILTER (WHERE status = 'started') AS times
                               FROM chaos_steps WHERE kind = 'model_call' GROUP BY task_id, number) AS begun
                    ON begun.task_id = t.id AND begun.turn = a.turn
                WHERE a.requests > COALESCE(begun.times, 0)""",
        "no execution is left open": """
            SELECT x.task_id, x.claim FROM executions x JOIN task_status s USING (task_id)
                WHERE x.outcome = 'running' AND s.state = ANY (:final)""",
    }.items()
}
OPEN = text("SELECT count(*) FROM task_status WHERE NOT state = ANY (:final)")
RUNNING = text("SELECT count(*) FROM task_status WHERE state = 'running'")
LAST = text("SELECT max(tick) FROM chaos_log")
COVERED = text(
    """
    SELECT (SELECT count(*) FROM chaos_tasks) AS tasks,
           (SELECT count(*) FROM chaos_tasks WHERE replay_of IS NOT NULL) AS replays,
           (SELECT count(*) FROM chaos_slots) AS slots,
           (SELECT count(*) FROM chaos_deleted) AS pruned,
           (SELECT count(DISTINCT task_id) FROM chaos_received) AS webhooks,
           (SELECT count(*) FROM chaos_decided) AS decisions,
           (SELECT count(*) FROM chaos_decided WHERE verdict IN ('again', 'result')) AS interrupted,
           (SELECT COALESCE(sum(requests), 0) FROM chaos_asked) AS model_calls,
           (SELECT count(*) FROM executions WHERE outcome IN ('lost', 'retried')) AS claims_lost
    """
)


@dataclass
class Witness:
    """Observations from outside the database.

    Attributes:
        submitted: number, kind and permitted ends of each acknowledged submission.
        limits: maximum of running tasks, by tenant key.
        decided: task, proposal and verdict of each decision, recorded before it is sent.
        received: message id, task, type and whether the signature was valid, of each webhook that arrived.
        asked: requests to the model, by number of the task and turn.
        listening: whether there was a receiver of webhooks.
    """

    submitted: list[tuple[int, str, Sequence[str]]] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    decided: list[tuple[str, str, str]] = field(default_factory=list)
    received: list[tuple[str, str, str, bool]] = field(default_factory=list)
    asked: dict[tuple[int, int], int] = field(default_factory=dict)
    listening: bool = True

    def testify(self, connection: Connection) -> None:
        """Add the observations to the record."""
        tables: dict[str, list[tuple[Any, ...]]] = {
            "chaos_submitted": [(number, kind, list(ends)) for number, kind, ends in self.submitted],
            "chaos_limits": list(self.limits.items()),
            "chaos_decided": list(self.decided),
            "chaos_received": list(self.received),
            "chaos_asked": [(*which, requests) for which, requests in self.asked.items()],
        }
        for table, rows in tables.items():
            for row in rows:
                names = [f"v{index}" for index in range(len(row))]
                values = ", ".join(f":{name}" for name in names)
                insert = text(f"INSERT INTO {table} VALUES ({values})")
                connection.execute(insert, dict(zip(names, row, strict=True)))


def install(connection: Connection) -> None:
    """Add the record to a schema that has that of `audit`."""
    connection.execute(INSTALL)


def examine(
    connection: Connection, witness: Witness, *, effective: Sequence[str], unsafe: str, approved: str
) -> list[str]:
    """Ask all questions.

    Args:
        effective: agents whose every success must have had an effect.
        unsafe: the agent whose tool is unsafe.
        approved: the agent whose tool needs an approval.

    Returns:
        A line for each broken promise, with the first violations.
    """
    witness.testify(connection)
    values = {
        "final": sorted(FINAL),
        "effective": list(effective),
        "unsafe": unsafe,
        "approved": approved,
        "tokens": TOKENS_A_CALL,
        "listening": witness.listening,
    }
    broken = [
        described(promise, [str(tuple(row)) for row in connection.execute(question, values)])
        for promise, question in QUESTIONS.items()
    ]
    illegal = [str(tuple(row)) for row in audit.illegal_transitions(connection)]
    return [line for line in (*broken, described("transitions are legal", illegal)) if line]


def described(promise: str, violations: Sequence[str]) -> str:
    """Return a line about a broken promise; empty if it holds."""
    if not violations:
        return ""
    more = f" and {len(violations) - SHOWN} more" if len(violations) > SHOWN else ""
    return f"{promise}: broken by {'; '.join(violations[:SHOWN])}{more}"


def unfinished(connection: Connection) -> int:
    """Return the number of tasks that have not ended."""
    return int(connection.scalar(OPEN, {"final": sorted(FINAL)}) or 0)


def running(connection: Connection) -> int:
    """Return the number of running tasks."""
    return int(connection.scalar(RUNNING) or 0)


def progress(connection: Connection) -> int:
    """Return a number that grows with every change of a task's state."""
    return int(connection.scalar(LAST) or 0)


def covered(connection: Connection) -> dict[str, int]:
    """Return how often each feature was used, so that a run that tested nothing is noticed."""
    return {name: int(count) for name, count in connection.execute(COVERED).mappings().one().items()}
