"""Kinds of errors over HTTP, in the client and on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from minions import Client, errors
from orchestrator.observe.counting import catch_up
from tests.integration.api.conftest import Run
from tests.integration.conftest import InlineWorker, Tasks


@pytest.fixture
def fingerprint(act: Any, tasks: Tasks, inline_worker: InlineWorker, client: Client, database: Engine) -> str:
    """Two tasks that have failed in the same way, and one in another; the value is the fingerprint of the two."""
    agent = act(config={"max_attempts": 1})
    for given in ({"do": "fail", "times": 9}, {"do": "fail", "times": 9}, {"do": "unknown"}):
        tasks.submit(agent, given)
    inline_worker.run_all()
    catch_up(database)
    return str(client.errors()["items"][0]["fingerprint"])


def test_kinds_of_errors_have_counts_and_shares(fingerprint: str, client: Client) -> None:
    found = client.errors()
    assert (found["tasks"], found["other_tasks"]) == (3, 0)
    assert [(each["tasks"], round(each["share"], 2), each["state"]) for each in found["items"]] == [
        (2, 0.67, "open"),
        (1, 0.33, "open"),
    ]
    kind = client.error(fingerprint)
    assert kind["first_at"] < kind["last_at"]
    assert kind["versions"] == [{"agent": "Act", "version": 1, "tasks": 2}]
    assert [each["tasks"] for each in kind["trend"]] == [2]
    assert client.errors(agent="Other")["items"] == []


def test_counts_outlive_the_tasks(fingerprint: str, client: Client, database: Engine) -> None:
    client.decide_error(fingerprint, "resolved")
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("DELETE FROM task_outcomes"))
    kind = client.error(fingerprint)
    assert (kind["tasks"], kind["message"], kind["example"], kind["state"]) == (2, None, None, "resolved")
    with database.begin() as connection:
        connection.execute(text("UPDATE error_states SET changed_at = now() - interval '2 hours'"))
    assert client.error(fingerprint)["state"] == "reopened"


def test_kind_without_failures_in_the_range_is_found(fingerprint: str, client: Client) -> None:
    until = datetime.now(UTC) - timedelta(days=2)
    kind = client.error(fingerprint, since=until - timedelta(days=1), until=until)
    assert (kind["tasks"], kind["trend"], kind["state"]) == (0, [], "open")
    assert kind["example"] is not None


def test_state_filters_all_kinds(client: Client, database: Engine) -> None:
    count = text(
        "INSERT INTO statistics (grain, kind, bucket, namespace, agent, name, step, count) "
        "SELECT 'hour', 'failure', date_trunc('hour', now(), 'UTC'), 'default', 'A', name, 'tool_error', n FROM ("
        "SELECT 'open-' || n, 10 FROM generate_series(1, 300) n UNION ALL "
        "VALUES ('resolved', 2), ('reopened', 2), ('ignored', 1)) k (name, n)"
    )
    decide = text(
        "INSERT INTO error_states (namespace, fingerprint, state, changed_by, changed_at) "
        "SELECT 'default', fingerprint, state, 'ci', now() - ago FROM (VALUES ('ignored', 'ignored', interval '0'), "
        "('resolved', 'resolved', '0'), ('reopened', 'resolved', '2 h')) d (fingerprint, state, ago)"
    )
    with database.begin() as connection:
        connection.execute(count)
        connection.execute(decide)
    for states in (["resolved"], ["reopened"], ["ignored"], ["ignored", "resolved", "reopened"]):
        found = client.errors(state=states, limit=5)
        assert sorted(kind["fingerprint"] for kind in found["items"]) == sorted(states)
        assert (found["kinds"], found["all_kinds"], found["tasks"]) == (len(states), 303, 3005)
    found = client.errors(state=["open", "reopened"], limit=5)
    assert (len(found["items"]), found["kinds"]) == (5, 301)
    assert client.errors()["kinds"] == 303
    assert client.errors(agent="B", state="open")["tasks"] == 0


def test_decision_on_an_unknown_kind_is_refused(client: Client, database: Engine) -> None:
    with pytest.raises(errors.NotFound, match=r"no failure with the fingerprint 'none'. `minion errors` lists them"):
        client.decide_error("none", "resolved")
    with pytest.raises(errors.InvalidInput, match="state"):
        client.decide_error("none", "repaired")


def test_error_is_decided_on_the_command_line(fingerprint: str, run_cli: Run, client: Client) -> None:
    assert fingerprint in run_cli("errors").line
    assert "is ignored." in run_cli("errors", "ignore", fingerprint, "--reason", "a test").line
    assert client.errors(state="ignored")["items"][0]["reason"] == "a test"
    assert fingerprint not in run_cli("errors", "list", "--state", "open").line
    assert "is resolved." in run_cli("errors", "resolve", fingerprint).line
    assert "is open." in run_cli("errors", "reopen", fingerprint).line
    assert '"trend"' in run_cli("errors", "show", fingerprint).out
    endless = run_cli("errors", "list", "--last", "999999999d")
    assert (endless.code, "--last must be at most 36500d" in endless.line) == (2, True)
    unknown = run_cli("errors", "resolve", "none")
    assert unknown.code == 66
    assert "There is no failure with the fingerprint 'none'. `minion errors` lists them." in unknown.line
