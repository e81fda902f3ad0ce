"""Every endpoint, with a key of every role, and with ids that are out of a key's reach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import httpx2
import pytest
from fastapi import APIRouter
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session

from minions import Client, errors
from orchestrator.api import rights
from orchestrator.api.app import GUARDED, create_app
from orchestrator.api.rights import RULES, Reach
from shared.access.roles import Permission, Role
from shared.contracts.documents import parse_definition
from shared.definitions.store import DefinitionStore
from shared.settings import Settings
from tests.integration.api.conftest import Api, WithKey
from tests.integration.conftest import InlineWorker
from tests.support.definitions import NOOP

ENDPOINTS = sorted(
    f"{method} {route.path_format}" for module in GUARDED for route in module.router.routes for method in route.methods
)
THEIR_ERROR = "0123456789abcdef"
SOON = (datetime.now(UTC) + timedelta(days=1)).isoformat()
SCHEDULE = {"interval_seconds": 3600, "request": {"agent": "Ours"}}
BODIES: dict[str, Any] = {
    "POST /v1/files": {"a": "text"},
    "POST /v1/tasks": {"agent": "Ours", "key": "ours"},
    "POST /v1/tasks/bulk": {"tasks": [{"agent": "Ours", "key": "ours"}]},
    "POST /v1/tasks/wait": {"ids": [str(uuid4())]},
    "POST /v1/tasks/{task_id}/decisions": {"verdict": "approve", "step": 1},
    "POST /v1/tasks/{task_id}/budget": {"stop": True},
    "PUT /v1/errors/{fingerprint}": {"state": "resolved"},
    "POST /v1/replays": {"dry_run": True},
    "POST /v1/trials": {"level": "replay", "recording": {"agent": "Ours"}},
    "POST /v1/bulk-acts": {"act": "cancel", "query": "agent:Theirs", "dry_run": True},
    "PATCH /v1/tasks/{task_id}/labels": {"labels": {"a": "b"}},
    "POST /v1/erasures": {"tenant": "theirs"},
    "POST /v1/schedules": {"name": "new", **SCHEDULE},
    "PUT /v1/schedules/{name}": SCHEDULE,
    "PATCH /v1/schedules/{name}": {"enabled": False},
    "POST /v1/webhooks": {"name": "new", "url": "https://93.184.215.14/hook"},
    "PATCH /v1/webhooks/{name}": {"enabled": False},
    "PUT /v1/limits/{scope}/{name}": {"max_running": 1},
    "POST /v1/silences": {"rule": "unserved", "until": SOON, "reason": "known"},
    "POST /v1/keys": {"name": "new", "role": "viewer"},
    "POST /v1/agents/{name}/rollback": {"version": 1},
    "PUT /v1/agents/{name}/canary": {"version": 2, "share": "10%"},
    "POST /v1/evaluations": {"agent": "Ours", "evaluator": "Theirs", "since": "2026-11-29T00:00:00Z", "dollars": 1},
    "PUT /v1/agents/{name}/status": {"status": "disabled"},
    "POST /v1/routes": {"message": "hello"},
    "PUT /v1/functions/{name}/status": {"status": "quarantined"},
    "POST /v1/stops": {"scope": "agent", "name": "Ours"},
    "PUT /v1/budgets": {"scope": "agent", "name": "Ours", "period": "day", "dollars": 1},
}
QUERIES: dict[str, dict[str, str]] = {
    "DELETE /v1/stops": {"scope": "agent", "name": "none"},
    "DELETE /v1/budgets": {"scope": "agent", "name": "none", "period": "day"},
    "DELETE /v1/sessions": {"user": "none"},
    "GET /v1/memory/{store_id}/file": {"path": "/memories/theirs"},
    "DELETE /v1/memory/{store_id}/file": {"path": "/memories/theirs"},
}
BOUNDS: dict[str, dict[str, Any]] = {
    "namespace": {"namespace": "ours"},
    "tenant": {"tenant": "ours"},
    "tenants": {"tenant": "our*"},
    "agent": {"agents": ["Ours"]},
    "capability": {"capabilities": ["ours"]},
}
LISTS = ("tasks", "files", "schedules", "webhooks", "keys", "stops", "silences")
"""What a key creates by POST."""
IDS = (
    "task_id",
    "delivery_id",
    "key",
    "session_id",
    "alert_id",
    "silence_id",
    "fingerprint",
    "bulk_act_id",
    "file_id",
    "store_id",
)
MEMORY = text(
    """
    WITH store AS (
        INSERT INTO memory_stores (namespace, tool, per, owner, key, changes)
            VALUES (:namespace, 'notes', 'tenant', 'theirs', 'theirs', 1) RETURNING id
    ), change AS (
        INSERT INTO memory_changes (store_id, number, command, path, made_by, result)
            SELECT id, 1, 'create', '/memories/theirs', 'Theirs', '' FROM store RETURNING store_id, path
    )
    INSERT INTO memory_versions (store_id, path, number, content, bytes)
        SELECT store_id, path, 1, 'theirs', 6 FROM change RETURNING store_id
    """
)
# What an endpoint writes under a name that its caller chooses.
CREATES = {"PUT /v1/schedules/{name}", "PUT /v1/pauses/{scope}/{name}", "PUT /v1/limits/{scope}/{name}"}


def call(http: httpx2.Client, endpoint: str, names: dict[str, str], **options: Any) -> httpx2.Response:
    """Call an endpoint with these path parameters; a stream is not read."""
    method, path = endpoint.split(" ")
    for name, value in names.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path, f"{endpoint}: give its path parameters here"
    options["params"] = {**QUERIES.get(endpoint, {}), **options.get("params", {})}
    return http.request("HEAD" if path.endswith("/events") else method, path, json=BODIES.get(endpoint), **options)


# ------------------------------------------------------------------------------------------------------------- rules


def test_every_endpoint_has_a_rule() -> None:
    assert set(ENDPOINTS) == set(RULES)
    assert len(ENDPOINTS) > 40
    assert {permission for rule in RULES.values() for permission in rule.permissions} == set(Permission)


def test_endpoint_without_a_rule_does_not_start(settings: Settings) -> None:
    router = APIRouter()
    router.add_api_route("/v1/secrets", lambda: None)

    class Forgotten:
        pass

    module: Any = Forgotten()
    module.router = router
    with (
        patch("orchestrator.api.app.GUARDED", (*GUARDED, module)),
        pytest.raises(RuntimeError, match=r"No rule in .* for: GET /v1/secrets"),
    ):
        create_app(settings)


def test_permissions_are_in_the_document(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert "Needs `webhooks:write` and `payloads:read`." in paths["/v1/webhooks"]["post"]["description"]
    assert all("Needs `" in paths[path][method.lower()]["description"] for method, path in map(str.split, ENDPOINTS))


def test_rule_without_an_endpoint_does_not_start(settings: Settings) -> None:
    with (
        patch.object(rights, "RULES", {**RULES, "GET /v1/none": RULES["GET /v1/tasks"]}),
        pytest.raises(RuntimeError, match="without an endpoint: GET /v1/none"),
    ):
        create_app(settings)


@pytest.mark.parametrize("role", Role)
def test_role_may_use_its_endpoints_and_no_other(with_key: WithKey, role: Role) -> None:
    http = with_key(role)
    ids = {name: str(uuid4()) for name in IDS if name not in ("key", "fingerprint")}
    names = {**ids, "scope": "agent", "name": "none", "key": "none", "fingerprint": "none", "number": "1"}
    for endpoint in ENDPOINTS:
        response = call(http, endpoint, names)
        if RULES[endpoint].allows(role):
            assert response.status_code in (200, 201, 404), (endpoint, response.text)
        else:
            assert response.status_code == 403, (endpoint, response.text)
            problem = response.json()
            assert problem["permission"] in {str(each) for each in RULES[endpoint].permissions}
            assert str(role) not in problem["roles"]
            assert all(each in problem["detail"] for each in problem["roles"])


def test_changing_the_request_of_a_schedule_is_submitting(with_key: WithKey, client: Client, world: World) -> None:
    operator = with_key("operator")
    assert operator.patch("/v1/schedules/theirs-schedule", json={"enabled": False}).status_code == 200
    refused = operator.patch("/v1/schedules/theirs-schedule", json={"request": {"agent": "Theirs"}})
    assert (refused.status_code, refused.json()["permission"]) == (403, "tasks:submit")


# -------------------------------------------------------------------------------------------------- foreign ids


@dataclass(frozen=True)
class World:
    """Things that a bound key does not reach, whose names have `theirs` in them, and some that it reaches."""

    namespace: str
    own: str
    tasks: list[str]
    own_task: str
    delivery: str
    key: str
    session: str
    alert: str
    silence: str
    bulk_act: str
    file: str
    store: str

    def foreign(self) -> Iterator[dict[str, str]]:
        """Path parameters that name things out of reach."""
        written = (*self.tasks, self.tasks[0].replace("-", ""), self.tasks[0][:30])
        named = ("theirs-schedule", "Theirs", "theirs-webhook", "theirs_function")
        for task, name in zip(written, named, strict=True):
            ids = {"task_id": task, "delivery_id": self.delivery, "key": self.key, "session_id": self.session}
            ids |= {"alert_id": self.alert, "silence_id": self.silence, "fingerprint": THEIR_ERROR}
            ids |= {"bulk_act_id": self.bulk_act, "file_id": self.file, "store_id": self.store}
            yield {**ids, "scope": "agent", "name": name, "number": "1"}


def define_in(database: Engine, namespace: str, *definitions: dict[str, Any]) -> None:
    with Session(database) as session, session.begin():
        store = DefinitionStore(session, lambda function: None, namespace)
        store.apply([parse_definition(definition) for definition in definitions])


def agent(name: str, capability: str) -> dict[str, Any]:
    return {"kind": "agent", "name": name, "type": "function", "tool": "noop", "config": {"capabilities": [capability]}}


@pytest.fixture(params=BOUNDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(request: pytest.FixtureRequest, client: Client, database: Engine) -> World:
    bound = request.getfixturevalue("kind") if "kind" in request.fixturenames else "tenant"
    namespace, own = ("theirs", "ours") if bound == "namespace" else ("default", "default")
    for place in {namespace, own}:
        define_in(database, place, NOOP)
    define_in(database, own, agent("Ours", "ours"))
    define_in(
        database,
        namespace,
        agent("Theirs", "theirs"),
        {"kind": "function", "name": "theirs_function", "code": "def f(x: int) -> int:\n    return x\n"},
    )
    fields = {"key": "theirs", "namespace": namespace, "labels": {"owner": "theirs"}}
    pending, ended = (client.submit("Theirs", {"of": "theirs"}, **fields).id for _ in range(2))
    client.cancel(ended, reason="theirs")
    own_task = client.submit("Ours", {}, key="ours", namespace=own).id
    client.put_schedule(
        "theirs-schedule", {"agent": "Theirs", "key": "theirs"}, interval_seconds=3600, namespace=namespace
    )
    client.add_webhook("theirs-webhook", "https://93.184.215.14/theirs", namespace=namespace)
    client.pause("agent", "Theirs", namespace=namespace)
    client.set_limit("agent", "Theirs", max_running=3, namespace=namespace)
    client.stop_all(agent="Theirs", namespace=namespace)
    client.set_budget("agent", "Theirs", period="day", dollars=1, namespace=namespace)
    key = client.create_api_key("theirs-key", "viewer", namespace=namespace)
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
                "SELECT hash, 'key', 'key:theirs', id, hash, now() + interval '1 h', interval '1 h' FROM api_keys "
                "WHERE name = 'theirs-key' RETURNING id"
            )
        )
        alert = connection.scalar(
            text(
                "INSERT INTO alerts (rule, namespace, subject, agent, sentence) "
                "VALUES ('anomaly.run', :namespace, 'Theirs', 'Theirs', 'Theirs runs long.') RETURNING id"
            ),
            {"namespace": namespace},
        )
        store = connection.scalar(MEMORY, {"namespace": namespace})
        failed = client.submit("Theirs", {"of": "theirs"}, **fields).id
        fail(connection, failed, namespace)
    silence = client.add_silence(
        until=datetime.fromisoformat(SOON), reason="theirs", agent="Theirs", rule="unserved", namespace=namespace
    )["id"]
    bulk_act = client.start_bulk_act("cancel", "agent:Theirs namespace:" + namespace)["id"]
    file = client.upload(b"theirs", namespace=namespace)["id"]
    ids = (str(delivery), key["id"], str(session), str(alert), silence, bulk_act, file, str(store))
    return World(namespace, own, [pending, ended], own_task, *ids)


def fail(connection: Connection, task: str, namespace: str) -> None:
    """Let a task fail, resolve its kind of error, and count it."""
    for statement in (
        "SET LOCAL session_replication_role = replica",
        "UPDATE task_status SET state = 'failed' WHERE task_id = :task",
        "INSERT INTO task_outcomes (task_id, state, error, error_fingerprint) "
        """VALUES (:task, 'failed', '{"type": "theirs", "message": "theirs"}', :fingerprint)""",
        "INSERT INTO error_states (namespace, fingerprint, state, reason, changed_by) "
        "VALUES (:namespace, :fingerprint, 'resolved', 'theirs', 'theirs')",
        "INSERT INTO statistics (grain, kind, bucket, namespace, agent, capability, tenant, step, name, count) "
        "SELECT grain, 'failure', date_trunc(grain, now(), 'UTC'), :namespace, 'Theirs', 'theirs', 'theirs', "
        "'theirs', :fingerprint, 1 FROM unnest(ARRAY['hour', 'day']) AS g (grain)",
    ):
        values = {"task": task, "namespace": namespace, "fingerprint": THEIR_ERROR}
        connection.execute(text(statement), values)
    connection.execute(text("SET LOCAL session_replication_role = origin"))


def stored(database: Engine, world: World) -> str:
    """Everything about the things out of reach, as text."""
    tables = {
        "tasks": "namespace = :namespace AND agent_name = 'Theirs'",
        "task_status": "namespace = :namespace AND agent_name = 'Theirs'",
        "task_outcomes": "task_id::text = ANY (:tasks)",
        "signals": "task_id::text = ANY (:tasks)",
        "schedules": "name LIKE 'theirs%'",
        "webhooks": "name LIKE 'theirs%'",
        "webhook_deliveries": "id::text = :delivery",
        "pauses": "name = 'Theirs'",
        "limits": "name = 'Theirs'",
        "stops": "name = 'Theirs'",
        "standing_budgets": "name = 'Theirs'",
        "api_keys": "name LIKE 'theirs%'",
        "login_sessions": "user_name = 'key:theirs'",
        "alerts": "subject = 'Theirs'",
        "alert_silences": "reason = 'theirs'",
        "error_states": "reason = 'theirs'",
        "bulk_acts": "query LIKE '%Theirs%'",
        "files": "data = 'theirs'",
        "memory_stores": "owner = 'theirs'",
        "memory_versions": "path LIKE '%theirs%'",
    }
    values = {"namespace": world.namespace, "tasks": world.tasks, "delivery": world.delivery}
    with database.connect() as connection:
        return "\n".join(
            str(connection.execute(text(f"SELECT t::text FROM {table} t WHERE {where} ORDER BY 1"), values).all())
            for table, where in tables.items()
        )


def normal(response: httpx2.Response, names: dict[str, str]) -> tuple[int, str]:
    """Status and text of an answer, without ids and the names that were asked for."""
    body = re.sub("(file_)?[0-9a-f]{8}[0-9a-f-]*", "…", response.text)
    return response.status_code, body.replace(names["name"], "…")


def test_foreign_ids_are_like_unknown_ones(with_key: WithKey, database: Engine, world: World, kind: str) -> None:
    http = with_key("admin", **BOUNDS[kind])
    before = stored(database, world)
    for endpoint in (each for each in ENDPOINTS if "{" in each and each not in CREATES):
        for foreign in world.foreign():
            ids = {name: foreign[name] for name in IDS}
            others = {
                name: str(uuid4())[: len(id)] if "-" in id else uuid4().hex[: len(id)] for name, id in ids.items()
            }
            unknown = {**foreign, **others, "name": "absent0"}
            if kind.startswith("tenant") and "/v1/agents/" in endpoint:
                continue  # the tenants of a namespace share its agents
            answers = [normal(call(http, endpoint, names), names) for names in (foreign, unknown)]
            reach = RULES[endpoint].reach
            narrow = reach is Reach.INSTALLATION or (kind != "namespace" and reach is Reach.NAMESPACE)
            assert answers[0][0] == (403 if narrow else 404), (endpoint, foreign, answers)
            if not endpoint.startswith("GET /v1/tasks/{task_id}/events"):
                assert answers[0] == answers[1], (endpoint, foreign)
    assert stored(database, world) == before


@pytest.mark.parametrize("kind", ["namespace"])
def test_no_role_reaches_foreign_ids(with_key: WithKey, database: Engine, world: World, kind: str) -> None:
    before = stored(database, world)
    foreign = next(world.foreign())
    for role in Role:
        http = with_key(role, namespace="ours")
        for endpoint in (each for each in ENDPOINTS if "{" in each and each not in CREATES):
            rule = RULES[endpoint]
            expected = 404 if rule.allows(role) and rule.reach is not Reach.INSTALLATION else 403
            assert call(http, endpoint, foreign).status_code == expected, (role, endpoint)
    assert stored(database, world) == before


def test_what_a_bound_key_stores_is_in_its_bounds(with_key: WithKey, database: Engine, world: World) -> None:
    http = with_key("admin", namespace="elsewhere")
    define_in(database, "elsewhere", NOOP, agent("Ours", "ours"))
    before = stored(database, world)
    for endpoint in [*CREATES, *(f"POST /v1/{each}" for each in LISTS), "PUT /v1/budgets"]:
        response = call(http, endpoint, {"scope": "agent", "name": "theirs-schedule"})
        assert response.status_code in (200, 201), (endpoint, response.text)
        assert response.json()["namespace"] == "elsewhere", endpoint
    with database.begin() as connection:
        connection.execute(text("DELETE FROM schedules WHERE namespace = 'elsewhere'"))
    assert stored(database, world) == before


def test_lists_show_nothing_foreign(with_key: WithKey, client: Client, world: World, kind: str) -> None:
    http = with_key("admin", **BOUNDS[kind])
    whole = with_key("admin")
    for endpoint in (each for each in ENDPOINTS if each.startswith("GET ") and "{" not in each):
        response = call(http, endpoint, {})
        rule = RULES[endpoint]
        if rule.reach is Reach.INSTALLATION or (kind != "namespace" and rule.reach is Reach.NAMESPACE):
            assert response.status_code == 403, endpoint
            continue
        assert response.status_code == 200, (endpoint, response.text)
        shared = kind.startswith("tenant") and endpoint in ("GET /v1/agents", "GET /v1/capabilities")
        assert shared or "heirs" not in response.text, endpoint
        assert not any(task in response.text for task in world.tasks), endpoint
        assert call(whole, endpoint, {}).status_code == 200
    listed = http.get("/v1/tasks").json()["items"]
    assert [task["id"] for task in listed] == [world.own_task]
    assert http.get("/v1/tasks/counts").json()["by_capability"] == {"ours": {"pending": 1}}
    assert http.get(f"/v1/tasks/{world.own_task}").status_code == 200
    assert [task["id"] for task in http.get(f"/v1/tasks/{world.own_task}/tree").json()["items"]] == [world.own_task]
    assert [each["name"] for each in http.get("/v1/capabilities").json()["items"]] == ["ours"] or kind.startswith(
        "tenant"
    )
    for filters in ({"root_id": world.tasks[0]}, {"agent": "Theirs"}, {"key": "theirs"}, {"label": "owner:theirs"}):
        assert http.get("/v1/tasks", params=filters).json()["items"] == [], filters
    assert http.get("/v1/tasks", params={"root_id": world.tasks[0][:30]}).status_code == 404
    replays = http.post("/v1/replays", json={"states": ["cancelled"]}).json()
    assert (replays["matched"], replays["items"]) == (0, [])


@pytest.mark.parametrize("kind", ["namespace"])
def test_the_whole_installation_is_out_of_reach(with_key: WithKey, world: World, kind: str) -> None:
    http = with_key("admin", namespace="ours")
    budget = {"scope": "installation", "period": "day"}
    for refused in (
        http.post("/v1/stops", json={"scope": "installation"}),
        http.delete("/v1/stops", params={"scope": "installation"}),
        http.put("/v1/budgets", json={**budget, "dollars": 1}),
        http.delete("/v1/budgets", params=budget),
    ):
        assert refused.status_code == 403, refused.text


@pytest.mark.parametrize("kind", ["namespace"])
def test_another_namespace_cannot_be_named(with_key: WithKey, client: Client, world: World, kind: str) -> None:
    http = with_key("admin", namespace="ours")
    names = {
        "task_id": world.own_task,
        "delivery_id": str(uuid4()),
        "scope": "agent",
        "name": "Theirs",
        "key": "x",
        "number": "1",
    }
    names |= {"fingerprint": THEIR_ERROR, "file_id": world.file}
    document = http.get("/openapi.json").json()["paths"]
    with_namespace = [
        endpoint
        for endpoint in ENDPOINTS
        for method, path in [endpoint.split(" ")]
        if any(each["name"] == "namespace" for each in document[path][method.lower()].get("parameters", ()))
    ]
    assert len(with_namespace) > 15
    for endpoint in with_namespace:
        answers = set()
        for namespace in ("theirs", "nowhere"):
            refused = call(http, endpoint, names, params={"namespace": namespace})
            assert refused.status_code == 403, (endpoint, refused.text)
            answers.add(refused.text.replace(namespace, "…"))
        assert len(answers) == 1, endpoint
    for endpoint in (
        "POST /v1/tasks",
        "POST /v1/replays",
        "POST /v1/webhooks",
        "POST /v1/keys",
        "POST /v1/stops",
        "PUT /v1/budgets",
    ):
        method, path = endpoint.split(" ")
        refused = http.request(method, path, json={**BODIES[endpoint], "namespace": "theirs"})
        assert refused.status_code == 403, endpoint
    refused = http.post("/v1/tasks/bulk", json={"tasks": [{"agent": "Ours"}, {"agent": "Ours", "namespace": "theirs"}]})
    assert (refused.status_code, refused.json()["index"]) == (403, 1)
    assert http.get("/v1/tasks", params={"namespace": "ours"}).status_code == 200


# ------------------------------------------------------------------------------------------- names that tenants choose


@pytest.fixture
def tenants(with_key: WithKey, agents: None) -> tuple[httpx2.Client, httpx2.Client]:
    """Keys of two tenants."""
    return with_key("submitter", tenant="acme"), with_key("submitter", tenant="other")


def test_keys_of_tenants_do_not_meet(tenants: tuple[httpx2.Client, httpx2.Client], client: Client) -> None:
    for name in ("idempotency_key", "unique_key"):
        request = {"agent": "Echo", "input": {}, name: "same"}
        found = [tenant.post("/v1/tasks", json=request) for tenant in (*tenants, *tenants)]
        assert [response.status_code for response in found] == [201, 201, 200, 200]
        ids = [response.json()["id"] for response in found]
        assert ids[:2] == ids[2:]
        assert len({*ids, client.submit("Echo", {}, **{name: "same"}).id}) == 3


def test_conversation_of_a_tenant_is_its_own(
    tenants: tuple[httpx2.Client, httpx2.Client], client: Client, database: Engine, inline_worker: InlineWorker
) -> None:
    asked = {"agent": "Echo", "input": {}, "conversation_id": "chat"}
    for tenant in tenants:
        created = tenant.post("/v1/tasks", json=asked).json()
        assert created["conversation_id"] == "chat"
        [listed] = tenant.get("/v1/tasks", params={"conversation_id": "chat"}).json()["items"]
        assert (listed["id"], listed["conversation_id"]) == (created["id"], "chat")
        assert tenant.get(f"/v1/tasks/{created['id']}/why").json()["reason"] != "turn"
    unbound = client.submit("Echo", {}, conversation_id="chat")
    stored_ids = {task.conversation_id for task in client.tasks()}
    assert stored_ids == {"chat", "acme\x1fchat", "other\x1fchat"}
    assert unbound.conversation_id == "chat"
    second = tenants[0].post("/v1/tasks", json=asked).json()["id"]
    with patch("orchestrator.explain._no_orchestrator", lambda case: None):
        assert "of the conversation 'chat'" in tenants[0].get(f"/v1/tasks/{second}/why").json()["sentence"]


def test_tenant_is_bound_to_its_key(tenants: tuple[httpx2.Client, httpx2.Client]) -> None:
    acme, _ = tenants
    assert acme.post("/v1/tasks", json={"agent": "Echo", "input": {}}).json()["key"] == "acme"
    refused = acme.post("/v1/tasks", json={"agent": "Echo", "input": {}, "key": "other"})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    for name in ("conversation_id", "idempotency_key", "unique_key"):
        assert acme.post("/v1/tasks", json={"agent": "Echo", "input": {}, name: "a\x1fb"}).status_code == 422


def test_earlier_task_out_of_reach_is_not_named(with_key: WithKey, client: Client, agents: None) -> None:
    theirs = client.submit("Search", {"query": "them"}, unique_key="same").id
    bound = with_key("submitter", agents=["Echo"])
    for path, request in (
        ("/v1/tasks", {"agent": "Echo", "input": {}, "unique_key": "same"}),
        ("/v1/tasks/bulk", {"tasks": [{"agent": "Echo"}, {"agent": "Echo", "unique_key": "same"}]}),
    ):
        refused = bound.post(path, json=request)
        assert refused.status_code == 409
        assert theirs not in refused.text
    assert len(list(client.tasks())) == 1


def test_sub_tasks_of_other_agents_stay_hidden(
    with_key: WithKey, client: Client, define: Any, act: Any, inline_worker: InlineWorker
) -> None:
    act("Hidden")
    define(
        {
            "kind": "agent",
            "name": "Parent",
            "type": "function",
            "relations": [{"agent": "Hidden"}],
            "config": {"capabilities": ["work"], "chain_strategy": "sequential"},
        }
    )
    task = client.submit("Parent", {"do": "answer", "answer": 1}).id
    inline_worker.run_all()
    [_, child] = [each.id for each in client.tree(task)]
    bound = with_key("viewer", agents=["Parent"])
    assert [each["id"] for each in bound.get(f"/v1/tasks/{task}/tree").json()["items"]] == [task]
    assert bound.get(f"/v1/tasks/{child}").status_code == 404
    with pytest.raises(errors.NotFound):
        client.get(str(uuid4()))


# ---------------------------------------------------------------------------------------------- what refusals reveal


@pytest.mark.parametrize("kind", ["agent", "capability"])
def test_submission_to_a_foreign_agent_is_like_one_to_no_agent(
    with_key: WithKey, client: Client, database: Engine, world: World, kind: str
) -> None:
    define_in(database, "default", agent("Disabled", "theirs"))
    with database.begin() as connection:
        connection.execute(text("UPDATE agents SET status = 'disabled' WHERE name = 'Disabled'"))
    http = with_key("submitter", **({"agents": ["Ours", "Theirz"]} if kind == "agent" else BOUNDS[kind]))
    for asked in ("Theirs", "Theirz", "Disabled", "Absent"):
        for path, body in (
            ("/v1/tasks", {"agent": asked}),
            ("/v1/tasks/bulk", {"tasks": [{"agent": "Ours"}, {"agent": asked}]}),
        ):
            refused = http.post(path, json=body)
            assert refused.status_code == (403 if kind == "agent" and asked != "Theirz" else 404), refused.text
            answer = refused.text.replace(asked, "…")
            assert "Theirs" not in answer
            assert "theirs" not in answer
            assert "disabled" not in answer
            if refused.status_code == 404:
                assert refused.json()["code"] == "unknown_agent"
                assert refused.json()["detail"].endswith(f"no agent named '{asked}'. `minion agents` lists them.")
                assert refused.json().get("index") == (1 if path.endswith("bulk") else None)


def test_submission_to_an_own_agent_says_what_is_wrong(with_key: WithKey, client: Client, world: World) -> None:
    refused = with_key("submitter", agents=["Ours"]).post("/v1/tasks", json={"capability": "other"})
    assert refused.json()["detail"] == "The agent 'Ours' does not offer the capability 'other'; it offers ours."


def test_idempotency_key_of_a_foreign_task_names_no_task(with_key: WithKey, client: Client, world: World) -> None:
    theirs = client.submit("Theirs", {"a": 1}, idempotency_key="same").id
    own = client.submit("Ours", {"a": 1}, idempotency_key="own").id
    http = with_key("submitter", agents=["Ours"])
    answers = set()
    for body in ({"agent": "Ours", "input": {"b": 1}}, {"agent": "Ours"}):
        for path, request in (("/v1/tasks", body), ("/v1/tasks/bulk", {"tasks": [body]})):
            one = request["tasks"][0] if "tasks" in request else request
            one["idempotency_key"] = "same"
            refused = http.post(path, json=request)
            assert refused.status_code == 409
            assert theirs not in refused.text
            answers.add(refused.text)
    assert len(answers) == 1
    refused = http.post("/v1/tasks", json={"agent": "Ours", "input": {"b": 1}, "idempotency_key": "own"})
    assert (refused.json()["code"], own in refused.text) == ("idempotency_conflict", True)


@pytest.mark.parametrize("kind", ["agent", "capability"])
def test_conversation_of_foreign_agents_cannot_be_joined(
    with_key: WithKey, client: Client, database: Engine, world: World, kind: str
) -> None:
    client.submit("Theirs", {}, conversation_id="chat")
    client.submit("Ours", {}, conversation_id="mixed")
    client.submit("Theirs", {}, conversation_id="mixed")
    with database.begin() as connection:  # its tasks were deleted
        connection.execute(text("INSERT INTO conversations (namespace, id) VALUES ('default', 'old')"))
        connection.execute(
            text("INSERT INTO messages (conversation_id, role, content) VALUES ('old', 'user', '[]'::jsonb)")
        )
    http = with_key("submitter", **BOUNDS[kind])
    before = len(list(client.tasks()))
    for conversation in ("chat", "mixed", "old"):
        asked = {"agent": "Ours", "conversation_id": conversation}
        for path, request in (("/v1/tasks", asked), ("/v1/tasks/bulk", {"tasks": [{"agent": "Ours"}, asked]})):
            refused = http.post(path, json=request)
            assert refused.status_code == 409, refused.text
            assert f"The conversation '{conversation}' has tasks that this API key does not reach" in refused.text
    assert len(list(client.tasks())) == before
    for _ in range(2):
        assert http.post("/v1/tasks", json={"agent": "Ours", "conversation_id": "own"}).status_code == 201
    raw = b'{"agent": "Ours", "conversation_id": "\\ud800"}'
    assert http.post("/v1/tasks", content=raw, headers={"content-type": "application/json"}).status_code == 422


def test_replay_does_not_join_a_conversation_of_others(with_key: WithKey, client: Client, agents: None) -> None:
    """A tenant whose task shares a conversation with other tenants, because keys without that bound submitted both."""
    own, alone = (
        client.submit("Echo", {}, key="acme", conversation_id=conversation).id for conversation in ("shared", "own")
    )
    client.submit("Echo", {}, key="other", conversation_id="shared")
    for task in (own, alone):
        client.cancel(task)
    http = with_key("author", tenant="acme")
    for body in ({}, {"from_step": 1}):
        refused = http.post(f"/v1/tasks/{own}/replay", json=body)
        assert refused.status_code == 409
        assert "The conversation 'shared' has tasks that this API key does not reach" in refused.json()["detail"]
    replayed = http.post("/v1/replays", json={"states": ["cancelled"]}).json()["items"]
    assert {each["task_id"]: (each["error"] or {}).get("type") for each in replayed} == {own: "conflict", alone: None}
    assert http.post(f"/v1/tasks/{alone}/replay", json={}).status_code == 201


def test_replays_do_not_reveal_functions(with_key: WithKey, client: Client, world: World) -> None:
    for bounds in (BOUNDS["tenant"], BOUNDS["agent"]):
        http = with_key("operator", **bounds)
        answers = [
            http.post("/v1/replays", json={"function": f"{name}@1", "dry_run": True})
            for name in ("theirs_function", "absent")
        ]
        assert [answer.status_code for answer in answers] == [403, 403]
        assert answers[0].text == answers[1].text
    seen = with_key("operator").post("/v1/replays", json={"function": "theirs_function@1", "dry_run": True})
    assert seen.status_code == 200


def test_only_the_first_authorization_header_counts(http_api: Api, with_key: WithKey) -> None:
    good = ("authorization", str(with_key("viewer").headers["authorization"]))
    wrong = ("Authorization", "bearer wrong")
    for headers, status in (([good, wrong], 200), ([wrong, good], 401)):
        answer = httpx2.get(f"{http_api.url}/v1/tasks", headers=headers, trust_env=False)
        assert answer.status_code == status
