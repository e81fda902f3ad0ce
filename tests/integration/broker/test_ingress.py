"""Tasks from other Celery users: accepted is committed, refusals are recorded, no message is lost or loops."""

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
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kombu import Producer
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from orchestrator.local.embedded import EmbeddedServers
from orchestrator.submissions import REFUSED, TAKEN
from shared.notifications import make_redis
from shared.registry import AgentRegistry
from shared.settings import Settings
from shared.tasks import submission
from shared.tasks.envelopes import queue_keys
from shared.tasks.messages import checked_input
from shared.tasks.set_aside import COUNTS, KEPT, SAMPLES, SHOWN, counts
from tests.integration.conftest import Tasks
from tests.support.processes import wait_until
from tests.unit.workers.test_run_messages import anything

pytestmark = pytest.mark.usefixtures("loops")

WITH_IMAGE = {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}
BY_CELERY_ID = text("SELECT id FROM tasks WHERE labels->>'celery_id' = :celery_id")
CALLER, OTHER = f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'c' * 32}-{'d' * 16}-01"
SCHEMA = {
    "type": "object",
    "required": ["query"],
    "additionalProperties": False,
    "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
}


@pytest.fixture
def sender(settings: Settings) -> Iterator[Celery]:
    """The Celery application of another user."""
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


def push(message: str | bytes) -> None:
    """Something in the queue that Celery did not put there."""
    with make_redis() as broker:
        broker.lpush("minion.submit", message)


def drained() -> bool:
    """Return whether no message waits or is held."""
    with make_redis() as broker:
        waiting = sum(broker.llen(key) for key in [*queue_keys("minion.submit"), REFUSED])
        return waiting + broker.zcard(TAKEN) == 0


def put_aside() -> list[dict[str, Any]]:
    """Return the messages set aside, newest first."""
    with make_redis() as broker:
        return [json.loads(sample) for sample in broker.lrange(SAMPLES, 0, -1)]


def test_a_task_is_accepted(send: Any) -> None:
    task = send(agent="Act", input={"query": "é"}, labels={"team": "a"}, priority=3, key="tenant")
    assert (task["state"], task["input"], task["priority"], task["key"]) == ("pending", {"query": "é"}, 3, "tenant")
    assert task["labels"].keys() == {"team", "celery_id"}
    assert task["submitted_by"].startswith("celery:")
    wait_until(drained, "the message is acknowledged")


def test_keys_keep_their_order(send: Any) -> None:
    assert list(send(agent="Act", input={"query": "x", "limit": 1})["input"]) == ["query", "limit"]
    assert list(send(agent="Act", input={"limit": 1, "query": "x"})["input"]) == ["limit", "query"]


def test_canary_gets_the_same_tenants_as_by_sql(send: Any, tasks: Tasks, act: Any) -> None:
    act("Act", description="new", input_schema=SCHEMA, config={"capabilities": ["nobody"]})
    with Session(tasks.engine) as session:
        AgentRegistry(session).start_canary("Act", 1, "50%")
    versions = {key: send(agent="Act", input={"query": "x"}, key=key)["agent_version"] for key in "abcdefgh"}
    by_sql = text("SELECT minion_submit('Act', '{\"query\": \"x\"}', key => :key)")
    with tasks.engine.begin() as connection:
        again = {key: connection.scalar(by_sql, {"key": key}) for key in versions}
    assert {key: tasks.get(task)["agent_version"] for key, task in again.items()} == versions


def test_the_same_id_twice_is_one_task(send: Any, tasks: Tasks) -> None:
    first = send("the-id", agent="Act", input={"query": "x"})
    again = send("the-id", agent="Act", input={"query": "x"})
    wait_until(drained, "both are acknowledged")
    assert first["id"] == again["id"]
    assert tasks.count() == {"pending": 1}


def test_same_id_with_another_payload_changes_nothing(send: Any, tasks: Tasks) -> None:
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


def test_a_message_with_an_invalid_image_is_a_recorded_refusal(send: Any) -> None:
    refused = send(agent="Act", messages=[WITH_IMAGE])
    assert (refused["state"], refused["error"]["type"]) == ("failed", "invalid_input")
    assert "messages[0].content[1].source: the source of a block" in refused["error"]["message"]


