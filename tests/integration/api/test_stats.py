"""`GET /v1/stats` and `minion stats`: sums by group for a time range, and what a key sees of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import Engine

from minions import Client
from orchestrator.observe.counting import catch_up
from orchestrator.observe.histogram import BOUNDS, quantile
from orchestrator.retention.retention import prune
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.integration.api.conftest import Run, WithKey
from tests.support.lifecycle_driver import LifecycleDriver

CALL = {
    "number": 1,
    "kind": "model_call",
    "name": "claude",
    "status": "finished",
    "effect": "idempotent",
    "request_hash": "1",
    "usage": {"input_tokens": 7, "output_tokens": 3},
    "cost_microdollars": 2_500,
    "started_at": "2026-11-29T12:00:00+00:00",
    "finished_at": "2026-11-29T12:00:02+00:00",
}


@pytest.fixture
def counted(driver: LifecycleDriver) -> LifecycleDriver:
    """Three tasks of `A` (two of the tenant acme, one retried), one of `B` that failed."""
    for _ in range(2):
        task = driver.run("A", key="acme")
        driver.call(lifecycle.write_steps, task, 1, [CALL])
        driver.finish(task)
    task = driver.run("A", key="globex")
    driver.release(task, charged=True, how="retried")
    driver.finish(task, driver.again(task))
    driver.finish(driver.run("B"), state=State.FAILED)
    catch_up(driver.engine)
    return driver


def items(answer: httpx2.Response, *by: str) -> dict[Any, dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return {item[by[0]] if len(by) == 1 else tuple(item[name] for name in by): item for item in answer.json()["items"]}


def test_stats_by_agent(http: httpx2.Client, counted: LifecycleDriver) -> None:
    found = items(http.get("/v1/stats"), "agent")
    a, b = found["A"], found["B"]
    assert list(found) == ["A", "B"]
    assert (a["count"], a["outcomes"], a["retries"], a["model_calls"]) == (3, {"succeeded": 3}, 1, 2)
    assert a["tokens"] == {"input": 14, "output": 6, "cache_read": 0, "cache_write": 0}
    assert a["dollars"] == pytest.approx(0.005)
    assert a["failures"] == []
    assert b["outcomes"] == {"failed": 1}
    [failure] = b["failures"]
    assert (failure["type"], failure["tasks"]) == ("test", 1)
    assert 0 < a["run"]["p50"] <= a["run"]["p95"] <= a["run"]["p99"]
    assert a["wait"]["p50"] > 0


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("version", {1: 4}),
        ("capability", {"work": 4}),
        ("key", {"acme": 2, "globex": 1, "": 1}),
        ("model", {"claude": 2}),
        ("namespace", {"default": 4}),
        ("function", {}),
    ],
)
def test_stats_by_other_groups(
    http: httpx2.Client, counted: LifecycleDriver, by: str, expected: dict[Any, int]
) -> None:
    found = items(http.get("/v1/stats", params={"by": by}), by)
    assert {group: item["count"] for group, item in found.items()} == expected


def test_stats_by_several_groups_and_with_filters(http: httpx2.Client, counted: LifecycleDriver) -> None:
    found = items(http.get("/v1/stats", params={"by": ["agent", "key"], "agent": "A"}), "agent", "key")
    assert {group: item["count"] for group, item in found.items()} == {("A", "acme"): 2, ("A", "globex"): 1}
    answer = http.get("/v1/stats", params={"by": ["agent"], "model": "claude"})
    assert answer.json()["about"] == "steps"
    assert items(answer, "agent")["A"]["run"]["p50"] == pytest.approx(2.0, rel=0.19)


def test_stats_of_a_time_range(http: httpx2.Client, counted: LifecycleDriver) -> None:
    now = datetime.now(UTC)

    def count(since: datetime, until: datetime) -> int:
        times = {"since": since.isoformat(), "until": until.isoformat()}
        return sum(item["count"] for item in http.get("/v1/stats", params=times).json()["items"])

    hour, day = timedelta(hours=1), timedelta(days=1)
    assert count(now - hour, now + hour) == 4
    assert count(now - 3 * hour, now - 2 * hour) == 0
    assert count(now - 30 * day, now + hour) == 4
    counted.sql("UPDATE statistics SET bucket = bucket - interval '400 days' WHERE grain <> 'total'")
    assert count(now - 500 * day, now - 300 * day) == 4


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"by": "colour"}, "by"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "`since` must be before `until`"),
        ({"by": ["hour", "day"]}, "must not have both"),
        ({"by": "hour", "since": "2026-01-01T00:00:00Z"}, "14 days"),
        ({"colour": "red"}, "colour"),
        ({"since": "yesterday"}, "since"),
    ],
)
def test_impossible_questions_are_refused(http: httpx2.Client, query: dict[str, Any], says: str) -> None:
    answer = http.get("/v1/stats", params=query)
    assert answer.status_code == 422
    assert says in answer.text


@pytest.mark.parametrize("path", ["/v1/stats", "/v1/errors", "/v1/errors/kind"])
@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"until": "0001-01-01T00:00:00Z"}, "`since` must be before `until`"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "in the years 1 to 9999"),
        ({"since": "2026-01-01T00:00:00Z", "until": "9999-12-31T23:59:59-14:00"}, "in the years 1 to 9999"),
    ],
)
def test_times_at_the_ends_of_the_calendar_are_refused(
    http: httpx2.Client, path: str, query: dict[str, str], says: str
) -> None:
    answer = http.get(path, params=query)
    assert (answer.status_code, says in answer.json()["detail"]) == (422, True)


def test_bound_keys_see_what_they_reach(with_key: WithKey, counted: LifecycleDriver) -> None:
    def seen(**bounds: Any) -> dict[Any, int]:
        answer = with_key("viewer", **bounds).get("/v1/stats", params={"by": ["agent", "key"]})
        return {group: item["count"] for group, item in items(answer, "agent", "key").items()}

    everything = {("A", "acme"): 2, ("A", "globex"): 1, ("B", ""): 1}
    assert seen() == seen(namespace="default") == everything
    assert seen(namespace="other") == {}
    assert seen(tenant="acme") == seen(tenant="ac*") == {("A", "acme"): 2}
    assert seen(agents=["B"]) == {("B", ""): 1}
    assert seen(capabilities=["other"]) == {}
    answer = with_key("viewer", tenant="acme").get("/v1/stats", params={"key": "globex"})
    assert answer.json()["items"] == []
    assert with_key("viewer", namespace="ours").get("/v1/stats", params={"namespace": "default"}).status_code == 403


def test_folded_tenants_are_no_tenants(with_key: WithKey, counted: LifecycleDriver) -> None:
    """A folded row is about several tenants: a key of one of them must not see it."""
    counted.sql("UPDATE statistics SET tenant = '', folded = true WHERE tenant = 'globex'")
    answer = with_key("viewer", tenant="globex").get("/v1/stats")
    assert answer.json()["items"] == []


def test_stats_remain_when_tasks_are_pruned(http: httpx2.Client, counted: LifecycleDriver, settings: Settings) -> None:
    before = http.get("/v1/stats", params={"by": ["agent", "key"]}).json()["items"]
    with counted.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM task_outcomes")
        connection.exec_driver_sql("DELETE FROM tasks")
    list(prune(counted.engine, settings))
    assert http.get("/v1/stats", params={"by": ["agent", "key"]}).json()["items"] == before


def test_client_and_command_show_the_same(client: Client, run_cli: Run, counted: LifecycleDriver) -> None:
    found = client.stats(by=["agent", "version"], agent="A")
    assert [(item["agent"], item["version"], item["count"]) for item in found["items"]] == [("A", 1, 3)]
    done = run_cli("stats", "--by", "agent,version", "--agent", "A", "--json")
    assert json.loads(done.out)["items"] == found["items"]
    assert "succeeded" not in run_cli("stats").out
    assert [line.split()[:2] for line in run_cli("stats").out.splitlines()[1:]] == [["A", "3"], ["B", "1"]]
    assert "test" in run_cli("stats", "--failures").out
    assert run_cli("stats", "--last", "soon").code == 2
    assert "Nothing has ended" in run_cli("stats", "--agent", "C").err


def test_quantiles_are_within_their_error() -> None:
    values = [0.0017 * 1.07**power for power in range(200)]
    counts = [0] * (len(BOUNDS) + 1)
    for value in values:
        counts[sum(bound <= value for bound in BOUNDS)] += 1
    for fraction in (0.5, 0.95, 0.99):
        true = sorted(values)[int(fraction * len(values)) - 1]
        assert quantile(counts, fraction) == pytest.approx(true, rel=0.2)
    assert quantile([], 0.5) is None
    assert quantile([0, 0], 0.5) is None


def test_task_ids_are_not_in_statistics(counted: LifecycleDriver, database: Engine) -> None:
    columns = counted.sql("SELECT string_agg(to_jsonb(s)::text, ' ') FROM statistics s")
    tasks: UUID = counted.sql("SELECT id FROM tasks LIMIT 1")
    assert str(tasks) not in columns


def test_scale_says_how_many_workers_a_capability_needs(http: httpx2.Client, counted: LifecycleDriver) -> None:
    path = "/v1/capabilities/work/scale"
    assert http.get(path).json()["desired"] == 1, "there was work this hour"
    counted.sql("UPDATE workers SET status = 'stopped'")
    for number in range(5):
        counted.submit("A", key=str(number))
    counted.dispatch()
    counted.sql("UPDATE statistics SET run_seconds = count * 30")
    found = http.get(path).json()
    assert (found["backlog"], found["workers"], found["run_seconds"]) == (5, 0, 30.0)
    assert found["desired"] == 3, "each slot runs two of them in a minute"
    assert http.get(path, params={"slots": 4}).json()["desired"] == 1
    assert http.get(path, params={"wait_seconds": 30}).json()["desired"] == 5
    counted.sql("INSERT INTO pauses (scope, name) VALUES ('key', '1')")
    assert http.get(path).json()["backlog"] == 4
    assert http.get("/v1/capabilities/unknown/scale").status_code == 404
    assert http.get(path, params={"most": 0}).status_code == 422
