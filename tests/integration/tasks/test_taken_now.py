"""Tasks that are queued by the transaction that makes them pending, because a slot is free for them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine

from shared.tasks import lifecycle
from shared.tasks.lifecycle import Accepted, Dispatched
from tests.support.lifecycle_driver import LifecycleDriver

LEASE = 3600.0
Now = tuple[Accepted, Dispatched | None]


@pytest.fixture
def noticed(database: Engine) -> Any:
    """Say whether the dispatcher was notified since the last call."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("LISTEN minion_pending")

        def noticed() -> bool:
            connection.execute("NOTIFY minion_pending, 'end'")
            found = [notice.payload for notice in connection.notifies(timeout=0)]
            while "end" not in found:
                found += [notice.payload for notice in connection.notifies(timeout=60, stop_after=1)]
            return found != ["end"]

        yield noticed


def accept(driver: LifecycleDriver, **fields: Any) -> Now:
    accepted = driver.call(lifecycle.accept_now, {"agent": "A", "input": {}, **fields}, lease=LEASE)
    assert accepted is not None
    return accepted


def test_accepted_task_is_queued_if_a_slot_is_free(driver: LifecycleDriver, noticed: Any) -> None:
    accepted, message = accept(driver)
    assert message is not None
    assert message == Dispatched(
        accepted.task_id, 0, "work", "A", message.soft_time_limit, message.time_limit, 0, False, message.version_id
    )
    assert driver.row(accepted.task_id)["state"] == "queued"
    assert not noticed()
    assert driver.dispatch() == []
    assert driver.claim(accepted.task_id) is not None


def test_message_is_that_of_the_dispatcher(driver: LifecycleDriver) -> None:
    _, message = accept(driver)
    driver.submit()
    [dispatched] = driver.dispatch()
    assert message is not None
    assert {**asdict(message), "task_id": None} == {**asdict(dispatched), "task_id": None}


@pytest.mark.parametrize(
    "fact",
    [
        "UPDATE workers SET slots = 1",
        "UPDATE workers SET status = 'stopped'",
        "UPDATE workers SET last_seen = now() - interval '2 h'",
        "UPDATE workers SET capabilities = '{other}'",
        "UPDATE task_status SET state = 'pending'",
        "INSERT INTO pauses (namespace, scope, name) VALUES ('default', 'agent', 'Other')",
        "INSERT INTO limits (namespace, scope, name, max_running) VALUES ('default', 'key', '*', 9)",
        "INSERT INTO rate_holds (scope, name, until_at) VALUES ('key', 't', now() + interval '1 h')",
    ],
)
def test_accepted_task_is_left_to_the_dispatcher(driver: LifecycleDriver, noticed: Any, fact: str) -> None:
    accept(driver)
    driver.sql(fact)
    noticed()
    accepted, message = accept(driver)
    assert message is None
    assert driver.row(accepted.task_id)["state"] == "pending"
    assert noticed()


@pytest.mark.parametrize("fields", [{"conversation_id": "c"}, {"run_at": "2100-01-01T00:00:00Z"}])
def test_task_that_has_to_wait_is_not_queued(driver: LifecycleDriver, fields: Any) -> None:
    assert accept(driver, **fields)[1] is None


def test_task_of_an_earlier_request_is_not_queued_again(driver: LifecycleDriver) -> None:
    first, _ = accept(driver, idempotency_key="k")
    again, message = accept(driver, idempotency_key="k")
    assert (again.task_id, again.created, message) == (first.task_id, False, None)


def test_task_for_another_version_than_expected_is_not_stored(driver: LifecycleDriver) -> None:
    version = driver.sql("SELECT active_version_id FROM agents WHERE name = 'A'")
    task = {"agent": "A", "input": {}, "validated": str(version)}
    assert driver.call(lifecycle.accept_now, task, lease=LEASE, expected=version) is not None
    assert driver.call(lifecycle.accept_now, task, lease=LEASE, expected=uuid4()) is None
    driver.sql("UPDATE agents SET status = 'disabled' WHERE name = 'A'")
    assert driver.call(lifecycle.accept_now, task, lease=LEASE, expected=version) is None
    assert driver.sql("SELECT count(*) FROM tasks") == 1