def test_celery_id_is_the_key_without_an_explicit_one(send: Any, tasks: Tasks) -> None:
    first, again = (send("the-id", agent="Act", input={"query": "x"}, idempotency_key=None) for _ in range(2))
    wait_until(drained, "both are acknowledged")
    assert first["id"] == again["id"]
    assert tasks.count() == {"pending": 1}


def test_input_checked_longer_than_a_lease_is_accepted(
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
        ({"agent": 5}, "invalid_input", "agent: Input must be a valid string"),
        ({"agent": "Act", "input": {"limit": "x", "more": 1}}, "invalid_input", r"\$.limit: 'x' is not of type"),
        ({"agent": "Act", "input": {"query": "x" * 20_000_000}}, "too_large", "20,000,... bytes large"),
        ({"agent": "Act", "input": {"query": "a\x00b"}}, "invalid_input", r"U\+0000.* at \$.*query"),
        ({"agent": "A\x00ct"}, "invalid_input", r"U\+0000"),
        ({"agent": "Act", "idempotency_key": ""}, "invalid_input", "idempotency_key: String must have at least 1"),
        ({"agent": "Act", "input": {"query": "\ud800"}}, "invalid_input", "surrogate"),
        ({"agent": "Act", "input": {"query": float("nan")}}, "invalid_input", "NaN is not a JSON number"),
        ({"agent": "Act", "input": nested(200)}, "invalid_input", "nest"),
        ({"agent": "Act", "labels": ["x"]}, "invalid_input", "labels: Input must be a valid dictionary"),
        ({"agent": "Act", "run_at": "tomorrow"}, "invalid_input", "run_at"),
    ],
)
def test_refusal_is_a_failed_task_with_reason(send: Any, fields: Any, kind: str, message: str) -> None:
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


def test_another_task_is_set_aside(sender: Celery, send: Any, tasks: Tasks) -> None:
    sender.send_task("somebody.else", queue="minion.submit", task_id="other-name")
    [sample] = wait_until(put_aside, "it is set aside")
    assert "accepts only the task minion.submit" in sample["why"]
    assert "other-name" in sample["begins"]
    assert drained()
    assert tasks.count() == {}


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
def test_invalid_task_message_is_refused(sender: Celery, send: Any, tasks: Tasks, body: bytes, message: str) -> None:
    headers = {"task": "minion.submit", "id": "raw"}
    publish_raw(sender, body, content_type="application/json", content_encoding="utf-8", headers=headers)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(stored(tasks, "raw")["error"]["message"])


def test_undecodable_body_is_refused(sender: Celery, send: Any, tasks: Tasks) -> None:
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


@pytest.mark.parametrize(
    "poison", ["garbage", b"\xff\x00", "{}", "[]", '{"properties": {}}', "[" * 100_000, "[]," * 500_000]
)
def test_invalid_envelope_is_set_aside(send: Any, poison: str | bytes) -> None:
    push(poison)
    assert send(agent="Act", input={"query": "x"})["state"] == "pending"
    wait_until(drained, "nothing comes again")
    [sample] = put_aside()
    assert (sample["queue"], sample["bytes"]) == ("minion.submit", len(poison))


def test_too_large_message_is_set_aside_unread(send: Any, settings: Settings) -> None:
    size = settings.max_body_bytes * 4 // 3 + (1 << 20)
    push("x" * size)
    send(agent="Act", input={"query": "x"})
    wait_until(put_aside, "it is set aside")
    assert drained()
    [sample] = put_aside()
    assert (sample["bytes"], sample["begins"]) == (size, "x" * SHOWN)


def test_samples_are_few_and_all_are_counted(send: Any) -> None:
    with make_redis() as broker:
        broker.lpush("minion.submit", *[f"garbage {number}" for number in range(KEPT + 20)])
        send(agent="Act", input={"query": "x"})
        wait_until(drained, "nothing comes again")
        assert len(put_aside()) == KEPT
        assert counts(broker) == {"minion.submit": KEPT + 20}


def test_a_compressed_message_is_accepted(sender: Celery, send: Any, tasks: Tasks) -> None:
    for compression in ("gzip", "bzip2", "lzma"):
        kwargs = {"agent": "Act", "input": {"query": "x" * 1000}}
        sender.send_task(
            "minion.submit", kwargs=kwargs, queue="minion.submit", task_id=compression, compression=compression
        )
        assert stored(tasks, compression)["state"] == "pending"


