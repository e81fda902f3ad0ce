"""Standing budgets over HTTP, from Python and on the command line."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from minions import Client, errors
from tests.integration.api.conftest import Run


def test_budgets_by_client(client: Client) -> None:
    made = client.set_budget("agent", "research", period="day", dollars=5, tokens=1000, timezone="Europe/Berlin")
    assert made["tokens"] == {"limit": 1000, "spent": 0, "reserved": 0}
    assert made["dollars"] == {"limit": 5, "spent": 0, "reserved": 0}
    assert (made["namespace"], made["on_breach"], made["alerts"]) == ("default", "wait", [])
    assert made["created_by"].startswith("api:")
    assert made["period_start"] < made["period_end"]
    client.set_budget("installation", period="hour", tokens=7, on_breach="fail")
    client.set_budget("namespace", namespace="team", period="month", dollars=0.5)
    again = client.set_budget("agent", "research", period="day", tokens=10, on_breach="alert")
    assert (again["id"], again["dollars"]["limit"], again["timezone"]) == (made["id"], None, "UTC")
    assert [(each["scope"], each["name"], each["period"]) for each in client.budgets()] == [
        ("installation", None, "hour"),
        ("agent", "research", "day"),
        ("namespace", None, "month"),
    ]
    client.remove_budget("agent", "research", period="day")
    client.remove_budget("installation", period="hour")
    client.remove_budget("namespace", namespace="team", period="month")
    assert client.budgets() == []
    with pytest.raises(errors.NotFound, match="There is no budget of the agent 'research' per day"):
        client.remove_budget("agent", "research", period="day")
    with pytest.raises(errors.InvalidInput):
        client.set_budget("installation", period="day", dollars=float("nan"))


@pytest.mark.parametrize(
    ("sent", "wrong"),
    [
        ({}, "scope"),
        ({"scope": "planet", "period": "day", "tokens": 1}, "scope"),
        ({"scope": "installation", "period": "week", "tokens": 1}, "period"),
        ({"scope": "installation", "tokens": 1}, "period"),
        ({"scope": "installation", "period": "day"}, "must limit something"),
        ({"scope": "installation", "name": "A", "period": "day", "tokens": 1}, "neither a namespace nor a name"),
        ({"scope": "namespace", "name": "A", "period": "day", "tokens": 1}, "must have no name"),
        ({"scope": "model", "period": "day", "tokens": 1}, "must name its model"),
        ({"scope": "installation", "period": "day", "tokens": 0}, "tokens"),
        ({"scope": "installation", "period": "day", "tokens": 1.5}, "tokens"),
        ({"scope": "installation", "period": "day", "tokens": True}, "tokens"),
        ({"scope": "installation", "period": "day", "dollars": 0}, "dollars"),
        ({"scope": "installation", "period": "day", "dollars": -1}, "dollars"),
        ({"scope": "installation", "period": "day", "dollars": "5"}, "dollars"),
        ({"scope": "installation", "period": "day", "tokens": 1, "timezone": "Mars"}, "Unknown time zone 'Mars'"),
        ({"scope": "installation", "period": "day", "tokens": 1, "on_breach": "ask"}, "on_breach"),
        ({"scope": "installation", "period": "day", "tokens": 1, "seconds": 1}, "seconds"),
    ],
)
def test_bad_requests_are_refused(http: httpx2.Client, sent: Any, wrong: str) -> None:
    answer = http.put("/v1/budgets", json=sent)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert wrong in answer.json()["detail"]
    assert http.get("/v1/budgets").json() == {"items": []}


@pytest.mark.parametrize(
    "query", ["", "scope=installation", "scope=agent&period=day", "scope=installation&period=week"]
)
def test_bad_removals_are_refused(http: httpx2.Client, query: str) -> None:
    assert http.delete(f"/v1/budgets?{query}").status_code == 422


def test_commands(run_cli: Run, client: Client) -> None:
    def run(words: str) -> str:
        return run_cli("budgets", *words.split()).line

    assert run("") == "No standing budgets."
    whole = run("set installation --per day --dollars 50")
    assert "may use $50 per day for the whole installation; on breach: wait" in whole
    agent = run("set agent research --per hour --dollars 0.5 --tokens 2000000 --on-breach fail")
    assert "may use $0.5 and 2,000,000 tokens per hour for the agent 'research'; on breach: fail" in agent
    assert "on breach: fail. There is no agent" in agent
    run("set namespace team --per month --tokens 5")
    run("set key tenant --namespace team --per month --tokens 5 --timezone Europe/Berlin")
    listed = run("list")
    assert all(part in listed for part in ("$0 of $50", "0 of 2,000,000", "the namespace 'team'", "the tenant key"))
    assert "removed" in run("remove namespace team --per month")
    assert "removed" in run("remove key tenant --namespace team --per month")
    assert len(client.budgets()) == 2
    for words, wrong in (
        ("set installation --per day", "must limit something"),
        ("set installation A --per day --tokens 1", "neither a namespace nor a name"),
        ("set agent --per day --tokens 1", "must name its agent"),
        ("set planet --per day --tokens 1", "planet"),
        ("set installation --per week --tokens 1", "week"),
        ("set installation --tokens 1", "--per"),
        ("set installation --per day --tokens 0", "tokens"),
        ("set installation --per day --dollars -1", "dollars"),
        ("set installation --per day --dollars nan", "JSON"),
        ("set installation --per day --tokens 1 --timezone Mars", "Unknown time zone"),
        ("remove agent Unknown --per day", "There is no budget of the agent 'Unknown' per day"),
    ):
        assert wrong in run(words), words
