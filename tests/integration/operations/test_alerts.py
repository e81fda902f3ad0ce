"""Alerts: conditions and anomalies become rows, once each, and end with their causes."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from orchestrator.alerts import history, store
from orchestrator.alerts.detector import Signal
from orchestrator.alerts.history import Hours
from orchestrator.alerts.store import Found
from orchestrator.alerts.watch import AlertWatch
from orchestrator.observe import gauges
from orchestrator.observe.histogram import BOUNDS
from shared.access.actors import Actor, bootstrap_key
from shared.audit import log as audit
from shared.settings import Settings
from tests.support.lifecycle_driver import LifecycleDriver

INSERT = text(
    "INSERT INTO statistics (grain, kind, bucket, namespace, agent, version, capability, outcome, step, name, count, "
    "microdollars, runs, waits) VALUES ('hour', :kind, :bucket, :namespace, :agent, 1, 'work', :outcome, :step, :name, "
    ":count, :microdollars, :runs, :waits)"
)
WEEKS = 2


def alerts(database: Engine, *, open_only: bool = True) -> list[Any]:
    with database.connect() as connection:
        rows = connection.execute(text("SELECT * FROM alerts ORDER BY id")).mappings().all()
    return [row for row in rows if not open_only or row["state"] != "resolved"]


def age(database: Engine, table: str, column: str, interval: str) -> None:
    """Move a column into the past."""
    with database.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET {column} = {column} - interval '{interval}'"))


def watch(settings: Settings, database: Engine) -> AlertWatch:
    return AlertWatch(settings, database)


# -------------------------------------------------------------------------------------------------------- conditions


@pytest.fixture
def pending(driver: LifecycleDriver) -> LifecycleDriver:
    driver.submit("A")
    driver.dispatch()
    with driver.engine.begin() as connection:
        connection.execute(text("UPDATE task_status SET state = 'pending', rank = rank - 120 * 1000000::bigint"))
    return driver


def test_capability_without_a_worker_is_an_alert_until_one_serves_it(
    settings: Settings, database: Engine, pending: LifecycleDriver
) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET last_seen = now() - interval '1 hour'"))
    looking = watch(settings, database)
    with capture_logs() as logs:
        looking.look()
        looking.look()
    [alert] = alerts(database)
    assert (alert["rule"], alert["namespace"], alert["state"]) == ("unserved", "default", "firing")
    assert alert["capability"] == alert["subject"]
    assert "no live worker serves it. Start one: `minion worker" in alert["sentence"]
    assert [line["state"] for line in logs if line["event"] == "alert"] == ["firing"]
    with database.begin() as connection:
        connection.execute(text("DELETE FROM tasks"))
    looking.look()
    assert alerts(database), "a condition that comes and goes is one alert"
    age(database, "alerts", "last_seen", "3 minutes")
    watch(settings, database).look()
    assert not alerts(database)
    [ended] = alerts(database, open_only=False)
    assert ended["resolved_at"] is not None


def test_old_queue_of_a_live_worker_and_paused_queue(
    settings: Settings, database: Engine, pending: LifecycleDriver
) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE task_status SET rank = rank - 7200 * 1000000::bigint"))
        connection.execute(text("UPDATE workers SET last_seen = now() + interval '1 minute'"))
    watch(settings, database).look()
    assert [alert["rule"] for alert in alerts(database)] == ["pending_old"]
    with database.begin() as connection:
        connection.execute(text("DELETE FROM alerts"))
        connection.execute(
            text("INSERT INTO pauses (scope, name) SELECT DISTINCT 'capability', capability FROM task_status")
        )
    watch(settings, database).look()
    assert not alerts(database), "an operator has paused it"


def test_threats_budgets_webhooks_and_dead_letters(settings: Settings, database: Engine) -> None:
    with database.begin() as connection:
        audit.record(
            connection,
            Actor(bootstrap_key("0f1e2d3c")),
            "alert.sandbox_denials",
            "function odd",
            namespace="ours",
            after={"number": 12, "minutes": 10},
        )
        connection.execute(
            text("INSERT INTO webhooks (namespace, name, url, secret, enabled, disabled_reason) "
                 "VALUES ('ours', 'hook', 'http://x', 's', false, '410 Gone')")
        )  # fmt: skip
        budget = connection.scalar(
            text("INSERT INTO standing_budgets (scope, namespace, name, period, timezone, tokens, on_breach) "
                 "VALUES ('agent', 'ours', 'A', 'day', 'UTC', 10, 'wait') RETURNING id")
        )  # fmt: skip
        connection.execute(
            text("INSERT INTO standing_usage (budget_id, period_start, period_end, spent_tokens) "
                 "SELECT :budget, p.starts, p.ends, 10 FROM minion_period('day', 'UTC', clock_timestamp()) p"),
            {"budget": budget},
        )  # fmt: skip
        connection.execute(
            text("INSERT INTO statistics_state (gauges) VALUES (CAST(:gauges AS jsonb)) "
                 "ON CONFLICT (id) DO UPDATE SET gauges = EXCLUDED.gauges"),
            {"gauges": '{"minions_dead_letters": [[{}, 1200]]}'},
        )  # fmt: skip
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text("INSERT INTO remote_calls (task_id, step, namespace, server, server_version_id, remote_id, state, "
                 "poll_seconds, failing_since) "
                 "SELECT gen_random_uuid(), 1, 'ours', 'ci', gen_random_uuid(), 'x', state, 5, "
                 "now() - interval '20 minutes' "
                 "FROM unnest(ARRAY['working', 'input_required', 'cancelling']) AS state")
        )  # fmt: skip
    watch(settings, database).look()
    found = {alert["rule"]: alert for alert in alerts(database)}
    rules = {"threat.sandbox_denials", "webhook_fails", "mcp_server_fails", "budget_blocks", "dead_letters"}
    assert set(found) == rules
    assert (
        "MCP server ci could not be asked about 2 of its tasks, for up to 20 minutes"
        in (found["mcp_server_fails"]["sentence"])
    )
    assert "tried 12 times what the sandbox denies in 10 minutes" in found["threat.sandbox_denials"]["sentence"]
    assert found["dead_letters"]["namespace"] is None
    assert found["budget_blocks"]["agent"] == "A"
    with database.connect() as connection:
        read = gauges.read(connection, settings)["minions_alerts"]
    assert sorted(labels["rule"] for labels, _ in read) == sorted(found)


def test_old_approval(settings: Settings, database: Engine, driver: LifecycleDriver) -> None:
    driver.submit("A")
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text("UPDATE task_status SET state = 'waiting', wait_reason = 'approval', "
                 "updated_at = now() - interval '3 days'")
        )  # fmt: skip
    watch(settings, database).look()
    assert "A task of A waits for a person, the oldest for 3 days" in alerts(database)[0]["sentence"]


def test_hostile_names_are_bounded_and_on_one_line(database: Engine) -> None:
    with database.begin() as connection:
        hostile = "x\x00\ud800\n\x1b[2J" + "y" * 5000
        store.sync(connection, ("unserved",), [Found(rule="unserved", subject=hostile, sentence=hostile * 2)])
    [alert] = alerts(database)
    assert len(alert["subject"]) <= store.LONGEST_NAME
    assert len(alert["sentence"]) <= store.LONGEST_SENTENCE
    assert "\n" not in alert["sentence"]
    assert "\x1b" not in alert["sentence"]


def test_silence_holds_an_alert_until_it_ends(database: Engine) -> None:
    found = [Found(rule="unserved", subject="work", capability="work", namespace="ours", sentence="s")]
    with database.begin() as connection:
        store.sync(connection, ("unserved",), found)
        connection.execute(
            text("INSERT INTO alert_silences (namespace, rule, until_at, reason, created_by) VALUES "
                 "('theirs', '*', now() + interval '1 hour', 'other', 'x'), "
                 "('ours', 'unser*', now() + interval '1 hour', 'no pattern', 'x')")
        )  # fmt: skip
        store.apply_silences(connection)
    assert alerts(database)[0]["state"] == "firing"
    with database.begin() as connection:
        connection.execute(
            text("INSERT INTO alert_silences (namespace, capability, until_at, reason, created_by) "
                 "VALUES ('ours', 'work', now() + interval '1 hour', 'known', 'x')")
        )  # fmt: skip
        store.sync(connection, ("unserved",), found)
    assert alerts(database)[0]["state"] == "silenced"
    age(database, "alert_silences", "until_at", "2 hours")
    with database.begin() as connection:
        store.sync(connection, ("unserved",), found)
    assert alerts(database)[0]["state"] == "firing"


# --------------------------------------------------------------------------------------------------------- anomalies


HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
"""The tests judge the hours before this one, also if the next one begins meanwhile."""


def bucket(number: int) -> datetime:
    """The hour that many hours ago; 1 is the last complete one."""
    return HOUR - timedelta(hours=number)


def histogram(count: int, seconds: float) -> list[int]:
    position = sum(bound <= seconds for bound in BOUNDS)
    return [*[0] * (position - 1), count // 3, count - 2 * (count // 3), count // 3]


def write_hours(
    database: Engine, hours: range, agent: str = "triage", *, failing: float = 0.02, slower: float = 1.0
) -> None:
    """Write rollups of hours: some 100 tasks in each."""
    dice = random.Random(str(hours))
    rows = []
    for number in hours:
        ended = round(100 * dice.uniform(0.8, 1.2))
        failed = round(ended * failing)
        empty = {"step": "", "name": "", "outcome": "", "microdollars": 0, "runs": [], "waits": []}
        base: dict[str, Any] = {"bucket": bucket(number), "namespace": "default", "agent": agent, **empty}
        rows += [
            base | {"kind": "task", "outcome": "succeeded", "count": ended - failed},
            base | {"kind": "task", "outcome": "failed", "count": failed},
            base | {"kind": "failure", "step": "TimeoutError", "name": "3f9d2c1b8a70", "count": failed},
            base | {"kind": "step", "step": "model_call", "name": "m", "count": ended, "microdollars": ended * 20_000},
            base
            | {
                "kind": "execution",
                "count": ended,
                "runs": histogram(ended, 4.0 * slower * dice.uniform(0.9, 1.1)),
                "waits": histogram(ended, 2.0),
            },
        ]
    with database.begin() as connection:
        connection.execute(INSERT, rows)
        connection.execute(text("INSERT INTO statistics_state DEFAULT VALUES ON CONFLICT (id) DO NOTHING"))
        connection.execute(text("UPDATE statistics_state SET counted_at = :hour"), {"hour": HOUR})
        connection.execute(
            text("INSERT INTO watched_hours (bucket, samples) VALUES (:bucket, 1) ON CONFLICT DO NOTHING"),
            [{"bucket": bucket(number)} for number in hours],
        )


def judge_all(looking: AlertWatch) -> None:
    while looking.judge():
        pass


def test_anomaly_over_the_rollups_is_one_alert_with_its_reason(settings: Settings, database: Engine) -> None:
    write_hours(database, range(2, WEEKS * 168))
    write_hours(database, range(1, 2), failing=0.4, slower=8.0)
    write_hours(database, range(1, WEEKS * 168), agent="calm")
    judge_all(watch(settings, database))
    found = {alert["rule"]: alert for alert in alerts(database)}
    assert set(found) == {"anomaly.failures", "anomaly.run"}
    alert = found["anomaly.failures"]
    assert (alert["namespace"], alert["agent"], alert["capability"]) == ("default", "triage", "work")
    since = f"{bucket(1):%H:%M} UTC"
    assert alert["sentence"].startswith(f"Tasks of triage fail 40 % of the time since {since}; usually 2 %.")
    assert "Most of them: TimeoutError (3f9d2c1b8a70)" in alert["sentence"]
    assert alert["low"] <= alert["usual"] <= alert["high"] < alert["value"]
    # Another leader, after a restart: the same alerts, no second ones.
    before = [row["id"] for row in alerts(database, open_only=False)]
    judge_all(watch(settings, database))
    assert [row["id"] for row in alerts(database, open_only=False)] == before


def figures(looking: AlertWatch) -> dict[Any, list[float]]:
    return {name: list(each._levels[Signal.COST]._all) for name, each in looking._hours._subjects.items()}


@pytest.mark.parametrize("broken", ["read", "kept"])
def test_anomaly_is_found_although_the_database_failed_in_between(
    settings: Settings, database: Engine, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    write_hours(database, range(2, WEEKS * 168))
    write_hours(database, range(1, 2), slower=8.0)
    looking = watch(settings, database)
    place, name = (history, "_ages") if broken == "read" else (store, "sync")
    works, calls = getattr(place, name), 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (40 if broken == "read" else 1):
            raise ConnectionError("gone")
        return works(*arguments)

    monkeypatch.setattr(place, name, failing)
    with pytest.raises(ConnectionError):
        judge_all(looking)
    judge_all(looking)
    assert [alert["rule"] for alert in alerts(database)] == ["anomaly.run"]
    undisturbed = watch(settings, database)
    judge_all(undisturbed)
    assert figures(looking) == figures(undisturbed), "no hour was added twice"


def test_figures_are_read_again_after_another_has_led(
    settings: Settings, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hours(database, range(1, 200))
    looking = watch(settings, database)
    judge_all(looking)
    monkeypatch.setattr(looking.leadership, "held", lambda: False)
    looking.run_once()
    assert not looking._hours._subjects
    assert looking._behind


def test_anomaly_ends_when_hours_are_as_usual(settings: Settings, database: Engine) -> None:
    write_hours(database, range(3, WEEKS * 168))
    write_hours(database, range(1, 3), failing=0.4)
    looking = watch(settings, database)
    judge_all(looking)
    assert [alert["rule"] for alert in alerts(database)] == ["anomaly.failures"]
    # Two quiet hours pass.
    with database.begin() as connection:
        connection.execute(text("DELETE FROM statistics"))
    write_hours(database, range(5, WEEKS * 168))
    write_hours(database, range(3, 5), failing=0.4)
    write_hours(database, range(1, 3))
    with database.begin() as connection:
        facts = "facts || jsonb_build_object('hour', (facts->'hour')::int - 2, 'from_hour', (facts->'hour')::int - 3)"
        connection.execute(text(f"UPDATE alerts SET last_seen = last_seen - interval '2 hours', facts = {facts}"))
    judge_all(watch(settings, database))
    assert not alerts(database)


@pytest.mark.parametrize(
    "fault",
    [
        "UPDATE statistics_state SET counted_at = now() + interval '400 days'",
        "DELETE FROM statistics WHERE bucket < now() - interval '2 days'",
        "DELETE FROM watched_hours",
        "DELETE FROM statistics WHERE bucket > now() - interval '30 hours'; DELETE FROM watched_hours",
        "UPDATE statistics SET bucket = bucket + interval '200 days'",
    ],
    ids=["clock jump", "pruning", "not watched", "restored from a backup", "clock set back"],
)
def test_faults_of_clocks_and_data_raise_no_storm(settings: Settings, database: Engine, fault: str) -> None:
    write_hours(database, range(1, WEEKS * 168))
    looking = watch(settings, database)
    judge_all(looking)
    with database.begin() as connection:
        for statement in fault.split(";"):
            connection.execute(text(statement))
    judge_all(looking)
    judge_all(watch(settings, database))
    assert not alerts(database, open_only=False)


def test_stop_of_one_agent_is_an_anomaly_if_an_orchestrator_watched(settings: Settings, database: Engine) -> None:
    write_hours(database, range(4, WEEKS * 168))
    write_hours(database, range(1, WEEKS * 168), agent="calm")
    judge_all(watch(settings, database))
    [alert] = alerts(database)
    assert (alert["rule"], alert["agent"]) == ("anomaly.volume", "triage")
    assert alert["sentence"].startswith("0 tasks of triage ended in an hour since")


def test_ages_of_queues_are_remembered_by_the_hour(
    settings: Settings, database: Engine, pending: LifecycleDriver
) -> None:
    looking = watch(settings, database)
    looking.look()
    looking.look()
    with database.connect() as connection:
        rows = connection.execute(text("SELECT * FROM watched_hours ORDER BY capability")).mappings().all()
    assert [(row["capability"] != "", row["samples"]) for row in rows] == [(False, 2), (True, 2)]
    assert rows[1]["seconds"] >= 240


def test_verdicts_are_the_same_after_a_restart(settings: Settings, database: Engine) -> None:
    write_hours(database, range(3, WEEKS * 168))
    write_hours(database, range(1, 3), slower=3.0)
    steady, restarted = Hours(), Hours()
    with database.connect() as connection:
        found = []
        for hours in (steady, restarted):
            while hours.behind:
                hour, verdicts = hours.advance(connection)
            found.append({(verdict.name, verdict.finding.signal) for verdict in verdicts})
    assert hour is not None
    assert found[0] == found[1] == {(("default", "triage", "work"), Signal.RUN)}
