"""Waiting for a task's end: woken by a notification, correct without one, cheap for many callers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import Connection, Engine, text

from minions import Client
from orchestrator.api import tasks
from orchestrator.api.app import create_app
from orchestrator.api.watching import POLL_SECONDS
from orchestrator.local.embedded import EmbeddedServers
from shared.notifications import FINISHED, make_redis, publish_finished
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.queries import ended
from tests.support.processes import wait_until

from .conftest import Api, serving

pytestmark = pytest.mark.usefixtures("agents")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that wait."""
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def seldom_looking(settings: Settings, database: Engine) -> Iterator[Api]:
    """An API that looks up awaited tasks once an hour, for tests of what wakes it earlier."""
    app = create_app(settings)
    app.state.finish_watch.poll_seconds = 3600
    with serving(app) as port:
        yield Api(app, f"http://127.0.0.1:{port}", port, settings.require_api_key())


def submit(http: httpx2.Client) -> str:
    return str(http.post("/v1/tasks", json={"agent": "Echo"}).json()["id"])


@contextmanager
def later(seconds: float, action: Any) -> Iterator[None]:
    """Does something after a while, beside the block."""
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def end(database: Engine, *tasks: str, hint: bool) -> None:
    with database.begin() as connection:
        for task in tasks:
            lifecycle.cancel(connection, UUID(task), reason="Enough.")
    for task in tasks if hint else ():
        publish_finished(UUID(task))


def timed_wait(http: httpx2.Client, task: str, seconds: float) -> tuple[str, float]:
    began = time.monotonic()
    response = http.get(f"/v1/tasks/{task}", params={"wait": seconds})
    assert response.status_code == 200, response.text
    return str(response.json()["state"]), time.monotonic() - began


def test_a_task_that_has_ended_answers_at_once(http: httpx2.Client, database: Engine) -> None:
    task = submit(http)
    end(database, task, hint=False)
    state, seconds = timed_wait(http, task, 30)
    assert state == "cancelled"
    assert seconds < 15


def test_the_time_is_up(http: httpx2.Client) -> None:
    state, seconds = timed_wait(http, submit(http), 0.3)
    assert state == "pending"
    assert 0.3 <= seconds < 15


