"""Payloads are seen only with the permission to: whatever the endpoint, and wherever an error quotes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from minions import Client
from orchestrator.api.app import GUARDED
from orchestrator.api.rights import RULES
from shared.access.roles import MASK, Role
from tests.conftest import Define
from tests.integration.api.conftest import WithKey
from tests.integration.conftest import ACT, InlineWorker, Tasks

SECRET = "s3cr3t-c0ntent"  # in every place where there are payloads
READS = sorted(
    route.path
    for module in GUARDED
    for route in module.router.routes
    if "GET" in route.methods and not route.path.endswith("/events")
)


@pytest.fixture
def secrets(client: Client, tasks: Tasks, act: Any, define: Define, inline_worker: InlineWorker) -> dict[str, str]:
    """Tasks in many states, by what they are, each with the secret in its payloads."""
    act("Act", config={"max_attempts": 1})
    act("Retried", config={"max_attempts": 3, "retry_backoff": 3600, "retry_backoff_max": 3600})
    strict = {"type": "object", "properties": {"x": {"type": "integer"}}}
    config = {"capabilities": ["work"]}
    define(
        {**ACT, "name": "careful", "builtin": "act", "approval": True, "effect": "unsafe"},
        {"kind": "agent", "name": "Careful", "type": "function", "tool": "careful", "config": config},
        {
            "kind": "agent",
            "name": "Strict",
            "type": "function",
            "tool": "careful",
            "input_schema": strict,
            "config": config,
        },
        {"kind": "agent", "name": "Prompted", "model": "offline", "system_prompt": SECRET, "config": config},
    )
    labels = {"private.customer": SECRET, "team": "plain"}
    say = {"do": "answer", "answer": {"said": SECRET}}
    found = {
        "done": client.submit("Act", say, labels=labels).id,
        "failed": client.submit("Act", {"do": SECRET}, labels=labels).id,
        "retried": client.submit("Retried", {"do": SECRET}).id,
        "approval": client.submit("Careful", {"do": "answer", "answer": SECRET}).id,
        "waiting": client.submit("Act", {**say, "answer": {"$wait": {"signal": "paid"}}, "of": SECRET}).id,
        "spoken": client.submit("Prompted", messages=[{"role": "user", "content": SECRET}]).id,
    }
    for _ in range(6):
        inline_worker._round()
    found["pending"] = client.submit("Act", say).id
    found["cancelled"] = client.submit("Act", say).id
    client.cancel(found["cancelled"], reason=SECRET)
    client.put_schedule("often", {"agent": "Act", "input": say, "labels": labels}, interval_seconds=3600)
    states = {what: tasks.get(task)["state"] for what, task in found.items()}  # type: ignore[arg-type]
    assert states["done"] == states["spoken"] == "succeeded"
    assert (states["failed"], states["retried"], states["approval"]) == ("failed", "waiting", "waiting")
    return found


def answers(http: httpx2.Client, tasks: dict[str, str]) -> Iterator[tuple[str, httpx2.Response]]:
    """The answers of all endpoints that only read."""
    for path in READS:
        if "{task_id}" in path:
            for what, task in tasks.items():
                yield f"{path} of {what}", http.get(path.replace("{task_id}", task))
        elif path.startswith("/v1/agents/"):
            yield path, http.get(path.replace("{name}", "Prompted").replace("{number}", "1"))
        elif path.startswith("/v1/schedules/"):
            yield path, http.get("/v1/schedules/often")
        elif "{" not in path:
            yield path, http.get(path, params={"outputs": True} if path == "/v1/tasks" else {})
    for what, task in tasks.items():
        if what in ("done", "failed", "cancelled", "spoken"):
            yield f"events of {what}", http.get(f"/v1/tasks/{task}/events")


SHOWN = {
    "/v1/tasks",
    "/v1/tasks/{task_id} of done",
    "/v1/tasks/{task_id} of spoken",
    "/v1/tasks/{task_id}/steps of done",
    "/v1/tasks/{task_id}/steps of approval",
    "/v1/tasks/{task_id}/executions of failed",
    "/v1/tasks/{task_id}/why of failed",
    "/v1/tasks/{task_id}/why of approval",
    "/v1/tasks/{task_id}/why of retried",
    "/v1/tasks/{task_id}/why of cancelled",
    "/v1/tasks/{task_id}/tree of done",
    "/v1/dead-letters",
    "/v1/schedules",
    "/v1/schedules/{name}",
    "/v1/agents/{name}",
    "/v1/agents/{name}/versions/{number}",
    "events of done",
    "events of failed",
}


def test_payloads_are_masked_in_every_answer(with_key: WithKey, secrets: dict[str, str]) -> None:
    seeing = {name for name, answer in answers(with_key("viewer", payloads=True), secrets) if SECRET in answer.text}
    assert seeing >= SHOWN
    for name, answer in answers(with_key("viewer"), secrets):
        assert answer.status_code < 500, name
        assert SECRET not in answer.text, name
        if name in SHOWN:
            assert MASK in answer.text, name


def test_masks_keep_what_is_no_payload(with_key: WithKey, secrets: dict[str, str]) -> None:
    http = with_key("viewer")
    done, failed = (http.get(f"/v1/tasks/{secrets[what]}").json() for what in ("done", "failed"))
    assert (done["input"], done["output"], done["labels"]) == (MASK, MASK, {"private.customer": MASK, "team": "plain"})
    assert failed["output"] is None
    assert failed["error"]["message"] == MASK
    assert failed["error"]["type"]
    spoken = http.get(f"/v1/tasks/{secrets['spoken']}").json()
    assert spoken["messages"] == [MASK]
    [step] = http.get(f"/v1/tasks/{secrets['done']}/steps").json()["items"]
    assert (step["name"], step["input"], step["output"]) == ("act", MASK, MASK)
    why = http.get(f"/v1/tasks/{secrets['approval']}/why").json()
    assert (why["reason"], why["facts"]["proposed"]) == ("approval", MASK)
    assert why["facts"]["proposal"]


def test_answers_to_changes_are_masked_too(with_key: WithKey, secrets: dict[str, str]) -> None:
    http = with_key("operator")
    changes = [
        ("POST", f"/v1/tasks/{secrets['waiting']}/signals/paid", {"payload": SECRET}),
        ("POST", f"/v1/tasks/{secrets['done']}/replay", {}),
        ("POST", f"/v1/tasks/{secrets['done']}/replay", {"from_step": 1, "edited_output": 1}),
        ("POST", f"/v1/tasks/{secrets['pending']}/cancel", {}),
        ("POST", "/v1/replays", {"states": ["failed", "cancelled", "succeeded"]}),
        ("POST", "/v1/schedules/often/run", {}),
        ("PATCH", "/v1/schedules/often", {"enabled": False}),
        ("DELETE", "/v1/schedules/often", None),
    ]
    for method, path, body in changes:
        answer = http.request(method, path, json=body)
        assert answer.is_success, (path, answer.text)
        assert SECRET not in answer.text, path
    blind = with_key("approver", payloads=False)
    step = {"verdict": "approve", "step": 1}
    decided = blind.post(f"/v1/tasks/{secrets['approval']}/decisions", json=step)
    assert (decided.status_code, decided.json()["decision"]["value"]) == (200, MASK)


def test_refusals_quote_no_stored_payload(
    with_key: WithKey, client: Client, secrets: dict[str, str], define: Define
) -> None:
    client.put_schedule("strict", {"agent": "Strict", "input": {"x": 1, "y": SECRET}}, interval_seconds=3600)
    stricter = {"type": "object", "properties": {"y": {"type": "integer"}}}
    config = {"capabilities": ["work"]}
    define(
        {
            "kind": "agent",
            "name": "Strict",
            "type": "function",
            "tool": "careful",
            "input_schema": stricter,
            "config": config,
        }
    )
    refused = with_key("operator").post("/v1/schedules/strict/run")
    assert refused.status_code == 422
    assert SECRET not in refused.text
    assert MASK in refused.json()["detail"]
    assert SECRET in with_key("operator", payloads=True).post("/v1/schedules/strict/run").text


def test_private_labels_cannot_be_guessed_by_filters(with_key: WithKey, secrets: dict[str, str]) -> None:
    viewer = with_key("viewer")
    for path in ("/v1/tasks", "/v1/tasks/counts"):
        refused = viewer.get(path, params={"label": f"private.customer:{SECRET}"})
        assert (refused.status_code, refused.json()["permission"]) == (403, "payloads:read")
    seen = with_key("viewer", payloads=True).get("/v1/tasks", params={"label": f"private.customer:{SECRET}"})
    assert len(seen.json()["items"]) == 2
    assert len(viewer.get("/v1/tasks", params={"label": "team:plain"}).json()["items"]) == 2


def test_edit_of_an_approval_is_a_decision(
    with_key: WithKey, client: Client, secrets: dict[str, str], inline_worker: InlineWorker
) -> None:
    task = secrets["approval"]
    client.decide(task, "approve", step=1)
    inline_worker._round()
    edit = {"from_step": 1, "edited_output": {"arguments": {"do": "answer", "answer": 2}}}
    refused = with_key("author").post(f"/v1/tasks/{task}/replay", json=edit)
    assert (refused.status_code, refused.json()["permission"]) == (403, "tasks:decide")
    assert with_key("admin").post(f"/v1/tasks/{task}/replay", json=edit).status_code == 201


@pytest.mark.parametrize("role", Role)
def test_prompts_are_shown_by_rights(with_key: WithKey, secrets: dict[str, str], role: Role) -> None:
    definition = with_key(role).get("/v1/agents/Prompted").json()["definition"]
    shown = {"viewer": MASK, "operator": MASK, "submitter": None}.get(role, SECRET)
    assert definition.get("system_prompt") == shown
    assert ("config" in definition) == (role is not Role.SUBMITTER)
    assert RULES["GET /v1/agents/{name}"].allows(role)
