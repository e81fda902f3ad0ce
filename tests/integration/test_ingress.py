"""Tasks from other Celery users: accepted is committed, a refusal is recorded, no message is lost or comes for ever."""

from __future__ import annotations

import json
import pickle
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Producer
from sqlalchemy import Engine, text

from shared import submission
from shared.embedded import EmbeddedServers
from shared.hints import make_redis
from shared.messages import checked_input
from shared.settings import Settings
from tests.integration.conftest import Tasks
from tests.processes import wait_until

pytestmark = pytest.mark.usefixtures("loops")

BY_CELERY_ID = text("SELECT id FROM tasks WHERE labels->>'celery_id' = :celery_id")
SCHEMA = {
    "type": "object",
    "required": ["query"],
    "additionalProperties": False,
    "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
}


@pytest.fixture
def sender(settings: Settings) -> Iterator[Celery]:
    """Somebody else's Celery application."""
    with Celery("somebody", broker=settings.require_broker_url(), set_as_current=False) as app:
        yield app


@pytest.fixture
def send(sender: Celery, tasks: Tasks, act: Any) -> Any:
    """Sends `minion.submit` and waits until it is stored as a task: `send(agent="Act", …)`."""
    act("Act", input_schema=SCHEMA, config={"capabilities": ["nobody"]})

    def submit(task_id: str | None = None, args: Any = (), **fields: Any) -> dict[str, Any]:
        celery_id = task_id or str(uuid4())
        sender.send_task("minion.submit", args=args, kwargs=fields, queue="minion.submit", task_id=celery_id)
        return stored(tasks, celery_id)

    return submit


def find(engine: Engine, celery_id: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.scalars(BY_CELERY_ID, {"celery_id": celery_id}))


def stored(tasks: Tasks, celery_id: str) -> dict[str, Any]:
    """The task that a message became."""
    [task] = wait_until(lambda: find(tasks.engine, celery_id), f"message {celery_id} stored")
    return tasks.get(task)


def publish_raw(sender: Celery, body: Any, **properties: Any) -> None:
    with sender.producer_pool.acquire(block=True) as producer:
        assert isinstance(producer, Producer)
        producer.publish(body, exchange="", routing_key="minion.submit", **properties)


def push(message: str) -> None:
    """Something in the queue that Celery did not put there."""
    with make_redis() as broker:
        broker.lpush("minion.submit", message)


def drained() -> bool:
    """Whether no message waits or is held back to come again."""
    with make_redis() as broker:
        return broker.llen("minion.submit") == 0 and broker.hlen("unacked") == 0


def test_a_task_is_accepted(send: Any) -> None:
    task = send(agent="Act", input={"query": "é"}, labels={"team": "a"}, priority=3, key="tenant")
    assert (task["state"], task["input"], task["priority"], task["key"]) == ("pending", {"query": "é"}, 3, "tenant")
    assert task["labels"].keys() == {"team", "celery_id"}
    assert task["submitted_by"].startswith("celery:")
    wait_until(drained, "the message is acknowledged")


def test_keys_keep_their_order(send: Any) -> None:
    assert list(send(agent="Act", input={"query": "x", "limit": 1})["input"]) == ["query", "limit"]
    assert list(send(agent="Act", input={"limit": 1, "query": "x"})["input"]) == ["limit", "query"]


def test_the_same_id_twice_is_one_task(send: Any, tasks: Tasks) -> None:
    first = send("the-id", agent="Act", input={"query": "x"})
    again = send("the-id", agent="Act", input={"query": "x"})
    wait_until(drained, "both are acknowledged")
    assert first["id"] == again["id"]
    assert tasks.count() == {"pending": 1}


def test_the_same_id_for_something_else_changes_nothing(send: Any, tasks: Tasks) -> None:
    first = send("the-id", agent="Act", input={"query": "x"})
    send("the-id", agent="Act", input={"query": "other"})
    wait_until(drained, "both are acknowledged")
    assert tasks.count() == {"pending": 1}
    assert tasks.get(first["id"])["input"] == {"query": "x"}


