"""The kill switch over HTTP, from Python and on the command line."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from minions import Client, errors
from tests.integration.api.conftest import Run
from tests.integration.conftest import InlineWorker, Tasks


def test_stop_and_lift_by_client(client: Client, tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    made = client.stop_all("too expensive", agent="Act")
    assert (made["scope"], made["namespace"], made["name"], made["reason"]) == (
        "agent",
        "default",
        "Act",
        "too expensive",
    )
    assert made["created_by"].startswith("api:")
    client.stop_all(key="tenant", namespace="team")
    client.stop_all(namespace="team")
    client.stop_all()
    assert [(each["scope"], each["namespace"], each["name"]) for each in client.stops()] == [
        ("installation", None, None),
        ("agent", "default", "Act"),
        ("key", "team", "tenant"),
        ("namespace", "team", None),
    ]
    task = tasks.submit(act(effect="unsafe"), {})
    inline_worker._round()
    why = client.why(task)
    assert (why["reason"], why["todo"]) == ("stopped", "`minion resume` lifts the stop.")
    client.lift_stop()
    assert client.why(task)["todo"] == "`minion resume --agent Act` lifts the stop."
    client.lift_stop(agent="Act")
    client.lift_stop(key="tenant", namespace="team")
    client.lift_stop(namespace="team")
    assert client.stops() == []
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded"
    with pytest.raises(errors.NotFound, match="no stop of the agent 'Act'"):
        client.lift_stop(agent="Act")
    with pytest.raises(errors.InvalidInput, match="not both"):
        client.stop_all(agent="Act", key="tenant")


@pytest.mark.parametrize(
    ("sent", "wrong"),
    [
        ({}, "scope"),
        ({"scope": "planet"}, "scope"),
        ({"scope": "installation", "name": "A"}, "neither a namespace nor a name"),
        ({"scope": "namespace", "namespace": "a", "name": "A"}, "must have no name"),
        ({"scope": "namespace"}, "must name its namespace"),
        ({"scope": "agent"}, "must name its agent"),
        ({"scope": "agent", "name": "*"}, "must name one agent"),
        ({"scope": "agent", "name": 7}, "name"),
        ({"scope": "agent", "name": "A", "reason": ""}, "reason"),
        ({"scope": "agent", "name": "A", "why": "x"}, "why"),
    ],
)
def test_bad_requests_are_refused(http: httpx2.Client, sent: Any, wrong: str) -> None:
    answer = http.post("/v1/stops", json=sent)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert wrong in answer.json()["detail"]
    assert http.get("/v1/stops").json() == {"items": []}


@pytest.mark.parametrize("query", ["", "scope=planet", "scope=agent", "scope=installation&name=A", "scope=agent&x=1"])
def test_bad_lifts_are_refused(http: httpx2.Client, query: str) -> None:
    assert http.delete(f"/v1/stops?{query}").status_code == 422


def test_names_may_contain_anything(http: httpx2.Client) -> None:
    name = "a/b?c=ü 'x' --y"
    assert http.post("/v1/stops", json={"scope": "key", "name": name}).json()["name"] == name
    assert http.delete("/v1/stops", params={"scope": "key", "name": name}).status_code == 204


def test_commands(run_cli: Run, client: Client, act: Any) -> None:
    act()
    assert (
        "of the whole installation begins; `minion resume` lifts"
        in run_cli("stop-all", "--reason", "Too expensive").line
    )
    assert "`minion resume --agent Act` lifts" in run_cli("stop-all", "--agent", "Act").line
    assert "no agent of that name yet" in run_cli("stop-all", "--agent", "Atc").line
    assert (
        "`minion resume --key 'a b' --namespace team` lifts"
        in run_cli("stop-all", "--key", "a b", "--namespace", "team").line
    )
    listed = run_cli("stops").line
    assert all(part in listed for part in ("the whole installation", "Too expensive", "the agent 'Act'", "'a b'"))
    assert "give --agent or --key, not both" in run_cli("stop-all", "--agent", "A", "--key", "k").line
    assert "the stop is lifted" in run_cli("resume").line.lower()
    assert "the stop is lifted" in run_cli("resume", "--agent", "Act").line.lower()
    assert len(client.stops()) == 2
    assert "give SCOPE and NAME to undo a pause" in run_cli("resume", "agent", "Act", "--key", "k").line
    assert "--agent NAME lifts a stop" in run_cli("resume", "agent").line


def test_missing_pause_names_the_command_for_stops(client: Client) -> None:
    client.stop_all(agent="Act")
    with pytest.raises(errors.NotFound, match=r"A stop .* is lifted by `minion resume` with the options"):
        client.resume("agent", "Act")
