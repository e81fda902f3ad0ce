"""Schedules over HTTP, with the client and on the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from minions import Client, errors
from orchestrator.cli import app
from orchestrator.commands.task_ids import named

pytestmark = pytest.mark.usefixtures("agents")

REQUEST = {"agent": "Search", "input": {"query": "cats"}}
DAILY = {"cron": "0 7 * * *", "timezone": "Europe/Berlin", "request": REQUEST}


def test_a_schedule_is_stored_shown_and_deleted(http: Any) -> None:
    created = http.post("/v1/schedules", json={"name": "daily", **DAILY})
    assert (created.status_code, created.headers["location"]) == (201, "/v1/schedules/daily")
    shown = http.get("/v1/schedules/daily").json()
    assert shown == created.json()
    assert (shown["cron"], shown["timezone"], shown["missed"], shown["request"]) == (
        "0 7 * * *",
        "Europe/Berlin",
        "once",
        REQUEST,
    )
    assert datetime.fromisoformat(shown["next_at"]) > datetime.now(UTC)
    assert [one["name"] for one in http.get("/v1/schedules").json()["items"]] == ["daily"]
    assert http.delete("/v1/schedules/daily").json()["name"] == "daily"
    for method in ("GET", "DELETE"):
        gone = http.request(method, "/v1/schedules/daily")
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


def test_a_name_is_taken_once(http: Any) -> None:
    assert http.post("/v1/schedules", json={"name": "daily", **DAILY}).status_code == 201
    again = http.post("/v1/schedules", json={"name": "daily", **DAILY})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    elsewhere = http.post("/v1/schedules?namespace=other", json={"name": "daily", **DAILY})
    assert elsewhere.status_code == 404  # there is no such agent in that namespace


def test_storing_again_keeps_the_turn_where_the_times_stay(http: Any, database: Engine) -> None:
    first = http.put("/v1/schedules/often", json={"interval_seconds": 3600, "request": REQUEST})
    assert first.status_code == 201
    other = {"agent": "Search", "input": {"query": "dogs"}}
    second = http.put("/v1/schedules/often", json={"interval_seconds": 3600, "request": other})
    assert (second.status_code, second.json()["next_at"]) == (200, first.json()["next_at"])
    assert second.json()["request"] == other
    third = http.put("/v1/schedules/often", json={"interval_seconds": 60, "request": REQUEST})
    assert third.json()["next_at"] < first.json()["next_at"]


def test_fields_are_changed_one_by_one(http: Any, database: Engine) -> None:
    http.put("/v1/schedules/daily", json=DAILY)
    changed = http.patch("/v1/schedules/daily", json={"missed": "all", "enabled": False}).json()
    assert (changed["missed"], changed["enabled"], changed["next_at"]) == ("all", False, None)
    assert changed["cron"] == "0 7 * * *"
    interval = http.patch("/v1/schedules/daily", json={"cron": None, "timezone": None, "interval_seconds": 60.0})
    assert (interval.json()["cron"], interval.json()["interval_seconds"]) == (None, 60.0)
    assert http.patch("/v1/schedules/daily", json={"cron": "0 7 * * *"}).status_code == 422
    assert http.patch("/v1/schedules/nobody", json={}).status_code == 404


def test_schedule_of_disabled_agent_can_be_stopped(http: Any, database: Engine) -> None:
    http.put("/v1/schedules/daily", json=DAILY)
    with database.begin() as connection:
        connection.execute(text("UPDATE agents SET status = 'disabled'"))
    assert http.patch("/v1/schedules/daily", json={"enabled": False}).status_code == 200
    assert http.put("/v1/schedules/daily", json=DAILY).status_code == 409


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"cron": "61 * * * *"}, 422, "bad minute"),
        ({"timezone": "Moon/Base"}, 422, "no time zone"),
        ({"interval_seconds": 60}, 422, "either `cron` or `interval_seconds`"),
        ({"cron": None}, 422, "either `cron` or `interval_seconds`"),
        ({"missed": "some"}, 422, "missed"),
        ({"enabled": "yes"}, 422, "enabled"),
        ({"cron": None, "timezone": None, "interval_seconds": 0.5}, 422, "interval_seconds"),
        ({"cron": None, "interval_seconds": 5}, 422, "an interval must have none"),
        ({"other": 1}, 422, "other"),
        ({"request": {"agent": "Search", "input": {"query": "c"}}}, 422, "does not match its schema"),
        ({"request": {"agent": "Nobody"}}, 404, "no agent named"),
        ({"request": {"agent": "Ekho"}}, 404, "Did you mean 'Echo'?"),
        ({"request": {}}, 422, "Name an agent"),
        ({"request": {**REQUEST, "idempotency_key": "k"}}, 422, "idempotency_key"),
        ({"request": {**REQUEST, "run_at": "2100-01-01T00:00:00Z"}}, 422, "run_at"),
        ({"request": {**REQUEST, "labels": {str(n): "" for n in range(64)}}}, 422, "labels"),
        ({"request": {**REQUEST, "input": {"query": "x" * 1_100_000}}}, 413, "at most"),
        ({"name": "another"}, 422, "differ"),
    ],
)
def test_impossible_schedule_is_refused_when_stored(
    http: Any, database: Engine, fields: dict[str, Any], status: int, said: str
) -> None:
    definition = {name: value for name, value in {**DAILY, **fields}.items() if value is not None}
    refused = http.put("/v1/schedules/daily", json=definition)
    assert refused.status_code == status
    assert said in refused.json()["detail"]
    assert http.get("/v1/schedules").json()["items"] == []


@pytest.mark.parametrize("name", ["a b", "1", "x" * 101, "ä"])
def test_a_name_is_a_name(http: Any, name: str, database: Engine) -> None:
    assert http.put(f"/v1/schedules/{name}", json=DAILY).status_code == 422


def test_run_now(http: Any, database: Engine) -> None:
    before = http.put("/v1/schedules/daily", json={**DAILY, "enabled": False}).json()
    key = {"idempotency_key": str(uuid4())}
    first = http.post("/v1/schedules/daily/run", json=key)
    assert (first.status_code, first.json()["submitted_by"]) == (201, "schedule:daily")
    assert first.json()["labels"] == {"schedule": "daily"}
    assert first.headers["location"] == f"/v1/tasks/{first.json()['id']}"
    again = http.post("/v1/schedules/daily/run", json=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert http.post("/v1/schedules/daily/run").json()["id"] != first.json()["id"]
    assert http.get("/v1/schedules/daily").json() == before
    assert http.post("/v1/schedules/daily/run", json={"when": "now"}).status_code == 422
    assert http.post("/v1/schedules/daily/run", json={"idempotency_key": 7}).status_code == 422
    assert http.post("/v1/schedules/nobody/run").status_code == 404


def test_lists_are_pages(http: Any, database: Engine) -> None:
    for name in ("c", "a", "b"):
        http.put(f"/v1/schedules/{name}", json=DAILY)
    page = http.get("/v1/schedules?limit=2").json()
    assert [one["name"] for one in page["items"]] == ["a", "b"]
    rest = http.get("/v1/schedules", params={"limit": 2, "cursor": page["next"]}).json()
    assert ([one["name"] for one in rest["items"]], rest["next"]) == (["c"], None)


def test_the_client_has_them_too(client: Client) -> None:
    stored = client.put_schedule("often", REQUEST, interval_seconds=90, missed="skip")
    assert (stored["interval_seconds"], stored["missed"]) == (90.0, "skip")
    assert [one["name"] for one in client.schedules()] == ["often"]
    assert client.change_schedule("often", enabled=False)["enabled"] is False
    assert client.schedule("often")["enabled"] is False
    assert client.run_schedule("often").labels == {"schedule": "often"}
    assert client.delete_schedule("often")["name"] == "often"
    with pytest.raises(errors.NotFound):
        client.schedule("often")


def test_the_command_line_has_them_too(
    http_api: Any, client: Client, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.commands.schedules.connect", lambda *_: Client(http_api.url, http_api.key, retries=1)
    )

    def run(*words: str, status: int = 0) -> str:
        result = CliRunner().invoke(app, ["schedules", *words])
        assert result.exit_code == status, result.output
        return result.output

    put = ["put", "often", "Search", '{"query": "cats"}']
    assert run(*put, "--every", "5m", "--missed", "all", "--priority", "3", "-l", "a=b").startswith("often runs every")
    shown = json.loads(run("show", "often"))
    assert shown["interval_seconds"] == 300.0
    assert shown["request"] == {**REQUEST, "priority": 3, "labels": {"a": "b"}}
    run(*put, "--cron", "0 7 * * *", "--timezone", "Europe/Berlin")
    assert json.loads(run("show", "often"))["timezone"] == "Europe/Berlin"
    run(*put, status=2)
    run(*put, "--every", "5 minutes", status=2)
    assert "is disabled" in run("disable", "often")
    assert "next at" in run("enable", "often")
    assert json.loads(run("list", "--json"))[0]["name"] == "often"
    ran = run("run", "often").strip()
    assert client.get(ran).state == "pending"
    assert client.get(named("@last")).id == ran
    assert "deleted" in run("delete", "often")