def test_a_used_idempotency_key_is_a_recorded_refusal(send: Any, tasks: Tasks) -> None:
    send(agent="Act", input={"query": "x"}, idempotency_key="k")
    refused = send(agent="Act", input={"query": "other"}, idempotency_key="k")
    assert (refused["state"], refused["error"]["type"]) == ("failed", "idempotency_conflict")
    assert tasks.count() == {"pending": 1, "failed": 1}


def test_no_key_of_its_own_leaves_the_celery_id(send: Any, tasks: Tasks) -> None:
    first, again = (send("the-id", agent="Act", input={"query": "x"}, idempotency_key=None) for _ in range(2))
    wait_until(drained, "both are acknowledged")
    assert first["id"] == again["id"]
    assert tasks.count() == {"pending": 1}


def test_an_input_that_takes_longer_than_a_lease_to_check_is_accepted(
    send: Any, short_leases: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_slowly(*arguments: Any, **named: Any) -> None:
        time.sleep(short_leases.lease_seconds + 0.5)
        checked_input(*arguments, **named)

    monkeypatch.setattr(submission, "checked_input", check_slowly)
    assert send(agent="Act", input={"query": "x"})["state"] == "pending"
    wait_until(drained, "the message is acknowledged")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"agent": "Nobody"}, "unknown_agent", "There is no agent named 'Nobody'"),
        ({"capability": "none"}, "unknown_capability", "No agent offers the capability 'none'"),
        ({}, "invalid_input", "Name an agent or a capability"),
        ({"agent": "Act", "inputs": {}}, "invalid_input", "inputs: Extra inputs are not permitted"),
        ({"agent": 5}, "invalid_input", "agent: Input should be a valid string"),
        ({"agent": "Act", "input": {"limit": "x", "more": 1}}, "invalid_input", r"\$.limit: 'x' is not of type"),
        ({"agent": "Act", "input": {"query": "x" * 20_000_000}}, "too_large", "20,000,0.. bytes large"),
        ({"agent": "Act", "input": {"query": "a\x00b"}}, "invalid_input", r"U\+0000.* at \$.*query"),
        ({"agent": "A\x00ct"}, "invalid_input", r"U\+0000"),
        ({"agent": "Act", "idempotency_key": ""}, "invalid_input", "idempotency_key: String should have at least 1"),
        ({"agent": "Act", "input": {"query": "\ud800"}}, "invalid_input", "surrogate"),
        ({"agent": "Act", "input": {"query": float("nan")}}, "invalid_input", "NaN is not a JSON number"),
        ({"agent": "Act", "input": nested(200)}, "invalid_input", "nest"),
        ({"agent": "Act", "labels": ["x"]}, "invalid_input", "labels: Input should be a valid dictionary"),
        ({"agent": "Act", "run_at": "tomorrow"}, "invalid_input", "run_at"),
    ],
)
def test_a_refusal_is_a_failed_task_that_says_why(send: Any, fields: Any, kind: str, message: str) -> None:
    task = send(**fields)
    assert (task["state"], task["error"]["type"]) == ("failed", kind)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(task["error"]["message"])
    wait_until(drained, "the message is acknowledged")


def test_all_violations_are_named(send: Any) -> None:
    task = send(agent="Act", input={"limit": "x", "more": 1})
    assert {fault["path"] for fault in task["error"]["violations"]} == {"$", "$.limit"}
    assert len(task["error"]["violations"]) == 3


def test_positional_arguments_are_refused(send: Any) -> None:
    assert "keyword arguments only" in send(args=("Act",))["error"]["message"]


def test_another_task_name_is_refused(sender: Celery, send: Any, tasks: Tasks) -> None:
    sender.send_task("somebody.else", queue="minion.submit", task_id="other-name")
    assert "takes the task 'minion.submit' only" in stored(tasks, "other-name")["error"]["message"]


