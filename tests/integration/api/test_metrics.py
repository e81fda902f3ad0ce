"""`GET /metrics`: its formats, who may read it, and that what it says is right."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import psycopg
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import OperationalError

from orchestrator.api.app import create_app
from orchestrator.api.metrics import MetricsPages
from orchestrator.observe import gauges, metrics
from orchestrator.observe.counting import catch_up
from orchestrator.observe.statistician import STORE, Statistician
from shared.errors import NotConfigured
from shared.functions import security_events
from shared.sandbox import SandboxFault
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.integration.api.conftest import Api, WithKey, serving
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import wait_until

TOKEN = "a-scrape-token-of-24-chars"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture(autouse=True)
def no_old_pages(http_api: Api) -> None:
    """Pages of earlier tests are valid for a second."""
    http_api.app.state.metrics_pages = MetricsPages()


def samples(page: str, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a series by the values of their labels, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in prometheus(page)
        for sample in family.samples
        if sample.name == name
    }


def measure(driver: LifecycleDriver, settings: Settings) -> str:
    """Count, read the gauges, and return the page."""
    catch_up(driver.engine)
    values = driver.call(gauges.read, settings)
    with driver.engine.begin() as connection:
        connection.execute(STORE, {"gauges": json.dumps(values)})
    return MetricsPages().get(driver.engine, "")[0].decode()


@contextmanager
def scraped(settings: Settings, **changes: Any) -> Iterator[httpx2.Client]:
    """A server with other settings, and a client without a key."""
    app = create_app(settings.model_copy(update=changes))
    with serving(app) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client


# ------------------------------------------------------------------------------------------------------- access


def test_metrics_need_a_token_or_a_key(settings: Settings, database: Engine) -> None:
    def status(client: httpx2.Client, token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return client.get("/metrics", headers=headers).status_code

    with scraped(settings, metrics_token=SecretStr(TOKEN)) as client:
        shown = (None, "wrong", "", TOKEN, settings.require_api_key())
        assert [status(client, token) for token in shown] == [401, 401, 401, 200, 200]
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        paths = ("/v1/tasks", "/v1/capabilities", "/v1/stats", "/v1/workers", "/v1/capabilities/none/scale")
        assert [client.get(path).status_code for path in paths] == [401, 401, 401, 401, 404], "for metrics alone"
    with scraped(settings) as client:
        assert [status(client, token) for token in (None, "", TOKEN)] == [401, 401, 401]


def test_metrics_need_the_right_to_read_operations_of_everything(with_key: WithKey, agents: None) -> None:
    answers = {
        role: with_key(role, **bounds).get("/metrics").status_code
        for role, bounds in {"viewer": {}, "operator": {}, "submitter": {}}.items()
    }
    assert answers == {"viewer": 200, "operator": 200, "submitter": 403}
    assert with_key("viewer", namespace="default").get("/metrics").status_code == 403
    assert with_key("viewer", tenant="acme").get("/metrics").status_code == 403


@pytest.mark.parametrize("token", ["short", "with a\nline of its own", "ümläut-ümläut-ümläut"])
def test_bad_scrape_token_is_refused_at_start(settings: Settings, token: str) -> None:
    with pytest.raises(NotConfigured, match="MINION_METRICS_TOKEN: it must be"):
        create_app(settings.model_copy(update={"metrics_token": SecretStr(token)}))


# ------------------------------------------------------------------------------------------------------ formats


def test_both_formats_can_be_parsed(http: httpx2.Client, driver: LifecycleDriver, settings: Settings) -> None:
    driver.finish(driver.run())
    measure(driver, settings)
    plain = http.get("/metrics", headers={"Accept": "text/plain;version=0.0.4"})
    open_one = http.get("/metrics", headers={"Accept": OPENMETRICS})
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert open_one.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    found = {family.name for family in prometheus(plain.text)}
    assert found == {family.name for family in openmetrics(open_one.text)}
    assert all(name.startswith("minions_") for name in found)
    assert http.head("/metrics").status_code == 200


@pytest.mark.parametrize("accept", ["", "*/*", "nonsense;;=", "application/openmetrics-text; version=x", "text/html"])
def test_any_accept_header_gets_a_page(http: httpx2.Client, accept: str) -> None:
    assert http.get("/metrics", headers={"Accept": accept}).status_code == 200


def test_page_without_statistics_is_valid(http: httpx2.Client) -> None:
    page = http.get("/metrics").text
    assert samples(page, "minions_tasks_total") == {}
    assert "minions_statistics_age_seconds" not in page


def test_first_failures_are_increases(driver: LifecycleDriver, settings: Settings) -> None:
    """Their series are there before, with zero: else an alert on an increase would miss them."""
    driver.finish(driver.run())
    page = measure(driver, settings)
    assert samples(page, "minions_tasks_total")["A", "work", "default", "failed"] == 0
    assert samples(page, "minions_executions_total")["A", "work", "default", "lost"] == 0
    assert samples(page, "minions_security_events_total")["import_denied", "default"] == 0
    assert samples(page, "minions_webhook_deliveries_total")["default", "failed"] == 0


def test_attack_of_a_program_counts_in_its_namespace(driver: LifecycleDriver, settings: Settings) -> None:
    task = driver.run()
    with driver.engine.begin() as connection:
        security_events.record_of_program(connection, task, SandboxFault("security", "a forged message"))
    driver.finish(task)
    assert samples(measure(driver, settings), "minions_security_events_total")["security", "default"] == 1


def test_scrapers_do_not_wait_one_after_another_while_the_database_is_away(settings: Settings) -> None:
    attempts = []

    def connect(*_: Any) -> Any:
        attempts.append(1)
        raise psycopg.OperationalError("no route")

    away = create_engine("postgresql+psycopg://", creator=connect)
    pages = MetricsPages()
    for _ in range(3):
        with pytest.raises(OperationalError, match="no route"):
            pages.get(away, "")
    assert len(attempts) == 1


def test_every_series_has_a_name_in_the_list(driver: LifecycleDriver, settings: Settings) -> None:
    driver.finish(driver.run())
    page = measure(driver, settings)
    found = {sample.name for family in prometheus(page) for sample in family.samples}
    assert found - metrics.names() == set()
    assert {f"minions_{name}" for name in ("tasks_total", "run_seconds_bucket", "redis_up")} <= found


# -------------------------------------------------------------------------------------------------------- values


def test_counters_are_those_of_ended_work(driver: LifecycleDriver, settings: Settings) -> None:
    driver.finish(driver.run("A", key="a tenant"))
    driver.finish(driver.run("B"), state=State.FAILED)
    task = driver.run()
    call = {
        "number": 1,
        "kind": "model_call",
        "name": "claude",
        "status": "finished",
        "effect": "idempotent",
        "request_hash": "1",
        "usage": {"input_tokens": 7, "output_tokens": 3, "cache_read_input_tokens": 5, "cached": {}},
        "cost_microdollars": 250_000,
        "started_at": "2026-11-29T12:00:00+00:00",
        "finished_at": "2026-11-29T12:00:02+00:00",
    }
    driver.call(lifecycle.write_steps, task, 1, [call])
    driver.release(task, how="lost", charged=False)
    driver.finish(task, driver.again(task))
    page = measure(driver, settings)
    assert samples(page, "minions_tasks_total") == {
        ("A", "work", "default", "succeeded"): 2,
        ("A", "work", "default", "failed"): 0,
        ("B", "work", "default", "failed"): 1,
    }
    assert samples(page, "minions_executions_total")["A", "work", "default", "lost"] == 1
    assert samples(page, "minions_task_failures_total") == {("test", "default"): 1}
    assert samples(page, "minions_steps_total") == {("A", "work", "model_call", "default", "finished"): 1}
    assert samples(page, "minions_model_calls_total") == {("claude", "finished"): 1}
    assert samples(page, "minions_model_tokens_total") == {
        ("claude", "cache_read"): 5,
        ("claude", "cache_write"): 0,
        ("claude", "input"): 7,
        ("claude", "output"): 3,
    }
    assert samples(page, "minions_model_dollars_total") == {("A", "claude", "default"): 0.25}
    assert samples(page, "minions_cache_hits_total")["A", "work", "model_call", "default"] == 1
    assert samples(page, "minions_journal_saved_dollars_total")["A", "work", "default"] == 0.25
    assert samples(page, "minions_journal_read_steps_total")["A", "work", "default"] == 1
    assert samples(page, "minions_run_seconds_count") == {("work",): 4}
    assert samples(page, "minions_wait_seconds_count") == {("work",): 4}
    assert samples(page, "minions_model_call_seconds_sum") == {("claude",): 2}
    buckets = samples(page, "minions_model_call_seconds_bucket")
    assert (buckets["1.024", "claude"], buckets["2.048", "claude"], buckets["+Inf", "claude"]) == (0, 1, 1)


def test_histogram_waits_from_the_time_when_a_task_could_start(driver: LifecycleDriver, settings: Settings) -> None:
    task = driver.submit()
    driver.again(task)
    driver.release(task, how="lost", charged=False)
    claim = driver.again(task)
    driver.sql("UPDATE executions SET started_at = started_at + interval '100 s' WHERE claim = :claim", claim=claim)
    driver.finish(task, claim)
    page = measure(driver, settings)
    assert samples(page, "minions_wait_seconds_sum")[("work",)] == pytest.approx(100, abs=50)


def test_gauges_say_what_waits_and_why(driver: LifecycleDriver, settings: Settings) -> None:
    driver.submit()
    driver.submit("B")
    driver.run()
    driver.submit("A", run_at="2999-01-01T00:00:00Z")
    page = measure(driver, settings)
    states = samples(page, "minions_open_tasks")
    assert states["work", "running"] == 1
    assert states["work", "queued"] == 2
    assert sum(states.values()) == 4
    assert samples(page, "minions_worker_slots") == {("work",): 1000}
    assert samples(page, "minions_redis_up") == {(): 1}
    assert samples(page, "minions_gauges_age_seconds")[()] >= 0
    assert samples(page, "minions_statistics_age_seconds")[()] >= 0


def test_pending_tasks_have_the_reasons_of_why(driver: LifecycleDriver, settings: Settings) -> None:
    driver.submit()
    driver.submit("B", key="acme")
    for number in range(3):
        driver.submit("A", conversation_id="c", key=str(number))
    driver.sql("UPDATE workers SET status = 'stopped'")
    driver.dispatch()
    assert samples(measure(driver, settings), "minions_waiting_tasks") == {("unserved",): 3, ("turn",): 2}
    driver.sql("INSERT INTO pauses (scope, name) VALUES ('agent', 'B')")
    page = measure(driver, settings)
    assert samples(page, "minions_waiting_tasks") == {("unserved",): 2, ("paused",): 1, ("turn",): 2}
    assert samples(page, "minions_oldest_pending_seconds")[("work",)] > 0
    driver.sql("UPDATE task_status SET rank = rank - 3600000000::bigint WHERE agent_name = 'B'")
    for paused in (True, False):
        page = measure(driver, settings)
        assert samples(page, "minions_oldest_pending_seconds")[("work",)] == pytest.approx(3600, abs=100), paused
        driver.sql("DELETE FROM pauses")
    driver.submit(None, messages=[{"role": "user", "content": "Which agent?"}])
    assert samples(measure(driver, settings), "minions_waiting_tasks")[("not_routed",)] == 1


def test_limits_are_a_reason(driver: LifecycleDriver, settings: Settings) -> None:
    driver.run()
    driver.sql("INSERT INTO limits (scope, name, max_running) VALUES ('capability', '*', 1)")
    driver.submit()
    driver.dispatch()
    reasons = samples(measure(driver, settings), "minions_waiting_tasks")
    assert reasons == {("limited",): 1}


def test_two_orchestrators_serve_the_same_counters(driver: LifecycleDriver, settings: Settings) -> None:
    leader = Statistician(settings, driver.engine)
    driver.finish(driver.run())
    leader.run_once()
    headers = {"Authorization": f"Bearer {settings.require_api_key()}"}
    with scraped(settings) as first, scraped(settings) as second:
        pages = [client.get("/metrics", headers=headers).text for client in (first, second)]
    leader.close()
    agent = ("A", "work", "default")
    counted = {(*agent, "succeeded"): 1, (*agent, "failed"): 0}
    assert [samples(page, "minions_tasks_total") for page in pages] == [counted] * 2


def test_page_follows_what_the_loops_count(loops: None, driver: LifecycleDriver) -> None:
    task = driver.submit("A")
    driver.call(lifecycle.cancel, task, reason="test")

    def counted() -> bool:
        page = MetricsPages().get(driver.engine, "")[0].decode()
        return samples(page, "minions_tasks_total").get(("A", "work", "default", "cancelled")) == 1.0

    wait_until(counted, "the page has the task")


def test_folded_rows_are_named_other(driver: LifecycleDriver, settings: Settings) -> None:
    driver.sql(
        "INSERT INTO statistics (grain, kind, bucket, namespace, outcome, folded, count) VALUES "
        "('total', 'task', '1970-01-01Z', 'default', 'succeeded', true, 3), "
        "('total', 'task', '1970-01-01Z', 'default', 'succeeded', false, 2)"
    )
    driver.sql(
        "INSERT INTO statistics (grain, kind, bucket, namespace, agent, capability, outcome, count) VALUES "
        "('total', 'task', '1970-01-01Z', 'default', 'other', 'other', 'succeeded', 4)"
    )
    page = measure(driver, settings)
    assert samples(page, "minions_tasks_total") == {
        ("", "", "default", "succeeded"): 2,
        ("", "", "default", "failed"): 0,
        ("other", "other", "default", "succeeded"): 7,
        ("other", "other", "default", "failed"): 0,
    }


def test_text_cannot_break_the_page(driver: LifecycleDriver, settings: Settings) -> None:
    driver.sql(
        "INSERT INTO statistics (grain, kind, bucket, namespace, agent, outcome, count) "
        "VALUES ('total', 'task', '1970-01-01Z', 'default', :agent, 'succeeded', 1)",
        agent='a"} 1\nminions_tasks_total{agent="b\\',
    )
    assert list(samples(measure(driver, settings), "minions_tasks_total").values()) == [0, 1]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed on this machine")
def test_promtool_finds_no_fault_in_the_page(driver: LifecycleDriver, settings: Settings) -> None:
    driver.finish(driver.run())
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=measure(driver, settings), capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr
