"""Acts on all tasks that match a query: over HTTP, on the command line, and by orchestrators that die."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest
from psycopg.errors import LockNotAvailable
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from minions import Client, errors
from orchestrator import task_acts
from orchestrator.bulk import runner as runner_module
from orchestrator.bulk.runner import BulkRunner
from orchestrator.bulk.store import MOST_RUNNING
from shared.errors import Conflict
from shared.settings import Settings
from tests.integration.api.conftest import Run, WithKey
from tests.integration.api.test_boundaries import agent, define_in
from tests.support.definitions import NOOP
from tests.support.processes import killed_on_exit, start_orchestrator, wait_until

Work = Callable[..., dict[str, Any]]
FAST = 1000.0
REPLAYS = text("SELECT replay_of, count(*) FROM tasks WHERE replay_of IS NOT NULL GROUP BY 1")


@pytest.fixture
def runner(settings: Settings, database: Engine) -> Iterator[BulkRunner]:
    """The runner of an orchestrator, which the test calls."""
    runner = BulkRunner(settings, database)
    yield runner
    runner.close()


@pytest.fixture
def work(runner: BulkRunner, client: Client) -> Work:
    """Work off an act, and return it."""

    def until_ended(id: str, rounds: int = 50) -> dict[str, Any]:
        for _ in range(rounds):
            runner.run_once()
            if (found := client.bulk_act(id))["state"] != "running":
                return found
        raise AssertionError(f"it has not ended: {client.bulk_act(id)}")

    return until_ended


@pytest.fixture
def nobodys(define: Any) -> str:
    """An agent whose tasks no worker serves."""
    define(NOOP, agent("Idle", "idle"))
    return "Idle"


def submit(client: Client, count: int, agent: str = "Idle", **fields: Any) -> list[str]:
    return client.submit_many([{"agent": agent, "input": {}, **fields} for _ in range(count)])


def replays(database: Engine) -> dict[str, int]:
    with database.connect() as connection:
        return {str(task): number for task, number in connection.execute(REPLAYS)}


# ------------------------------------------------------------------------------------------------------------ acts


@pytest.mark.usefixtures("nobodys")
def test_dry_run_counts_and_changes_nothing(client: Client, database: Engine) -> None:
    tasks = submit(client, 3)
    client.cancel(tasks[0])
    planned = client.start_bulk_act("cancel", "agent:Idle", dry_run=True)
    assert (planned["id"], planned["state"], planned["matched"]) == (None, None, 2)
    assert [task["id"] for task in planned["newest"]] == tasks[:0:-1]
    assert sum(planned["by_state"].values()) == 2
    assert not list(client.bulk_acts())
    assert client.get(tasks[1]).state != "cancelled"


@pytest.mark.usefixtures("nobodys")
def test_bulk_cancel_reaches_what_matched_at_its_start(client: Client, work: Work) -> None:
    labelled = submit(client, 3, labels={"env": "prod"})
    [other] = submit(client, 1)
    started = client.start_bulk_act("cancel", "agent:Idle label:env=prod", rate=FAST, reason="It rains.")
    [later] = submit(client, 1, labels={"env": "prod"})
    ended = work(started["id"])
    assert (ended["state"], ended["matched"], ended["done"], ended["failed"]) == ("done", 3, 3, 0)
    assert {client.get(task).state for task in labelled} == {"cancelled"}
    assert client.get(labelled[0]).error["message"] == "It rains."
    assert "cancelled" not in {client.get(other).state, client.get(later).state}
    rows = [row for row in client.audit() if row["act"] in ("bulk_act.start", "task.cancel")]
    assert [row["after"].get("bulk_act") for row in rows if row["act"] == "task.cancel"] == [started["id"]] * 3
    [start] = [row for row in rows if row["act"] == "bulk_act.start"]
    assert (start["target"], start["after"]["matched"]) == (started["id"], 3)


@pytest.mark.usefixtures("nobodys")
def test_tasks_after_the_dry_run_are_not_included(client: Client, work: Work) -> None:
    tasks = submit(client, 2)
    until = client.start_bulk_act("cancel", "agent:Idle", dry_run=True)["until"]
    wait_until(lambda: datetime.now(UTC) > datetime.fromisoformat(until), "the next millisecond")
    [later] = submit(client, 1)
    ended = work(client.start_bulk_act("cancel", "agent:Idle", rate=FAST, created_before=until)["id"])
    assert ended["done"] == len(tasks)
    assert client.get(later).state != "cancelled"
    planned = client.start_bulk_act("cancel", "agent:Idle", created_before="2100-01-01T00:00:00Z", dry_run=True)
    assert datetime.fromisoformat(planned["until"]) < datetime.now(UTC) + timedelta(minutes=1)


@pytest.mark.usefixtures("nobodys")
def test_bulk_replay_skips_tasks_with_a_replay(client: Client, work: Work, database: Engine) -> None:
    tasks = submit(client, 4)
    for task in tasks:
        client.cancel(task)
    client.replay(tasks[0])
    ended = work(client.start_bulk_act("replay", "agent:Idle", rate=FAST)["id"])
    assert (ended["matched"], ended["done"]) == (3, 3)
    assert replays(database) == dict.fromkeys(tasks, 1)
    again = work(client.start_bulk_act("replay", "agent:Idle state:cancelled", rate=FAST, again=True)["id"])
    assert again["done"] == 4


@pytest.mark.usefixtures("nobodys")
def test_refusals_are_counted_and_stop_nothing(client: Client, work: Work, database: Engine) -> None:
    tasks = submit(client, 3)
    for task in tasks:
        client.cancel(task)

    def refuse(connection: Any, task: UUID, *arguments: Any, **options: Any) -> Any:
        if str(task) == tasks[1]:
            raise Conflict("Not this one.")
        return replay(connection, task, *arguments, **options)

    replay = task_acts.replay
    with patch.object(task_acts, "replay", refuse):
        ended = work(client.start_bulk_act("replay", "agent:Idle", rate=FAST)["id"])
    assert (ended["state"], ended["done"], ended["failed"]) == ("done", 2, 1)
    [failure] = ended["failures"]
    assert (failure["task_id"], failure["error"]["message"]) == (tasks[1], "Not this one.")
    assert replays(database) == {tasks[0]: 1, tasks[2]: 1}


@pytest.mark.usefixtures("nobodys")
def test_bulk_label_sets_and_removes_labels(client: Client, work: Work) -> None:
    [task] = submit(client, 1, labels={"env": "prod", "team": "x"})
    assert client.label(task, {"team": "y"}).labels == {"env": "prod", "team": "y"}
    ended = work(client.start_bulk_act("label", "label:env=prod", rate=FAST, labels={"env": None, "case": "42"})["id"])
    assert ended["done"] == 1
    assert client.get(task).labels == {"team": "y", "case": "42"}


@pytest.mark.usefixtures("nobodys")
def test_rate_bounds_the_tasks_of_a_round(client: Client, runner: BulkRunner) -> None:
    submit(client, 10)
    id = client.start_bulk_act("cancel", "agent:Idle", rate=3)["id"]
    runner.run_once()
    assert client.bulk_act(id)["done"] == 3
    runner.run_once()
    assert client.bulk_act(id)["done"] < 10


@pytest.mark.usefixtures("nobodys")
def test_act_does_not_wait_for_a_clock_that_was_set_back(client: Client, work: Work, database: Engine) -> None:
    submit(client, 3)
    id = client.start_bulk_act("cancel", "agent:Idle", rate=FAST)["id"]
    with database.begin() as connection:
        connection.execute(text("UPDATE bulk_acts SET next_at = now() + interval '1 day'"))
    assert work(id)["done"] == 3


@pytest.mark.usefixtures("nobodys")
def test_form_that_is_sent_twice_starts_one_act(client: Client, work: Work, database: Engine) -> None:
    [task] = submit(client, 1)
    client.cancel(task)
    asked = {"query": "agent:Idle since:1d", "again": True, "rate": FAST}
    until = client.start_bulk_act("replay", **asked, dry_run=True)["until"]
    started = [client.start_bulk_act("replay", **asked, created_before=until)["id"] for _ in range(2)]
    work(started[0])
    started.append(client.start_bulk_act("replay", **asked, created_before=until)["id"])
    assert len(set(started)) == 1
    assert replays(database) == {task: 1}
    assert client.start_bulk_act("replay", **asked)["id"] not in started
    assert [row["target"] for row in client.audit() if row["act"] == "bulk_act.start"][1:] == started[:1]


# ------------------------------------------------------------------------------------------------------------ stop


@pytest.mark.usefixtures("nobodys")
def test_stop_takes_effect_at_once(client: Client, runner: BulkRunner) -> None:
    submit(client, 6)
    id = client.start_bulk_act("cancel", "agent:Idle", rate=2)["id"]
    runner.run_once()
    stopped = client.stop_bulk_act(id)
    assert (stopped["state"], stopped["done"], stopped["stopped_by"]) == ("stopped", 2, stopped["created_by"])
    runner.run_once()
    assert client.bulk_act(id)["done"] == 2
    assert client.stop_bulk_act(id)["ended_at"] == stopped["ended_at"], "it may be repeated"
    [row] = [row for row in client.audit() if row["act"] == "bulk_act.stop"]
    assert row["after"] == {"done": 2, "failed": 0, "skipped": 0}


@pytest.mark.usefixtures("nobodys")
def test_stop_between_two_tasks_of_a_batch(client: Client, runner: BulkRunner) -> None:
    submit(client, 5)
    id = client.start_bulk_act("cancel", "agent:Idle", rate=FAST)["id"]
    with patch.object(runner_module, "act_on", _then(runner_module.act_on, lambda: client.stop_bulk_act(id))):
        runner.run_once()
    assert client.bulk_act(id)["done"] == 1


def _then(function: Any, do: Callable[[], Any]) -> Any:
    """The function, after which something happens once it is committed: before its second call."""
    calls = iter(range(1000))

    def called(*arguments: Any) -> Any:
        if next(calls) == 1:
            do()
        return function(*arguments)

    return called


@pytest.mark.usefixtures("nobodys")
def test_act_stops_with_the_key_that_started_it(client: Client, with_key: WithKey, runner: BulkRunner) -> None:
    submit(client, 3)
    http = with_key("operator")
    id = http.post("/v1/bulk-acts", json={"act": "cancel", "query": "agent:Idle", "rate": 1}).json()["id"]
    runner.run_once()
    [key] = [key for key in client.api_keys() if key["role"] == "operator"]
    client.revoke_api_key(key["id"])
    runner.run_once()
    stopped = client.bulk_act(id)
    assert (stopped["state"], stopped["done"]) == ("stopped", 1)
    assert "its key is no longer valid" in stopped["stopped_by"]


@pytest.mark.usefixtures("nobodys")
def test_act_stops_when_the_logins_of_its_user_are_ended(client: Client, runner: BulkRunner, database: Engine) -> None:
    """A user of an identity provider has no key that could be revoked."""
    submit(client, 3)
    id = client.start_bulk_act("cancel", "agent:Idle", rate=1)["id"]
    with database.begin() as connection:
        connection.execute(
            text(
                """
                UPDATE bulk_acts SET key_id = NULL,
                    maker = jsonb_set(maker, '{key}', maker->'key' || '{"subject": "42", "record": "oidc:ann"}')
                """
            )
        )
        connection.execute(
            text(
                "INSERT INTO login_sessions (hash, kind, user_name, subject, role, payloads, expires_at, idle, "
                "user_agent) SELECT sha256(name::bytea), 'oidc', name, '42', 'operator', false, "
                "now() + interval '1 day', interval '1 hour', '' FROM unnest(ARRAY['oidc:ann', 'oidc:ann2']) AS name"
            )
        )
        connection.execute(text("UPDATE login_sessions SET ended_at = now(), ended_by = 'oidc:ann' "
                                "WHERE user_name = 'oidc:ann2'"))  # fmt: skip
    runner.run_once()
    assert client.bulk_act(id)["done"] == 1, "a logout does not stop it"
    client.revoke_sessions_of("oidc:ann")
    runner.run_once()
    stopped = client.bulk_act(id)
    assert (stopped["state"], stopped["done"]) == ("stopped", 1)
    assert "a login of its user was ended" in stopped["stopped_by"]


@pytest.mark.usefixtures("nobodys")
def test_act_that_cannot_continue_does_not_hold_up_the_others(client: Client, runner: BulkRunner) -> None:
    submit(client, 1, labels={"n": "1"})
    submit(client, 1, labels={"n": "2"})
    stuck = client.start_bulk_act("cancel", "agent:Idle label:n=1")["id"]
    other = client.start_bulk_act("cancel", "agent:Idle label:n=2")["id"]
    real = runner_module.act_on

    def hang(connection: Any, row: Any, *arguments: Any) -> bool:
        if str(row["id"]) == stuck:
            raise OperationalError("SELECT", {}, LockNotAvailable("a transaction holds the task"))
        return real(connection, row, *arguments)

    with patch.object(runner_module, "act_on", hang), pytest.raises(OperationalError):
        runner.run_once()
    assert (client.bulk_act(stuck)["done"], client.bulk_act(other)["done"]) == (0, 1)


@pytest.mark.usefixtures("nobodys")
def test_unreadable_act_does_not_hold_up_the_others(client: Client, work: Work, database: Engine) -> None:
    submit(client, 1)
    broken = client.start_bulk_act("cancel", "agent:Idle")["id"]
    good = client.start_bulk_act("cancel", "agent:Idle")["id"]
    with database.begin() as connection:
        connection.execute(
            text("""UPDATE bulk_acts SET chosen = '{"of_a_later_release": 1}' WHERE id = :id"""), {"id": broken}
        )
    assert work(good)["done"] == 1
    assert "this release cannot read it" in client.bulk_act(broken)["stopped_by"]


# ---------------------------------------------------------------------------------------------------------- rights


@pytest.mark.parametrize(
    "bounds", [{"agents": ["Ours"]}, {"capabilities": ["ours"]}, {"tenant": "ours"}, {"tenant": "our*"}]
)
def test_tasks_out_of_reach_are_never_touched(
    client: Client, with_key: WithKey, define: Any, work: Work, bounds: dict[str, Any]
) -> None:
    define(NOOP, agent("Ours", "ours"), agent("Theirs", "theirs"))
    [own] = submit(client, 1, "Ours", key="ours")
    [foreign] = submit(client, 1, "Theirs", key="theirs")
    http = with_key("operator", **bounds)
    asked = {"act": "cancel", "query": "since:1d", "rate": FAST}
    assert [each["id"] for each in http.post("/v1/bulk-acts", json={**asked, "dry_run": True}).json()["newest"]] == [
        own
    ]
    started = http.post("/v1/bulk-acts", json=asked).json()
    assert started["matched"] == 1
    assert work(started["id"])["done"] == 1
    assert (client.get(own).state, client.get(foreign).state == "cancelled") == ("cancelled", False)
    others = client.start_bulk_act("cancel", "since:1d")["id"]
    assert [each["id"] for each in http.get("/v1/bulk-acts").json()["items"]] == [started["id"]]
    assert http.get(f"/v1/bulk-acts/{others}").status_code == 404
    assert http.post(f"/v1/bulk-acts/{others}/stop").status_code == 404


def test_another_namespace_is_out_of_reach(client: Client, with_key: WithKey, database: Engine) -> None:
    define_in(database, "theirs", NOOP, agent("Idle", "idle"))
    http = with_key("admin", namespace="ours")
    refused = http.post("/v1/bulk-acts", json={"act": "cancel", "query": "namespace:theirs"})
    assert (refused.status_code, "bound to the namespace 'ours'" in refused.json()["detail"]) == (403, True)
    assert http.post("/v1/bulk-acts", json={"act": "cancel", "query": "since:1d"}).json()["namespace"] == "ours"


@pytest.mark.parametrize(("act", "permission"), [("replay", "tasks:replay"), ("label", "tasks:label")])
def test_act_needs_the_permission_of_the_single_act(with_key: WithKey, act: str, permission: str) -> None:
    asked = {"act": act, "query": "since:1d", **({"labels": {"a": "b"}} if act == "label" else {})}
    refused = with_key("submitter").post("/v1/bulk-acts", json=asked)
    assert (refused.status_code, refused.json()["permission"]) == (403, permission)
    started = with_key("operator").post("/v1/bulk-acts", json=asked)
    assert started.status_code == 201
    stopped = with_key("submitter").post(f"/v1/bulk-acts/{started.json()['id']}/stop")
    assert (stopped.status_code, stopped.json()["permission"]) == (403, permission)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"query": ""}, "`query` must have at least one term"),
        ({"query": "stat:failed"}, "There is no filter `stat:`"),
        ({"query": "state:failed"}, "`cancel` is for tasks that have not ended"),
        ({"act": "replay", "query": "state:running"}, "`replay` is for tasks that have ended"),
        ({"act": "label", "query": "since:1d"}, "`labels` must be given"),
        ({"query": "since:1d", "labels": {"a": "b"}}, "`labels` must be given for the act `label`"),
        ({"query": "since:1d", "again": True}, "`again` is an option of the act `replay`"),
        ({"query": "label:private.x=1"}, "must not name a private label"),
        ({"query": "since:1d", "rate": 0}, "rate"),
    ],
)
def test_wrong_request_says_what_to_do(with_key: WithKey, asked: dict[str, Any], words: str) -> None:
    refused = with_key("admin").post("/v1/bulk-acts", json={"act": "cancel", **asked})
    assert refused.status_code == 422
    assert words in refused.json()["detail"]


def test_running_acts_are_bounded(client: Client, database: Engine) -> None:
    first = client.start_bulk_act("cancel", "since:1d")["id"]
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bulk_acts "
                "(namespace, act, query, chosen, options, rate, matched, more, maker, created_by) "
                "SELECT namespace, act, query, chosen, options, rate, matched, more, maker, created_by FROM bulk_acts, "
                "generate_series(2, :most)"
            ),
            {"most": MOST_RUNNING},
        )
    with pytest.raises(errors.Conflict, match="100 bulk acts are running"):
        client.start_bulk_act("cancel", "since:1d")
    client.stop_bulk_act(first)
    assert client.start_bulk_act("cancel", "since:1d")["state"] == "running"


# ----------------------------------------------------------------------------------------------------- command line


@pytest.mark.usefixtures("nobodys")
def test_commands_show_and_stop_an_act(run_cli: Run, client: Client, work: Work) -> None:
    [task] = submit(client, 1)
    dry = run_cli("bulk", "cancel", "agent:Idle", "--dry-run")
    assert "1 task matches: 1 pending" in dry.out
    assert task in dry.out
    started = run_cli("bulk", "cancel", "agent:Idle", "--rate", "1000", "--reason", "rain")
    [id] = started.ids
    assert "0 of 1 done" in started.out
    assert id in run_cli("bulk", "list", "--state", "running").out
    work(id)
    assert json.loads(run_cli("bulk", "show", id).out)["done"] == 1
    assert run_cli("bulk", "stop", id).line == f"{id} is done: 1 of 1 done."
    labelled = json.loads(run_cli("bulk", "label", "agent:Idle", "-l", "a=b", "-l", "c=", "--json").out)
    assert labelled["options"] == {"labels": {"a": "b", "c": None}}
    replayed = json.loads(run_cli("bulk", "replay", "agent:Idle", "state:cancelled", "--again", "--json").out)
    assert replayed["options"] == {"pinned": False, "new_keys": False, "again": True}
    assert run_cli("label", task, "x=y").line == "x=y"
    assert run_cli("bulk", "show", str(uuid4())).code == 66


# ---------------------------------------------------------------------------------------------------------- crashes


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours catches it."""


