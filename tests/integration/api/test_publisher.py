"""Messages of tasks that the API queues itself. No loop of the orchestrator runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import redis

from orchestrator.api.publisher import Publisher
from shared.broker import publish
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks.lifecycle import Dispatched
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import wait_until


@pytest.fixture
def broker(driver: LifecycleDriver) -> Iterator[redis.Redis]:
    """The broker, and a live worker that takes no messages."""
    driver.sql("UPDATE workers SET last_seen = now() + interval '1 h'")
    with make_redis() as broker:
        yield broker


def message() -> Dispatched:
    return Dispatched(uuid4(), 0, "work", "A", 60, 120, 0)


def sent(broker: redis.Redis) -> list[Any]:
    return broker.lrange("work", 0, -1)


def test_submitted_task_is_published_without_the_dispatcher(http: httpx2.Client, broker: redis.Redis) -> None:
    task = http.post("/v1/tasks", json={"agent": "A", "idempotency_key": "k"}).json()
    [published] = wait_until(lambda: sent(broker), "the message")
    assert task["state"] == "queued"
    assert task["id"] in published.decode()
    again = http.post("/v1/tasks", json={"agent": "A", "idempotency_key": "k"})
    assert (again.status_code, again.json()["id"]) == (200, task["id"])
    other = http.post("/v1/tasks", json={"agent": "A"}).json()["id"]
    wait_until(lambda: len(sent(broker)) == 2, "the message of the other task")
    newest, oldest = sent(broker)
    assert (task["id"] in oldest.decode(), other in newest.decode()) == (True, True)


def test_messages_that_are_left_are_sent_at_the_end(settings: Settings, broker: redis.Redis) -> None:
    publishing, task = Publisher(settings), message()
    publishing.publish(task)
    with publishing.running():
        pass
    [found] = wait_until(lambda: sent(broker), "the message")
    assert str(task.task_id) in found.decode()


@pytest.mark.parametrize("fault", [OSError, RuntimeError])
def test_publisher_continues_after_a_message_that_it_could_not_send(
    settings: Settings, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    lost, task = message(), message()

    def fail_once(app: Any, tasks: Iterable[Dispatched]) -> None:
        if lost in tasks:
            raise fault("away")
        publish(app, tasks)

    monkeypatch.setattr("orchestrator.api.publisher.publish", fail_once)
    publishing = Publisher(settings)
    with publishing.running():
        publishing.publish(lost)
        publishing.publish(task)
        [found] = wait_until(lambda: sent(broker), "the message")
    assert str(task.task_id) in found.decode()
