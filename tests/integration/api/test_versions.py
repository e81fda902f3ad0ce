"""Agents, functions and tools over HTTP beyond reading: rolling back, quarantine, security events, tests of routing."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, text

from minions import Client, errors
from shared.access.roles import MASK
from shared.functions import security_events
from shared.settings import get_settings
from tests.conftest import Define
from tests.integration.api.conftest import Run, WithKey
from tests.integration.api.test_boundaries import define_in
from tests.integration.definitions.test_function_store import tamper
from tests.support.definitions import NOOP, agent_definition, function_definition


@pytest.fixture
def two_versions(define: Define) -> None:
    """The agent `A` and the function `double` with two versions each."""
    define(NOOP, agent_definition("A", description="Sorts tickets"), function_definition())
    define(agent_definition("A", description="Sorts letters"), function_definition(description="Doubles"))


def test_agent_is_rolled_back_and_forth(client: Client, two_versions: None) -> None:
    back = client.roll_back_agent("A", 1, "it was better")
    assert (back["version"], back["status"], back["status_reason"]) == (1, "rolled_back", "it was better")
    assert client.submit("A", {}).agent_version == 1
    again = client.roll_back_agent("A", 2)
    assert (again["version"], again["status"], again["status_reason"]) == (2, "active", None)
    [newest, row] = list(client.audit())
    assert row["act"] == newest["act"] == "agent.rollback"
    assert (row["before"]["version"], row["after"]["version"]) == (2, 1)


def test_disabled_agent_accepts_tasks_again(client: Client, two_versions: None) -> None:
    disabled = client.set_agent_status("A", "disabled", "it sorts badly")
    assert (disabled["status"], disabled["status_reason"], disabled["version"]) == ("disabled", "it sorts badly", 2)
    with pytest.raises(errors.Conflict):
        client.submit("A", {})
    assert client.set_agent_status("A", "active")["status"] == "active"
    assert client.submit("A", {}).agent_version == 2
    with pytest.raises(errors.InvalidInput):
        client.set_agent_status("A", "rolled_back")


def test_rollback_to_what_does_not_exist_is_refused(client: Client, two_versions: None) -> None:
    with pytest.raises(errors.NotFound, match="has no version 3"):
        client.roll_back_agent("A", 3)
    with pytest.raises(errors.UnknownAgent, match="Did you mean 'A'"):
        client.roll_back_agent("a", 1)
    with pytest.raises(errors.UnknownAgent):
        client.roll_back_agent("A", 1, namespace="elsewhere")


def test_rollback_into_a_circle_is_refused(client: Client, define: Define) -> None:
    def chain(name: str, to: str) -> dict[str, Any]:
        return {"kind": "agent", "name": name, "type": "function", "relations": [{"agent": to}]}

    define(NOOP, agent_definition("B"), chain("A", "B"))
    define(agent_definition("A"))
    define(chain("B", "A"))
    with pytest.raises(errors.InvalidInput, match="circle") as refused:
        client.roll_back_agent("A", 1)
    assert refused.value.code == "invalid_definition"
    assert client.agent("A")["version"] == 2


@pytest.mark.parametrize("body", [{}, {"version": 0}, {"version": "1"}, {"version": 1, "why": "x"}, {"version": 2**40}])
def test_wrong_rollback_is_explained(http: httpx2.Client, two_versions: None, body: Any) -> None:
    refused = http.post("/v1/agents/A/rollback", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")


def test_rollback_stays_in_its_namespace(with_key: WithKey, client: Client, database: Engine) -> None:
    for namespace in ("default", "ours"):
        define_in(database, namespace, NOOP, agent_definition("A"))
        define_in(database, namespace, agent_definition("A", description="Other"))
    http = with_key("operator", namespace="ours")
    assert http.post("/v1/agents/A/rollback", json={"version": 1}).json()["namespace"] == "ours"
    assert client.agent("A")["version"] == 2
    assert client.agent("A", "ours")["version"] == 1


def test_status_of_a_function_is_changed(client: Client, two_versions: None) -> None:
    changed = client.set_function_status("double", "quarantined", version=1, reason="it reads files")
    assert [(each["status"], each["status_reason"]) for each in changed["versions"]] == [
        ("active", None),
        ("quarantined", "it reads files"),
    ]
    assert client.set_function_status("double", "deprecated")["status"] == "deprecated"
    for name, version in (("double", 9), ("triple", None)):
        with pytest.raises(errors.NotFound):
            client.set_function_status(name, "quarantined", version=version)
    with pytest.raises(errors.InvalidInput):
        client.set_function_status("double", "gone")


@pytest.mark.parametrize("change", ["""definition = jsonb_set(definition, '{code}', '"x = 1"')""", "definition = '{}'"])
def test_function_changed_from_outside_can_be_quarantined(
    client: Client, two_versions: None, database: Engine, change: str
) -> None:
    tamper(database, change)
    quarantined = client.set_function_status("double", "quarantined", reason="its row was changed")
    assert (quarantined["version"], quarantined["status"]) == (2, "quarantined")
    with pytest.raises(errors.Conflict, match="does not match its stored SHA-256"):
        client.set_function_status("double", "active")
    assert client.function("double")["status"] == "quarantined"
    with database.connect() as connection:
        acts = connection.scalars(text("SELECT after->>'status' FROM audit_log WHERE act = 'function.status'")).all()
    assert acts == ["quarantined"]


def test_latest_security_events_are_listed(
    client: Client, with_key: WithKey, two_versions: None, database: Engine
) -> None:
    newer, older = (version["id"] for version in client.function("double")["versions"])
    for number in range(60):
        security_events.record(database, (newer, older)[number % 2], "import_denied", {"message": f"event {number}"})
    events = client.function_events("double")
    assert [event["detail"]["message"] for event in events] == [f"event {number}" for number in range(59, 9, -1)]
    assert {event["version"] for event in events} == {1, 2}
    masked = with_key("viewer").get("/v1/functions/double/security-events").json()["items"]
    assert {event["detail"] for event in masked} == {MASK}


def test_tools_are_read_and_headers_masked(client: Client, with_key: WithKey, define: Define) -> None:
    http = {"url": "https://example.com/", "headers": {"X-Token": "literal"}}
    define({"kind": "tool", "name": "call", "type": "http", "http": http}, NOOP)
    assert [tool["name"] for tool in client.tools()] == ["call", "noop"]
    tool = client.tool("call")
    assert (tool["type"], tool["effect"], tool["version"]) == ("http", "idempotent", 1)
    assert tool["definition"]["http"]["headers"] == {"X-Token": "literal"}
    seen = with_key("viewer").get("/v1/tools/call").json()
    assert seen["definition"]["http"]["headers"] == {"X-Token": MASK}
    with pytest.raises(errors.NotFound, match="no tool named 'none'"):
        client.tool("none")


def test_route_is_that_of_a_task(
    client: Client, two_versions: None, define: Define, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(agent_definition("Billing", description="Answers letters about bills"))
    route = client.route("a bill")
    assert (route["agent"], route["by"], route["problem"]) == ("Billing", "text", None)
    assert [score["agent"] for score in route["scores"]] == ["Billing"]
    assert {score["agent"] for score in client.route("letters")["scores"]} == {"A", "Billing"}
    nothing = client.route("xylophone")
    assert (nothing["agent"], nothing["scores"]) == (None, [])
    assert "No agent fits the message. Name one of: A, Billing." in nothing["problem"]
    assert "Billing" in run_cli("agents", "route", "a bill").out
    assert "The task would fail" in run_cli("agents", "route", "xylophone").line
    monkeypatch.setenv("MINION_ROUTING_AGENT", "A")
    get_settings.cache_clear()
    assert (client.route("a bill")["agent"], client.route("a bill")["by"]) == ("A", "setting")
    assert client.route("a bill")["scores"][0]["agent"] == "Billing"
    assert list(client.tasks()) == []


def test_equally_good_agents_are_no_route(client: Client, define: Define) -> None:
    define(NOOP, *(agent_definition(name, description="Sorts mail") for name in ("One", "Two")))
    route = client.route("mail")
    assert route["agent"] is None
    assert "equally well: One, Two" in route["problem"]
    assert len({score["score"] for score in route["scores"]}) == 1
