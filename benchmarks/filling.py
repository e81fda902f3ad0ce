"""Rows in the tables of Minions, written by SQL for sets of tasks: a backlog, or a history."""

from __future__ import annotations

from sqlalchemy import Engine, text

BATCH = 100_000

PENDING = text("""
    WITH made AS (
        INSERT INTO tasks (id, agent_name, agent_version_id, input, root_id, origin_id, key)
            SELECT i.id, a.name, a.active_version_id, '{"value": 1}'::jsonb, i.id, i.id,
                   CASE WHEN :keys > 0 THEN 'tenant-' || (i.n % :keys) END
                FROM (SELECT n, minion_uuidv7() AS id FROM generate_series(1, :tasks) AS n) AS i, agents a
                WHERE a.name = :agent RETURNING id, key
    )
    INSERT INTO task_status (task_id, state, capability, agent_name, key, rank)
        SELECT id, 'pending', :capability, :agent, COALESCE(key, ''), minion_rank(clock_timestamp(), 0) FROM made
""")
# What a no-op task leaves behind, in empty tables. Triggers are off: they would only write the events, which are below.
SUCCEEDED = (
    text("""
    INSERT INTO tasks (id, agent_name, agent_version_id, input, root_id, origin_id)
        SELECT i.id, a.name, a.active_version_id, '{"value": 1}'::jsonb, i.id, i.id
            FROM (SELECT minion_uuidv7() AS id FROM generate_series(1, :tasks)) AS i, agents a WHERE a.name = :agent
    """),
    text("""
    INSERT INTO task_status (task_id, state, capability, claim, agent_name)
        SELECT id, 'succeeded', :capability, 1, :agent FROM tasks
    """),
    text("""
    INSERT INTO executions (task_id, claim, worker_id, outcome, finished_at)
        SELECT id, 1, (SELECT id FROM workers LIMIT 1), 'succeeded', now() FROM tasks
    """),
    text("""
    INSERT INTO steps (task_id, number, kind, name, status, request_hash, claim, input, output, finished_at)
        SELECT id, 1, 'tool_call', 'echo', 'finished', encode(sha256(id::text::bytea), 'hex'), 1,
               '{"value": 1}', '{"value": 1}', now() FROM tasks
    """),
    text("""
    INSERT INTO task_events (task_id, number, type, data)
        SELECT id, number, 'state', '{"state": "succeeded"}' FROM tasks, generate_series(1, 3) AS number
    """),
    text("""
    INSERT INTO task_outcomes (task_id, state, output, ended_in)  -- as if they were counted
        SELECT id, 'succeeded', '{"value": 1}', NULL FROM tasks
    """),
)


def empty(engine: Engine) -> None:
    """Remove all tasks."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("TRUNCATE tasks CASCADE"))


def fill_pending(engine: Engine, tasks: int, agent: str, capability: str, *, keys: int = 0) -> None:
    """Add tasks that wait for dispatch, of this many tenants."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(PENDING, {"tasks": tasks, "agent": agent, "capability": capability, "keys": keys})


def fill_succeeded(engine: Engine, tasks: int, agent: str, capability: str) -> None:
    """Add tasks that have succeeded, with everything that they leave behind. The tables must be empty."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in SUCCEEDED:
            connection.execute(statement, {"tasks": tasks, "agent": agent, "capability": capability})


def vacuum(engine: Engine) -> None:
    """Do what autovacuum does after such changes."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("RESET statement_timeout"))
