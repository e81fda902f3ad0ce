"""Checks of `minion doctor` on PostgreSQL: its version, schema, settings, connections, clock and backups."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from sqlalchemy import Connection, text

from orchestrator.commands.findings import Finding, judged
from shared.database.connections import get_engine
from shared.database.schema import check_schema_is_current
from shared.database.sessions import check_pooler
from shared.settings import Settings

OLDEST_MAJOR = 15
# See "What it needs" in docs/production.md.
ORCHESTRATOR_CONNECTIONS = 35
LANE_CONNECTIONS = 8
# Seconds.
MOST_SKEW = 2.0
SHORT = 60.0

SERVER = ("server_version", "server_version_num", "server_encoding", "fsync", "full_page_writes", "autovacuum")
SETTINGS = text("SELECT " + ", ".join(f"current_setting('{name}') AS {name}" for name in (*SERVER, "archive_mode")))
SESSION = text(
    "SELECT current_setting('synchronous_commit') AS synchronous_commit, "
    "EXTRACT(epoch FROM current_setting('statement_timeout')::interval)::float8 AS statement_timeout, "
    "pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean AS read_only"
)
# The tightest limit: the server's, the database's or the role's. A role may not know what the sessions of others do.
CONNECTIONS = text(
    """
    SELECT l.most, l.used FROM pg_database d, pg_roles r, LATERAL (VALUES
            (current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
                 - COALESCE(current_setting('reserved_connections', true)::integer, 0),
             (SELECT sum(numbackends)::integer FROM pg_stat_database)),
            (d.datconnlimit, (SELECT numbackends FROM pg_stat_database WHERE datid = d.oid)),
            (r.rolconnlimit, (SELECT count(*)::integer FROM pg_stat_activity WHERE usesysid = r.oid))) AS l (most, used)
        WHERE d.datname = current_database() AND r.rolname = current_user AND l.most >= 0
        ORDER BY l.most - GREATEST(l.used, :needed) LIMIT 1
    """
)
WORKERS = text("SELECT COALESCE(sum(slots + 1 + :lane), 0)::integer FROM workers WHERE status = 'online'")
IS_STREAMED = text("SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'physical' AND active)")
BATCH_LANE = text(
    """
    SELECT (SELECT count(*) FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
                WHERE a.status <> 'disabled' AND v.definition->'config'->>'lane' IN ('batch', 'auto')) AS agents,
           (SELECT count(*) FROM batch_calls WHERE result IS NULL) AS calls,
           (SELECT error FROM batch_calls WHERE batch IS NULL AND result IS NULL AND error IS NOT NULL LIMIT 1) AS error
    """
)
CLOCK = text("SELECT EXTRACT(epoch FROM clock_timestamp())::float8")


def database(settings: Settings) -> Iterator[Finding]:
    """Check the database. What needs our tables comes last: there may be none."""
    if check_pooler(settings):
        yield Finding("pooler", "ok", "in session mode")
    with get_engine().connect() as connection:
        facts: dict[str, str] = dict(connection.execute(SETTINGS).one()._mapping)
        yield _version(facts)
        if facts["server_encoding"] != "UTF8":
            yield Finding("encoding", "failed", facts["server_encoding"], "recreate the database with ENCODING 'UTF8'")
        yield from _session(connection)
        yield _durability(facts)
        yield from _autovacuum(facts)
        yield _clock(connection)
        # The private server of `minion up` is for development.
        if settings.database_url:
            yield _recovery(connection, facts)
        check_schema_is_current(connection)
        yield Finding("schema", "ok", "current")
        yield _connections(connection)
        yield from _batch_lane(connection, settings)


def _version(facts: Mapping[str, str]) -> Finding:
    recent = int(facts["server_version_num"]) >= OLDEST_MAJOR * 10_000
    found = f"PostgreSQL {facts['server_version']}"
    return judged("database", found, failed="" if recent else f"needs {OLDEST_MAJOR} or later")


def _session(connection: Connection) -> Iterator[Finding]:
    found = connection.execute(SESSION).one()
    if found.read_only:
        advice = "nothing can be accepted or recorded: set DATABASE_URL to the primary server, and make it writable"
        yield Finding("writing", "failed", "this server or database is read-only", advice)
    if 0 < found.statement_timeout < SHORT:
        advice = "migrations and retention take longer: raise it for this role and database, or set it to 0"
        yield Finding("statement_timeout", "warning", f"{found.statement_timeout:g} s", advice)
    if found.synchronous_commit == "off":
        advice = "a crash of PostgreSQL loses accepted tasks and finished steps of the last second: set it to on"
        yield Finding("synchronous_commit", "warning", "off", advice)


def _durability(facts: Mapping[str, str]) -> Finding:
    off = [name for name in ("fsync", "full_page_writes") if facts[name] == "off"]
    advice = "a crash of its machine can destroy the database: set both to on, except for tests" if off else ""
    return judged("durability", f"{' and '.join(off)} off" if off else "fsync on", warning=advice)


def _autovacuum(facts: Mapping[str, str]) -> Iterator[Finding]:
    if facts["autovacuum"] == "off":
        advice = "dead rows slow dispatching down more and more: set autovacuum = on"
        yield Finding("autovacuum", "warning", "off", advice)


def _connections(connection: Connection) -> Finding:
    needed = ORCHESTRATOR_CONNECTIONS + int(connection.scalar(WORKERS, {"lane": LANE_CONNECTIONS}) or 0)
    most, used = connection.execute(CONNECTIONS, {"needed": needed}).one()
    found = f"{used} of {most} used; an orchestrator and the workers online need up to {needed}"
    advice = (
        f"processes cannot connect at the peak: raise max_connections (or the limit of the database or the role) "
        f"above {needed + 10}, or run fewer slots"
    )
    return judged("connections", found, warning=advice if needed > most or used > 0.9 * most else "")


def _clock(connection: Connection) -> Finding:
    """Compare the clocks. Leases use PostgreSQL's alone; tokens, schedules and logs also this machine's."""
    before = time.time()
    theirs = float(connection.scalar(CLOCK) or 0.0)
    skew = max(before - theirs, theirs - time.time(), 0.0)
    advice = "logins, signatures of webhooks and logs use this machine's clock: synchronise both with NTP"
    return judged("clock", f"differs from PostgreSQL's by {skew:.1f} s", warning=advice if skew > MOST_SKEW else "")


def _recovery(connection: Connection, facts: Mapping[str, str]) -> Finding:
    if facts["archive_mode"] != "off" or connection.scalar(IS_STREAMED):
        return Finding("point-in-time recovery", "ok", "the write-ahead log is archived or streamed")
    advice = (
        "everything since the last dump is lost with the server: archive the write-ahead log (docs/backup.md), unless "
        "your provider does"
    )
    return Finding("point-in-time recovery", "warning", "archive_mode off, and no standby or receiver", advice)


def _batch_lane(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Check that the calls of the batch lane can be sent, if it is used."""
    found = connection.execute(BATCH_LANE).one()
    if not (found.agents or found.calls):
        return
    advice = found.error or ""
    if not advice and not settings.anthropic_api_key:
        advice = "no ANTHROPIC_API_KEY here: the orchestrator needs it to send the calls"
    yield judged("batch lane", f"{found.agents} agents, {found.calls} calls wait", warning=advice)