def test_a_bomb_is_refused_before_it_is_unpacked(sender: Celery, send: Any, tasks: Tasks) -> None:
    headers = {"task": "minion.submit", "id": "bomb", "compression": "application/x-gzip"}
    body = zlib.compress(b" " * (300 << 20))
    publish_raw(sender, body, content_type="application/json", content_encoding="utf-8", headers=headers)
    assert stored(tasks, "bomb")["error"]["type"] == "too_large"


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_a_celery_priority_is_read(sender: Celery, send: Any, tasks: Tasks, priority: int) -> None:
    kwargs = {"agent": "Act", "input": {"query": "x"}}
    sender.send_task("minion.submit", kwargs=kwargs, queue="minion.submit", task_id="urgent", priority=priority)
    assert stored(tasks, "urgent")["state"] == "pending"
    wait_until(drained, "it is forgotten")


def test_a_good_submission_does_not_wait_for_refusals(sender: Celery, send: Any, tasks: Tasks) -> None:
    refused = 500
    with sender.producer_pool.acquire(block=True) as producer:
        for number in range(refused):
            kwargs = {"agent": "Nobody", "input": {}}
            sender.send_task(
                "minion.submit", kwargs=kwargs, queue="minion.submit", task_id=f"refused-{number}", producer=producer
            )
    assert send(agent="Act", input={"query": "x"})["state"] == "pending"
    with make_redis() as broker:
        assert broker.llen(REFUSED) > refused / 2, "most refusals are recorded later"
    wait_until(lambda: tasks.count() == {"pending": 1, "failed": refused}, "all are recorded")
    wait_until(drained, "all are forgotten")


submissions = st.fixed_dictionaries(
    {
        "body": anything.map(lambda value: b64encode(json.dumps([[], value, {}]).encode()).decode()),
        "content-type": st.just("application/json") | anything,
        "headers": st.fixed_dictionaries(
            {"task": st.just("minion.submit"), "id": anything}, optional={"origin": anything, "compression": anything}
        ),
        "properties": st.fixed_dictionaries(
            {"body_encoding": st.just("base64")}, optional={"correlation_id": anything, "delivery_tag": anything}
        ),
    }
).map(json.dumps)


@given(st.lists(submissions | anything.map(json.dumps) | st.binary(min_size=1, max_size=200), min_size=1, max_size=20))
@hypothesis_settings(max_examples=15, suppress_health_check=[*HealthCheck])
def test_hostile_submissions_end_one_way_or_another(send: Any, items: list[str | bytes]) -> None:
    with make_redis() as broker:
        broker.lpush("minion.submit", *items)
    assert send(agent="Act", input={"query": "x"})["state"] == "pending"
    wait_until(drained, "nothing comes again")


@pytest.mark.parametrize("key", ["unacked", "unacked_index", SAMPLES, COUNTS])
def test_a_key_of_another_type_does_not_stop_it(send: Any, tasks: Tasks, key: str) -> None:
    with make_redis() as broker:
        broker.set(key, "x")
        broker.lpush("minion.submit", "garbage")
    assert send(agent="Act", input={"query": "x"})["state"] == "pending"
    wait_until(drained, "nothing is left")


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


@pytest.mark.parametrize(
    ("headers", "fields", "kept"),
    [
        ({"traceparent": CALLER}, {}, CALLER),
        ({"traceparent": "no"}, {}, None),
        ({"traceparent": ["no"]}, {}, None),
        ({"traceparent": CALLER}, {"traceparent": OTHER}, OTHER),
        ({}, {}, None),
    ],
)
def test_trace_of_the_sender_continues(
    send: Any, sender: Celery, tasks: Tasks, headers: Any, fields: Any, kept: str | None
) -> None:
    celery_id = str(uuid4())
    asked = {"agent": "Act", "input": {"query": "cats"}, **fields}
    sender.send_task("minion.submit", kwargs=asked, queue="minion.submit", task_id=celery_id, headers=headers)
    task = stored(tasks, celery_id)
    assert (task["traceparent"], task["error"]) == (kept, None)
