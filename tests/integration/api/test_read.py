"""Reading over HTTP: lists page by page, filters, journals, counts, definitions, capabilities, workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import Engine, text

from minions import Client
from shared.tasks import lifecycle
from shared.tasks.states import State

from .conftest import Api

pytestmark = pytest.mark.usefixtures("agents")

Submit = Callable[..., str]


@pytest.fixture
def submit(http: httpx2.Client) -> Submit:
    """Submits a task and returns its id."""

    def send(agent: str = "Echo", **members: Any) -> str:
        response = http.post("/v1/tasks", json={"agent": agent, **members})
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    return send


def add_worker(
    database: Engine, *capabilities: str, slots: int = 2, silent: str = "0 s", status: str = "online"
) -> UUID:
    insert = text(
        "INSERT INTO workers (name, capabilities, slots, status, pool, host, pid, version, last_seen) VALUES "
        "('w', :capabilities, :slots, :status, 'prefork', 'h', 1, '0', now() - CAST(:silent AS interval)) RETURNING id"
    )
    values = {"capabilities": list(capabilities), "slots": slots, "status": status, "silent": silent}
    with database.begin() as connection:
        return UUID(str(connection.scalar(insert, values)))


def run(database: Engine, worker: UUID, *, output: Any = None, steps: list[dict[str, Any]] | None = None) -> UUID:
    """Dispatches all that is pending, then claims and finishes one task."""
    with database.begin() as connection:
        task = lifecycle.dispatch(connection, lease=10, window=64)[0]
        claimed = lifecycle.claim(connection, task.task_id, task.claim, worker)
        assert claimed
        result = {"output": output, "steps": steps or [], "input_tokens": 3, "cpu_seconds": 0.5}
        assert lifecycle.finish(connection, task.task_id, claimed["claim"], State.SUCCEEDED, result)
    return task.task_id


def read_pages(http: httpx2.Client, path: str, **params: Any) -> list[list[dict[str, Any]]]:
    pages, cursor = [], None
    while True:
        response = http.get(path, params={**params, **({"cursor": cursor} if cursor else {})})
        assert response.status_code == 200, response.text
        pages.append(response.json()["items"])
        cursor = response.json()["next"]
        if cursor is None:
            return pages


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [str(item["id"]) for item in items]


def test_pages_are_newest_first_and_complete(http: httpx2.Client, submit: Submit) -> None:
    expected = [submit() for _ in range(7)][::-1]
    pages = read_pages(http, "/v1/tasks", limit=3)
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [id for page in pages for id in ids(page)] == expected
    assert [len(page) for page in read_pages(http, "/v1/tasks", limit=7)] == [7]


def test_pages_stay_right_while_tasks_arrive(http: httpx2.Client, submit: Submit) -> None:
    expected = [submit() for _ in range(4)][::-1]
    first = http.get("/v1/tasks", params={"limit": 2}).json()
    submit()
    second = http.get("/v1/tasks", params={"limit": 2, "cursor": first["next"]}).json()
    assert ids(first["items"] + second["items"]) == expected


def test_lists_omit_large_fields(http: httpx2.Client, submit: Submit) -> None:
    submit(input="x" * 1000)
    assert not {"input", "output", "messages"} & set(http.get("/v1/tasks").json()["items"][0])


def test_filters(http: httpx2.Client, submit: Submit, database: Engine) -> None:
    plain = submit()
    search = submit("Search", input={"query": "cats"}, key="tenant", labels={"a": "1", "b": "x:y"})
    later = submit(run_at="2100-01-01T00:00:00Z", conversation_id="c", labels={"a": "1"})
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, [later, search, plain]),
        ({"state": "scheduled"}, [later]),
        ({"state": ["scheduled", "pending"]}, [later, search, plain]),
        ({"state": "failed"}, []),
        ({"agent": "Search"}, [search]),
        ({"capability": "echo"}, [later, plain]),
        ({"key": "tenant"}, [search]),
        ({"label": "a:1"}, [later, search]),
        ({"label": ["a:1", "b:x:y"]}, [search]),
        ({"label": "a:2"}, []),
        ({"root_id": plain}, [plain]),
        ({"parent_id": plain}, []),
        ({"replay_of": plain}, []),
        ({"conversation_id": "c"}, [later]),
        ({"namespace": "elsewhere"}, []),
        ({"created_after": "2000-01-01T00:00:00Z"}, [later, search, plain]),
        ({"created_after": "2100-01-01T00:00:00Z"}, []),
        ({"created_after": "0001-01-01T00:00:00Z", "created_before": "9999-12-31T00:00:00Z"}, [later, search, plain]),
        ({"created_before": "2000-01-01T00:00:00+05:00"}, []),
        ({"agent": "Echo", "state": "pending", "capability": "echo"}, [plain]),
    ]
    for params, expected in cases:
        response = http.get("/v1/tasks", params=params)
        assert response.status_code == 200, response.text
        assert ids(response.json()["items"]) == expected, params


def test_times_split_the_tasks_where_they_were_made(http: httpx2.Client, submit: Submit) -> None:
    older, newer = submit(), submit()
    at = http.get(f"/v1/tasks/{newer}").json()["created_at"]
    assert newer in ids(http.get("/v1/tasks", params={"created_after": at}).json()["items"])
    assert newer not in ids(http.get("/v1/tasks", params={"created_before": at}).json()["items"])
    assert older != newer


@pytest.mark.parametrize(
    "params",
    [
        {"stat": "failed"},
        {"state": "done"},
        {"limit": 0},
        {"limit": 1001},
        {"limit": "many"},
        {"cursor": "abc"},
        {"cursor": "' OR 1=1"},
        {"root_id": "7"},
        {"agent": "a\x00b"},
        {"agent": "a" * 256},
        {"label": "a"},
        {"label": "a:\x00"},
        {"created_after": "yesterday"},
        {"created_after": "2020-01-01T00:00:00"},
        {"created_before": "0.5"},
        {"created_before": "1893456000"},
    ],
)
def test_wrong_parameters_are_refused(http: httpx2.Client, params: dict[str, Any]) -> None:
    response = http.get("/v1/tasks", params=params)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert next(iter(params)) in response.json()["detail"]
    assert response.json()["faults"]


@pytest.mark.parametrize("id", ["7", "%00", "..%2f..%2f", "null", "a" * 5000, "0190-", "%F0%9F%98%80", "-1"])
@pytest.mark.parametrize("part", ["", "/steps", "/tree"])
def test_a_weird_id_is_refused(http: httpx2.Client, id: str, part: str) -> None:
    response = http.get(f"/v1/tasks/{id}{part}")
    assert response.status_code in (404, 422), response.text
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("part", ["", "/steps", "/executions", "/tree", "/cancel", "/replay"])
def test_an_unknown_task_is_not_found(http: httpx2.Client, part: str) -> None:
    method = "POST" if part in ("/cancel", "/replay") else "GET"
    id = uuid4()
    response = http.request(method, f"/v1/tasks/{id}{part}")
    assert response.status_code == 404
    assert response.json()["detail"] == f"There is no task {id}."


def test_a_task_that_ran_shows_its_journal(http: httpx2.Client, submit: Submit, database: Engine) -> None:
    id = submit()
    steps = [
        {
            "number": number,
            "kind": "function_call",
            "name": "f",
            "status": "finished",
            "effect": "pure",
            "request_hash": "h",
            "input": {"n": number},
            "output": None,
            "finished_at": "2026-01-01T00:00:00Z",
        }
        for number in (1, 2, 3)
    ]
    large = {"text": "x" * 100_000}
    worker = add_worker(database, "echo")
    assert str(run(database, worker, output=large, steps=steps)) == id
    task = http.get(f"/v1/tasks/{id}").json()
    assert (task["state"], task["output"], task["claim"]) == ("succeeded", large, 1)
    assert task["finished_at"]
    found = read_pages(http, f"/v1/tasks/{id}/steps", limit=2)
    assert [[step["number"] for step in page] for page in found] == [[1, 2], [3]]
    assert found[0][0]["input"] == {"n": 1}
    [[execution]] = read_pages(http, f"/v1/tasks/{id}/executions")
    assert (execution["outcome"], execution["worker"], execution["input_tokens"]) == ("succeeded", "w", 3)


def test_a_tree_shows_all_that_is_below(http: httpx2.Client, submit: Submit, database: Engine) -> None:
    root = submit()
    submit()
    worker = add_worker(database, "echo")
    with database.begin() as connection:
        task = next(task for task in lifecycle.dispatch(connection, lease=10, window=64) if str(task.task_id) == root)
        claimed = lifecycle.claim(connection, task.task_id, task.claim, worker)
        assert claimed
        children = [
            {"step": step, "name": "Echo", "request_hash": "h", "request": {"agent": "Echo", "input": step}}
            for step in (1, 2, 3)
        ]
        assert lifecycle.suspend(connection, task.task_id, claimed["claim"], {}, children) == State.WAITING
    pages = read_pages(http, f"/v1/tasks/{root}/tree", limit=2)
    below = [task for page in pages for task in page]
    assert [len(page) for page in pages] == [2, 2]
    assert [task["depth"] for task in below] == [0, 1, 1, 1]
    assert {task["parent_id"] for task in below[1:]} == {root}
    children_only = http.get("/v1/tasks", params={"parent_id": root}).json()["items"]
    assert ids(children_only) == ids(below[1:])[::-1]
    counts = http.get("/v1/tasks/counts", params={"root_id": root}).json()
    assert counts == {"by_state": {"pending": 3, "waiting": 1}, "by_capability": {"echo": {"pending": 3, "waiting": 1}}}


def test_counts(http: httpx2.Client, submit: Submit) -> None:
    assert http.get("/v1/tasks/counts").json() == {"by_state": {}, "by_capability": {}}
    submit()
    submit("Search", input={"query": "cats"})
    submit(run_at="2100-01-01T00:00:00Z")
    http.post("/v1/tasks", json={"messages": ["hello"]})
    assert http.get("/v1/tasks/counts").json() == {
        "by_state": {"pending": 3, "scheduled": 1},
        "by_capability": {
            "echo": {"pending": 1, "scheduled": 1},
            "search": {"pending": 1},
            "(unrouted)": {"pending": 1},
        },
    }
    assert http.get("/v1/tasks/counts", params={"agent": "Search"}).json()["by_state"] == {"pending": 1}


def test_cancel(http: httpx2.Client, submit: Submit) -> None:
    id = submit()
    cancelled = http.post(f"/v1/tasks/{id}/cancel", json={"reason": "Not needed."}).json()
    assert (cancelled["state"], cancelled["error"].pop("by")[:4]) == ("cancelled", "api:")
    assert cancelled["error"] == {"type": "cancelled", "message": "Not needed."}
    again = http.post(f"/v1/tasks/{id}/cancel")
    assert (again.status_code, again.json()["error"]["message"]) == (200, "Not needed.")
    assert http.post(f"/v1/tasks/{id}/cancel", json={"why": 1}).status_code == 422


def test_replay(http: httpx2.Client, submit: Submit) -> None:
    id = submit(input={"n": 1}, key="tenant")
    early = http.post(f"/v1/tasks/{id}/replay")
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    http.post(f"/v1/tasks/{id}/cancel")
    response = http.post(f"/v1/tasks/{id}/replay", json={"pinned": True})
    task = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/tasks/{task['id']}"
    assert (task["replay_of"], task["origin_id"], task["input"], task["key"]) == (id, id, {"n": 1}, "tenant")
    assert http.get(f"/v1/tasks/{id}").json()["state"] == "cancelled"
    for wrong in ({"pinned": "yes"}, {"pin": True}, [True]):
        assert http.post(f"/v1/tasks/{id}/replay", json=wrong).status_code == 422


def test_a_replay_that_no_calendar_holds_is_refused(http: httpx2.Client, submit: Submit) -> None:
    http.post(f"/v1/tasks/{submit()}/cancel")
    chosen = {"states": ["cancelled"]}
    for rate in (1e-300, 1e-11, 0.0):
        refused = http.post("/v1/replays", json={**chosen, "rate": rate})
        assert (refused.status_code, "rate" in refused.json()["detail"]) == (422, True)
    late = http.post("/v1/replays", json={**chosen, "rate": 0.001, "start_at": "9998-12-31T23:59:59Z"}).json()
    assert [item["error"] for item in late["items"]] == [None]
    later = http.post("/v1/replays", json={**chosen, "start_at": late["start_at"], "again": True}).json()
    assert "run_at must be a time between" in later["items"][0]["error"]["message"]


def test_agents(http: httpx2.Client, define: Any) -> None:
    define({"kind": "agent", "name": "Echo", "type": "function", "tool": "noop", "description": "New"})
    assert [agent["name"] for agent in http.get("/v1/agents").json()["items"]] == ["Echo", "Search"]
    pages = read_pages(http, "/v1/agents", limit=1)
    assert [[agent["name"] for agent in page] for page in pages] == [["Echo"], ["Search"]]
    agent = http.get("/v1/agents/Echo").json()
    assert (agent["version"], agent["description"], agent["capabilities"]) == (2, "New", ["default"])
    assert [version["number"] for version in agent["versions"]] == [2, 1]
    assert agent["definition"]["tool"] == "noop"


def test_functions(http: httpx2.Client, define: Any) -> None:
    assert http.get("/v1/functions").json() == {"items": [], "next": None}
    define({"kind": "function", "name": "double", "code": "def double(n):\n    return 2 * n\n"})
    [function] = http.get("/v1/functions").json()["items"]
    assert (function["name"], function["version"], function["status"]) == ("double", 1, "active")
    one = http.get("/v1/functions/double").json()
    assert "return 2 * n" in one["definition"]["code"]
    assert one["versions"][0]["checksum"] == one["checksum"] == function["checksum"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/agents/Nobody", 404),
        ("/v1/agents/%00", 422),
        ("/v1/agents/" + "a" * 300, 422),
        ("/v1/agents/Echo?namespace=other", 404),
        ("/v1/agents?cursor=%00", 422),
        ("/v1/agents?colour=red", 422),
        ("/v1/functions/nothing", 404),
        ("/v1/functions/%00", 422),
        ("/v1/workers?status=asleep", 422),
        ("/v1/workers?cursor=x", 422),
        ("/v1/nothing", 404),
        ("/v1/tasks/", 404),
        ("/nothing", 404),
    ],
)
def test_unknown_resource_is_404(http: httpx2.Client, path: str, status: int) -> None:
    response = http.get(path)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_capabilities(http: httpx2.Client, submit: Submit, database: Engine) -> None:
    submit()
    add_worker(database, "search", "extra", slots=3)
    add_worker(database, "search", slots=5, silent="1 hour")
    found = {item["name"]: item for item in http.get("/v1/capabilities").json()["items"]}
    assert list(found) == ["echo", "extra", "filter", "search"]
    nobody = {"served": False, "workers": 0, "slots": 0, "busy": 0, "queued": 0, "running": 0, "oldest_pending": None}
    assert found["echo"] == {"name": "echo", "agents": ["Echo"], "pending": 1, **nobody}
    assert (found["extra"]["agents"], found["extra"]["served"]) == ([], True)
    assert (found["search"]["workers"], found["search"]["slots"]) == (1, 3)


def test_workers(http: httpx2.Client, database: Engine) -> None:
    silent = add_worker(database, "a", silent="1 hour")
    stopped = add_worker(database, "a", status="stopped")
    alive = add_worker(database, "a", "b")
    items = http.get("/v1/workers").json()["items"]
    assert ids(items) == [str(alive), str(stopped), str(silent)]
    assert [item["live"] for item in items] == [True, False, False]
    assert ids(http.get("/v1/workers", params={"status": "stopped"}).json()["items"]) == [str(stopped)]


def test_reads_keep_their_prepared_statements(http_api: Api, http: httpx2.Client, submit: Submit) -> None:
    """A rollback would make the driver forget them, and each request plan its statements again."""
    task = submit()
    for _ in range(10):
        assert http.get(f"/v1/tasks/{task}").status_code == 200
    with http_api.app.state.statements.connect() as connection:
        prepared = connection.scalars(text("SELECT statement FROM pg_prepared_statements")).all()
    assert [statement for statement in prepared if "task_overview" in statement]


def test_query_is_the_filters_in_one_text(client: Client, agents: None, http: httpx2.Client, run_cli: Any) -> None:
    wanted = client.submit("Echo", {}, labels={"env": "prod"}).id
    client.submit("Echo", {}, labels={"env": "test"})
    client.submit("Search", {"query": "boats"}, labels={"env": "prod"})
    assert [task.id for task in client.tasks("agent:Echo label:env=prod since:1h")] == [wanted]
    done = run_cli("tasks", "agent:Echo", "label:env=prod", "--json")
    assert [task["id"] for task in json.loads(done.out)] == [wanted]
    for params, said in (
        ({"query": "agnt:Echo"}, "Did you mean `agent:`?"),
        ({"query": "agent:Echo", "agent": "Echo"}, "agent is given twice"),
        ({"query": "root:x"}, "not the id of a task"),
        ({"query": "x" * 2000}, "1,000"),
    ):
        refused = http.get("/v1/tasks", params=params)
        assert refused.status_code == 422
        assert said in refused.json()["detail"]


def test_query_stays_in_the_namespace_of_its_key(with_key: Any) -> None:
    http = with_key("viewer", namespace="ours")
    assert http.get("/v1/tasks", params={"query": "namespace:theirs"}).status_code == 403
    assert http.get("/v1/tasks", params={"query": "namespace:ours"}).status_code == 200