@contextmanager
def dying(before: bool) -> Iterator[None]:
    """The runner dies in the transaction of its third task, or after it."""
    real, calls = runner_module.act_on, iter(range(1, 1000))

    def deadly(*arguments: Any) -> bool:
        number = next(calls)
        if number == 4 and not before:
            raise Killed
        result = real(*arguments)
        if number == 3 and before:
            raise Killed
        return result

    with patch.object(runner_module, "act_on", deadly), suppress(Killed):
        yield


@pytest.mark.usefixtures("nobodys")
@pytest.mark.parametrize("before", [True, False], ids=["before the commit", "after the commit"])
def test_death_of_the_runner_repeats_and_skips_nothing(
    settings: Settings, client: Client, database: Engine, work: Work, before: bool
) -> None:
    tasks = submit(client, 6)
    for task in tasks:
        client.cancel(task)
    id = client.start_bulk_act("replay", "agent:Idle", rate=FAST)["id"]
    victim = BulkRunner(settings, database)
    with dying(before):
        victim.run_once()
    victim.close()
    assert client.bulk_act(id)["done"] == (2 if before else 3)
    assert len(replays(database)) == (2 if before else 3)
    assert work(id)["done"] == 6
    assert replays(database) == dict.fromkeys(tasks, 1)


@pytest.mark.usefixtures("nobodys")
def test_two_runners_act_on_each_task_once(settings: Settings, client: Client, database: Engine) -> None:
    """A former leader may not know yet that it lost the lead."""
    tasks = submit(client, 6)
    for task in tasks:
        client.cancel(task)
    id = client.start_bulk_act("replay", "agent:Idle", rate=FAST)["id"]
    runners = [BulkRunner(settings, database) for _ in range(2)]
    with patch.object(runner_module.Leadership, "held", lambda self: True):
        with patch.object(runner_module, "act_on", _then(runner_module.act_on, runners[1].run_once)):
            runners[0].run_once()
        runners[1].run_once()
    assert client.bulk_act(id)["done"] == 6
    assert replays(database) == dict.fromkeys(tasks, 1)


@pytest.mark.usefixtures("nobodys")
def test_killed_orchestrators_act_on_each_task_once(client: Client, database: Engine, tmp_path: Path) -> None:
    tasks = submit(client, 60)
    for task in tasks:
        client.cancel(task)
    id = client.start_bulk_act("replay", "agent:Idle", rate=20)["id"]

    def done() -> int:
        with suppress(DBAPIError):
            return int(client.bulk_act(id)["done"])
        return 0

    for least in (10, 30):
        orchestrator = start_orchestrator(tmp_path)
        with killed_on_exit(orchestrator):
            wait_until(lambda least=least: done() >= least, f"{least} tasks are replayed")
            orchestrator.kill()
        assert len(replays(database)) == done() < 60
    last = start_orchestrator(tmp_path)
    with killed_on_exit(last):
        wait_until(lambda: client.bulk_act(id)["state"] == "done", "the act is done")
        last.stop()
    assert client.bulk_act(id)["done"] == 60
    assert replays(database) == dict.fromkeys(tasks, 1)