def test_pickle_is_refused_without_being_unpickled(sender: Celery, send: Any, tasks: Tasks, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    body = pickle.dumps(([], {"agent": Bomb()}, {}))
    headers = {"task": "minion.submit", "id": "pickled"}
    for content_type in ("application/x-python-serialize", "application/json"):
        headers["id"] = content_type
        publish_raw(sender, body, content_type=content_type, content_encoding="binary", headers=headers)
        assert stored(tasks, content_type)["state"] == "failed"
    assert not (tmp_path / "exploded").exists()
    wait_until(drained, "both are acknowledged")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested deeper"),
        (b'[[], {"agent": "Act", "agent": "Nobody"}, {}]', "stands twice"),
        (b'[[], {"agent": 1e999}, {}]', "more than 300 digits|not a JSON number|valid string"),
        (b'{"kwargs": {}}', "keyword arguments only"),
        (b"[[], null, {}]", "keyword arguments only"),
    ],
)
def test_what_is_no_task_message_is_refused(sender: Celery, send: Any, tasks: Tasks, body: bytes, message: str) -> None:
    headers = {"task": "minion.submit", "id": "raw"}
    publish_raw(sender, body, content_type="application/json", content_encoding="utf-8", headers=headers)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(stored(tasks, "raw")["error"]["message"])


def test_what_cannot_be_unpacked_is_refused(sender: Celery, send: Any, tasks: Tasks) -> None:
    broken = zlib.compress(b"[[], {}, {}]")[:-4]
    headers = {"task": "minion.submit", "id": "packed", "compression": "application/x-gzip"}
    publish_raw(sender, broken, content_type="application/json", content_encoding="utf-8", headers=headers)
    assert "cannot be unpacked" in stored(tasks, "packed")["error"]["message"]
    wait_until(drained, "it is acknowledged")


def test_ids_that_cannot_be_stored_do_no_harm(sender: Celery, send: Any, tasks: Tasks) -> None:
    headers = {"task": "minion.submit", "id": "a\x00b\ud800", "origin": "\ud800\x00" * 300}
    properties = {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": {"exchange": "", "routing_key": ""}}
    body = b64encode(b"[[], {}, {}]").decode()
    message = {"body": body, "content-type": "application/json", "content-encoding": "utf-8"}
    push(json.dumps({**message, "headers": headers, "properties": properties}))
    assert stored(tasks, "ab?")["state"] == "failed"
    push(json.dumps({**message, "headers": None, "properties": properties}))
    wait_until(lambda: tasks.count() == {"failed": 2}, "the one without headers is refused")


@pytest.mark.parametrize("poison", ["garbage", "{}", "[]", '{"properties": {}}', "[" * 100_000])
def test_what_is_no_message_does_not_stop_the_others(send: Any, poison: str) -> None:
    push(poison)
    assert send(agent="Act", input={"query": "x"})["state"] == "pending"
    wait_until(drained, "nothing comes again")


def test_messages_wait_for_the_database(sender: Celery, send: Any, tasks: Tasks, servers: EmbeddedServers) -> None:
    servers.postgres.kill()
    ids = [str(uuid4()) for _ in range(5)]
    for celery_id in ids:
        kwargs = {"agent": "Act", "input": {"query": "x"}}
        sender.send_task("minion.submit", kwargs=kwargs, queue="minion.submit", task_id=celery_id)
    servers.postgres.start()
    assert {stored(tasks, celery_id)["state"] for celery_id in ids} == {"pending"}
    assert tasks.count() == {"pending": 5}


def test_messages_are_taken_again_when_the_broker_restarts(send: Any, servers: EmbeddedServers) -> None:
    servers.valkey.kill()
    servers.valkey.start()
    assert send(agent="Act", input={"query": "x"})["state"] == "pending"
