"""The audit log over HTTP and on the command line: every act leaves a row with its actor, refusals are counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
from sqlalchemy import Engine, text
from starlette.requests import Request

from minions import Client, errors
from orchestrator.api import key_addresses, problems, refusals
from orchestrator.api.key_addresses import KeyAddresses
from orchestrator.api.refusals import Refusals
from orchestrator.api.rights import RULES
from orchestrator.maintenance.threat_watch import RULES as THREATS
from orchestrator.maintenance.threat_watch import ThreatWatch
from shared.access.actors import bootstrap_key
from shared.audit import chain
from shared.audit.signing import Signer
from shared.errors import Unauthorized
from shared.settings import Settings
from tests.conftest import Define
from tests.integration.api.conftest import Api, Run, WithKey
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.definitions import function_definition
from tests.support.processes import ROOT

# A task names its submitter itself, and is as immutable as a row of the log.
SUBMISSIONS = {"POST /v1/tasks", "POST /v1/tasks/bulk", "POST /v1/trials"}
# They change nothing: their question is too long for an address, or private.
QUESTIONS = {"POST /v1/routes", "POST /v1/tasks/wait"}
SCHEDULE = {"interval_seconds": 3600, "request": {"agent": "Careful", "input": {"secret": "of the tenant"}}}
SOON = datetime.now(UTC) + timedelta(hours=1)
URL = "https://93.184.215.14/hook?token=private-token"


@pytest.fixture(autouse=True)
def no_earlier_refusals(http_api: Api) -> None:
    """Forget the refused requests of earlier tests, which would be written during this one."""
    http_api.app.state.refusals._take(1 << 40)


@dataclass
class World:
    """Things to act on."""

    pending: str
    waiting: str
    ended: str
    budgeted: str
    delivery: str
    session: str
    alert: str
    silence: str
    fingerprint: str
    bulk_act: str
    file: str
    store: str


@pytest.fixture
def world(
    define: Define, client: Client, database: Engine, tasks: Tasks, inline_worker: InlineWorker, act: Any
) -> World:
    define({**ACT, "effect": "unsafe", "approval": True})
    fields = {"kind": "agent", "type": "function", "tool": "act", "config": {"capabilities": ["work"]}}
    define({**fields, "name": "Careful"}, function_definition(), {**fields, "name": "Tried"})
    define({**fields, "name": "Tried", "description": "newer"})
    ended, pending = client.submit("Careful", {}).id, client.submit("Careful", {}).id
    client.cancel(ended)
    waiting = client.submit("Careful", {"do": "answer", "answer": "an argument"}).id
    inline_worker._round()
    budgeted = client.submit("Careful", {}, budget={"tokens": 10}).id
    client.put_schedule("nightly", SCHEDULE["request"], interval_seconds=3600)
    client.add_webhook("hook", URL)
    client.pause("agent", "Careful")
    client.set_limit("agent", "Careful", max_running=3)
    client.stop_all(agent="Careful")
    client.set_budget("agent", "Careful", period="day", dollars=1)
    client.create_api_key("ci", "viewer")
    with database.begin() as connection:
        delivery = connection.scalar(
            text(
                "INSERT INTO webhook_deliveries (webhook_id, task_id, state, status) "
                "SELECT id, :task, 'cancelled', 'failed' FROM webhooks RETURNING id"
            ),
            {"task": ended},
        )
        session = connection.scalar(
            text(
                "INSERT INTO login_sessions (hash, kind, user_name, key_id, key_hash, expires_at, idle) "
                "SELECT hash, 'key', 'key:ci', id, hash, now() + interval '1 h', interval '1 h' FROM api_keys "
                "RETURNING id"
            )
        )
        fingerprint = connection.scalar(
            text(
                "INSERT INTO error_states (namespace, fingerprint, state, changed_by) "
                "VALUES ('default', 'f00d', 'ignored', 'ann') RETURNING fingerprint"
            )
        )
        alert = connection.scalar(
            text("INSERT INTO alerts (rule, namespace, subject, sentence) VALUES ('unserved', 'default', 'work', 's') "
                 "RETURNING id")
        )  # fmt: skip
        store = connection.scalar(
            text(
                "WITH store AS (INSERT INTO memory_stores (namespace, tool, per, owner, changes) "
                "VALUES ('default', 'notes', 'agent', 'Careful', 1) RETURNING id), "
                "change AS (INSERT INTO memory_changes (store_id, number, command, path, made_by, result) "
                "SELECT id, 1, 'create', '/memories/private', 'Careful', '' FROM store RETURNING store_id, path) "
                "INSERT INTO memory_versions (store_id, path, number, content, bytes) "
                "SELECT store_id, path, 1, 'private', 7 FROM change RETURNING store_id"
            )
        )
    silence = client.add_silence(until=SOON, reason="rain", rule="pending_old", namespace="default")["id"]
    file = client.upload(b"private text", name="private.txt")["id"]
    bulk_act = client.start_bulk_act("label", "agent:Careful", labels={"env": "prod"})["id"]
    seen = (pending, waiting, ended, budgeted, str(delivery), str(session), str(alert), silence)
    return World(*seen, fingerprint, bulk_act, file, str(store))


ACTS: dict[str, tuple[str, Callable[[World], tuple[str, Any]]]] = {
    "POST /v1/tasks/{task_id}/cancel": ("task.cancel", lambda w: (f"/v1/tasks/{w.pending}/cancel", {})),
    "POST /v1/tasks/{task_id}/signals/{name}": (
        "task.signal",
        lambda w: (f"/v1/tasks/{w.pending}/signals/go", {"payload": "private payload"}),
    ),
    "POST /v1/tasks/{task_id}/replay": ("task.replay", lambda w: (f"/v1/tasks/{w.ended}/replay", {})),
    "POST /v1/tasks/{task_id}/decisions": (
        "task.decide",
        lambda w: (f"/v1/tasks/{w.waiting}/decisions", {"verdict": "approve", "step": 1, "reason": "private reason"}),
    ),
    "POST /v1/tasks/{task_id}/budget": ("task.budget", lambda w: (f"/v1/tasks/{w.budgeted}/budget", {"add_tokens": 5})),
    "POST /v1/replays": ("task.replay_many", lambda w: ("/v1/replays", {"states": ["cancelled"]})),
    "PUT /v1/errors/{fingerprint}": (
        "error.set",
        lambda w: (f"/v1/errors/{w.fingerprint}", {"state": "resolved", "reason": "repaired"}),
    ),
    "PATCH /v1/tasks/{task_id}/labels": (
        "task.label",
        lambda w: (f"/v1/tasks/{w.ended}/labels", {"labels": {"env": "private value"}}),
    ),
    "POST /v1/bulk-acts": (
        "bulk_act.start",
        lambda w: ("/v1/bulk-acts", {"act": "cancel", "query": "agent:Careful", "reason": "private reason"}),
    ),
    "POST /v1/bulk-acts/{bulk_act_id}/stop": ("bulk_act.stop", lambda w: (f"/v1/bulk-acts/{w.bulk_act}/stop", None)),
    "POST /v1/files": ("file.upload", lambda w: ("/v1/files", {"a": "private text"})),
    "DELETE /v1/files/{file_id}": ("file.delete", lambda w: (f"/v1/files/{w.file}", None)),
    "POST /v1/erasures": ("task.erase", lambda w: ("/v1/erasures", {"tenant": "acme"})),
    "POST /v1/agents/{name}/rollback": (
        "agent.rollback",
        lambda w: ("/v1/agents/Careful/rollback", {"version": 1, "reason": "rain"}),
    ),
    "PUT /v1/agents/{name}/canary": (
        "canary.start",
        lambda w: ("/v1/agents/Tried/canary", {"version": 1, "share": "10%", "reason": "rain"}),
    ),
    "POST /v1/evaluations": (
        "evaluation.start",
        lambda w: (
            "/v1/evaluations",
            {"agent": "Careful", "evaluator": "Tried", "since": "2026-01-01T00:00:00Z", "dollars": 1},
        ),
    ),
    "PUT /v1/agents/{name}/status": (
        "agent.status",
        lambda w: ("/v1/agents/Careful/status", {"status": "disabled", "reason": "rain"}),
    ),
    "PUT /v1/functions/{name}/status": (
        "function.status",
        lambda w: ("/v1/functions/double/status", {"status": "quarantined", "reason": "rain"}),
    ),
    "PUT /v1/pauses/{scope}/{name}": ("pause.set", lambda w: ("/v1/pauses/agent/Careful", {"reason": "rain"})),
    "DELETE /v1/pauses/{scope}/{name}": ("pause.remove", lambda w: ("/v1/pauses/agent/Careful", None)),
    "PUT /v1/limits/{scope}/{name}": ("limit.set", lambda w: ("/v1/limits/agent/Careful", {"max_running": 9})),
    "DELETE /v1/limits/{scope}/{name}": ("limit.remove", lambda w: ("/v1/limits/agent/Careful", None)),
    "POST /v1/stops": ("stop.set", lambda w: ("/v1/stops", {"scope": "installation", "reason": "rain"})),
    "DELETE /v1/stops": ("stop.lift", lambda w: ("/v1/stops?scope=agent&name=Careful", None)),
    "PUT /v1/budgets": (
        "budget.set",
        lambda w: ("/v1/budgets", {"scope": "agent", "name": "Careful", "period": "day", "dollars": 2}),
    ),
    "DELETE /v1/budgets": ("budget.remove", lambda w: ("/v1/budgets?scope=agent&name=Careful&period=day", None)),
    "POST /v1/schedules": ("schedule.create", lambda w: ("/v1/schedules", {"name": "new", **SCHEDULE})),
    "PUT /v1/schedules/{name}": (
        "schedule.change",
        lambda w: ("/v1/schedules/nightly", {**SCHEDULE, "interval_seconds": 60}),
    ),
    "PATCH /v1/schedules/{name}": ("schedule.change", lambda w: ("/v1/schedules/nightly", {"enabled": False})),
    "DELETE /v1/schedules/{name}": ("schedule.delete", lambda w: ("/v1/schedules/nightly", None)),
    "POST /v1/schedules/{name}/run": ("schedule.run", lambda w: ("/v1/schedules/nightly/run", {})),
    "POST /v1/webhooks": ("webhook.create", lambda w: ("/v1/webhooks", {"name": "new", "url": URL})),
    "PATCH /v1/webhooks/{name}": ("webhook.change", lambda w: ("/v1/webhooks/hook", {"enabled": False})),
    "DELETE /v1/webhooks/{name}": ("webhook.delete", lambda w: ("/v1/webhooks/hook", None)),
    "POST /v1/webhooks/{name}/rotate": ("webhook.rotate", lambda w: ("/v1/webhooks/hook/rotate", None)),
    "POST /v1/webhooks/{name}/test": ("webhook.test", lambda w: ("/v1/webhooks/hook/test", None)),
    "POST /v1/webhooks/deliveries/{delivery_id}/retry": (
        "webhook.retry",
        lambda w: (f"/v1/webhooks/deliveries/{w.delivery}/retry", None),
    ),
    "POST /v1/alerts/test": ("alert.test", lambda w: ("/v1/alerts/test", None)),
    "POST /v1/alerts/{alert_id}/acknowledge": (
        "alert.acknowledge",
        lambda w: (f"/v1/alerts/{w.alert}/acknowledge", None),
    ),
    "POST /v1/silences": (
        "silence.create",
        lambda w: (
            "/v1/silences",
            {"rule": "unserved", "until": SOON.isoformat(), "reason": "rain", "namespace": "default"},
        ),
    ),
    "DELETE /v1/silences/{silence_id}": ("silence.delete", lambda w: (f"/v1/silences/{w.silence}", None)),
    "POST /v1/keys": ("key.create", lambda w: ("/v1/keys", {"name": "new", "role": "operator"})),
    "POST /v1/keys/{key}/rotate": ("key.rotate", lambda w: ("/v1/keys/ci/rotate", {})),
    "DELETE /v1/keys/{key}": ("key.revoke", lambda w: ("/v1/keys/ci", None)),
    "DELETE /v1/memory/{store_id}": ("memory.delete", lambda w: (f"/v1/memory/{w.store}", None)),
    "DELETE /v1/memory/{store_id}/file": (
        "memory.delete_file",
        lambda w: (f"/v1/memory/{w.store}/file?path=/memories/private", None),
    ),
    "DELETE /v1/sessions": ("login.revoke", lambda w: ("/v1/sessions?user=key:ci", None)),
    "DELETE /v1/sessions/{session_id}": ("login.revoke", lambda w: (f"/v1/sessions/{w.session}", None)),
}
"""The act of every endpoint that changes something, and a request for it."""


def test_every_endpoint_that_changes_something_is_here() -> None:
    """A new endpoint must write to the audit log, and be added to `ACTS`."""
    assert {endpoint for endpoint in RULES if not endpoint.startswith("GET ")} - SUBMISSIONS - QUESTIONS == set(ACTS)


def test_acts_are_documented() -> None:
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    table = page.partition("| acts | |\n")[2].partition("\n\n")[0]
    documented = set()
    for row in table.splitlines():
        named = re.findall(r"`([a-z_]*)\.([a-z_]+)`", row.split("|")[1])
        documented |= {f"{room or named[0][0]}.{name}" for room, name in named}
    assert documented >= {act for act, _ in ACTS.values()}
    assert all(f"| `{rule.act}` |" in page for rule in THREATS)


@contextmanager
def log_that_cannot_be_written(database: Engine) -> Iterator[None]:
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log ADD CONSTRAINT never CHECK (act = '') NOT VALID"))
    try:
        yield
    finally:
        with database.begin() as connection:
            connection.execute(text("ALTER TABLE audit_log DROP CONSTRAINT never"))


def everything(database: Engine) -> list[Any]:
    """The rows that the API can change, as text."""
    tables = (
        "tasks task_status steps signals task_outcomes pauses limits stops standing_budgets schedules webhooks "
        "webhook_deliveries api_keys audit_log budgets alerts alert_silences agents function_versions error_states "
        "bulk_acts files memory_stores memory_changes memory_versions"
    ).split()
    with database.connect() as connection:
        return [connection.execute(text(f"SELECT t::text FROM {name} t ORDER BY 1")).all() for name in tables]


@pytest.mark.parametrize("endpoint", ACTS)
def test_act_leaves_a_row_with_its_actor(
    http: httpx2.Client, client: Client, database: Engine, world: World, endpoint: str
) -> None:
    known = {row["id"] for row in client.audit()}
    act, request = ACTS[endpoint]
    path, sent = request(world)
    method = endpoint.partition(" ")[0]
    before = everything(database)
    with log_that_cannot_be_written(database):
        refused = http.request(method, path, json=sent)
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable"), refused.text
    assert "nothing was changed: the audit log cannot be written" in refused.json()["detail"]
    assert everything(database) == before
    headers = {"Minion-Actor": "Ann", "X-Request-Id": "request-7"}
    answer = http.request(method, path, json=sent, headers=headers)
    assert answer.status_code < 300, answer.text
    assert answer.headers["X-Request-Id"] == "request-7"
    [row] = [row for row in client.audit() if row["id"] not in known]
    assert row["act"] == act
    assert (row["actor"], row["claimed"], row["address"]) == ("bootstrap", "Ann", "127.0.0.1")
    assert (row["key_prefix"][:4], row["request_id"]) == ("api:", "request-7")
    assert row["target"]
    assert row["before"] or row["after"] or act in ("webhook.rotate", "webhook.test")
    whole = act in ("stop.set", "alert.test") or act.startswith(("key.", "login."))
    assert row["namespace"] == (None if whole else "default")
    written = json.dumps(row)
    for private in ("private", "of the tenant", "an argument", "whsec_", *_texts(answer)):
        assert private not in written, row


def _texts(answer: httpx2.Response) -> list[str]:
    """The secrets that an answer shows."""
    shown = answer.json() if answer.content else {}
    return [shown[name] for name in ("secret", "key") if isinstance(shown, dict) and shown.get(name)]


def test_edit_of_a_step_is_an_act(client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = str(tasks.submit(act(effect="unsafe"), {"do": "answer", "answer": 1}))
    inline_worker.run_all()
    new = client.replay(task, from_step=1, edited_output={"private": 2})
    [row] = client.audit()
    assert (row["act"], row["target"]) == ("task.edit", task)
    assert (row["after"]["replayed_as"], row["after"]["from_step"]) == (new.id, 1)
    assert "private" not in json.dumps(row)


def test_states_before_and_after_are_recorded(client: Client, world: World) -> None:
    client.set_limit("agent", "Careful", max_running=9)
    client.put_schedule("nightly", SCHEDULE["request"] | {"input": "other"}, interval_seconds=60)
    limit, schedule = (next(client.audit(act=act)) for act in ("limit.set", "schedule.change"))
    assert (limit["before"]["max_running"], limit["after"]["max_running"]) == (3, 9)
    assert limit["target"] == "agent Careful"
    assert set(schedule["after"]) == {"interval_seconds", "request"}
    assert (schedule["before"]["interval_seconds"], schedule["after"]["interval_seconds"]) == (3600, 60)
    assert schedule["before"]["request"] != schedule["after"]["request"]


def test_request_gets_an_id(http: httpx2.Client, client: Client) -> None:
    answer = http.put("/v1/pauses/agent/A", json={})
    assert next(client.audit())["request_id"] == answer.headers["X-Request-Id"]
    for odd in ("x" * 101, "a b", "\xfc"):
        answer = http.put("/v1/pauses/agent/A", json={}, headers=[("X-Request-Id", odd.encode("latin-1"))])
        assert (answer.status_code, answer.headers["X-Request-Id"] != odd) == (200, True)
        assert next(client.audit())["request_id"] == answer.headers["X-Request-Id"]


# ------------------------------------------------------------------------------------------------------------ reading


def test_bound_administrator_sees_its_namespace(client: Client, with_key: WithKey) -> None:
    client.pause("agent", "A", namespace="ours")
    client.pause("agent", "B", namespace="theirs")
    client.stop_all()
    rows = with_key("admin", namespace="ours").get("/v1/audit").json()["items"]
    assert {(row["act"], row["namespace"]) for row in rows} == {("key.create", "ours"), ("pause.set", "ours")}
    assert with_key("operator").get("/v1/audit").status_code == 403
    assert with_key("admin", tenant="acme").get("/v1/audit").status_code == 403


def test_pages_and_filters(client: Client, http: httpx2.Client) -> None:
    for name in "abc":
        client.pause("agent", name)
        client.resume("agent", name)
    page = http.get("/v1/audit", params={"limit": 4}).json()
    rest = http.get("/v1/audit", params={"cursor": page["next"]}).json()
    assert [len(page["items"]), len(rest["items"]), rest["next"]] == [4, 2, None]
    assert [row["target"] for row in client.audit(act="pause.set")] == ["agent c", "agent b", "agent a"]
    assert len(list(client.audit(act="pause", target="agent a"))) == 2
    assert len(list(client.audit(actor="bootstrap"))) == 6
    moment = page["items"][0]["at"]
    assert len(list(client.audit(since=moment))) == 1
    assert len(list(client.audit(until=moment))) == 5
    for wrong in ({"since": "today"}, {"cursor": "x"}, {"actors": "x"}, {"act": "\0"}):
        assert http.get("/v1/audit", params=wrong).status_code == 422, wrong


def test_commands(run_cli: Run, client: Client, database: Engine, settings: Settings) -> None:
    client.pause("agent", "A", reason="rain")
    listed = run_cli("audit", "list", "--act", "pause", "--json")
    assert [row["target"] for row in json.loads(listed.out)] == ["agent A"]
    assert "reason=rain" in run_cli("audit").line
    assert json.loads(run_cli("audit", "export", "--by", "bootstrap").out)["act"] == "pause.set"
    with database.begin() as connection:
        head = chain.seal(connection, Signer.of(settings))
    verified = run_cli("audit", "verify", "--head", str(head))
    assert (verified.code, "1 rows in the chain" in verified.line) == (0, True), verified
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log DISABLE TRIGGER USER"))
        connection.execute(text("UPDATE audit_log SET actor = 'Eve'"))
        connection.execute(text("ALTER TABLE audit_log ENABLE TRIGGER USER"))
    tampered = run_cli("audit", "verify")
    assert (tampered.code, "changed: Row" in tampered.line) == (1, True), tampered
    report = json.loads(run_cli("audit", "verify", "--json").out)
    assert (report["intact"], report["faults"][0]["position"]) == (False, 1)
    assert run_cli("audit", "verify", "--head", "x").code == 2


# ---------------------------------------------------------------------------------------------- acts without the API


def test_definitions_are_recorded_with_what_changed(run_cli: Run, client: Client, tmp_path: Any) -> None:
    file = tmp_path / "agent.yaml"
    agent = {"kind": "agent", "name": "Helper", "model": "m1", "system_prompt": "A private prompt."}
    for change in ({}, {"model": "m2", "system_prompt": "Another private prompt."}):
        file.write_text(json.dumps({**agent, **change}))
        assert run_cli("apply", str(file)).code == 0
    assert run_cli("apply", str(file)).code == 0
    assert run_cli("agents", "rollback", "Helper", "--to", "1", "--reason", "worse").code == 0
    assert run_cli("agents", "disable", "Helper").code == 0
    disabled, rolled_back, changed, created = client.audit()
    assert (created["act"], created["target"], created["before"]) == ("definition.create", "agent Helper", None)
    assert created["actor"].endswith(" (database)")
    assert (created["key_prefix"], created["after"]["model"]) == (None, "m1")
    assert (changed["before"]["model"], changed["after"]["model"]) == ("m1", "m2")
    assert (changed["before"]["version"], changed["after"]["version"]) == (1, 2)
    assert set(changed["after"]) == {"version", "checksum", "model", "system_prompt"}
    assert "private" not in json.dumps([changed, created])
    assert (rolled_back["act"], rolled_back["before"]["version"], rolled_back["after"]["version"]) == (
        "agent.rollback",
        2,
        1,
    )
    assert (disabled["act"], disabled["after"]["status"]) == ("agent.status", "disabled")


def test_dry_run_leaves_no_row(run_cli: Run, client: Client, tmp_path: Any) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(json.dumps({"kind": "agent", "name": "Helper"}))
    assert run_cli("apply", str(file), "--dry-run").code == 0
    assert list(client.audit()) == []


def test_functions_are_recorded(run_cli: Run, client: Client, tmp_path: Any) -> None:
    file = tmp_path / "double.py"
    file.write_text("def double(x: int) -> int:\n    return 2 * x\n")
    assert run_cli("functions", "put", str(file)).code == 0
    assert run_cli("functions", "quarantine", "double", "--reason", "slow").code == 0
    status, created = client.audit()
    assert (created["act"], created["target"]) == ("definition.create", "function double")
    assert "return" not in json.dumps(created)
    assert (status["act"], status["target"], status["after"]["status"]) == (
        "function.status",
        "double@1",
        "quarantined",
    )


def test_secrets_are_recorded_by_name(
    run_cli: Run, client: Client, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.commands.secrets._piped", lambda: "a confidential value")
    assert run_cli("secrets", "set", "token").code == 0
    assert run_cli("secrets", "set", "token").code == 0
    assert run_cli("secrets", "delete", "token").code == 0
    rows = list(client.audit())
    assert [(row["act"], row["target"]) for row in rows] == [
        ("secret.delete", "token"),
        ("secret.set", "token"),
        ("secret.set", "token"),
    ]
    assert "confidential" not in json.dumps(rows)
    with log_that_cannot_be_written(database):
        refused = run_cli("secrets", "set", "token")
    assert (refused.code, "nothing was changed" in refused.line) == (69, True)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM secrets")) == 0


def test_secret_belongs_to_its_namespace(run_cli: Run, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.commands.secrets._piped", lambda: "a confidential value")
    stored = run_cli("secrets", "set", "provider.openai", "--namespace", "support")
    assert "the namespace support calls the provider openai with this key" in stored.line
    [row] = client.audit()
    assert (row["target"], row["namespace"]) == ("provider.openai", "support")
    assert "provider.openai" not in run_cli("secrets", "list", "--json").out
    assert "provider.openai" in run_cli("secrets", "list", "--json", "--namespace", "support").out
    assert run_cli("secrets", "delete", "provider.openai").code != 0
    assert run_cli("secrets", "delete", "provider.openai", "--namespace", "support").code == 0


# ----------------------------------------------------------------------------------------------------------- refusals


def test_refused_access_is_counted(http_api: Api, client: Client, with_key: WithKey) -> None:
    viewer = with_key("viewer")
    revoked = client.create_api_key("gone", "admin")
    client.revoke_api_key("gone")
    headers = [{"Authorization": "Bearer wrong"}, {}, {"Authorization": f"Bearer {revoked['key']}"}]
    with httpx2.Client(base_url=http_api.url, trust_env=False) as stranger:
        for each in headers:
            assert stranger.get("/v1/tasks", headers=each).status_code == 401
    for _ in range(3):
        assert viewer.post("/v1/tasks", json={"agent": "A"}).status_code == 403
    http_api.app.state.refusals.flush(everything=True)
    rows = {row["actor"].partition("-")[0]: row for row in client.audit(act="access.refused")}
    assert rows["viewer"]["after"]["kinds"] == {"403 tasks:submit": 3}
    assert rows["viewer"]["key_prefix"].startswith("mk_")
    assert rows["gone"]["after"]["kinds"] == {"401": 1}
    assert rows["gone"]["key_prefix"] == revoked["prefix"]
    unknown = rows["(no valid key)"]
    assert (unknown["after"]["kinds"], unknown["key_prefix"]) == ({"401": 2}, None)
    assert {row["address"] for row in rows.values()} == {"127.0.0.1"}


def test_ipv6_addresses_are_counted_by_their_network(
    http_api: Api, http: httpx2.Client, database: Engine, client: Client
) -> None:
    scope = {"type": "http", "app": http_api.app, "method": "GET", "path": "/v1/tasks", "headers": []}
    for number in range(100):
        request = Request({**scope, "client": (f"2001:db8:0:1::{number:x}", 1)})
        problems.count_refusal(request, Unauthorized("no"))
    http_api.app.state.refusals.flush(everything=True)
    [row] = client.audit(act="access.refused")
    assert (row["address"], row["after"]["refused"]) == ("2001:db8:0:1::/64", 100)
    ThreatWatch(database).run_once()
    assert [row["target"] for row in client.audit(act="alert")] == ["address 2001:db8:0:1::/64"]


def test_flood_from_many_addresses_takes_bounded_memory(database: Engine, client: Client) -> None:
    counted = Refusals(database)
    with patch.object(refusals, "MOST_GROUPS", 10), log_that_cannot_be_written(database):
        for _ in range(3):
            for address in range(1000):
                counted.count(None, f"10.0.0.{address}", Unauthorized("no"))
            assert len(counted._groups) <= 21
            with pytest.raises(Exception, match="cannot be written"):
                counted.flush(everything=True)
    counted.flush(everything=True)
    rows = list(client.audit(act="access.refused"))
    assert sum(row["after"]["refused"] for row in rows) == 3000
    assert "(others)" in {row["address"] for row in rows}
    assert len(rows) <= 21


def test_flood_without_keys_hides_no_key(database: Engine, client: Client) -> None:
    counted, key = Refusals(database), bootstrap_key("0f1e2d3c")
    with patch.object(refusals, "MOST_GROUPS", 10):
        for address in range(100):
            counted.count(None, f"10.0.0.{address}", Unauthorized("no"))
        counted.count(key, "10.0.1.1", Unauthorized("no"))
        counted.count(key, "10.0.1.2", Unauthorized("no"))
        for number in range(100):
            counted.count(bootstrap_key(f"{number:08x}"), "10.0.1.1", Unauthorized("no"))
        assert len(counted._groups) <= 21
    counted.flush(everything=True)
    rows = {row["key_prefix"]: row for row in client.audit(act="access.refused") if row["address"] == "(others)"}
    assert rows["api:0f1e2d3c"]["after"]["refused"] == 2


def test_counts_of_a_minute_are_written_when_it_is_over(
    database: Engine, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Refusals(database)
    monkeypatch.setattr(refusals, "_this_minute", lambda: 100)
    counted.count(None, "10.0.0.1", Unauthorized("no"))
    counted.flush()
    assert list(client.audit()) == []
    monkeypatch.setattr(refusals, "_this_minute", lambda: 101)
    counted.flush()
    [row] = client.audit()
    assert row["after"] == {"minute": "1970-01-01T01:40+00:00", "refused": 1, "kinds": {"401": 1}}


def test_addresses_of_keys_are_noted_once(database: Engine, client: Client, http_api: Api) -> None:
    seen = KeyAddresses(http_api.app.state.statements)
    key = bootstrap_key("0f1e2d3c")
    for address in range(500):
        seen.note(key, f"10.0.0.{address}")
        seen.note(key, f"10.0.0.{address}")
    seen.flush()
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM key_addresses")) == key_addresses.MOST_OF_A_KEY
    with patch.object(key_addresses, "SECONDS", -1):
        seen.flush()
    assert (seen._seen, seen._of_key) == ({}, {})


def test_client_without_the_permission_gets_a_clear_error(http_api: Api, with_key: WithKey) -> None:
    key = with_key("operator").headers["Authorization"].removeprefix("Bearer ")
    with Client(http_api.url, key) as client, pytest.raises(errors.Forbidden, match="audit:read"):
        list(client.audit())
