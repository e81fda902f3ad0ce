"""A database that goes away while the API serves: clear answers, and work continues when it is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import Engine, text

from minions import Client
from minions.errors import Unavailable
from orchestrator.api.app import create_app
from orchestrator.local.embedded import EmbeddedServers
from shared.errors import NotConfigured
from shared.settings import Settings
from shared.tasks import submission
from shared.tasks.messages import checked_input
from tests.support.lanes import is_alive
from tests.support.processes import wait_until

from .conftest import Api, serving

pytestmark = pytest.mark.usefixtures("agents")


@contextmanager
def without_database(servers: EmbeddedServers) -> Iterator[None]:
    main = servers.postgres.pid
    sessions = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    servers.postgres.kill()
    # Each session notices later that the main process is gone, and until then it answers.
    wait_until(lambda: not any(is_alive(int(session)) for session in sessions), "all sessions have ended")
    try:
        yield
    finally:
        servers.postgres.start()


def test_api_reports_missing_database_and_recovers(http: httpx2.Client, servers: EmbeddedServers) -> None:
    task = http.post("/v1/tasks", json={"agent": "Echo"}).json()["id"]
    with without_database(servers):
        for method, path in [
            ("GET", "/v1/tasks"),
            ("GET", f"/v1/tasks/{task}"),
            ("GET", f"/v1/tasks/{task}?wait=1"),
            ("GET", f"/v1/tasks/{uuid4()}/steps"),
            ("POST", "/v1/tasks"),
            ("POST", f"/v1/tasks/{task}/cancel"),
            ("GET", "/v1/capabilities"),
        ]:
            response = http.request(method, path, json={"agent": "Echo"} if path == "/v1/tasks" else None)
            assert response.status_code == 503, (method, path, response.text)
            assert response.headers["content-type"] == "application/problem+json"
            assert int(response.headers["retry-after"]) > 0
            assert response.json()["code"] == "unavailable"
            assert "PGSQL" not in response.text
        ready = http.get("/readyz")
        assert ready.status_code == 503
        assert ready.json() == {
            "status": "not_ready",
            "database": "unavailable",
            "migrations": "unknown",
            "broker": "ok",
        }
        assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").status_code == 200
    assert http.get(f"/v1/tasks/{task}").json()["state"] == "pending"
    assert http.post("/v1/tasks", json={"agent": "Echo"}).status_code == 201


def test_waiting_caller_is_answered_after_the_outage(http: httpx2.Client, servers: EmbeddedServers) -> None:
    task = http.post("/v1/tasks", json={"agent": "Echo"}).json()["id"]
    answers: list[httpx2.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(http.get(f"/v1/tasks/{task}", params={"wait": 30})))
    waiting.start()
    time.sleep(0.5)
    with without_database(servers):
        time.sleep(1.5)
    http.post(f"/v1/tasks/{task}/cancel")
    waiting.join(10)
    assert answers[0].json()["state"] == "cancelled"


def test_the_client_waits_for_the_database(http_api: Api, servers: EmbeddedServers, database: Engine) -> None:
    servers.postgres.kill()
    back = threading.Timer(1.0, servers.postgres.start)
    back.start()
    with Client(http_api.url, http_api.key, retries=5) as client:
        task = client.submit("Echo", {"n": 1})
    back.join()
    assert task.state == "pending"
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM tasks")) == 1


def test_client_gives_up_eventually(http_api: Api, servers: EmbeddedServers) -> None:
    with Client(http_api.url, http_api.key, retries=0) as client, without_database(servers):
        with pytest.raises(Unavailable, match="cannot be reached") as caught:
            client.submit("Echo")
        assert caught.value.status == 503
        assert not client.ready()


def test_a_missing_schema_is_not_ready(http: httpx2.Client, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE alembic_version RENAME TO hidden"))
    try:
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["migrations"]) == (503, "outdated")
    finally:
        with database.begin() as connection:
            connection.execute(text("ALTER TABLE hidden RENAME TO alembic_version"))


def test_too_long_statement_is_ended(http_api: Api, http: httpx2.Client, database: Engine) -> None:
    @http_api.app.get("/slow", include_in_schema=False)
    def slow() -> None:
        with http_api.app.state.engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = '100ms'"))
            connection.execute(text("SELECT pg_sleep(10)"))

    response = http.get("/slow")
    assert response.status_code == 503
    assert "too long" in response.json()["detail"]


@contextmanager
def checking_slowly(settings: Settings, seconds: float) -> Iterator[Client]:
    """A client of an API that takes so long to check an input, and may hold a transaction open for a second."""

    def check_slowly(*arguments: Any, **named: Any) -> None:
        time.sleep(seconds)
        checked_input(*arguments, **named)

    app = create_app(settings.model_copy(update={"lease_seconds": 1.0}))
    with (
        patch.object(submission, "checked_input", check_slowly),
        serving(app) as port,
        Client(f"http://127.0.0.1:{port}", settings.require_api_key(), retries=0) as client,
    ):
        yield client


def test_checking_many_inputs_holds_no_transaction_open(settings: Settings) -> None:
    with checking_slowly(settings, 0.02) as client:
        assert len(client.submit_many([{"agent": "Echo"}] * 100)) == 100


def test_checking_one_input_holds_no_transaction_open(settings: Settings) -> None:
    with checking_slowly(settings, 1.5) as client:
        assert client.submit("Echo").state == "pending"
        request = {"agent": "Echo", "input": 1}
        client.put_schedule("often", interval_seconds=3600, request=request)
        client.change_schedule("often", request=request)
        assert client.run_schedule("often").state == "pending"


@pytest.mark.parametrize("missing", ["DATABASE_URL", "REDIS_URL", "MINION_API_KEY"])
def test_it_does_not_start_without_its_settings(settings: Settings, monkeypatch: Any, missing: str) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(NotConfigured):
        create_app(Settings())