def test_notification_is_enough(
    seldom_looking: Api, database: Engine, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.api.finish_watch.ended", lambda connection, tasks: set())
    before = subscribers()
    with seldom_looking.http() as http:
        task = submit(http)
        waiting = threads.submit(timed_wait, http, task, 60)
        wait_until(lambda: subscribers() == before + 1, "the subscription")
        end(database, task, hint=True)
        assert waiting.result(30)[0] == "cancelled"


def test_end_before_the_subscription_is_found_when_it_begins(
    seldom_looking: Api,
    database: Engine,
    servers: EmbeddedServers,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[set[UUID]] = []

    def look(connection: Connection, tasks: set[UUID]) -> set[UUID]:
        looked.append(ended(connection, tasks))
        return looked[-1]

    monkeypatch.setattr("orchestrator.api.finish_watch.ended", look)
    with seldom_looking.http() as http:
        task = submit(http)
        with frozen(servers):
            waiting = threads.submit(timed_wait, http, task, 60)
            wait_until(lambda: looked == [set()], "the first look")
            end(database, task, hint=False)
        assert waiting.result(30)[0] == "cancelled"


def test_submission_waits_for_the_end(http: httpx2.Client, database: Engine, threads: ThreadPoolExecutor) -> None:
    waiting = threads.submit(http.post, "/v1/tasks", json={"agent": "Echo"}, params={"wait": 60})
    [task] = wait_until(lambda: http.get("/v1/tasks").json()["items"], "the task")
    end(database, task["id"], hint=True)
    response = waiting.result(30)
    assert (response.status_code, response.headers["location"]) == (201, f"/v1/tasks/{task['id']}")
    assert response.json()["state"] == "cancelled"


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> set[UUID]:
    """The tasks that were looked up."""
    looked: set[UUID] = set()

    def look(connection: Connection, tasks: set[UUID]) -> set[UUID]:
        looked.update(tasks)
        return ended(connection, tasks)

    monkeypatch.setattr("orchestrator.api.finish_watch.ended", look)
    return looked


def subscribed(api: Api) -> None:
    """Wait until the API hears of ends."""
    with api.http() as http:
        timed_wait(http, submit(http), 0.01)
    wait_until(lambda: api.app.state.watching.hears(FINISHED), "the subscription")


def test_new_task_is_waited_for_without_a_query(
    seldom_looking: Api, database: Engine, threads: ThreadPoolExecutor, looked: set[UUID]
) -> None:
    subscribed(seldom_looking)
    with seldom_looking.http() as http:
        waiting = threads.submit(http.post, "/v1/tasks", json={"agent": "Echo"}, params={"wait": 60})
        expected = seldom_looking.app.state.finish_watch._expected
        [task] = wait_until(lambda: list(expected), "the wait")
        end(database, str(task), hint=True)
        assert waiting.result(30).json()["state"] == "cancelled"
    assert task not in looked


def test_waiting_submission_collects_no_ends_of_other_tasks(
    seldom_looking: Api, database: Engine, threads: ThreadPoolExecutor
) -> None:
    """There may be thousands of them in a minute, and hundreds of callers who wait."""
    watch, echo = seldom_looking.app.state.finish_watch, {"agent": "Echo", "idempotency_key": "once"}
    subscribed(seldom_looking)
    with seldom_looking.http() as http:
        waiting = [threads.submit(http.post, "/v1/tasks", json=echo, params={"wait": 60}) for _ in range(2)]
        [task] = wait_until(lambda: [task for task, waits in watch._expected.items() if len(waits) == 2], "the waits")
        assert watch._hearing == set()
        end(database, str(task), hint=True)
        assert [each.result(30).json()["state"] for each in waiting] == ["cancelled"] * 2


def test_end_between_submission_and_wait_is_heard(
    seldom_looking: Api, database: Engine, looked: set[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribed(seldom_looking)
    watch, accept = seldom_looking.app.state.finish_watch, tasks._accept

    def accept_and_end(*arguments: Any) -> Any:
        accepted = accept(*arguments)
        end(database, str(accepted.task_id), hint=True)
        [heard] = watch._hearing
        wait_until(lambda: accepted.task_id in heard.tasks, "the notification")
        return accepted

    monkeypatch.setattr(tasks, "_accept", accept_and_end)
    with seldom_looking.http() as http:
        task = http.post("/v1/tasks", json={"agent": "Echo"}, params={"wait": 60}).json()
    assert task["state"] == "cancelled"
    assert UUID(task["id"]) not in looked


def test_end_that_may_have_been_missed_is_looked_up(
    seldom_looking: Api, database: Engine, looked: set[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscription was renewed while the task was accepted."""
    subscribed(seldom_looking)
    accept = tasks._accept

    def accept_and_end(*arguments: Any) -> Any:
        accepted = accept(*arguments)
        end(database, str(accepted.task_id), hint=False)
        [heard] = seldom_looking.app.state.finish_watch._hearing
        with make_redis() as broker:
            broker.client_kill_filter(_type="pubsub")
        wait_until(lambda: not heard.all, "another subscription")
        return accepted

    monkeypatch.setattr(tasks, "_accept", accept_and_end)
    with seldom_looking.http() as http:
        task = http.post("/v1/tasks", json={"agent": "Echo"}, params={"wait": 60}).json()
    assert task["state"] == "cancelled"
    assert UUID(task["id"]) in looked


def test_submission_that_waited_in_vain_returns_the_pending_task(client: Client) -> None:
    assert client.submit("Echo", wait=0.1).state == "pending"


def test_large_submission_does_not_wait(http: httpx2.Client) -> None:
    large = {"agent": "Echo", "input": "x" * 100_000}
    response = http.post("/v1/tasks", json=large, params={"wait": 60}, timeout=30)
    assert (response.status_code, response.json()["state"]) == (201, "pending")


def test_without_notification_the_end_is_found_by_polling(http: httpx2.Client, database: Engine) -> None:
    task = submit(http)
    with later(0.3, lambda: end(database, task, hint=False)):
        state, seconds = timed_wait(http, task, 30)
    assert state == "cancelled"
    assert seconds < 0.3 + POLL_SECONDS + 15


def test_task_deleted_while_waiting_is_not_found(http: httpx2.Client, database: Engine) -> None:
    task = submit(http)

    def delete() -> None:
        with database.begin() as connection:
            connection.execute(text("DELETE FROM tasks"))

    with later(0.2, delete):
        assert http.get(f"/v1/tasks/{task}", params={"wait": 30}).status_code == 404


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "soon", ""])
def test_a_wrong_wait_is_refused(http: httpx2.Client, wait: str) -> None:
    assert http.get(f"/v1/tasks/{submit(http)}", params={"wait": wait}).status_code == 422


def test_invalid_notifications_are_ignored(http: httpx2.Client, database: Engine) -> None:
    task = submit(http)
    timed_wait(http, task, 1.2)
    with make_redis() as broker:
        for rubbish in (b"", b"\xff", b"task", b"0" * 1000):
            broker.publish(FINISHED, rubbish)
    with later(0.2, lambda: end(database, task, hint=True)):
        assert timed_wait(http, task, 30)[0] == "cancelled"


def test_hundreds_wait_on_one_subscription_and_one_connection(
    http_api: Api, http: httpx2.Client, database: Engine
) -> None:
    tasks = [
        task["id"] for task in http.post("/v1/tasks/bulk", json={"tasks": [{"agent": "Echo"}] * 300}).json()["tasks"]
    ]

    async def wait_for_all() -> list[str]:
        limits = httpx2.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {http_api.key}"}
        async with httpx2.AsyncClient(
            base_url=http_api.url, headers=headers, limits=limits, timeout=60, trust_env=False
        ) as web:
            answers = [asyncio.create_task(web.get(f"/v1/tasks/{task}", params={"wait": 30})) for task in tasks]
            await asyncio.sleep(3)
            assert subscribers() == 1
            # They wait without a connection each: another request is answered in the meantime.
            assert (await web.get("/v1/tasks", params={"limit": 1})).status_code == 200
            assert not any(answer.done() for answer in answers)
            await asyncio.to_thread(end, database, *tasks, hint=False)
            return [answer.json()["state"] for answer in await asyncio.gather(*answers)]

    began = time.monotonic()
    assert asyncio.run(wait_for_all()) == ["cancelled"] * 300
    assert time.monotonic() - began < 28
    assert not http_api.app.state.finish_watch._expected


def subscribers() -> int:
    with make_redis() as broker:
        [(_, number)] = broker.pubsub_numsub(FINISHED)
        return int(number)


def test_it_works_while_redis_is_away(http: httpx2.Client, database: Engine, servers: EmbeddedServers) -> None:
    task = submit(http)
    timed_wait(http, task, 0.2)
    servers.valkey.kill()
    try:
        assert http.get("/readyz").json()["broker"] == "unavailable"
        with later(0.3, lambda: end(database, task, hint=False)):
            state, seconds = timed_wait(http, task, 30)
        assert state == "cancelled"
        assert seconds < 0.3 + POLL_SECONDS + 15
    finally:
        servers.valkey.start()
    assert http.get("/readyz").status_code == 200


@contextmanager
def killed(servers: EmbeddedServers) -> Iterator[None]:
    """Redis dies under those who wait."""
    servers.valkey.kill()
    try:
        yield
    finally:
        servers.valkey.start()


@contextmanager
def frozen(servers: EmbeddedServers) -> Iterator[None]:
    """Redis keeps its connections and says nothing more."""
    pid = servers.valkey.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def emptied(servers: EmbeddedServers) -> Iterator[None]:
    """Redis forgets everything and ends every subscription."""
    with make_redis() as broker:
        broker.flushall()
        broker.client_kill_filter(_type="pubsub")
    yield


@pytest.mark.parametrize("lost", [killed, frozen, emptied])
def test_caller_is_answered_when_notifications_are_lost(
    http: httpx2.Client, client: Client, database: Engine, servers: EmbeddedServers, lost: Any
) -> None:
    first, task, another = submit(http), submit(http), submit(http)
    timed_wait(http, first, 1.2)  # the subscription exists now
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(timed_wait, http, task, 30), threads.submit(client.wait, another, 30)]
        time.sleep(0.3)
        with lost(servers):
            end(database, task, another, hint=False)
            ended = time.monotonic()
            states = {waiting[0].result(30)[0], waiting[1].result(30).state}
            assert time.monotonic() - ended < POLL_SECONDS + 15
    assert states == {"cancelled"}


def test_notifications_work_again_after_redis_outage(
    http: httpx2.Client, database: Engine, servers: EmbeddedServers
) -> None:
    servers.valkey.kill()
    servers.valkey.start()
    task = submit(http)
    timed_wait(http, task, 2.5)
    assert subscribers() == 1


def test_stopping_server_does_not_wait_for_waiting_callers(settings: Any, database: Engine) -> None:
    app = create_app(settings)
    answers: list[int] = []
    with serving(app) as port:
        headers = {"Authorization": f"Bearer {settings.require_api_key()}"}
        url = f"http://127.0.0.1:{port}/v1/tasks"
        task = httpx2.post(url, json={"agent": "Echo"}, headers=headers, trust_env=False).json()["id"]
        wait = {"url": f"{url}/{task}?wait=60", "headers": headers, "trust_env": False, "timeout": 70}
        thread = threading.Thread(target=lambda: answers.append(httpx2.get(**wait).status_code))
        thread.start()
        time.sleep(0.5)
        began = time.monotonic()
    thread.join()
    assert time.monotonic() - began < 20
    assert answers == [200]
